"""Merges the parts of a store into compact files, while others read and write it.

What is merged is published first, under a new name, and only then are the parts removed that it
holds: after a grace period, once the file was found on the disk bit for bit as it was written. A
kill between any two steps leaves every part at least once, and readers count it once.

Files of like size are merged with each other, eight at a time, so that a row is written a few times
in all and the number of files stays small.
"""

import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa

from .compact import (
    Block,
    CompactFile,
    CompactName,
    Kind,
    digest,
    is_part,
    pack,
    part_place,
    sort_key,
)
from .files import allow, publish
from .history import check_history, is_logged
from .parts import compact_files, read_parts
from .predictions import check_predictions, is_predicted
from .reader import check_attempts, is_attempt
from .schema import NewerStoreError
from .source import LocalSource
from .tables import concatenate

GRACE_SECONDS = 120.0
"""How long merged parts stay: readers on other hosts may see a folder as it was a minute ago."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_FAN = 8
"""So many files of one size are merged."""
_PARTS_AT_ONCE = 1_000
_BYTES_AT_ONCE = 32 * 2**20
_CHECKS: dict[Kind, tuple[Callable[[str], bool], Callable[[Block], None]]] = {
    "attempts": (is_attempt, check_attempts),
    "history": (is_logged, check_history),
    "predictions": (is_predicted, check_predictions),
}


class Merged(NamedTuple):
    """What a merge has done."""

    parts: int
    """That lay alone and now lie in a compact file."""
    files: int
    """Compact files that were written."""


class Collected(NamedTuple):
    """What was removed because compact files hold it."""

    files: int
    seconds_left: float | None
    """Until the rest may be removed; None where nothing waits."""


class _Size(NamedTuple):
    """What decides with which others a compact file is merged."""

    name: str
    file: CompactFile

    @property
    def cells(self) -> int:
        return max(1, self.file.num_rows) * len(self.file.columns)

    @property
    def tier(self) -> int:
        return int(math.log(self.cells, _FAN))


class Compaction:
    """Merges parts of one store; only for the holder of its lock."""

    def __init__(
        self,
        folder: Path,
        *,
        epoch: int,
        fence: Callable[[], None] = allow,
        grace_seconds: float = GRACE_SECONDS,
        cells_of_a_file: int = 8_000_000,
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: The store's.
            epoch: Of the lock; part of the names of the files that are written.
            fence: Called right before a file appears or is removed; whatever it raises forbids it.
            grace_seconds: How long merged parts stay.
            cells_of_a_file: Rows times columns at which files stop growing, about: a merge holds
                what it merges in memory a few times.
        """
        self._folder = folder
        self._source = LocalSource(folder)
        self._epoch = epoch
        self._fence = fence
        self._grace_seconds = grace_seconds
        self._cells_of_a_file = cells_of_a_file
        self._verified: set[str] = set()
        self._broken: set[str] = set()

    def merge(self, *, at_least: int = 1, spare: Collection[str] = (), fan: int = _FAN) -> Merged:
        """Put parts that lie alone into compact files, and small compact files into larger ones.

        What cannot be read stays where it is.

        Args:
            at_least: A kind with fewer new parts than this is left alone.
            spare: Ids of work whose parts are left alone: it may still be asked for by its name.
            fan: How many compact files of one size are merged; 2 leaves as few as there can be.
        """
        (self._folder / "compact").mkdir(mode=0o700, exist_ok=True)
        done = [self._merge(kind, at_least, frozenset(spare), fan) for kind in KINDS]
        return Merged(sum(each.parts for each in done), sum(each.files for each in done))

    def collect(self) -> Collected:
        """Remove what aged and verified compact files hold elsewhere too.

        A compact file is removed where others hold all of its parts.
        """
        done = [self._collect(kind) for kind in KINDS]
        waits = [each.seconds_left for each in done if each.seconds_left is not None]
        return Collected(sum(each.files for each in done), max(waits, default=None))

    def rescue(self, name: str) -> int:
        """Write anew what can still be read of a damaged compact file, and lies nowhere else.

        Args:
            name: Of the file; it stays as it is.

        Returns:
            How many parts were rescued.
        """
        told = CompactName.parse(name)
        if told is None:
            return 0
        try:
            source = self._source.open(f"compact/{name}")
            file = CompactFile(source, kind=told.kind, name=name)
        except (pa.ArrowException, OSError, ValueError, KeyError, NewerStoreError):
            return 0
        is_of_kind, check = _CHECKS[told.kind]
        elsewhere = set(self._source.names(told.kind))
        for other, intact in compact_files(self._source, told.kind).files:
            if other != name and self._is_as_written(other):
                elsewhere |= {part.name for part in intact.parts}
        # A part of a name that stands twice in the list may be either one's.
        names = Counter(part.name for part in file.parts)
        wanted = [
            each
            for each, times in names.items()
            if times == 1 and each not in elsewhere and is_of_kind(each)
        ]
        rescued = 0
        for block in _readable(file, wanted, check):
            self._publish(told.kind, block)
            rescued += len(block.parts)
        return rescued

    def _merge(self, kind: Kind, at_least: int, spare: frozenset[str], fan: int) -> Merged:
        files = compact_files(self._source, kind).files
        held = {part.name for _, file in files for part in file.parts}
        is_of_kind, _ = _CHECKS[kind]
        alone = sorted(
            (
                name
                for name in self._source.names(kind)
                if is_of_kind(name) and name not in held and part_place(name)[0].id not in spare
            ),
            key=sort_key,
        )
        num_parts = num_files = 0
        for batch in self._batches(kind, alone) if len(alone) >= at_least else ():
            block = self._read(kind, batch)
            if block.parts:
                self._publish(kind, block)
                num_parts += len(block.parts)
                num_files += 1
        while group := self._next_group(kind, fan):
            names = {part.name for each in group for part in each.file.parts}
            block = self._read(kind, names)
            if len(block.parts) == len(names):
                self._publish(kind, block)
                num_files += 1
            else:
                # Damaged since it was verified: readers find what they can where it lies.
                self._broken |= {each.name for each in group}
        return Merged(num_parts, num_files)

    def _batches(self, kind: Kind, names: Sequence[str]) -> Iterator[frozenset[str]]:
        """Parts that are merged at once, so many as memory bears."""
        batch: list[str] = []
        num_bytes = 0
        for name in names:
            with suppress(FileNotFoundError):
                num_bytes += (self._folder / kind / name).stat().st_size
                batch.append(name)
            if len(batch) == _PARTS_AT_ONCE or num_bytes > _BYTES_AT_ONCE:
                yield frozenset(batch)
                batch, num_bytes = [], 0
        if batch:
            yield frozenset(batch)

    def _next_group(self, kind: Kind, fan: int) -> Sequence[_Size]:
        """Compact files of like size that are to become one; none where there are too few."""
        growing = sorted(
            (
                size
                for name, file in self._live(kind)
                if name not in self._broken
                if (size := _Size(name, file)).cells < self._cells_of_a_file / 2
                # Damage that was merged would be as written.
                if self._is_as_written(name)
            ),
            key=lambda size: (size.cells, size.name),
        )
        tiers: dict[int, list[_Size]] = {}
        for size in growing:
            # With the smallest fan all sizes are alike: that leaves the fewest files.
            tiers.setdefault(size.tier if fan == _FAN else 0, []).append(size)
        for alike in tiers.values():
            if len(alike) >= fan:
                sums = accumulate(size.cells for size in alike)
                fitting = sum(cells <= self._cells_of_a_file for cells in sums)
                return alike[: max(2, fitting)]
        return ()

    def _live(self, kind: Kind) -> Iterator[tuple[str, CompactFile]]:
        """The compact files that hold what no larger one holds."""
        covered: set[str] = set()
        for name, file in compact_files(self._source, kind).files:
            names = {part.name for part in file.parts}
            if not names <= covered:
                covered |= names
                yield name, file

    def _read(self, kind: Kind, names: Collection[str]) -> Block:
        """These parts as one block, in the order of trials and their age."""
        _, check = _CHECKS[kind]
        found = read_parts(
            self._source, kind, wanted=names.__contains__, check=check, compacted=kind
        )
        parts = [part for block in found.blocks for part in block.parts]
        table = concatenate([block.table for block in found.blocks])
        order = sorted(range(len(parts)), key=lambda place: sort_key(parts[place].name))
        sizes = np.array([part.num_rows for part in parts], dtype=np.int64)
        begins = np.cumsum(sizes) - sizes
        rows = np.concatenate(
            [np.arange(0), *(np.arange(begins[n], begins[n] + sizes[n]) for n in order)]
        )
        return Block(tuple(parts[n] for n in order), table.take(pa.array(rows, pa.int64())))

    def _publish(self, kind: Kind, block: Block) -> None:
        content = pack(block, kind=kind)
        written = CompactFile(pa.BufferReader(content), kind=kind, name="as written").read()
        if written.parts != block.parts or not _same_bits(written.table, block.table):
            raise AssertionError(f"what was written of {kind} is not what was read")
        numbers = [
            told.number
            for name in self._source.names("compact")
            if (told := CompactName.parse(name)) and told.epoch == self._epoch
        ]
        number = max(numbers, default=0) + 1
        name = CompactName(kind, self._epoch, number, digest(content))
        path = self._folder / "compact" / str(name)
        publish(path, lambda temporary: _write(temporary, content), fence=self._fence)

    def _collect(self, kind: Kind) -> Collected:
        names = [name for name in self._source.names(kind) if is_part(name)]
        now = self._clock()
        covered: set[str] = set()
        waiting: list[float] = []
        spent: list[str] = []
        for name, file in compact_files(self._source, kind).files:
            path = f"compact/{name}"
            of_file = {part.name for part in file.parts}
            age = self._source.age_seconds(path, now=now)
            if of_file <= covered:
                spent.append(path)
            elif age is not None and age >= self._grace_seconds and self._is_as_written(name):
                covered |= of_file
            elif age is not None and age < self._grace_seconds:
                waiting.append(self._grace_seconds - age)
        spent += [f"{kind}/{name}" for name in names if name in covered]
        if spent:
            self._fence()
        for path in spent:
            (self._folder / path).unlink(missing_ok=True)
        return Collected(len(spent), max(waiting, default=None))

    def _is_as_written(self, name: str) -> bool:
        """Whether a compact file on the disk has every bit with which it was published."""
        if name not in self._verified:
            told = CompactName.parse(name)
            with suppress(OSError):
                if told is not None and told.fits(self._source.content(f"compact/{name}")):
                    self._verified.add(name)
        return name in self._verified

    def _clock(self) -> float:
        """Now, by the clock that dates the files: another host's may go differently."""
        probe = self._folder / "compact" / f".clock.{secrets.token_hex(4)}.tmp"
        try:
            probe.touch(mode=0o600)
            return probe.stat().st_mtime
        except FileNotFoundError:
            return time.time()
        finally:
            probe.unlink(missing_ok=True)


def _readable(
    file: CompactFile, names: Sequence[str], check: Callable[[Block], None]
) -> Iterator[Block]:
    """What of these parts is what its name says, halving what is not until the damage is found."""
    if not names:
        return
    wanted = frozenset(names)
    try:
        block = file.read_checked(lambda part: part.name in wanted)
        check(block)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        if len(names) > 1:
            yield from _readable(file, names[: len(names) // 2], check)
            yield from _readable(file, names[len(names) // 2 :], check)
    else:
        yield block


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _same_bits(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables are equal, where not-a-number equals itself."""
    return bool(_as_bits(one).equals(_as_bits(other)))


def _as_bits(table: pa.Table) -> pa.Table:
    whole = {pa.float64(): pa.int64(), pa.float32(): pa.int32()}
    columns = [
        pa.chunked_array(
            [chunk.view(whole.get(chunk.type, chunk.type)) for chunk in column.chunks],
            whole.get(column.type, column.type),
        )
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)
