"""Plan rows and attempts as Arrow tables, and back."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import pyarrow as pa

from .schema import Attempt, PlanRow, Scalar

AXIS = "axis/"
"""Begins the column of an axis, so that an axis may have any name."""

VALUE = "value/"
"""Begins the column of a metric or of provenance."""

_STRINGS = pa.list_(pa.field("element", pa.string()))
"""As Parquet gives a list back: under any other name of its items it would not concatenate."""

PRIORITY, FLOPS = "priority", "flops"
"""Columns of plans that older ones lack: all of their work is equal, and of unknown length."""

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
    columns[PRIORITY] = pa.array([row.priority for row in rows], pa.int64())
    columns[FLOPS] = pa.array([row.flops for row in rows], pa.float64())
    for name in axes:
        columns[AXIS + name] = _axis([row.axes.get(name) for row in rows])
    return pa.table(columns)


def plan_rows(table: pa.Table) -> tuple[PlanRow, ...]:
    """The rows of a plan; each names every axis of the plan, None where it does not act."""
    axes = [name for name in table.column_names if name.startswith(AXIS)]
    names = [name.removeprefix(AXIS) for name in axes]
    values = [table[name].to_pylist() for name in axes]
    fixed = {field.name: table[field.name].to_pylist() for field in PLAN}
    priority = _column(table, PRIORITY, otherwise=0)
    flops = _column(table, FLOPS, otherwise=None)
    return tuple(
        PlanRow(
            what=fixed["what"][row],
            id=fixed["id"][row],
            group_id=fixed["group_id"][row],
            axes={name: of_axis[row] for name, of_axis in zip(names, values, strict=True)},
            config_json=fixed["config_json"][row],
            labels=tuple(fixed["labels"][row]),
            depends_on=tuple(fixed["depends_on"][row]),
            reason=fixed["reason"][row],
            priority=priority[row],
            flops=flops[row],
        )
        for row in range(table.num_rows)
    )


def _column(table: pa.Table, name: str, *, otherwise: object) -> list[Any]:
    is_there = name in table.column_names
    return table[name].to_pylist() if is_there else [otherwise] * table.num_rows


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
    fixed = {field.name: table[field.name].to_pylist() for field in ATTEMPTS}
    parents = zip(fixed["resumed_from_epoch"], fixed["resumed_from_number"], strict=True)
    columns = {
        name.removeprefix(VALUE): table[name]
        for name in table.column_names
        if name.startswith(VALUE)
    }
    return tuple(
        Attempt(
            id=fixed["id"][row],
            what=fixed["what"][row],
            group_id=fixed["group_id"][row],
            epoch=fixed["epoch"][row],
            number=fixed["number"][row],
            status=fixed["status"][row],
            failure_class=fixed["failure_class"][row],
            error=fixed["error"][row],
            started=fixed["started"][row],
            ended=fixed["ended"][row],
            config_json=fixed["config_json"][row],
            resolved_json=fixed["resolved_json"][row],
            resumed_from=None if epoch is None or number is None else (epoch, number),
            resumed_from_step=fixed["resumed_from_step"][row],
            values=_Values(columns, row),
        )
        for row, (epoch, number) in enumerate(parents)
    )


class _Values(Mapping[str, Scalar]):
    """The values of one row, each taken out when it is asked for: of most rows few are."""

    def __init__(self, columns: Mapping[str, pa.ChunkedArray], row: int) -> None:
        self._columns = columns
        self._row = row

    def __getitem__(self, name: str) -> Scalar:
        value: Scalar | None = self._columns[name][self._row].as_py()
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (
            name for name, column in self._columns.items() if column[self._row].as_py() is not None
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


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
