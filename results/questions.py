"""Loads a sweep's results and answers questions about them with plain data frames."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
from pandas.api.types import is_numeric_dtype

from .columns import (
    QuestionError,
    Split,
    UnknownTrialError,
    Which,
    check_choice,
    check_column,
    is_cost,
    metric_column,
)
from .curves import counted_attempt, long_frame, thinned, trial_curves, wide_frame
from .failures import group_failures
from .frames import (
    planned_axes,
    planned_trials,
    proposals_frame,
    stages_frame,
    teachers_frame,
    trials_frame,
)
from .predictions import read_predictions
from .query import aggregate, best_groups, best_trials, pareto_groups, pivot
from .schema import Damaged
from .snapshot import Snapshot, take_snapshot
from .source import open_source
from .times import Spared, lane_seconds, spared_by_features

Over = Literal["trial", "seeds"]


class DamagedPartsWarning(UserWarning):
    """Parts of a store could not be read, and what rests on them is left out."""


def load(place: str | Path, *, include_inactive: bool = False) -> "Results":
    """What a sweep has found so far; also while it runs.

    Args:
        place: The sweep's folder, or a URL that fsspec knows (`s3://...`).
        include_inactive: Also the trials that the newest grid no longer names.

    Raises:
        StoreNotFoundError: No sweep lies there.
        NewerStoreError: A newer kdsweep wrote it.
    """
    results = Results(take_snapshot(open_source(place)), include_inactive=include_inactive)
    _warn(results.damaged)
    return results


class Results:
    """A sweep's results at the moment they were loaded; load again to see newer ones.

    Every question gives a plain data frame, and uses completed trials only: `attrs["left_out"]`
    says what it left out. A metric is named by its column (`select/accuracy`, `latency_ms`), or
    alone (`accuracy`, or `primary` for the task's main metric).
    """

    def __init__(self, snapshot: Snapshot, *, include_inactive: bool = False) -> None:
        self._snapshot = snapshot
        self._include_inactive = include_inactive

    def __repr__(self) -> str:
        counts = self._trials["status"].value_counts()
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"<Results of {self._snapshot.source}: {told or 'no trials'}>"

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial, whatever its status."""
        return self._trials.copy()

    @property
    def teachers(self) -> pd.DataFrame:
        """One row a teacher, whatever its status."""
        return self._teachers.copy()

    @property
    def stages(self) -> pd.DataFrame:
        """One row for each stage that several trials begin with and that is trained once."""
        return self._stages.copy()

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the columns of `trials` that the grid varies."""
        return planned_axes(self._snapshot, include_inactive=self._include_inactive)

    @property
    def lane_seconds(self) -> Mapping[str, float]:
        """Seconds that all attempts have taken, by phase, the longest first."""
        return lane_seconds(self._snapshot.attempts)

    @property
    def spared_by_features(self) -> Spared | None:
        """What a teacher did not have to be asked twice; None where no attempt read features."""
        return spared_by_features(self._snapshot.attempts)

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """What could not be read when the sweep was loaded."""
        return self._snapshot.damaged

    def history(
        self,
        trials: str | Iterable[str] | None = None,
        metrics: str | Sequence[str] | None = None,
        *,
        long: bool = False,
        every: int = 1,
    ) -> pd.DataFrame:
        """What trials logged while they trained: one row a trial and step.

        A resumed trial has one curve, joined from its attempts.

        Args:
            trials: Ids; None for all trials.
            metrics: Columns such as `train/loss`; None for all.
            long: One row a trial, metric and step instead, without the cells that were not logged.
            every: Keep every so many rows of each trial, and its last; counted among the rows on
                which a metric was logged.

        Raises:
            UnknownColumnError: No trial logged such a metric.
            UnknownTrialError: There is no such trial.
        """
        if every < 1:
            raise ValueError(f"every={every}: keep every row (1) or fewer (2, 3, ...)")
        ids = self._ids(trials)
        wanted = [metrics] if isinstance(metrics, str) else metrics
        curves = trial_curves(self._snapshot, ids, wanted)
        _warn(curves.damaged)
        # Where nothing is logged yet, nobody can say which metrics there will be.
        for name in wanted or ():
            if curves.ids:
                check_column(curves.columns, name)
        kept = thinned(curves, every=every)
        return long_frame(kept) if long else wide_frame(kept, wanted or ())

    def predictions(self, trial: str, *, split: Split = "report") -> pd.DataFrame:
        """A trial's logits on a split: columns `row`, `label` and `logit/<class>`.

        Raises:
            FileNotFoundError: The sweep did not keep them.
            UnknownTrialError: There is no such trial.
        """
        self._ids(trial)
        key = counted_attempt(self._snapshot, trial, logged=None)
        if key is None:
            raise FileNotFoundError(f"trial {trial} has no finished attempt, so no predictions")
        table, damaged = read_predictions(self._snapshot.source, key, split)
        _warn(damaged)
        if table is None:
            raise FileNotFoundError(f"the sweep kept no predictions of {trial} on {split}")
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def failures(self) -> pd.DataFrame:
        """Failed trials, stages and teachers by class and by what their errors have in common."""
        return group_failures(trial=self._trials, stage=self._stages, teacher=self._teachers)

    def best(
        self,
        metric: str = "primary",
        by: str | Sequence[str] | None = None,
        *,
        n: int = 1,
        select: Which = "last",
        over: Over = "trial",
    ) -> pd.DataFrame:
        """The best trials or groups, chosen on select and shown on report.

        Args:
            metric: Its name alone: `accuracy`, `primary`.
            by: The best for each value of these columns.
            n: How many, of each.
            select: Choose by the weights at the end of training or by the best on the way; report
                is shown for the same weights.
            over: Rank single trials, or groups by their mean over seeds.

        Raises:
            QuestionError: A word that no argument knows, or arguments that contradict each other.
            UnknownColumnError: There is no such column.
        """
        check_choice("select", select, get_args(Which))
        check_choice("over", over, get_args(Over))
        name = metric.removeprefix("select/")
        if name.startswith("report/"):
            raise QuestionError(
                f"{metric}: choices read select, and report is only shown; "
                f"write {name.removeprefix('report/')!r}"
            )
        keys = self._keys(by)
        chosen = self._metric(f"select/{name}", split="select", which=select)
        shown = self._metric(f"report/{name}", split="report", which=select)
        axes = [axis for axis in self.axes if axis not in keys]
        if over == "trial":
            return best_trials(
                self._with(chosen, shown), chosen, [*axes, chosen, shown], by=keys, n=n
            )
        if "seed" in keys:
            raise QuestionError("by='seed' and over='seeds' contradict each other")
        told_apart = [axis for axis in axes if axis != "seed"]
        return best_groups(self._with(chosen, shown), chosen, [shown], told_apart, by=keys, n=n)

    def agg(
        self,
        metric: str,
        by: str | Sequence[str],
        *,
        which: Which = "last",
        split: Split = "report",
        over_seeds: bool = True,
    ) -> pd.DataFrame:
        """Mean of a metric for each combination of values, with its spread.

        Args:
            metric: A metric's name or any column of numbers.
            by: Columns whose values make the rows.
            which: With the weights at the end of training, or with those best on select.
            split: Where a metric that is named alone is read.
            over_seeds: Average the trials that differ in their seed alone first; then `n` counts
                configurations, so that what was repeated more often does not count more.

        Returns:
            `by`, `n`, `trials`, `mean`, `sd`, and `lo` and `hi` of the 95 % t-interval.

        Raises:
            QuestionError: The column has no mean, or a word that no argument knows.
            UnknownColumnError: There is no such column.
        """
        column = self._number(metric, split=split, which=which)
        return aggregate(self._with(column), column, self._keys(by), over_seeds=over_seeds)

    def pivot(
        self,
        index: str,
        columns: str,
        metric: str = "primary",
        *,
        which: Which = "last",
        split: Split = "report",
        over_seeds: bool = True,
        counts: bool = False,
    ) -> pd.DataFrame:
        """Means of a metric as a matrix; `counts=True` gives what they are means of (`n`).

        An axis that does not act on a trial has the value `-`.

        Raises:
            QuestionError: The column has no mean, rows and columns are one axis, or a word that no
                argument knows.
            UnknownColumnError: There is no such column.
        """
        if index == columns:
            raise QuestionError(f"rows and columns are both {index!r}: name two different ones")
        column = self._number(metric, split=split, which=which)
        keys = self._keys([index, columns])
        cells = aggregate(self._with(column), column, keys, over_seeds=over_seeds)
        return pivot(self._trials, cells, index, columns, value="n" if counts else "mean")

    def pareto(self, metrics: Sequence[str] = ("primary", "parameters")) -> pd.DataFrame:
        """The groups that are a best compromise: none is as good in all metrics and better in one.

        Args:
            metrics: Of select (more is better) and costs such as `parameters` or `latency_ms` (less
                is better); means over seeds are compared.

        Returns:
            `group_id`, the axes that vary, `seeds`, the metrics, and `report/primary`: only shown.

        Raises:
            QuestionError: Fewer than two metrics, or one of which nobody can say what is better.
            UnknownColumnError: There is no such column.
        """
        columns = [self._number(metric, split="select", which="last") for metric in metrics]
        if len(set(columns)) < 2:
            raise QuestionError(
                f"{', '.join(metrics)}: a compromise is between two metrics or more"
            )
        costs = {column: is_cost(column) for column in columns}
        axes = [
            axis
            for axis in self.axes
            if axis != "seed" and self._trials[axis].nunique(dropna=False) > 1
        ]
        return pareto_groups(self._with(*columns), costs, ["report/primary"], axes)

    def search(self) -> pd.DataFrame:
        """What a search proposed, and the best so far by the number of its trials.

        Returns:
            One row for each slot that is filled, by study and slot: the axes that the study does
            not choose, `slot` (from 1), `group_id` (missing where every point drawn was
            impossible), `status`, the mean over seeds of each metric that the search improves, and
            `best`, the best of the first of them so far in this study.
        """
        return proposals_frame(self._snapshot, self._trials)

    @cached_property
    def _trials(self) -> pd.DataFrame:
        return trials_frame(self._snapshot, include_inactive=self._include_inactive)

    @cached_property
    def _teachers(self) -> pd.DataFrame:
        return teachers_frame(self._snapshot)

    @cached_property
    def _stages(self) -> pd.DataFrame:
        return stages_frame(self._snapshot)

    def _metric(self, metric: str, *, split: Split, which: Which) -> str:
        return metric_column(
            tuple(self._trials.columns),
            metric,
            split=split,
            which=which,
            # Before the first trial is completed nobody can say which metrics there will be.
            is_measured=bool((self._trials["status"] == "completed").any()),
        )

    def _number(self, metric: str, *, split: Split, which: Which) -> str:
        """The column of a metric of which there is a mean."""
        check_choice("which", which, get_args(Which))
        check_choice("split", split, get_args(Split))
        column = self._metric(metric, split=split, which=which)
        if column in self._trials and not is_numeric_dtype(self._trials[column]):
            raise QuestionError(f"{column!r} holds no numbers, so it has no mean")
        return column

    def _with(self, *columns: str) -> pd.DataFrame:
        """The trials, also with columns of which there is no value yet."""
        missing = [name for name in columns if name not in self._trials]
        return self._trials.assign(**dict.fromkeys(missing, float("nan")))

    def _keys(self, by: str | Sequence[str] | None) -> list[str]:
        keys = [by] if isinstance(by, str) else list(dict.fromkeys(by or ()))
        for name in keys:
            check_column(tuple(self._trials.columns), name)
        return keys

    def _ids(self, trials: str | Iterable[str] | None) -> tuple[str, ...]:
        known = planned_trials(self._snapshot, include_inactive=self._include_inactive)
        if trials is None:
            return known
        ids = (trials,) if isinstance(trials, str) else tuple(dict.fromkeys(trials))
        every = {*known, *self._teachers["teacher_id"], *self._stages["stage_id"]}
        unknown = [id for id in ids if id not in every]
        if unknown:
            raise UnknownTrialError(unknown, every)
        return ids


def _warn(damaged: Sequence[Damaged]) -> None:
    if damaged:
        told = "\n".join(f"    {part.path}: {part.reason}" for part in damaged[:5])
        more = f"\n    and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        warnings.warn(
            f"{len(damaged)} damaged files are left out:\n{told}{more}",
            DamagedPartsWarning,
            stacklevel=3,
        )
