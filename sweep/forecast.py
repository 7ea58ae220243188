"""What a grid would do, before anything is spent: for `kdsweep plan`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..results.store import Store
from ..search_spaces import expand
from ..search_spaces.early_stopping import Asha
from ..search_spaces.errors import UnreachableError
from ..search_spaces.expansion import Plan
from ..search_spaces.facts import Facts, ShippedFacts
from ..search_spaces.grid import Grid
from ..search_spaces.resources import Request
from ..search_spaces.search import GridSearch, Proposing
from ..search_spaces.space import survey
from ..trainers.settings import Precision, fast_precision
from .cost import Between
from .estimate import Cost, estimate, planned_work, read_done
from .feature_plan import FeaturePlan, Measures, plan_features
from .folder import check_folder
from .pinned import device_of, pinned_of
from .planning import Begun, Content, ContentFacts, identify_trials
from .search import Slots, open_search, search_work, slots_of
from .words import count, size

LISTED = 20


@dataclass(frozen=True)
class Forecast:
    """A plan and what it would cost."""

    name: str
    folder: Path
    plan: Plan
    """Of a search what it may meet."""
    slots: Slots | None
    """None without a search."""
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
    features: FeaturePlan | None
    """What it keeps of its teachers' outputs; None where rows or teachers are out of reach."""
    requests: frozenset[Request]
    """What its trials ask of a host."""

    @property
    def to_run(self) -> int:
        """Trials that a launch would train; two files of equal content make one."""
        if self.slots is not None:
            return self.slots.left
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
            "trials": len(plan.trials) if self.slots is None else self.slots.most_trials,
            "search": self.slots and self.slots.as_json(),
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
            "features": self.features and self.features.as_json(),
            "cost": {
                "student_flops": self.cost.student_flops,
                "lane_hours": _between(self.cost.lane_hours),
                "lanes": self.cost.lanes,
                "wall_hours": _between(self.cost.wall_hours),
                "not_in_hours": self.cost.num_unknown,
                "disk_bytes": {
                    "kept": self.cost.disk.kept,
                    "rows": self.cost.disk.rows,
                    "lane": self.cost.disk.lane,
                    "free": self.cost.disk.free,
                },
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
    facts: Facts = ContentFacts(content)
    if not isinstance(grid.search, GridSearch):
        return _forecast_search(grid, grid.search, sweep, content)
    begun: Begun | None = None
    ids: tuple[str, ...] | None = None
    why = None
    try:
        plan = expand(grid, facts)
        begun = Begun()
        ids = identify_trials(plan, content, begun)
    except UnreachableError as error:
        facts = ShippedFacts()
        plan = expand(grid, facts)
        begun = None
        why = f"{error}; without rows there are no ids, and nothing can be matched with a store"
    done = read_done(sweep, grid, dict(zip(ids or (), plan.trials, strict=False)))
    return Forecast(
        name=grid.name,
        folder=sweep.folder,
        plan=plan,
        slots=None,
        ids=ids,
        without_ids=why,
        done=done.ended & frozenset(ids or ()),
        shared_stages=None if begun is None else len(begun.shared()),
        early_stopping=grid.early_stopping,
        cost=estimate(sweep, grid, planned_work(plan, begun, facts), done=done),
        features=None if why else _features(sweep, grid, plan, content, begun),
        requests=frozenset(p.resources or grid.resources.common for p in plan.trials),
    )


def _forecast_search(grid: Grid, search: Proposing, sweep: Store, content: Content) -> Forecast:
    facts: Facts = ContentFacts(content)
    why = "a search chooses its trials one after another"
    proposed = None
    try:
        plan = survey(grid, facts)
        for planned in plan.trials:
            content.of_trial(planned.trial)
        proposed = open_search(sweep, grid, content)
    except UnreachableError as error:
        facts = ShippedFacts()
        plan, why = survey(grid, facts), str(error)
    trials = proposed.trials if proposed is not None else {}
    done = read_done(sweep, grid, trials)
    ended = done.ended & trials.keys()
    work = (
        planned_work(plan, None, facts)
        if proposed is None
        else search_work(proposed, plan, content)
    )
    return Forecast(
        name=grid.name,
        folder=sweep.folder,
        plan=plan,
        slots=slots_of(grid, search, proposed, num_done=len(ended)),
        ids=None,
        without_ids=why,
        done=ended,
        shared_stages=None,
        early_stopping=grid.early_stopping,
        cost=estimate(sweep, grid, work, done=done),
        features=None if proposed is None else _features(sweep, grid, plan, content, None),
        requests=frozenset(p.resources or grid.resources.common for p in plan.trials),
    )


def _features(
    sweep: Store, grid: Grid, plan: Plan, content: Content, begun: Begun | None
) -> FeaturePlan | None:
    """As the next launch would decide it, if it ran on this host alone."""
    # Equal teachers of a plan are one object, or few.
    teachers = {id(planned.trial.teacher): planned.trial.teacher for planned in plan.trials}
    if any(content.teacher(teacher).folder is None for teacher in teachers.values()):
        return None
    known = pinned_of(sweep)
    if known is not None and known.features is None:
        return None
    precision: Precision = "bf16" if device_of(grid) == "cuda" else fast_precision("cpu")
    return plan_features(
        grid,
        plan,
        Measures(content),
        begun,
        precision=precision if known is None else known.precision,
        choices=() if known is None else known.features or (),
    )


def _between(value: Between | None) -> dict[str, float] | None:
    return None if value is None else asdict(value)


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
    title = f"[bold]{told.name}[/]"
    if told.slots is not None:
        console.print(f"{title}: {_slots_line(told.slots)}", highlight=False)
        title = "looked at"
    console.print(
        f"{title}: {count(len(plan.trials), 'trial')} of "
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
    most = "at most " if told.slots is not None else ""
    console.print(
        f"done already: {len(told.done)}; to run: {most}{told.to_run} (in {told.folder})",
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
    features = () if told.features is None else told.features.lines()
    for line in (*features, _time_line(told.cost), _disk_line(told.cost)):
        console.print(line, highlight=False, markup=False)


def _slots_line(slots: Slots) -> str:
    each = f" for each value of {' and '.join(slots.per)}" if slots.per else ""
    space = (
        "both ends of a range are looked at"
        if slots.points is None
        else f"{count(slots.points, 'point')} to choose from"
    )
    return (
        f"search by {slots.method}: {count(slots.trials, 'slot')}{each}, "
        f"{count(slots.seeds, 'seed')} a point, at most {count(slots.most_trials, 'trial')}; "
        f"{space}"
    )


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


def _time_line(cost: Cost) -> str:
    flops = "unknown" if cost.student_flops is None else f"at most {cost.student_flops:.2g}"
    return f"cost: student FLOPs {flops}; hours {_hours(cost)}"


def _hours(cost: Cost) -> str:
    if cost.lane_hours is None or cost.wall_hours is None:
        return "unknown until a trial has been measured"
    lane = cost.lane_hours
    told = f"{lane.low:.2g} to {lane.high:.2g} of one lane, about {cost.wall_hours.middle:.2g} on "
    told += f"the {count(cost.lanes, 'lane')} of this machine"
    if cost.num_unknown:
        of = "piece" if cost.num_unknown == 1 else "pieces"
        told += f", without {cost.num_unknown} {of} of work of which nothing was measured"
    return told


def _disk_line(cost: Cost) -> str:
    disk = cost.disk
    rows = "unknown until a trial has been measured" if disk.rows is None else size(disk.rows)
    told = (
        f"disk: models {size(disk.kept)}; history and predictions {rows}; checkpoints of a lane "
        f"while it trains {size(disk.lane)}"
    )
    if disk.free < disk.needed(cost.lanes):
        told += f"; only {size(disk.free)} are free"
    return told
