"""Plan rows and attempts as Arrow tables, and back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from numbers import Real
from typing import Any, cast

import pyarrow as pa

from .schema import Attempt, PlanRow, Scalar

AXIS = "axis/"
"""Begins the column of an axis, so that an axis may have any name."""

VALUE = "value/"
"""Begins the column of a metric or of provenance."""

_STRINGS = pa.list_(pa.field("element", pa.string()))
"""As Parquet gives a list back: under any other name of its items it would not concatenate."""

PLAN = pa.schema(
    [
        ("what", pa.string()),
        ("id", pa.string()),
        ("group_id", pa.string()),
        ("config_json", pa.string()),
        ("labels", _STRINGS),
        ("depends_on", _STRINGS),
        ("reason", pa.string()),
    ]
)

ATTEMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("what", pa.string()),
        ("group_id", pa.string()),
        ("epoch", pa.int64()),
        ("number", pa.int64()),
        ("status", pa.string()),
        ("failure_class", pa.string()),
        ("error", pa.string()),
        ("started", pa.timestamp("us", tz="UTC")),
        ("ended", pa.timestamp("us", tz="UTC")),
        ("config_json", pa.string()),
        ("resolved_json", pa.string()),
        ("resumed_from_epoch", pa.int64()),
        ("resumed_from_number", pa.int64()),
        ("resumed_from_step", pa.int64()),
    ]
)


def check_columns(table: pa.Table, schema: pa.Schema) -> None:
    """Refuse a table that lacks a fixed column or holds it in another type."""
    for field in schema:
        if table.schema.get_field_index(field.name) < 0:
            raise ValueError(f"column {field.name!r} is missing")
        found = table.schema.field(field.name).type
        if found != field.type:
            raise ValueError(f"column {field.name!r} holds {found} instead of {field.type}")


def plan_table(rows: Sequence[PlanRow]) -> pa.Table:
    """Rows of a plan; the type of an axis follows from all of its values."""
    axes = dict.fromkeys(name for row in rows for name in row.axes)
    columns = {
        field.name: pa.array([_plain(getattr(row, field.name)) for row in rows], field.type)
        for field in PLAN
    }
    for name in axes:
        columns[AXIS + name] = _axis([row.axes.get(name) for row in rows])
    return pa.table(columns)


def plan_rows(table: pa.Table) -> tuple[PlanRow, ...]:
    """The rows of a plan; each names every axis of the plan, None where it does not act."""
    return tuple(
        PlanRow(
            what=row["what"],
            id=row["id"],
            group_id=row["group_id"],
            axes=_beginning(AXIS, row),
            config_json=row["config_json"],
            labels=tuple(row["labels"]),
            depends_on=tuple(row["depends_on"]),
            reason=row["reason"],
        )
        for row in table.to_pylist()
    )


def attempt_table(attempt: Attempt) -> pa.Table:
    """The one row of an attempt; a value of None is the same as no value."""
    parent = attempt.resumed_from
    row = {
        "id": attempt.id,
        "what": attempt.what,
        "group_id": attempt.group_id,
        "epoch": attempt.epoch,
        "number": attempt.number,
        "status": attempt.status,
        "failure_class": attempt.failure_class,
        "error": attempt.error,
        "started": attempt.started,
        "ended": attempt.ended,
        "config_json": attempt.config_json,
        "resolved_json": attempt.resolved_json,
        "resumed_from_epoch": parent[0] if parent else None,
        "resumed_from_number": parent[1] if parent else None,
        "resumed_from_step": attempt.resumed_from_step,
    }
    columns = {field.name: pa.array([row[field.name]], field.type) for field in ATTEMPTS}
    for name, value in attempt.values.items():
        if value is not None:
            columns[VALUE + name] = _value(name, value)
    return pa.table(columns)


def attempts(table: pa.Table) -> tuple[Attempt, ...]:
    """The attempts in a table of one or many."""
    return tuple(
        Attempt(
            id=row["id"],
            what=row["what"],
            group_id=row["group_id"],
            epoch=row["epoch"],
            number=row["number"],
            status=row["status"],
            failure_class=row["failure_class"],
            error=row["error"],
            started=cast("datetime", row["started"]),
            ended=cast("datetime", row["ended"]),
            config_json=row["config_json"],
            resolved_json=row["resolved_json"],
            resumed_from=_parent(row),
            resumed_from_step=row["resumed_from_step"],
            values={
                name: value for name, value in _beginning(VALUE, row).items() if value is not None
            },
        )
        for row in table.to_pylist()
    )


def _parent(row: Mapping[str, Any]) -> tuple[int, int] | None:
    epoch, number = row["resumed_from_epoch"], row["resumed_from_number"]
    return None if epoch is None or number is None else (epoch, number)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _beginning(prefix: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)
    }


def _value(name: str, value: Scalar) -> pa.Array:
    # numpy's numbers are numbers too, but not its truth values, which are no `bool`.
    if isinstance(value, bool):
        return pa.array([value], pa.bool_())
    if isinstance(value, Real):
        return pa.array([float(value)], pa.float64())
    if isinstance(value, str):
        return pa.array([value], pa.string())
    raise TypeError(f"value {name!r} is a {type(value).__name__}; a cell holds a number or text")


def _axis(values: Iterable[Scalar | None]) -> pa.Array:
    values = list(values)
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
        return pa.array(values, pa.bool_())
    if types == {int}:
        return pa.array(values, pa.int64())
    if types and types <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array(
        [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string()
    )
