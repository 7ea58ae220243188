"""The format of compact files: many parts of one kind in one, which says of each where it lies.

A file's name ends with the beginning of its SHA-256, so that a flipped bit anywhere in it is seen.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .schema import SCHEMA_VERSION, AttemptKey, NewerStoreError
from .tables import PREFIX, stamp

Kind = Literal["attempts", "history", "predictions"]
"""What can be compacted; the folder of the parts has the same name."""

RESERVED = "kdsweep/"
"""Begins the columns that say, to whoever reads a compact file alone, what its rows are of."""

_PART = re.compile(r"([0-9a-f]{8,64})\.(\d+)-(\d+)(?:\.([0-9a-z]+))?\.parquet")
_COMPACT = re.compile(r"(attempts|history|predictions)\.(\d+)-(\d+)\.([0-9a-f]{16})\.parquet")
_DIGITS = 16
_ROWS_OF_A_GROUP = 131_072


class Held(NamedTuple):
    """A part, as a compact file or the part itself tells of it."""

    name: str
    """Of the part's file."""
    num_rows: int
    stamps: Mapping[str, str]
    """What the part says of itself beside its kind and version."""

    @property
    def key(self) -> AttemptKey:
        """The attempt that the part is of."""
        return part_place(self.name)[0]


class Block(NamedTuple):
    """Rows of parts, one part after the other."""

    parts: tuple[Held, ...]
    table: pa.Table


class CompactName(NamedTuple):
    """What the name of a compact file says."""

    kind: Kind
    epoch: int
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.epoch}-{self.number}.{self.digest}.parquet"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The parts of a name; None where it is no compact file's."""
        match = _COMPACT.fullmatch(name)
        if match is None:
            return None
        return cls(cast("Kind", match[1]), int(match[2]), int(match[3]), match[4])

    def fits(self, content: bytes) -> bool:
        """Whether these are the bytes that were written under this name."""
        return self.digest == digest(content)


def digest(content: bytes) -> str:
    """The beginning of the SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


@lru_cache(maxsize=2**18)
def part_place(name: str) -> tuple[AttemptKey, str | None]:
    """The attempt of a part, and what its name says beyond that: its number, or a split."""
    match = _PART.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} names no part")
    return AttemptKey(match[1], int(match[2]), int(match[3])), match[4]


def is_part(name: str) -> bool:
    """Whether a name is that of a part of attempts, history or predictions."""
    return _PART.fullmatch(name) is not None


def sort_key(name: str) -> tuple[AttemptKey, int, str]:
    """Orders parts by trial and age."""
    key, rest = part_place(name)
    return key, int(rest) if rest and rest.isdigit() else 0, rest or ""


def pack(block: Block, *, kind: Kind) -> bytes:
    """The bytes of a compact file of these parts."""
    table = _keyed(block, kind).replace_schema_metadata(
        {f"{PREFIX}table": kind, f"{PREFIX}schema_version": str(SCHEMA_VERSION)}
    )
    sink = pa.BufferOutputStream()
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    encodings = {} if kind == "attempts" else dict.fromkeys(floats, "BYTE_STREAM_SPLIT")
    if kind == "history":
        encodings["step"] = "DELTA_BINARY_PACKED"
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=[name for name in table.column_names if name not in encodings],
        column_encoding=encodings or None,
    ) as writer:
        writer.write_table(table, row_group_size=_ROWS_OF_A_GROUP)
        # In the footer alone: what stands in the schema is written twice.
        parts = _contents_json(block.parts)
        # Parquet's checksums do not cover the footer, and a reader believes the list.
        sums = {f"{PREFIX}parts_digest": digest(parts.encode())}
        writer.add_key_value_metadata({f"{PREFIX}parts": parts, **sums})
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _keyed(block: Block, kind: Kind) -> pa.Table:
    if kind == "attempts":
        return block.table
    places = [part_place(part.name) for part in block.parts]
    columns = {
        "id": [key.id for key, _ in places],
        "attempt": [f"{key.epoch}-{key.number}" for key, _ in places],
        **({"split": [rest for _, rest in places]} if kind == "predictions" else {}),
    }
    rows = np.repeat(np.arange(len(places)), [part.num_rows for part in block.parts])
    table = block.table
    for place, (name, values) in enumerate(columns.items()):
        table = table.add_column(place, RESERVED + name, pa.array(values, pa.string()).take(rows))
    return table


def _contents_json(parts: Sequence[Held]) -> str:
    stamps = {place: dict(part.stamps) for place, part in enumerate(parts) if part.stamps}
    return json.dumps(
        {
            "names": [part.name for part in parts],
            "rows": [part.num_rows for part in parts],
            "stamps": stamps,
        }
    )


def _contents(text: str) -> tuple[Held, ...]:
    told = json.loads(text)
    stamps: Mapping[str, Mapping[str, str]] = told["stamps"]
    nothing: Mapping[str, str] = {}
    return tuple(
        Held(name, rows, stamps.get(str(place), nothing) if stamps else nothing)
        for place, (name, rows) in enumerate(zip(told["names"], told["rows"], strict=True))
    )


class CompactFile:
    """An open compact file; its rows are read when they are asked for."""

    def __init__(self, source: Any, *, kind: Kind, name: str) -> None:  # noqa: ANN401  # what Arrow opens
        """Read the footer.

        Raises:
            NewerStoreError: A newer version wrote it.
            ValueError: It is no compact file of this kind; also Arrow's errors.
        """
        self._kind = kind
        self._file = pq.ParquetFile(source, page_checksum_verification=True)
        schema = self._file.schema_arrow
        version = stamp(schema, "schema_version")
        metadata = self._file.metadata.metadata or {}
        contents = metadata.get(f"{PREFIX}parts".encode())
        if version is None or contents is None or stamp(schema, "table") != kind:
            raise ValueError(f"not a compact file of {kind}")
        if int(version) > SCHEMA_VERSION:
            raise NewerStoreError(name, int(version))
        self.parts = _contents(contents.decode())
        told = metadata.get(f"{PREFIX}parts_digest".encode())
        self.is_list_whole = told is None or told.decode() == digest(contents)
        """Whether the list of parts is as it was written; the first files told no digest of it."""
        self.columns: tuple[str, ...] = tuple(
            name for name in schema.names if not name.startswith(RESERVED)
        )
        if sum(part.num_rows for part in self.parts) != self._file.metadata.num_rows:
            raise ValueError("its rows are not those of its parts")

    @property
    def num_rows(self) -> int:
        """Of all parts."""
        rows: int = self._file.metadata.num_rows
        return rows

    def read(
        self,
        wanted: Callable[[Held], bool] = lambda _: True,
        *,
        columns: Callable[[str], bool] = lambda _: True,
    ) -> Block:
        """Rows of some of the parts, in their order; no more of the file is read than they need."""
        return self._read(wanted, [name for name in self.columns if columns(name)])

    def _read(self, wanted: Callable[[Held], bool], names: Sequence[str]) -> Block:
        chosen = [wanted(part) for part in self.parts]
        parts = tuple(part for part, is_chosen in zip(self.parts, chosen, strict=True) if is_chosen)
        if all(chosen):
            return Block(parts, self._file.read(list(names)))
        ends = list(accumulate(part.num_rows for part in self.parts))
        ranges = [
            range(end - part.num_rows, end)
            for part, end, is_chosen in zip(self.parts, ends, chosen, strict=True)
            if is_chosen and part.num_rows
        ]
        groups, places = self._groups_of(ranges)
        table = self._file.read_row_groups(groups, list(names))
        return Block(parts, table.take(places))

    def read_checked(self, wanted: Callable[[Held], bool]) -> Block:
        """Rows of some of the parts, after comparing whose they are by the list and by themselves.

        Raises:
            ValueError: The two differ: the list of parts is damaged.
        """
        parts, table = self._read(wanted, self._file.schema_arrow.names)
        block = Block(parts, table.select(list(self.columns)))
        told = [name for name in table.column_names if name.startswith(RESERVED)]
        if not _keyed(block, self._kind).select(told).equals(table.select(told)):
            raise ValueError("its list of parts is not that of its rows")
        return block

    def _groups_of(self, ranges: Sequence[range]) -> tuple[list[int], pa.Array]:
        """Row groups that hold these rows, and where in them the rows are."""
        sizes = [
            self._file.metadata.row_group(group).num_rows
            for group in range(self._file.metadata.num_row_groups)
        ]
        rows = np.concatenate([np.arange(0), *(np.arange(r.start, r.stop) for r in ranges)])
        ends = np.cumsum(sizes)
        of_row = np.searchsorted(ends, rows, side="right")
        groups = np.unique(of_row)
        # Where each group that is read begins, less where it begins in the file.
        read_sizes = np.array(sizes, dtype=np.int64)[groups]
        shifts = (np.cumsum(read_sizes) - read_sizes) - (ends[groups] - read_sizes)
        places = rows + shifts[np.searchsorted(groups, of_row)] if len(rows) else rows
        return groups.tolist(), pa.array(places, pa.int64())
