"""Trials' histories as one curve each, joined from the attempts that led to their results.

All trials are joined at once, in columns: a sweep of ten thousand trials logs millions of steps.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .compact import part_place
from .history import Logged, Origin, read_logged
from .labels import is_of_term, labelled, term_labels
from .schema import AttemptKey, Damaged
from .snapshot import Snapshot
from .tables import concatenate

_LONG_RUN = 100
"""Runs of more rows are copied each as a whole, which is quicker than row by row."""
_ALWAYS = np.iinfo(np.int64).max

Ints = npt.NDArray[np.integer[Any]]


class Curves(NamedTuple):
    """The joined histories of some trials."""

    table: pa.Table
    """`step` and what was logged, trial after trial, each step once."""
    trial: Ints
    """Of each row: the place of its trial in `ids`."""
    ids: tuple[str, ...]
    """The trials that logged anything, in the order they were asked for."""
    columns: tuple[str, ...]
    """What was logged, also where it was not asked for."""
    damaged: tuple[Damaged, ...]


class _Share(NamedTuple):
    """What an attempt adds to the curve of a trial."""

    trial: int
    generation: int
    """How many descendants went on from it, negative: the oldest comes first."""
    until: int
    """The step from which its descendant went on; what it did after that was done again."""


def trial_curves(
    snapshot: Snapshot, ids: Sequence[str], metrics: Collection[str] | None = None
) -> Curves:
    """What trials logged, each joined from the attempts that led to its result.

    Args:
        snapshot: The store.
        ids: Of the trials.
        metrics: Columns, by the labels of terms, and rows on which one of them was logged; None
            for all.
    """
    labels = term_labels(snapshot)
    of_trial = [tuple(labels.get(id, ())) for id in ids]
    names = None if metrics is None else frozenset(metrics)
    distinct = set(of_trial)
    logged = read_logged(
        snapshot.source,
        wanted=set(ids).__contains__,
        columns=lambda stored: (
            names is None or any(labelled(stored, each) in names for each in distinct)
        ),
    )
    shares = _shares(snapshot, ids, logged)
    table, trial, present = _joined(logged, shares, names=names, of_trial=of_trial)
    columns = dict.fromkeys(
        labelled(stored, each) for stored in logged.parts.columns for each in distinct
    )
    # A file may hold what other trials logged.
    unlogged = (names or frozenset()) - set(_logged_columns(table).column_names)
    place = np.cumsum(present) - 1
    return Curves(
        table,
        place[trial] if len(trial) else trial,
        tuple(id for id, is_there in zip(ids, present, strict=True) if is_there),
        tuple(name for name in columns if name != "step" and name not in unlogged),
        logged.parts.damaged,
    )


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


def _shares(snapshot: Snapshot, ids: Sequence[str], logged: Logged) -> dict[AttemptKey, _Share]:
    """Which attempts make up the curves; an ancestor counts up to where its descendant began."""
    origins = {**logged.origins, **_origins(snapshot, ids)}
    latest: dict[str, AttemptKey] = {}
    for block in logged.parts.blocks:
        for part in block.parts:
            latest[part.key.id] = max(part.key, latest.get(part.key.id, part.key))
    shares: dict[AttemptKey, _Share] = {}
    for trial, id in enumerate(ids):
        key = counted_attempt(snapshot, id, logged=latest.get(id))
        until, generation = _ALWAYS, 0
        while key is not None:
            shares[key] = _Share(trial, generation, until)
            origin = origins.get(key)
            # Ancestors are older: whatever claims otherwise must not lead in a circle.
            if origin is None or not origin.parent < key:
                break
            key, until, generation = origin.parent, min(until, origin.step), generation - 1
    return shares


def _origins(snapshot: Snapshot, ids: Iterable[str]) -> dict[AttemptKey, Origin]:
    """Where the committed attempts started from, by their own word."""
    resumed = snapshot.attempts.filter(pc.is_valid(snapshot.attempts["resumed_from_epoch"]))
    names = ("id", "epoch", "number", "resumed_from_epoch", "resumed_from_number")
    rows = zip(*(resumed[name].to_pylist() for name in (*names, "resumed_from_step")), strict=True)
    wanted = set(ids)
    return {
        AttemptKey(id, epoch, number): Origin(AttemptKey(id, parent_epoch, parent_number), step)
        for id, epoch, number, parent_epoch, parent_number, step in rows
        if id in wanted
    }


def _joined(
    logged: Logged,
    shares: Mapping[AttemptKey, _Share],
    *,
    names: frozenset[str] | None,
    of_trial: Sequence[tuple[str, ...]],
) -> tuple[pa.Table, Ints, npt.NDArray[np.bool_]]:
    """The curves of all trials in order, the trial of each row, and which trials have a row."""
    nothing = pa.table({"step": pa.array([], pa.int64())})
    parts = [part for block in logged.parts.blocks for part in block.parts]
    table = concatenate([nothing, *(block.table for block in logged.parts.blocks)])
    sizes = np.array([part.num_rows for part in parts], dtype=np.int64)
    found = [shares.get(part.key) for part in parts]
    trials = np.array([-1 if share is None else share.trial for share in found], dtype=np.int32)
    untils = np.array([-1 if share is None else share.until for share in found], dtype=np.int64)

    part_of_row: Ints = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
    kept = np.repeat(trials >= 0, sizes)
    if (cut := untils < _ALWAYS).any():
        kept &= ~np.repeat(cut, sizes) | (table["step"].to_numpy() <= np.repeat(untils, sizes))
    present = np.zeros(len(of_trial), dtype=np.bool_)
    num_kept = np.bincount(part_of_row, weights=kept, minlength=len(parts))
    present[trials[num_kept > 0]] = True

    table = _with_labels(table, np.repeat(trials, sizes), of_trial)
    if names is not None:
        table = table.select([name for name in table.column_names if name in {"step", *names}])
        is_logged = np.zeros(table.num_rows, dtype=np.bool_)
        for name in table.column_names:
            if name != "step":
                is_logged |= table[name].is_valid().to_numpy()
        kept &= is_logged
    if not kept.all():
        table = table.filter(pa.array(kept))
        sizes = np.bincount(part_of_row[kept], minlength=len(parts))
    order = sorted(range(len(parts)), key=lambda n: _place(parts[n].name, found[n]))
    table = _reordered(table, sizes, order)
    trial = np.repeat(trials[order], sizes[order])
    table = _logged_columns(table) if names is None else table
    return *_one_row_a_step(table, trial), present


def _place(name: str, share: _Share | None) -> tuple[int, int, int]:
    """Orders parts by trial, age of the attempt and number."""
    if share is None:
        return -1, 0, 0
    return share.trial, share.generation, int(part_place(name)[1] or 0)


def _reordered(table: pa.Table, sizes: Ints, order: Sequence[int]) -> pa.Table:
    """The rows part after part in this order; within a part they keep theirs."""
    begins = np.cumsum(sizes) - sizes
    runs = [(int(begins[n]), int(sizes[n])) for n in order if sizes[n]]
    if all(begin + size == after for (begin, size), (after, _) in pairwise(runs)):
        return table
    if table.num_rows > _LONG_RUN * len(runs):
        return pa.concat_tables([table.slice(begin, size) for begin, size in runs])
    return table.take(np.concatenate([np.arange(begin, begin + size) for begin, size in runs]))


def _with_labels(table: pa.Table, trial: Ints, of_trial: Sequence[tuple[str, ...]]) -> pa.Table:
    """The columns of terms under their labels; one index may have another label in each trial."""
    distinct = {labels: code for code, labels in enumerate(dict.fromkeys(of_trial))}
    codes = np.array([distinct[labels] for labels in of_trial], dtype=np.int64)
    columns: dict[str, pa.ChunkedArray] = {}
    for stored in table.column_names:
        targets: dict[str, list[int]] = {}
        for labels, code in distinct.items():
            targets.setdefault(labelled(stored, labels), []).append(code)
        if not is_of_term(stored) or len(targets) == 1:
            name = stored if not is_of_term(stored) else next(iter(targets), stored)
            _add(columns, name, table[stored])
            continue
        of_row = codes[trial]
        for name, its_codes in targets.items():
            mine = pa.array(np.isin(of_row, its_codes) & (trial >= 0))
            column = pc.if_else(mine, table[stored], pa.scalar(None, table[stored].type))
            _add(columns, name, column)
    return pa.table(columns)


def _add(columns: dict[str, pa.ChunkedArray], name: str, column: pa.ChunkedArray) -> None:
    columns[name] = pc.coalesce(columns[name], column) if name in columns else column


def _logged_columns(table: pa.Table) -> pa.Table:
    """A table without the columns of which these trials logged nothing."""
    logged = [
        name
        for name in table.column_names
        if name == "step" or table[name].null_count < table.num_rows
    ]
    return table.select(logged)


def _one_row_a_step(table: pa.Table, trial: Ints) -> tuple[pa.Table, Ints]:
    """Rows of one trial and step as one; of two values the later one stands."""
    steps = table["step"].to_numpy()
    back = np.flatnonzero(steps[1:] <= steps[:-1])
    again = trial[back][trial[back] == trial[back + 1]]
    if not len(again):
        return table, trial
    mixed = np.isin(trial, again)
    keyed = table.append_column("kdsweep/trial", pa.array(trial))
    names = [name for name in table.column_names if name != "step"]
    # In one thread the order holds, so that of two rows the later one's values stand.
    merged = (
        keyed.filter(pa.array(mixed))
        .group_by(["kdsweep/trial", "step"], use_threads=False)
        .aggregate([(name, "last") for name in names])
    )
    merged = merged.select(["step", *(f"{name}_last" for name in names), "kdsweep/trial"])
    whole = pa.concat_tables(
        [keyed.filter(pa.array(~mixed)), merged.rename_columns(keyed.column_names)]
    )
    order = np.argsort(whole["kdsweep/trial"].to_numpy(), kind="stable")
    whole = whole.take(pa.array(order))
    return whole.select(table.column_names), whole["kdsweep/trial"].to_numpy()


def thinned(curves: Curves, *, every: int) -> Curves:
    """Every so many rows of each trial, and its last."""
    if every == 1 or not len(curves.trial):
        return curves
    begins = np.flatnonzero(np.diff(curves.trial, prepend=-1))
    sizes = np.diff([*begins, len(curves.trial)])
    number = np.arange(1, len(curves.trial) + 1) - np.repeat(begins, sizes)
    is_last = np.zeros(len(curves.trial), dtype=np.bool_)
    is_last[begins + sizes - 1] = True
    kept = (number % every == 0) | is_last
    return curves._replace(table=curves.table.filter(pa.array(kept)), trial=curves.trial[kept])


def wide_frame(curves: Curves, metrics: Sequence[str]) -> pd.DataFrame:
    """One row a trial and step."""
    frame: pd.DataFrame = curves.table.to_pandas()
    for name in metrics:
        if name not in frame:
            frame[name] = pd.Series([float("nan")] * len(frame), dtype="float64")
    frame.insert(0, "trial_id", _ids(curves, curves.trial))
    return frame


def long_frame(curves: Curves) -> pd.DataFrame:
    """One row a trial, metric and step, without the cells that were not logged."""
    names = [name for name in curves.table.column_names if name != "step"]
    tables, trials = [], []
    for place, name in enumerate(names):
        is_logged = curves.table[name].is_valid()
        rows = curves.table.select(["step", name]).filter(is_logged)
        metric = pa.array(np.full(rows.num_rows, place, dtype=np.int32))
        tables.append(
            pa.table([metric, rows["step"], rows[name].cast(pa.float64())], names=_LONG.names)
        )
        trials.append(curves.trial[is_logged.to_numpy()])
    trial = np.concatenate([np.arange(0), *trials])
    order = np.argsort(trial, kind="stable")
    frame: pd.DataFrame = pa.concat_tables([_LONG.empty_table(), *tables]).take(order).to_pandas()
    metrics = pd.Series(np.array([*names, ""], dtype=object)[frame["metric"]], dtype="str")
    frame["metric"] = metrics
    frame.insert(0, "trial_id", _ids(curves, trial[order]))
    return frame


_LONG = pa.schema([("metric", pa.int32()), ("step", pa.int64()), ("value", pa.float64())])


def _ids(curves: Curves, trial: Ints) -> "pd.Series[Any]":
    categories = pd.Index(curves.ids, dtype="str")
    return pd.Series(pd.Categorical.from_codes(trial, categories=categories))
