"""The table that a sweep ends with: its groups, the best first, and the teacher beside them."""

import pandas as pd

from .query import best_groups
from .questions import Results

_SHOWN = ("report/primary", "parameters", "latency_ms")


def leaderboard(results: Results, n: int | None = None) -> pd.DataFrame:
    """Groups by their mean over seeds on select, the best first.

    Args:
        results: Of a sweep.
        n: How many; None for all.

    Returns:
        `group_id`, the axes that vary, `seeds` (how many of them are completed),
        `select/primary`, `report/primary` with its standard deviation over seeds
        (`report/primary/sd`, NaN for one seed), `parameters` and `latency_ms`.
    """
    trials = results.trials
    varied = [
        axis for axis in results.axes if axis != "seed" and trials[axis].nunique(dropna=False) > 1
    ]
    return best_groups(trials, "select/primary", _SHOWN, varied, by=[], n=n)


def teacher_rows(results: Results) -> pd.DataFrame:
    """The teachers in the columns of the leaderboard, as far as they fit."""
    teachers = results.teachers
    return teachers[["teacher_id", "model", "task", "status", "select/primary", *_SHOWN]]
