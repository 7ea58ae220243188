"""The tasks of GLUE: their columns, class names and official metrics.

Wang et al., *GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding*, 2019, arXiv:1804.07461, table 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Metric = Literal["accuracy", "f1", "matthews"]

GLUE_REPOSITORY = "nyu-mll/glue"
"""The benchmark on the hub: one folder a task, one or more Parquet files a split."""


@dataclass(frozen=True)
class GlueTask:
    """One classification task of the benchmark."""

    text: tuple[str, ...]
    """The one or two text columns."""
    classes: tuple[str, ...]
    """Class names in the order of their ids."""
    metrics: tuple[Metric, ...] = ("accuracy",)
    """The official metrics, the main one first."""
    validation: tuple[str, ...] = ("validation",)
    """The labelled splits apart from train; the first is reported unless said."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose labels are public."""
        return ("train", *self.validation)


_ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), metrics=("matthews",)),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation=("validation_matched", "validation_mismatched"),
    ),
    "mrpc": GlueTask(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT),
    "qqp": GlueTask(
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
    ),
    "rte": GlueTask(("sentence1", "sentence2"), _ENTAILMENT),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
"""The classification tasks, by the name that follows `glue/`."""

GLUE_REGRESSION = "stsb"
"""The one task with a number for a label."""
