"""What a grid would do, before anything is spent: for `kdsweep plan`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..results.store import Store
from ..search_spaces import expand
from ..search_spaces.early_stopping import Asha
from ..search_spaces.errors import UnreachableError
from ..search_spaces.expansion import Plan, PlannedTrial
from ..search_spaces.facts import Facts, ShippedFacts
from ..search_spaces.grid import Grid
from ..search_spaces.ids import Identifier
from ..search_spaces.resources import Request
from ..search_spaces.shape import (
    embedding_parameters,
    encoder_parameters,
    forward_flops_per_token,
)
from ..search_spaces.trial import Stage, Trial
from .decisions import read_decisions
from .early_stopping import Decided
from .folder import check_folder
from .planning import Begun, Content, ContentFacts
from .referee import Brackets, standing, stopped_ids
from .words import count
from .work import Config

BACKWARD = 3
"""A training step costs about three forward passes."""

LISTED = 20


@dataclass(frozen=True)
class Cost:
    """What the trials that are still to run would take; None is unknown."""

    student_flops: float | None
    """Floating-point operations of the students' training, padding apart."""
    hours: float | None
    """Hours of one lane, from the trials of this sweep that are completed."""
    disk_gb: float
    """Students as `keep` says, with their embeddings."""


@dataclass(frozen=True)
class Forecast:
    """A plan and what it would cost."""

    name: str
    folder: Path
    plan: Plan
    ids: tuple[str, ...] | None
    """None where the rows are not at hand, so that no id is known."""
    without_ids: str | None
    """Why there are no ids."""
    done: frozenset[str]
    """Trials that are completed, or stopped by this grid's rule."""
    shared_stages: int | None
    """Stages with which several trials begin, trained once; None where no id is known."""
    early_stopping: Asha | None
    cost: Cost
    requests: frozenset[Request]
    """What its trials ask of a host."""

    @property
    def to_run(self) -> int:
        """Trials that a launch would train; two files of equal content make one."""
        trials = self.plan.trials if self.ids is None else set(self.ids)
        return len(trials) - len(self.done)

    def as_json(self) -> dict[str, Any]:
        """One object for `--json`."""
        plan = self.plan
        return {
            "schema_version": 1,
            "name": self.name,
            "store": str(self.folder),
            "points": plan.num_points,
            "excluded": plan.num_excluded,
            "skipped": [
                {"axes": dict(s.axes), "rule": s.rule, "reason": s.reason} for s in plan.skipped
            ],
            "collapsed": [
                {"axes": dict(c.axes), "into": dict(c.into), "reason": c.reason}
                for c in plan.collapsed
            ],
            "trials": len(plan.trials),
            "axes": axis_counts(plan),
            "done": len(self.done),
            "to_run": self.to_run,
            "shared_stages": self.shared_stages,
            "ids": list(self.ids) if self.ids is not None else None,
            "without_ids": self.without_ids,
            "early_stopping": self.early_stopping
            and {
                **self.early_stopping.model_dump(mode="json"),
                "rungs": self.early_stopping.rungs,
            },
            "warnings": [str(warning) for warning in plan.warnings],
            "cost": {
                "student_flops": self.cost.student_flops,
                "lane_hours": self.cost.hours,
                "disk_gb": self.cost.disk_gb,
            },
        }


def forecast(grid: Grid, store: Path | None) -> Forecast:
    """Expand a grid, find what is done already, and reckon what the rest costs.

    Raises:
        DataError: The rows are wrong.
        TeacherError: The teacher is unknown or does not fit.
        InputError: No sweep can be made in this folder.
    """
    sweep = Store(store or Path("runs") / grid.name)
    check_folder(sweep)
    content = Content(fetch=False)
    ids: tuple[str, ...] | None = None
    shared: int | None = None
    why = None
    facts: Facts = ContentFacts(content)
    identify = Identifier().identify
    try:
        plan = expand(grid, facts)
        begun = Begun()
        found = []
        for planned in plan.trials:
            digests = content.of_trial(planned.trial)
            found.append(identify(planned.trial, digests).trial)
            begun.add(found[-1], planned, digests)
        ids = tuple(found)
        shared = sum(1 for _ in begun.rows())
    except UnreachableError as error:
        facts = ShippedFacts()
        plan = expand(grid, facts)
        why = f"{error}; without rows there are no ids, and nothing can be matched with a store"
    done = _done(sweep, grid, dict(zip(ids or (), plan.trials, strict=False)))
    known = ids or [None] * len(plan.trials)
    todo = [p.trial for p, id in zip(plan.trials, known, strict=True) if id not in done]
    return Forecast(
        name=grid.name,
        folder=sweep.folder,
        plan=plan,
        ids=ids,
        without_ids=why,
        done=done,
        shared_stages=shared,
        early_stopping=grid.early_stopping,
        cost=_cost(sweep, grid, todo, facts),
        requests=frozenset(p.resources or grid.resources.common for p in plan.trials),
    )


def axis_counts(plan: Plan) -> dict[str, dict[str, int]]:
    """How many trials stand under each value of each axis; None: it does not act on them."""
    counts: dict[str, Counter[str]] = {}
    for planned in plan.trials:
        for axis, value in planned.axes.items():
            counts.setdefault(axis, Counter())[str(value) if value is not None else "-"] += 1
    return {axis: dict(values) for axis, values in counts.items()}


def print_forecast(told: Forecast, console: Console) -> None:
    """The forecast as a person reads it; what it costs only where there is anything to train."""
    plan = told.plan
    console.print(
        f"[bold]{told.name}[/]: {count(len(plan.trials), 'trial')} of "
        f"{count(plan.num_points, 'point')} "
        f"({plan.num_excluded} excluded, {len(plan.skipped)} skipped, "
        f"{len(plan.collapsed)} collapsed)",
        highlight=False,
    )
    for axis, values in axis_counts(plan).items():
        shown = ", ".join(f"{value} ({count})" for value, count in values.items())
        console.print(f"  {axis}: {shown}", highlight=False, markup=False)
    _print_reasons(console, "skipped", [(s.axes, f"{s.rule}: {s.reason}") for s in plan.skipped])
    _print_reasons(console, "collapsed", [(c.axes, c.reason) for c in plan.collapsed])
    for warning in plan.warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False, style="yellow")
    if told.without_ids:
        console.print(f"no ids: {told.without_ids}", highlight=False, markup=False)
    if not plan.trials:
        return
    console.print(
        f"done already: {len(told.done)}; to run: {told.to_run} (in {told.folder})",
        highlight=False,
        markup=False,
    )
    if told.shared_stages:
        shared = count(told.shared_stages, "stage")
        are = "is" if told.shared_stages == 1 else "are"
        console.print(
            f"{shared} that several trials begin with {are} trained once",
            highlight=False,
            markup=False,
        )
    if told.early_stopping is not None:
        console.print(_stopping_line(told.early_stopping), highlight=False, markup=False)
    console.print(_cost_line(told.cost), highlight=False, markup=False)


def _print_reasons(
    console: Console, title: str, points: Sequence[tuple[Mapping[str, object], str]]
) -> None:
    by_reason: dict[str, list[Mapping[str, object]]] = {}
    for axes, reason in points:
        by_reason.setdefault(reason, []).append(axes)
    for reason, axes_list in by_reason.items():
        console.print(f"{title} {len(axes_list)}: {reason}", highlight=False, markup=False)
        for axes in axes_list[:LISTED]:
            shown = ", ".join(
                f"{axis}={value}" for axis, value in axes.items() if value is not None
            )
            console.print(f"    {shown}", highlight=False, markup=False, style="dim")
        if len(axes_list) > LISTED:
            left = len(axes_list) - LISTED
            console.print(f"    and {left} more (--json lists all)", style="dim", highlight=False)


def _stopping_line(stopping: Asha) -> str:
    rungs = ", ".join(f"{share:g}" for share in stopping.rungs)
    alike = f" of equal {', '.join(stopping.within)}" if stopping.within else ""
    return (
        f"early stopping: at {rungs} of the steps of the last stage the best 1/{stopping.reduction}"
        f" of the trials{alike} go on, by {stopping.metric} on select"
    )


def _cost_line(cost: Cost) -> str:
    flops = "unknown" if cost.student_flops is None else f"at most {cost.student_flops:.2g}"
    hours = (
        "unknown until a trial has been measured"
        if cost.hours is None
        else f"about {cost.hours:.2g} of one lane"
    )
    return (
        f"cost: student FLOPs {flops}; hours {hours}; disk for students about {cost.disk_gb:.2g} GB"
    )


def _done(sweep: Store, grid: Grid, trials: Mapping[str, PlannedTrial]) -> frozenset[str]:
    """Trials that a launch would not train: completed, or stopped by this very grid's rule."""
    if not sweep.exists():
        return frozenset()
    attempts = sweep.read_attempts()
    completed = {attempt.id for attempt in attempts if attempt.status == "completed"}
    stopped = standing(
        stopped_ids(attempts) & trials.keys(),
        trials.__getitem__,
        Decided(read_decisions(sweep.decisions_folder)),
        grid.early_stopping,
        Brackets(grid),
    )
    return frozenset((completed | stopped) & trials.keys())


def _cost(sweep: Store, grid: Grid, todo: Sequence[Trial], facts: Facts) -> Cost:
    flops = [_training_flops(trial, facts) for trial in todo]
    total = sum(known for known in flops if known is not None) if None not in flops else None
    kept = {"all": len(todo), "best_per_group": len(_groups(todo)), "none": 0}[grid.keep.students]
    size = sum(_parameters(trial, facts) for trial in todo) / max(1, len(todo))
    pace = _seconds_per_flop(sweep, facts)
    return Cost(
        student_flops=total,
        hours=None if total is None or pace is None else total * pace / 3600,
        disk_gb=kept * size * 4 / 1e9,
    )


def _groups(trials: Sequence[Trial]) -> set[Trial]:
    return {trial.model_copy(update={"seed": 0}) for trial in trials}


def _training_flops(trial: Trial, facts: Facts) -> float | None:
    """Upper bound: every sequence at its full length."""
    known = facts.task(trial.task)
    if known is None or known.train_rows is None:
        return None
    length = trial.task.max_length
    per_token = forward_flops_per_token(trial.shape, sequence_length=length)
    rows = [_rows_seen(stage, known.train_rows) for stage in trial.stages]
    if None in rows:
        return None
    return float(BACKWARD * per_token * length * sum(each for each in rows if each is not None))


def _rows_seen(stage: Stage, train_rows: int) -> int | None:
    """Rows that the steps of a stage see, with repetition; None where its text is not counted."""
    if stage.training.total_steps is not None:
        return stage.training.total_steps * stage.training.batch_size
    return train_rows * stage.training.epochs if stage.data == "task" else None


def _parameters(trial: Trial, facts: Facts) -> int:
    model = facts.model(trial.teacher)
    embeddings = (
        embedding_parameters(
            trial.shape.width,
            vocab_size=model.vocab_size,
            max_positions=model.max_position_embeddings,
            type_vocab_size=model.type_vocab_size,
        )
        if model
        else 0
    )
    return embeddings + encoder_parameters(trial.shape)


def _seconds_per_flop(sweep: Store, facts: Facts) -> float | None:
    """Measured on this sweep's completed trials."""
    seconds = flops = 0.0
    attempts = sweep.read_attempts() if sweep.exists() else ()
    for attempt in attempts:
        if attempt.what != "trial" or attempt.status != "completed" or attempt.resumed_from:
            continue
        trial = Config.model_validate_json(attempt.config_json).trial
        if trial is not None and (of_trial := _training_flops(trial, facts)):
            seconds += (attempt.ended - attempt.started).total_seconds()
            flops += of_trial
    return seconds / flops if flops else None
