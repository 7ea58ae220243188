"""What is known of models and tasks without loading either: shapes, classes, rows."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .embedded import embedded_model_folder
from .task import Task, Teacher


class ModelFacts(NamedTuple):
    """A model's size, in the words of its `config.json`."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    num_labels: int | None = None
    """Classes of its head; None: it has none, or its file does not say."""
    has_language_head: bool | None = None
    """Whether it was saved with a head for masked language modelling; None: unknown."""


class TaskFacts(NamedTuple):
    """A task's labels and size."""

    num_classes: int
    regression: bool = False
    train_rows: int | None = None
    """Rows of the train split as its source ships it; None: unknown."""
    metrics: tuple[str, ...] | None = None
    """What is measured of it, the main metric first; None: unknown."""


class Facts(Protocol):
    """Answers without loading a model or rows; None is "unknown"."""

    def model(self, teacher: Teacher) -> ModelFacts | None:
        """A teacher's size."""

    def task(self, task: Task) -> TaskFacts | None:
        """A task's labels and size."""


class ShippedFacts:
    """Facts from the `config.json` of local and embedded folders, and from a shipped table."""

    def model(self, teacher: Teacher) -> ModelFacts | None:
        """A teacher's size, from its own folder if there is one."""
        folder = embedded_model_folder(teacher.model) or Path(teacher.model)
        return read_config(folder / "config.json") or _models().get(teacher.model)

    def task(self, task: Task) -> TaskFacts | None:
        """A GLUE or embedded task's labels and size; nothing is known of local files."""
        return _tasks().get(task.name) if task.name else None


def read_config(path: Path) -> ModelFacts | None:
    """The facts in a model's `config.json`; None where there is none that says them all."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return _model_facts(config) if isinstance(config, dict) else None


_LANGUAGE_MODELS = frozenset({"BertForMaskedLM", "BertForPreTraining"})
"""Classes of checkpoints that hold a head for masked language modelling."""


def _model_facts(config: Mapping[str, Any]) -> ModelFacts | None:
    sizes = {
        name: config.get(name, 2 if name == "type_vocab_size" else None)
        for name in ModelFacts._fields
        if name not in ("model_type", "num_labels", "has_language_head")
    }
    if not all(isinstance(size, int) for size in sizes.values()):
        return None
    labels = config.get("id2label")
    saved_as = config.get("architectures")
    return ModelFacts(
        model_type=str(config.get("model_type", "")),
        num_labels=len(labels) if isinstance(labels, dict) else None,
        has_language_head=None if not saved_as else not _LANGUAGE_MODELS.isdisjoint(saved_as),
        **{name: int(size or 0) for name, size in sizes.items()},
    )


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads((files(__package__) / "facts.json").read_text("utf-8"))
    return table


@cache
def _models() -> Mapping[str, ModelFacts]:
    """Every known model under each name it is published by."""
    found: dict[str, ModelFacts] = {}
    for row in _table()["models"]:
        facts = _model_facts(row["config"])
        if facts:
            found |= dict.fromkeys(row["names"], facts)
    return found


@cache
def _tasks() -> Mapping[str, TaskFacts]:
    return {name: TaskFacts(**facts) for name, facts in _table()["tasks"].items()}
