"""Questions about completed trials: a frame in, a frame out.

Every answer says in `attrs["left_out"]` which trials it does not rest on: how many of each status,
and how many completed ones lack the metric.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

NOT_ACTING = "-"
"""Stands for the value of an axis on a trial on which it does not act."""

_CONFIDENCE = 0.95


def scored(trials: pd.DataFrame, column: str) -> pd.DataFrame:
    """The completed trials that have a value in a column."""
    counts = trials["status"].value_counts()
    left_out = {
        str(status): int(count)
        for status, count in counts.items()
        if count and status != "completed"
    }
    completed = trials[trials["status"] == "completed"]
    found = completed[completed[column].notna()].copy()
    if len(found) < len(completed):
        left_out[f"completed, without {column}"] = len(completed) - len(found)
    found.attrs["left_out"] = left_out
    return found


def keyed(trials: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The trials with a label where an axis does not act, so that grouping keeps them."""
    shown = {name: _labelled(trials[name]) for name in by if trials[name].isna().any()}
    return trials.assign(**shown)


def aggregate(
    trials: pd.DataFrame, column: str, by: Sequence[str], *, over_seeds: bool
) -> pd.DataFrame:
    """Mean and spread of a column for each combination of values.

    Args:
        trials: With any status.
        column: What is averaged.
        by: Columns whose values make the rows of the answer.
        over_seeds: Average the trials that differ in their seed alone first, so that a
            configuration counts once however often it was repeated; `n` counts configurations
            then, else trials.

    Returns:
        `n`, `trials`, `mean`, `sd` (of a sample), and `lo` and `hi` of the 95 % t-interval of the
        mean; what one value cannot tell is NaN.
    """
    completed = scored(trials, column)
    rows = keyed(completed, by)
    if over_seeds:
        units = rows.groupby(
            list(dict.fromkeys([*by, "group_id"])), observed=True, as_index=False
        ).agg(value=(column, "mean"), trials=(column, "size"))
    else:
        units = rows[list(by)].assign(value=rows[column], trials=1)
    cells = units.groupby(list(by), observed=True, as_index=False).agg(
        n=("value", "size"), trials=("trials", "sum"), mean=("value", "mean"), sd=("value", "std")
    )
    quantile = special.stdtrit(np.maximum(cells["n"] - 1, 1), (1 + _CONFIDENCE) / 2)
    half_width = quantile * cells["sd"] / np.sqrt(cells["n"])
    cells = cells.assign(lo=cells["mean"] - half_width, hi=cells["mean"] + half_width)
    cells.attrs["left_out"] = completed.attrs["left_out"]
    return cells


def pivot(
    trials: pd.DataFrame,
    cells: pd.DataFrame,
    index: str,
    columns: str,
    *,
    value: Literal["mean", "n"],
) -> pd.DataFrame:
    """The answer of `aggregate` as a matrix.

    Values that only trials without a result have keep their row or column: an empty cell is a
    finding too.
    """
    wide = cells.pivot(index=index, columns=columns, values=value)
    shown = wide.reindex(index=_labels(trials, index), columns=_labels(trials, columns))
    shown.index.name, shown.columns.name = index, columns
    shown.attrs["left_out"] = cells.attrs["left_out"]
    return shown.fillna(0).astype("int64") if value == "n" else shown


def best_trials(
    trials: pd.DataFrame, chosen_by: str, columns: Sequence[str], *, by: Sequence[str], n: int
) -> pd.DataFrame:
    """The `n` trials with the highest value, for each combination of values of `by`."""
    found = scored(trials, chosen_by)
    rows = keyed(found, by)[list(dict.fromkeys([*by, "trial_id", "group_id", *columns]))]
    best = _highest(rows, chosen_by, by=by, n=n, tie="trial_id")
    best.attrs["left_out"] = found.attrs["left_out"]
    return best


def best_groups(
    trials: pd.DataFrame,
    chosen_by: str,
    shown: Sequence[str],
    axes: Sequence[str],
    *,
    by: Sequence[str],
    n: int | None,
) -> pd.DataFrame:
    """The `n` groups of trials, alike but for the seed, with the highest mean.

    Args:
        trials: With any status.
        chosen_by: The column whose mean ranks the groups.
        shown: Columns whose means are shown; the first with its standard deviation, too.
        axes: Columns that tell the groups apart.
        by: Columns for each of whose combinations the best are sought.
        n: How many; None for all.
    """
    found = scored(trials, chosen_by)
    rows = keyed(found, by)
    firsts = [name for name in axes if name not in by]
    groups = rows.groupby(
        list(dict.fromkeys([*by, "group_id"])), observed=True, as_index=False
    ).agg(
        **{name: (name, "first") for name in firsts},
        seeds=("trial_id", "size"),
        **{chosen_by: (chosen_by, "mean"), shown[0]: (shown[0], "mean")},
        **{f"{shown[0]}/sd": (shown[0], "std")},
        **{name: (name, "mean") for name in shown[1:]},
    )
    best = _highest(groups, chosen_by, by=by, n=len(groups) if n is None else n, tie="group_id")
    best.attrs["left_out"] = found.attrs["left_out"]
    return best


def pareto_groups(
    trials: pd.DataFrame, costs: Mapping[str, bool], shown: Sequence[str], axes: Sequence[str]
) -> pd.DataFrame:
    """The groups, by their means over seeds, that no other group beats.

    Args:
        trials: With any status.
        costs: The columns that are compared, and whether less of each is better.
        shown: Further columns, of which the mean is shown.
        axes: Columns that tell the groups apart.

    Returns:
        In the order of the first column, the best first. Groups that are equal in all columns stay
        or go together.
    """
    columns = list(costs)
    found = scored(trials, columns[0])
    for column in columns[1:]:
        missing = int(found[column].isna().sum())
        if missing:
            found.attrs["left_out"][f"completed, without {column}"] = missing
            found = found[found[column].notna()]
    groups = found.groupby("group_id", observed=True, as_index=False).agg(
        **{name: (name, "first") for name in axes},
        seeds=("trial_id", "size"),
        **{name: (name, "mean") for name in dict.fromkeys([*columns, *shown])},
    )
    signs = np.where([costs[name] for name in columns], 1.0, -1.0)
    values = groups[columns].to_numpy(dtype="float64") * signs
    front = groups[non_dominated(values)].sort_values(
        [*columns, "group_id"], ascending=[*costs.values(), True]
    )
    front = front.reset_index(drop=True)
    front.attrs["left_out"] = found.attrs["left_out"]
    return front


def non_dominated(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows no other row beats: as small in every column, and smaller in one.

    Args:
        values: Shape [points, objectives], less is better; finite.

    Returns:
        Shape [points]; of equal rows all or none.
    """
    is_front = np.zeros(len(values), dtype=bool)
    front = np.empty((0, values.shape[1]))
    # In lexicographic order whoever beats a row stands before it, and if it is itself beaten, then
    # by a row of the front.
    for row in np.lexsort(values.T[::-1]):
        point = values[row]
        beaten = (front <= point).all(axis=1) & (front < point).any(axis=1)
        if not beaten.any():
            is_front[row] = True
            front = np.vstack([front, point])
    return is_front


def _highest(
    rows: pd.DataFrame, column: str, *, by: Sequence[str], n: int, tie: str
) -> pd.DataFrame:
    ordered = rows.sort_values([*by, column, tie], ascending=[*(True for _ in by), False, True])
    best = ordered.groupby(list(by), observed=True).head(n) if by else ordered.head(n)
    return best.reset_index(drop=True)


def _labelled(values: pd.Series) -> pd.Series:
    ordered = _categories(values)
    labels = values.astype("object").where(values.notna(), NOT_ACTING)
    return pd.Series(pd.Categorical(labels, categories=[*ordered, NOT_ACTING]), index=values.index)


def _labels(trials: pd.DataFrame, name: str) -> list[object]:
    return [*_categories(trials[name]), *([NOT_ACTING] if trials[name].isna().any() else [])]


def _categories(values: pd.Series) -> list[object]:
    """The values of a column in their order."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return list(values.cat.remove_unused_categories().cat.categories)
    return sorted(values.dropna().unique())
