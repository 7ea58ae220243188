"""The names of columns: how a metric is named in short, and what to say of a name unknown."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

Which = Literal["last", "best"]
Split = Literal["select", "report"]

NUMBERS = (
    "select/primary",
    "select/primary/best",
    "select/primary/best_step",
    "report/primary",
    "report/primary/at_best",
    "report/teacher_agreement",
    "teacher/select/primary",
    "teacher/report/primary",
    "train/loss",
    "parameters",
    "parameters/embeddings",
    "parameters/encoder",
    "flops_per_token",
    "latency_ms",
    "peak_memory_mb",
    "micro_batches",
    "seconds/wait",
    "seconds/start",
    "seconds/data",
    "seconds/teacher",
    "seconds/student",
    "seconds/evaluate",
    "seconds/write",
    "seconds_spared",
    "threads",
)
"""Numbers that a frame of trials or teachers has even where no attempt brought them."""

TEXTS = ("primary_metric", "host", "device", "precision", "features", "teacher_weights")
"""The same for text."""

_ORDER = (
    "primary_metric",
    "select",
    "report",
    "teacher",
    "train",
    "parameters",
    "flops_per_token",
    "latency_ms",
    "peak_memory_mb",
    "micro_batches",
    "seconds",
    "seconds_spared",
)


_COSTS = (
    "parameters",
    "flops_per_token",
    "latency_ms",
    "peak_memory_mb",
    "seconds",
    "wall_seconds",
)
"""First parts of columns of which less is better."""


def is_cost(column: str) -> bool:
    """Whether less of a column is better; more of a metric on select is.

    Raises:
        QuestionError: Nobody can say.
    """
    family = column.partition("/")[0]
    if family not in (*_COSTS, "select") or column.endswith(("/loss", "/best_step")):
        raise QuestionError(
            f"{column!r}: neither a metric on select nor a cost, so nobody can say what is better; "
            f"name metrics on select, and costs such as {', '.join(_COSTS[:3])}"
        )
    return family in _COSTS


class UnknownColumnError(KeyError):
    """A column was asked for that is not there."""

    def __init__(self, name: str, columns: Iterable[str]) -> None:
        columns = tuple(columns)
        short = [column.partition("/")[2] for column in columns if column.startswith("report/")]
        close = difflib.get_close_matches(name, [*columns, *short], n=3)
        lines = [f"there is no column {name!r}"]
        if close:
            lines.append(f"Did you mean {' or '.join(map(repr, close))}?")
        lines.append(f"There are: {', '.join(columns)}")
        self.message = "\n    ".join(lines)
        super().__init__(self.message)

    def __str__(self) -> str:
        # A KeyError shows its argument quoted, line ends and all.
        return self.message


class QuestionError(ValueError):
    """A question that has no answer, whatever the sweep has found."""


class UnknownTrialError(KeyError):
    """A trial was asked for that is not there."""

    def __init__(self, ids: Sequence[str], known: Collection[str]) -> None:
        lines = []
        for id in ids:
            close = difflib.get_close_matches(id, known, n=1)
            lines.append(
                f"there is no trial {id!r}" + (f"; did you mean {close[0]}?" if close else "")
            )
        self.message = "\n".join(lines)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


def metric_column(
    columns: Collection[str], metric: str, *, split: Split, which: Which, is_measured: bool
) -> str:
    """The column that a metric's name means.

    Args:
        columns: Those there are.
        metric: A column as it is written (`select/accuracy`, `latency_ms`), or a metric's name
            alone (`accuracy`, `primary`), which is looked up on the split.
        split: Where to look up a name alone.
        which: With the weights at the end of training, or with those that were best on select.
        is_measured: Whether there is a result yet; before, any name may come to be one.

    Raises:
        UnknownColumnError: There is none.
    """
    meant = [_of_weights(metric, which), _of_weights(f"{split}/{metric}", which)]
    for column in meant:
        if column in columns:
            return column
    expected = meant[0] if "/" in metric or metric in columns else meant[1]
    if is_measured:
        raise UnknownColumnError(metric if which == "last" else expected, columns)
    return expected


def _of_weights(column: str, which: Which) -> str:
    if which == "last":
        return column
    return f"{column}/at_best" if column.startswith("report/") else f"{column}/best"


def check_column(columns: Collection[str], name: str) -> None:
    """Refuse the name of a column that is not there."""
    if name not in columns:
        raise UnknownColumnError(name, columns)


def check_choice(parameter: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among those there are; unsaid, it would act as another.

    Raises:
        QuestionError: It is not.
    """
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        mend = (
            f"did you mean {close[0]!r}?" if close else f"choose {' or '.join(map(repr, choices))}"
        )
        raise QuestionError(f"{parameter}={value!r}: {mend}")


def value_order(name: str) -> tuple[int, bool, str]:
    """The sort key that puts results before costs and costs before provenance."""
    family = name.partition("/")[0]
    place = _ORDER.index(family) if family in _ORDER else len(_ORDER)
    return place, "/primary" not in name, name
