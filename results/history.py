"""What an attempt logs while it trains: parts of rows, each a step."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .compact import RESERVED, Block, is_part, part_place
from .files import publish
from .parts import Parts, every, read_parts
from .schema import AttemptKey, attempt_key
from .source import Source
from .tables import write_table


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
        if reserved := [name for name in values if name.startswith(RESERVED)]:
            raise ValueError(f"{reserved[0]!r}: names that begin with {RESERVED!r} are taken")
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

    parts: Parts
    origins: Mapping[AttemptKey, Origin]
    """Of the attempts that were resumed."""


def read_logged(
    source: Source,
    *,
    wanted: Callable[[str], bool],
    columns: Callable[[str], bool] = every,
) -> Logged:
    """Every readable part of the attempts whose id is wanted, committed or not.

    Args:
        source: The store.
        wanted: Whether a trial's or teacher's history is to be read, by its id.
        columns: Which columns are needed; more may come.
    """
    parts = read_parts(
        source,
        "history",
        wanted=lambda name: is_logged(name) and wanted(part_place(name)[0].id),
        check=check_history,
        columns=lambda name: name == "step" or columns(name),
        compacted="history",
    )
    origins = {
        part.key: _origin(part.key, part.stamps)
        for block in parts.blocks
        for part in block.parts
        if "resumed_from" in part.stamps
    }
    return Logged(parts, origins)


def is_logged(name: str) -> bool:
    """Whether a name is that of a part of a history."""
    return is_part(name) and (part_place(name)[1] or "").isdigit()


def check_history(block: Block) -> None:
    """Refuse rows that are not those of the attempts which their names say."""
    if block.table.schema.get_field_index("step") < 0:
        raise ValueError("column 'step' is missing")
    for part in block.parts:
        # A compact file tells of its parts by their names alone.
        if part.stamps.get("attempt", str(part.key)) != str(part.key):
            raise ValueError("the file's name and its content name different attempts")


def _origin(key: AttemptKey, stamps: Mapping[str, str]) -> Origin:
    epoch, _, number = stamps["resumed_from"].partition("-")
    parent = attempt_key(key.id, int(epoch), int(number))
    return Origin(parent, int(stamps.get("resumed_from_step", 0)))


def _table(rows: Mapping[int, Mapping[str, float]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {"step": pa.array(list(rows), pa.int64())}
    for name in names:
        # A value that was not logged is null; one that was logged as NaN stays NaN.
        columns[name] = pa.array([row.get(name) for row in rows.values()], pa.float64())
    return pa.table(columns)
