"""Frames of trials and teachers: one row a piece of planned work, whatever its status."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.extensions import ExtensionDtype

from .columns import NUMBERS, TEXTS, is_cost, value_order
from .labels import is_of_term, labelled, term_labels
from .outcome import STATUSES, Outcome
from .rows import AXIS, PLAN, VALUE
from .schema import Work
from .snapshot import Snapshot
from .tables import concatenate, take

_UNTRIED = Outcome("pending", None, 0)
_FLAT_SHAPE = re.compile(r'"shape":\s*(\{[^{}]*\})')


def trials_frame(snapshot: Snapshot, *, include_inactive: bool) -> pd.DataFrame:
    """One row for each trial of the current plan, in its order.

    Args:
        snapshot: The store.
        include_inactive: Also the trials that earlier plans or attempts name and the current plan
            does not; a column `active` tells them apart.
    """
    planned = _planned(snapshot, "trial", include_inactive=include_inactive)
    axes = {name: _axis(planned, snapshot, name) for name in axis_names(planned)}
    columns = {
        "trial_id": _plain(planned["id"]),
        "group_id": _plain(pc.coalesce(planned["group_id"], planned["id"])),
        **({"active": _plain(planned["active"])} if include_inactive else {}),
        **_standing(snapshot, planned),
        **axes,
        **_shapes(planned["config_json"].to_pylist()),
    }
    return _with_values(columns, snapshot, planned)


def teachers_frame(snapshot: Snapshot) -> pd.DataFrame:
    """One row for each teacher of the current plan."""
    planned = _planned(snapshot, "teacher", include_inactive=False)
    configs = [json.loads(text or "{}") for text in planned["config_json"].to_pylist()]
    columns = {
        "teacher_id": _plain(planned["id"]),
        "model": _texts([config.get("teacher", {}).get("model") for config in configs]),
        "task": _texts([_task_name(config.get("task", {})) for config in configs]),
        **_standing(snapshot, planned),
    }
    return _with_values(columns, snapshot, planned)


def stages_frame(snapshot: Snapshot) -> pd.DataFrame:
    """One row for each stage of the current plan that several trials begin with."""
    planned = _planned(snapshot, "stage", include_inactive=False)
    columns = {"stage_id": _plain(planned["id"]), **_standing(snapshot, planned)}
    return _with_values(columns, snapshot, planned)


def proposals_frame(snapshot: Snapshot, trials: pd.DataFrame) -> pd.DataFrame:
    """One row for each filled slot of a search, by study and slot.

    Args:
        snapshot: The store.
        trials: Its trials.
    """
    of_trial = trials.set_index("trial_id")
    metrics = list(dict.fromkeys(name for study in snapshot.studies for name in study.metrics))
    arms = dict.fromkeys(axis for study in snapshot.studies for axis in study.arm)
    # What no trial has measured yet is a column all the same.
    results = of_trial.reindex(columns=metrics).astype("float64")
    rows: list[dict[str, object]] = []
    for study in snapshot.studies:
        for proposal in (each for each in snapshot.proposals if each.study == study.id):
            mine = of_trial.reindex(list(proposal.trials))
            rows.append(
                {
                    **dict.fromkeys(arms),
                    **study.arm,
                    "study": study.id,
                    "slot": proposal.slot + 1,
                    "group_id": next(iter(mine["group_id"]), None),
                    "status": _slot_status(mine["status"]),
                    **results.reindex(mine.index).mean(skipna=False),
                }
            )
    names = [*arms, "study", "slot", "group_id", "status", *metrics]
    frame = pd.DataFrame(rows, columns=names).astype({"slot": "int64"})
    if metrics:
        # What was stopped has a score too, of when it was stopped.
        completed = frame[metrics[0]].where(frame["status"] == "completed")
        of_study = completed.groupby(frame["study"], sort=False)
        best = of_study.cummin() if is_cost(metrics[0]) else of_study.cummax()
        frame["best"] = best.groupby(frame["study"]).ffill()
    return frame


def _slot_status(trials: pd.Series) -> str:
    """How a point stands whose trials stand so: as the one that is furthest from its end."""
    found = set(trials.dropna())
    if not found:
        return "impossible"
    order = ("failed", "blocked", "stopped", "running", "pending", "completed")
    return next(status for status in order if status in found)


def _task_name(task: Mapping[str, Any]) -> str | None:
    """What a task is called; one of local files by that of its rows to train on."""
    name, files = task.get("name"), task.get("files")
    return Path(files["train"]).stem if name is None and files else name


def planned_trials(snapshot: Snapshot, *, include_inactive: bool) -> tuple[str, ...]:
    """The ids of the rows of `trials_frame`."""
    planned = _planned(snapshot, "trial", include_inactive=include_inactive)
    return tuple(planned["id"].to_pylist())


def planned_axes(snapshot: Snapshot, *, include_inactive: bool) -> tuple[str, ...]:
    """The axes that `trials_frame` has as columns."""
    plans = (snapshot.plan, *(snapshot.older_plans if include_inactive else ()))
    return tuple(dict.fromkeys(name for plan in plans for name in axis_names(plan)))


def axis_names(plan: pa.Table) -> tuple[str, ...]:
    """The axes of a plan."""
    return tuple(name.removeprefix(AXIS) for name in _names(plan) if name.startswith(AXIS))


def _names(table: pa.Table) -> list[str]:
    names: list[str] = table.column_names
    return names


def _planned(snapshot: Snapshot, what: Work, *, include_inactive: bool) -> pa.Table:
    """Rows of planned work, each id once, with a column `active`."""
    current = snapshot.plan
    known = set(current["id"].to_pylist())
    tables = [_with_active(current, active=True)]
    if include_inactive:
        for plan in (*snapshot.older_plans, _unplanned(snapshot)):
            ids = plan["id"].to_pylist()
            # A plan damaged since must not hide what was trained by it.
            first = {id: row for row, id in reversed(list(enumerate(ids))) if id not in known}
            tables.append(_with_active(take(plan, sorted(first.values())), active=False))
            known.update(first)
    table = concatenate(tables)
    return table.filter(pc.equal(table["what"], what))


def _with_active(table: pa.Table, *, active: bool) -> pa.Table:
    return table.append_column("active", pa.array([active] * table.num_rows, pa.bool_()))


def _unplanned(snapshot: Snapshot) -> pa.Table:
    """What the attempts say of their own work, in the form of a plan."""
    rows = snapshot.attempts.select(["what", "id", "group_id", "config_json"]).to_pylist()
    nothing: dict[str, Any] = {"labels": [], "depends_on": [], "reason": None}
    return pa.Table.from_pylist([row | nothing for row in rows], schema=PLAN)


def _axis(planned: pa.Table, snapshot: Snapshot, name: str) -> pd.Series:
    """An axis' values; labels as categories in the order in which the grid lists them."""
    column = planned[AXIS + name]
    if not pa.types.is_string(column.type):
        return _plain(column)
    # Skipped points are looked at too: the first trials may lack an axis' first value.
    order = [
        label
        for plan in (snapshot.plan, planned)
        if name in axis_names(plan)
        for label in plan[AXIS + name].cast(pa.string()).unique().to_pylist()
    ]
    used = set(column.drop_null().to_pylist())
    categories = [label for label in dict.fromkeys(order) if label in used]
    return pd.Series(pd.Categorical(column.to_pylist(), categories=categories))


def _standing(snapshot: Snapshot, planned: pa.Table) -> dict[str, pd.Series]:
    outcomes = _outcomes(snapshot, planned)
    counted = _counted(snapshot, outcomes)
    # What a later try has mended, or is at, is no failure of the trial any more.
    failed = pa.array([outcome.status == "failed" for outcome in outcomes], pa.bool_())
    return {
        "status": pd.Series(
            pd.Categorical([outcome.status for outcome in outcomes], categories=list(STATUSES))
        ),
        **{
            name: _texts(pc.if_else(failed, counted[name], None).to_pylist())
            for name in ("failure_class", "error")
        },
    }


def _shapes(configs: Iterable[str | None]) -> dict[str, pd.Series]:
    shapes = [_shape(text or "{}") for text in configs]
    inner = [
        shape.get("feed_forward") or (4 * shape["width"] if "width" in shape else None)
        for shape in shapes
    ]
    return {
        "num_hidden_layers": _counts([shape.get("layers") for shape in shapes]),
        "hidden_size": _counts([shape.get("width") for shape in shapes]),
        "num_attention_heads": _counts([shape.get("heads") for shape in shapes]),
        "intermediate_size": _counts(inner),
    }


def _shape(config: str) -> Mapping[str, int]:
    """The shape in a trial's configuration."""
    if config.count('"shape"') == 1 and (found := _FLAT_SHAPE.search(config)):
        # Shapes are few and configurations are many and long: reading all of each took ten times
        # as long as all else of a frame.
        return _flat_shape(found[1])
    # A trial may stand alone or beside what else its row keeps.
    loaded = json.loads(config)
    shape: Mapping[str, int] = (loaded.get("trial") or loaded).get("shape") or {}
    return shape


@lru_cache(maxsize=10_000)
def _flat_shape(text: str) -> Mapping[str, int]:
    shape: Mapping[str, int] = json.loads(text)
    return shape


def _with_values(
    columns: dict[str, pd.Series], snapshot: Snapshot, planned: pa.Table
) -> pd.DataFrame:
    """The frame with what the attempt that counts measured, and when and how it ran."""
    outcomes = _outcomes(snapshot, planned)
    counted = _counted(snapshot, outcomes)
    labels = term_labels(snapshot)
    values = _values(counted, [labels.get(id, ()) for id in planned["id"].to_pylist()])
    for name in sorted(values, key=value_order):
        # What was set and what became of it may have one name: `precision` of `auto`.
        columns[f"{name}/used" if name in columns else name] = values[name]
    epochs, numbers = counted["epoch"].to_pylist(), counted["number"].to_pylist()
    parents = (
        counted["resumed_from_epoch"].to_pylist(),
        counted["resumed_from_number"].to_pylist(),
    )
    started, ended = _plain(counted["started"]), _plain(counted["ended"])
    columns |= {
        "attempts": pd.Series([outcome.num_attempts for outcome in outcomes], dtype="int64"),
        "attempt": _texts(_attempt_names(epochs, numbers)),
        "parent_attempt": _texts(_attempt_names(*parents)),
        "resumed_from_step": _counts(counted["resumed_from_step"].to_pylist()),
        "started": started,
        "ended": ended,
        "wall_seconds": (ended - started).dt.total_seconds(),
    }
    return pd.DataFrame(columns)


def _outcomes(snapshot: Snapshot, planned: pa.Table) -> list[Outcome]:
    return [snapshot.outcomes.get(id, _UNTRIED) for id in planned["id"].to_pylist()]


def _counted(snapshot: Snapshot, outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows of the attempts that count; nulls where there is none."""
    places = [outcome.counted.row if outcome.counted else None for outcome in outcomes]
    return take(snapshot.attempts, places)


def _values(counted: pa.Table, labels: Sequence[Sequence[str]]) -> dict[str, pd.Series]:
    values: dict[str, pd.Series] = {
        **{name: pd.Series([None] * counted.num_rows, dtype="float64") for name in NUMBERS},
        **{name: _texts([None] * counted.num_rows) for name in TEXTS},
    }
    for column in _names(counted):
        if not column.startswith(VALUE) or counted[column].null_count == counted.num_rows:
            continue
        name, cells = column.removeprefix(VALUE), _plain(counted[column])
        if not is_of_term(name):
            values[name] = cells
            continue
        shown = pd.Series([labelled(name, found) for found in labels], dtype="object")
        for label in shown[pd.Series(counted[column].is_valid().to_pylist())].unique():
            mine = cells.where(shown == label)
            values[label] = values[label].combine_first(mine) if label in values else mine
    return values


def _plain(column: pa.ChunkedArray) -> pd.Series:
    """A column in the type that keeps what it holds: nulls make no fractions of counts."""
    series: pd.Series = column.to_pandas(types_mapper=_nullable if column.null_count else None)
    return series


def _nullable(type_: pa.DataType) -> ExtensionDtype | None:
    if pa.types.is_integer(type_):
        return pd.Int64Dtype()
    return pd.BooleanDtype() if pa.types.is_boolean(type_) else None


def _counts(values: Sequence[int | None]) -> pd.Series:
    return pd.Series(values, dtype="Int64" if None in values else "int64")


def _texts(values: Sequence[str | None]) -> pd.Series:
    return pd.Series(values, dtype="str")


def _attempt_names(epochs: Sequence[int | None], numbers: Sequence[int | None]) -> list[str | None]:
    return [
        None if epoch is None else f"{epoch}-{number}"
        for epoch, number in zip(epochs, numbers, strict=True)
    ]
