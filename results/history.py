"""What an attempt logs while it trains: parts of rows, each a step."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .files import publish
from .schema import AttemptKey, Damaged, attempt_key
from .source import Source
from .tables import concatenate, read_parts, stamp, write_table

_PART = re.compile(r"(([0-9a-f]{8,64})\.(\d+)-(\d+))\.(\d+)\.parquet")


class Origin(NamedTuple):
    """Where an attempt started from."""

    parent: AttemptKey
    step: int


class HistoryWriter:
    """Gathers the rows of one attempt; each flush makes one new part of them.

    Flush before a checkpoint is published, so that whoever resumes from it finds every step
    before it.
    """

    def __init__(self, folder: Path, key: AttemptKey, *, origin: Origin | None) -> None:
        self._folder = folder
        self._key = key
        self._origin = origin
        self._rows: dict[int, dict[str, float]] = {}
        self._num_parts = 0

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add what a step logged; a second call for a step adds to its row."""
        if "step" in values:
            raise ValueError("'step' is the name of the column that counts the steps")
        row = self._rows.setdefault(int(step), {})
        row.update({name: float(value) for name, value in values.items()})

    def flush(self) -> None:
        """Publish the rows gathered since the last flush."""
        # A resumed attempt says where it started before it publishes a checkpoint of its own, even
        # if it has logged nothing: without that its descendants would lose their older ancestors.
        if not self._rows and (self._num_parts or self._origin is None):
            return
        stamps = {"attempt": str(self._key)}
        if self._origin is not None:
            parent = self._origin.parent
            stamps["resumed_from"] = f"{parent.epoch}-{parent.number}"
            stamps["resumed_from_step"] = str(self._origin.step)
        publish(
            self._folder / f"{self._key}.{self._num_parts + 1}.parquet",
            partial(write_table, _table(self._rows), kind="history", metadata=stamps),
        )
        self._num_parts += 1
        self._rows = {}

    def close(self) -> None:
        """Publish what is left; writes nothing where nothing is."""
        if self._rows:
            self.flush()


class Logged(NamedTuple):
    """The parts of some attempts."""

    tables: Mapping[AttemptKey, pa.Table]
    """By attempt, in the order they were logged."""
    origins: Mapping[AttemptKey, Origin]
    """Of the attempts that were resumed."""
    damaged: tuple[Damaged, ...]


def read_logged(source: Source, *, wanted: Callable[[str], bool]) -> Logged:
    """Every readable part of the attempts whose id is wanted, committed or not."""
    parts = read_parts(
        source,
        "history",
        kind="history",
        wanted=lambda name: (match := _PART.fullmatch(name)) is not None and wanted(match[2]),
        check=_check_part,
    )
    by_attempt: dict[AttemptKey, dict[int, pa.Table]] = {}
    origins: dict[AttemptKey, Origin] = {}
    for name, table in parts.tables.items():
        key, number = _part_place(name)
        by_attempt.setdefault(key, {})[number] = table
        parent = stamp(table, "resumed_from")
        if parent is not None:
            epoch, _, attempt = parent.partition("-")
            step = int(stamp(table, "resumed_from_step") or 0)
            origins[key] = Origin(attempt_key(key.id, int(epoch), int(attempt)), step)
    tables = {
        key: concatenate([found[number] for number in sorted(found)])
        for key, found in by_attempt.items()
    }
    return Logged(tables, origins, parts.damaged)


def logged_attempts(source: Source) -> tuple[AttemptKey, ...]:
    """The attempts of which there is a history, by the names of the files alone."""
    names = (name for name in source.names("history") if _PART.fullmatch(name))
    return tuple(sorted({_part_place(name)[0] for name in names}))


def _table(rows: Mapping[int, Mapping[str, float]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {"step": pa.array(list(rows), pa.int64())}
    for name in names:
        # A value that was not logged is null; one that was logged as NaN stays NaN.
        columns[name] = pa.array([row.get(name) for row in rows.values()], pa.float64())
    return pa.table(columns)


def _check_part(name: str, table: pa.Table) -> None:
    if table.schema.get_field_index("step") < 0:
        raise ValueError("column 'step' is missing")
    if stamp(table, "attempt") != str(_part_place(name)[0]):
        raise ValueError("the file's name and its content name different attempts")


def _part_place(name: str) -> tuple[AttemptKey, int]:
    match = _PART.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} names no part of a history")
    return AttemptKey(match[2], int(match[3]), int(match[4])), int(match[5])
