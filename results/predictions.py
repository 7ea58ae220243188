"""A student's logits on a split, row by row."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .schema import SPLIT, AttemptKey, Damaged
from .source import Source
from .tables import decode, read_parts

_FILE = re.compile(r"[0-9a-f]{8,64}\.\d+-\d+\.[a-z]{1,32}\.parquet")


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


def read_predictions(source: Source, key: AttemptKey, split: str) -> pa.Table:
    """The predictions of an attempt on a split.

    Raises:
        FileNotFoundError: None were kept.
    """
    path = f"predictions/{prediction_file(key, split)}"
    return decode(source.content(path), kind="predictions", name=path)


def damaged_predictions(source: Source) -> tuple[Damaged, ...]:
    """The predictions that cannot be read."""
    parts = read_parts(
        source,
        "predictions",
        kind="predictions",
        wanted=lambda name: _FILE.fullmatch(name) is not None,
        check=lambda _, table: table.column("row"),
    )
    return parts.damaged
