"""A trial's history as one curve, joined from the attempts that led to its result."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .history import Origin, read_logged
from .labels import labelled, term_labels
from .schema import AttemptKey, Damaged
from .snapshot import Snapshot
from .tables import concatenate, take


class Curves(NamedTuple):
    """The joined histories of some trials."""

    curves: Mapping[str, pa.Table]
    """By trial, of those that logged anything."""
    damaged: tuple[Damaged, ...]


def trial_curves(snapshot: Snapshot, ids: Sequence[str]) -> Curves:
    """What trials logged, each joined from the attempts that led to its result."""
    logged = read_logged(snapshot.source, wanted=set(ids).__contains__)
    origins = {**logged.origins, **_origins(snapshot, ids)}
    labels = term_labels(snapshot)
    latest = {key.id: key for key in sorted(logged.tables)}
    curves = {}
    for id in ids:
        last = counted_attempt(snapshot, id, logged=latest.get(id))
        if last is not None:
            curve = join_attempts(last, logged.tables, origins)
            names = [labelled(name, labels.get(id, ())) for name in curve.column_names]
            curves[id] = curve.rename_columns(names)
    return Curves({id: curve for id, curve in curves.items() if curve.num_rows}, logged.damaged)


def counted_attempt(snapshot: Snapshot, id: str, *, logged: AttemptKey | None) -> AttemptKey | None:
    """The attempt that speaks for a trial: the completed one, else the latest.

    Args:
        snapshot: The store.
        id: Of the trial.
        logged: The latest attempt that logged anything: one that has not ended commits nothing.
    """
    outcome = snapshot.outcomes.get(id)
    if outcome is None or outcome.counted is None:
        return logged
    committed = outcome.counted.key
    if logged is None or outcome.status == "completed":
        return committed
    return max(committed, logged)


def join_attempts(
    last: AttemptKey,
    tables: Mapping[AttemptKey, pa.Table],
    origins: Mapping[AttemptKey, Origin],
) -> pa.Table:
    """What an attempt and its ancestors logged, each step once.

    An ancestor counts up to the step from which its descendant went on; what it did after that was
    done again.
    """
    joined: list[pa.Table] = []
    key, until = last, None
    while True:
        if key in tables:
            table = tables[key]
            joined.append(table if until is None else table.filter(pc.field("step") <= until))
        origin = origins.get(key)
        # Ancestors are older: whatever claims otherwise must not lead in a circle.
        if origin is None or not origin.parent < key:
            break
        until = origin.step if until is None else min(until, origin.step)
        key = origin.parent
    curve = concatenate(joined[::-1])
    return (
        _one_row_a_step(curve) if curve.num_columns else pa.table({"step": pa.array([], "int64")})
    )


def select_rows(curve: pa.Table, metrics: Collection[str] | None, *, every: int) -> pa.Table:
    """The rows of a curve on which a metric was logged, every so many of them, and the last.

    Args:
        curve: Of one trial.
        metrics: Columns; None for all.
        every: 1 for all rows.
    """
    if metrics is not None:
        names = [name for name in curve.column_names if name in metrics]
        logged = pa.array([False] * curve.num_rows, pa.bool_())
        for name in names:
            logged = pc.or_(logged, pc.is_valid(curve[name]))
        curve = curve.select(["step", *names]).filter(logged)
    kept = sorted({*range(every - 1, curve.num_rows, every), *range(curve.num_rows)[-1:]})
    return take(curve, kept)


def wide_frame(curves: Mapping[str, pa.Table], metrics: Sequence[str]) -> pd.DataFrame:
    """One row a trial and step."""
    nothing = pa.table(
        {
            "trial_id": pa.array([], pa.string()),
            "step": pa.array([], pa.int64()),
            **{name: pa.array([], pa.float64()) for name in metrics},
        }
    )
    tables = [_of_trial(id, curve) for id, curve in curves.items()]
    return _frame(concatenate([nothing, *tables]), curves)


def long_frame(curves: Mapping[str, pa.Table]) -> pd.DataFrame:
    """One row a trial, metric and step on which it was logged."""
    schema = pa.schema(
        [
            ("trial_id", pa.string()),
            ("metric", pa.string()),
            ("step", pa.int64()),
            ("value", pa.float64()),
        ]
    )
    tables = [
        pa.table(
            [
                pa.array([id] * logged.num_rows, pa.string()),
                pa.array([name] * logged.num_rows, pa.string()),
                logged["step"],
                logged[name],
            ],
            schema=schema,
        )
        for id, curve in curves.items()
        for name in curve.column_names
        if name != "step"
        for logged in [curve.filter(pc.is_valid(curve[name]))]
    ]
    return _frame(pa.concat_tables([schema.empty_table(), *tables]), curves)


def _origins(snapshot: Snapshot, ids: Iterable[str]) -> dict[AttemptKey, Origin]:
    """Where the committed attempts started from, by their own word."""
    tries = [each for id in ids for each in snapshot.tries.get(id, ())]
    columns = ["resumed_from_epoch", "resumed_from_number", "resumed_from_step"]
    rows = take(snapshot.attempts.select(columns), [each.row for each in tries])
    parents = zip(*(column.to_pylist() for column in rows.columns), strict=True)
    return {
        each.key: Origin(AttemptKey(each.key.id, epoch, number), step)
        for each, (epoch, number, step) in zip(tries, parents, strict=True)
        if epoch is not None
    }


def _one_row_a_step(curve: pa.Table) -> pa.Table:
    if len(curve["step"].unique()) == curve.num_rows:
        return curve
    names = [name for name in curve.column_names if name != "step"]
    # In one thread the order holds, so that of two rows the later one's values stand.
    merged = curve.group_by("step", use_threads=False).aggregate([(name, "last") for name in names])
    return merged.select(["step", *(f"{name}_last" for name in names)]).rename_columns(
        ["step", *names]
    )


def _of_trial(id: str, curve: pa.Table) -> pa.Table:
    return curve.add_column(0, "trial_id", pa.array([id] * curve.num_rows, pa.string()))


def _frame(table: pa.Table, curves: Mapping[str, pa.Table]) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    ids = pd.Categorical(frame["trial_id"], categories=list(curves))
    return frame.assign(trial_id=ids)
