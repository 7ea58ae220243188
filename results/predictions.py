"""A student's logits on a split, row by row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .compact import Block, is_part, part_place
from .parts import Parts, every, read_parts
from .schema import SPLIT, AttemptKey, Damaged
from .source import Source


class Predicted(NamedTuple):
    """What was found of an attempt's predictions on a split."""

    table: pa.Table | None
    damaged: tuple[Damaged, ...]


def prediction_file(key: AttemptKey, split: str) -> str:
    """The file of an attempt's predictions on a split."""
    if not SPLIT.fullmatch(split):
        raise ValueError(f"{split!r} is not the name of a split: up to 32 lower-case letters")
    return f"{key}.{split}.parquet"


def prediction_table(
    rows: npt.NDArray[np.integer[Any]],
    labels: npt.NDArray[np.integer[Any]],
    logits: npt.NDArray[np.floating[Any]],
) -> pa.Table:
    """Columns `row`, `label` and `logit/<class>`."""
    if logits.ndim != 2 or not len(rows) == len(labels) == len(logits):
        raise ValueError(
            f"rows {rows.shape}, labels {labels.shape} and logits {logits.shape} do not fit: "
            "[rows], [rows] and [rows, classes]"
        )
    columns = {"row": pa.array(rows, pa.int64()), "label": pa.array(labels, pa.int64())}
    for index, values in enumerate(np.ascontiguousarray(logits.T, dtype=np.float32)):
        columns[f"logit/{index}"] = pa.array(values)
    return pa.table(columns)


def read_predictions(source: Source, key: AttemptKey, split: str) -> Predicted:
    """The predictions of an attempt on a split."""
    name = prediction_file(key, split)
    parts = read_predicted(source, wanted=lambda found: found == name)
    found = [block.table for block in parts.blocks if block.parts]
    return Predicted(_own_columns(found[0]) if found else None, parts.damaged)


def read_predicted(source: Source, *, wanted: Callable[[str], bool] = every) -> Parts:
    """Every readable prediction whose file's name is wanted."""
    return read_parts(
        source,
        "predictions",
        wanted=lambda name: is_predicted(name) and wanted(name),
        check=check_predictions,
        compacted="predictions",
    )


def is_predicted(name: str) -> bool:
    """Whether a name is that of predictions on a split."""
    return is_part(name) and SPLIT.fullmatch(part_place(name)[1] or "") is not None


def check_predictions(block: Block) -> None:
    """Refuse what is no table of predictions."""
    block.table.column("row")


def _own_columns(table: pa.Table) -> pa.Table:
    """A table without the classes of others that lay beside it: no logit is ever null."""
    names = [name for name in table.column_names if table[name].null_count < table.num_rows]
    return table.select(names or table.column_names)
