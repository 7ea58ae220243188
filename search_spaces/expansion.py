"""A grid becomes a plan: trials, and what was skipped, collapsed or excluded, with reasons."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .early_stopping import Asha, has_rung
from .errors import GridError, Problem
from .facts import Facts
from .grid import Grid
from .plugins import first_misuse
from .product import Point, RawPoints, Requests
from .resolve import Group, Resolver
from .resources import Request
from .rules import Broken, Subject, first_broken, warnings
from .tree import Scalar
from .trial import Trial
from .values import grid_axes


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial and the values it takes on the grid's axes."""

    trial: Trial
    axes: Mapping[str, Scalar]
    """Short name to value or label; None where an axis does not act on this trial."""
    resources: Request | None
    """What it asks for; None: what the grid says of all."""
    priority: int = 0
    """Where `order` puts it: lower runs first."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A point that cannot be trained."""

    axes: Mapping[str, Scalar]
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Collapsed:
    """A point that is another spelling of one that stands before it."""

    axes: Mapping[str, Scalar]
    into: Mapping[str, Scalar]
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a grid comes to; `num_points` counts before exclusion."""

    trials: tuple[PlannedTrial, ...]
    skipped: tuple[Skipped, ...]
    collapsed: tuple[Collapsed, ...]
    num_points: int
    num_excluded: int
    warnings: tuple[Problem, ...]


def expand(grid: Grid, facts: Facts) -> Plan:
    """Resolves every point of a grid, in the file's order with seeds innermost.

    Raises:
        GridError: An axis acts on no point at all, or early stopping on no trial.
    """
    expander = Expander(grid, facts)
    points = RawPoints(grid)
    for point in points:
        expander.add(point, priority=points.priority(point))
    expander.check_axes()
    if grid.early_stopping is not None:
        expander.check_early_stopping(grid.early_stopping)
    return Plan(
        trials=tuple(expander.trials),
        skipped=tuple(expander.skipped),
        collapsed=tuple(expander.collapsed),
        num_points=points.num_points,
        num_excluded=points.num_excluded,
        warnings=(
            *points.unmatched(),
            *expander.requests.unmatched(),
            *expander.warnings.values(),
        ),
    )


class Expander:
    """Resolves raw points, all of a grid or those of a search."""

    def __init__(self, grid: Grid, facts: Facts) -> None:
        self._grid = grid
        self._facts = facts
        self._resolver = Resolver(grid)
        self.requests = Requests(grid)
        self._verdicts: dict[tuple[int, ...], Broken | None] = {}
        self._kept: dict[tuple[int, int], Mapping[str, Scalar]] = {}
        self.trials: list[PlannedTrial] = []
        self.skipped: list[Skipped] = []
        self.collapsed: list[Collapsed] = []
        self.warnings: dict[str, Problem] = {}

    def add(self, point: Point, *, priority: int) -> None:
        """Counts a point as a trial, as skipped or as collapsed."""
        group = self._resolver.group(point)
        if isinstance(group, Broken):
            self.skipped.append(Skipped(self._resolver.written(point), *group))
            return
        seed = point["seed"].data
        columns = {**group.columns, "seed": seed}
        kept = self._kept.setdefault((group.number, seed), columns)
        if kept is not columns:
            written = self._resolver.written(point)
            self.collapsed.append(Collapsed(written, kept, group.reason))
        elif broken := self._verdict(group):
            self.skipped.append(Skipped(columns, *broken))
        else:
            self.trials.append(
                PlannedTrial(self._trial(group, seed), columns, self.requests.of(point), priority)
            )

    def resolve(self, point: Point) -> PlannedTrial | Skipped:
        """What a single point comes to, whatever came before it."""
        group = self._resolver.group(point)
        if isinstance(group, Broken):
            return Skipped(self._resolver.written(point), *group)
        columns = {**group.columns, "seed": point["seed"].data}
        if broken := self._verdict(group):
            return Skipped(columns, *broken)
        trial = self._trial(group, point["seed"].data)
        return PlannedTrial(trial, columns, self.requests.of(point))

    def _trial(self, group: Group, seed: int) -> Trial:
        # Every part is checked already; checking a hundred thousand trials again takes seconds.
        return Trial.model_construct(
            task=group.task,
            teacher=group.teacher,
            shape=group.shape,
            initialisation=group.initialisation,
            stages=group.stages,
            seed=seed,
        )

    def _verdict(self, group: Group) -> Broken | None:
        if group.rules_key not in self._verdicts:
            self._verdicts[group.rules_key] = self._judge(group)
        return self._verdicts[group.rules_key]

    def _judge(self, group: Group) -> Broken | None:
        subject = Subject(
            task=group.task,
            teacher=group.teacher,
            stages=group.stages,
            shape=group.shape,
            initialisation=group.initialisation,
            model=self._facts.model(group.teacher),
            task_facts=self._facts.task(group.task),
        )
        self._note_unknown(subject)
        terms = [term for stage in group.stages for term in stage.terms]
        if misuse := first_misuse(terms, self._grid.plugins):
            return Broken("plugin", misuse)
        broken = first_broken(subject)
        if broken is None:
            for rule, reason in warnings(subject):
                self.warnings.setdefault(rule, Problem("axes", reason, "Compare with care"))
        return broken

    def _note_unknown(self, subject: Subject) -> None:
        if subject.model is None:
            name = subject.teacher.model
            what = (
                f"nothing is known of `{name}`: rules on layers, heads and widths are not checked"
            )
            problem = Problem(
                "teacher.model", what, "They are read from the `config.json` of a local folder"
            )
            self.warnings.setdefault(f"teacher {name}", problem)
        if subject.task_facts is None:
            name = subject.task.name or "its files"
            what = f"nothing is known of {name}: rules on classes are not checked"
            self.warnings.setdefault(
                f"task {name}",
                Problem("task", what, "They are read from the rows before anything trains"),
            )

    def check_axes(self) -> None:
        """Refuses axes that changed nothing at any point.

        Raises:
            GridError: There are such axes.
        """
        if not self._kept:
            return
        idle = [
            axis.where.problem("acts on no point", "Remove it, or give it points to act on")
            for axis in grid_axes(self._grid.axes)
            if axis.where and not self._resolver.acts(axis.path)
        ]
        if idle:
            raise GridError(idle)

    def check_early_stopping(self, stopping: Asha) -> None:
        """Refuses what can stop nobody, and warns of trials that nothing can stop.

        Raises:
            GridError: No trial is evaluated between its first rung and its end, or the metric is
                not measured.
        """
        trials = [planned.trial for planned in self.trials]
        problems = [*self._unmeasured(stopping, trials)]
        paused = [has_rung(stopping, times=times) for times in map(_evaluations, trials)]
        if num_never := len(trials) - sum(paused):
            problem = Problem(
                "early_stopping",
                f"cannot stop {num_never} of {len(trials)} trials: select is not evaluated between "
                f"the first rung, at {stopping.grace:g} of the steps, and their end",
                "Raise `training.evaluate.times`, or lower `early_stopping.grace`",
            )
            if any(paused):
                self.warnings["early stopping"] = problem
            else:
                problems.append(problem)
        if problems:
            raise GridError(problems)

    def _unmeasured(self, stopping: Asha, trials: list[Trial]) -> Iterator[Problem]:
        for task in dict.fromkeys(trial.task for trial in trials):
            facts, metric = self._facts.task(task), stopping.metric
            if facts is None or facts.metrics is None or metric in ("primary", *facts.metrics):
                continue
            yield Problem(
                "early_stopping.metric",
                f"`{metric}` is not measured on {task.name or 'this task'}",
                f"Write one of primary, {', '.join(facts.metrics)}",
            )


def _evaluations(trial: Trial) -> int:
    """How often select is evaluated in a trial's last stage."""
    return trial.stages[-1].training.evaluate.times
