"""Arrow tables to Parquet files and back: one way to write, one way to read, versions checked."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import pyarrow as pa
import pyarrow.parquet as pq

from .schema import SCHEMA_VERSION, NewerStoreError

Kind = Literal["plan", "attempts", "history", "predictions"]

PREFIX = "kdsweep."
"""Begins what a part says of itself in its metadata."""


def write_table(
    table: pa.Table, path: Path, *, kind: Kind, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one part."""
    told = {"schema_version": str(SCHEMA_VERSION), "table": kind, **(metadata or {})}
    table = table.replace_schema_metadata({PREFIX + key: told[key] for key in told})
    pq.write_table(table, path, write_page_checksum=True, **_encoding(kind, table.schema))


def _encoding(kind: Kind, schema: pa.Schema) -> dict[str, Any]:
    match kind:
        case "attempts":
            # One row: a codec and statistics for every column cost more than they save
            # (80 columns: 17 kB and 4.1 ms to read with zstd, 16 kB and 2.4 ms without).
            return {"compression": "none", "use_dictionary": False, "write_statistics": False}
        case "history":
            floats = [field.name for field in schema if pa.types.is_floating(field.type)]
            return {
                "compression": "zstd",
                "use_dictionary": False,
                "use_byte_stream_split": floats,
            }
        case "plan" | "predictions":
            return {"compression": "zstd"}
        case _:
            assert_never(kind)


def stamp(table: pa.Table | pa.Schema, key: str) -> str | None:
    """What a part, or its schema, says of itself under a key."""
    return stamps(table).get(key)


def stamps(table: pa.Table | pa.Schema) -> dict[str, str]:
    """All that a part, or its schema, says of itself."""
    metadata = table.metadata if isinstance(table, pa.Schema) else table.schema.metadata
    told = {key.decode(): value.decode() for key, value in (metadata or {}).items()}
    return {
        key.removeprefix(PREFIX): value for key, value in told.items() if key.startswith(PREFIX)
    }


def decode(content: bytes, *, kind: Kind, name: str) -> pa.Table:
    """The table in a part's bytes.

    Raises:
        NewerStoreError: A newer version wrote it.
        ValueError: It is no part of this kind; also Arrow's own errors if it is no Parquet file.
    """
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    schema = file.schema_arrow
    version = stamp(schema, "schema_version")
    if version is None or stamp(schema, "table") != kind:
        raise ValueError(f"not a part of {kind}")
    if int(version) > SCHEMA_VERSION:
        raise NewerStoreError(name, int(version))
    return file.read(use_threads=False)


def take(table: pa.Table, rows: Sequence[int | None]) -> pa.Table:
    """Rows of a table by their places; nulls for None."""
    return table.take(pa.array(rows, pa.int64()))


def concatenate(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of all tables under the union of their columns.

    A column that is whole in one part and broken in another becomes float64; one that is text in
    one and a number or truth value in another becomes text.
    """
    if not tables:
        return pa.table({})
    try:
        joined = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError:
        mixed = _mixed_columns(tables)
        joined = pa.concat_tables(
            [_as_text(table, mixed) for table in tables], promote_options="permissive"
        )
    return joined.replace_schema_metadata(None).combine_chunks()


def _mixed_columns(tables: Iterable[pa.Table]) -> set[str]:
    kinds: dict[str, set[str]] = {}
    for table in tables:
        for field in table.schema:
            kind = _kind(field.type)
            if kind is not None:
                kinds.setdefault(field.name, set()).add(kind)
    return {name for name, found in kinds.items() if len(found) > 1}


def _kind(type_: pa.DataType) -> str | None:
    if pa.types.is_null(type_):
        return None
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    return str(type_)


def _as_text(table: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        place = table.schema.get_field_index(name)
        if place >= 0:
            table = table.set_column(place, name, table.column(name).cast(pa.string()))
    return table
