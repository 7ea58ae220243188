"""What a search chooses: parameters, and the point that their values come to.

A point is drawn as a tree is walked: first the mapping of axes, then a value of each of its axes,
then of those that `when` rules add to this very point. A parameter that no step of the walk asks
for does not act.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from .expansion import Expander, Plan, PlannedTrial, Skipped, expand
from .facts import Facts
from .grid import Grid
from .predicate import WhenRule
from .product import Holds, Point, compile_predicate, groups_of
from .search import GridSearch, Proposing
from .tree import Scalar
from .values import Axis, AxisMapping, Range, Value

MOST_POINTS = 20_000
"""Of a space that is looked at whole before a search begins; of a larger one so many are drawn."""

DRAWN = 2_000

Choice = str | int | float
Arm = Mapping[str, Scalar]
"""Path to label of the axes that a study does not choose, since each value has its own."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One choice of a search."""

    name: str
    domain: tuple[str, ...] | Range
    """What may be chosen: one of several labels, or a number."""

    def has(self, choice: object) -> bool:
        """Whether this may be chosen."""
        if isinstance(self.domain, tuple):
            return choice in self.domain
        return isinstance(choice, int | float) and self.domain.low <= choice <= self.domain.high


Choose = Callable[[Parameter], Choice]
"""Asked the same parameter again for one point, it answers the same."""


class UnknownChoiceError(LookupError):
    """A recorded choice is none of this space's: its grid has changed."""


def recorded(choices: Mapping[str, Choice]) -> Choose:
    """Chooses what was chosen before.

    Raises:
        UnknownChoiceError: From the function: nothing was, or what is no choice any more.
    """

    def choose(parameter: Parameter) -> Choice:
        choice = choices.get(parameter.name)
        if choice is None or not parameter.has(choice):
            raise UnknownChoiceError(parameter.name)
        return choice

    return choose


def at_random(draw: Random) -> Choose:
    """Chooses evenly, for one point."""
    made: dict[str, Choice] = {}

    def choose(parameter: Parameter) -> Choice:
        if parameter.name not in made:
            made[parameter.name] = _draw(parameter.domain, draw)
        return made[parameter.name]

    return choose


def _draw(domain: tuple[str, ...] | Range, draw: Random) -> Choice:
    match domain:
        case Range(kind="integers", low=low, high=high):
            return draw.randint(int(low), int(high))
        case Range(kind="log", low=low, high=high):
            return min(high, max(low, math.exp(draw.uniform(math.log(low), math.log(high)))))
        case Range(low=low, high=high):
            return draw.uniform(low, high)
        case _:
            return draw.choice(domain)


@dataclass(frozen=True, slots=True)
class _Step:
    """Paths that get their values together, by one parameter unless there is one value alone."""

    paths: tuple[str, ...]
    rows: Mapping[str, tuple[Value, ...]]
    """By a label that tells them apart; of a range none."""
    axis: Axis | None
    """A range."""
    parameter: Parameter | None

    def take(self, choose: Choose) -> Point:
        """The values of the chosen row or number."""
        if self.parameter is None:
            [row] = self.rows.values()
            return dict(zip(self.paths, row, strict=True))
        choice = choose(self.parameter)
        if self.axis is not None:
            return {self.axis.path: self.axis.at(float(choice))}
        return dict(zip(self.paths, self.rows[str(choice)], strict=True))


def _step(name: str, paths: tuple[str, ...], rows: list[tuple[Value, ...]]) -> _Step:
    # Two spellings of one value are one choice: an iso shape may equal a written one.
    labelled: dict[str, tuple[Value, ...]] = {}
    for row in rows:
        labelled.setdefault(", ".join(_word(value) for value in row), row)
    parameter = Parameter(name, tuple(labelled)) if len(labelled) > 1 else None
    return _Step(paths, labelled, None, parameter)


def _word(value: Value) -> str:
    return value.label if isinstance(value.label, str) else json.dumps(value.label)


def _steps(
    mapping: AxisMapping, arm: Arm, prefix: str
) -> tuple[tuple[_Step, ...], tuple[Value, ...]]:
    """The steps of a mapping below an arm, and its seeds."""
    steps = []
    groups = groups_of(mapping)
    seeds = tuple(value for (value,) in groups.pop(("seed",)))
    for paths, rows in groups.items():
        name = prefix + ",".join(paths)
        axis = mapping.axes[paths[0]]
        if axis.range is not None:
            steps.append(_Step(paths, {}, axis, Parameter(name, axis.range)))
            continue
        kept = [row for row in rows if _fits(paths, row, arm)]
        steps.append(_step(name, paths, kept))
    return tuple(steps), seeds


def _fits(paths: tuple[str, ...], row: tuple[Value, ...], arm: Arm) -> bool:
    return all(
        path not in arm or value.label == arm[path] for path, value in zip(paths, row, strict=True)
    )


def arms(grid: Grid, search: Proposing) -> tuple[Arm, ...]:
    """The arms of a search, each a study of its own, in the file's order; one without `per`."""
    found: dict[str, Arm] = {}
    for mapping in grid.axes:
        values = [mapping.axes[path].values for path in search.per]
        for labels in itertools.product(*([value.label for value in each] for each in values)):
            arm = dict(zip(search.per, labels, strict=True))
            if _has_arm(mapping, arm):
                found.setdefault(json.dumps(arm), arm)
    return tuple(found.values())


def _has_arm(mapping: AxisMapping, arm: Arm) -> bool:
    return all(
        any(_fits(paths, row, arm) for row in rows) for paths, rows in groups_of(mapping).items()
    )


class Space:
    """The points below one arm of a grid."""

    def __init__(self, grid: Grid, arm: Arm) -> None:
        several = len(grid.axes) > 1
        mappings = {
            str(n): _steps(mapping, arm, f"axes[{n}]." if several else "")
            for n, mapping in enumerate(grid.axes)
            if _has_arm(mapping, arm)
        }
        self._mappings = mappings
        self._which = Parameter("axes", tuple(mappings)) if len(mappings) > 1 else None
        self._when = [_When(rule, n, grid) for n, rule in enumerate(grid.when)]
        self._exclude = [compile_predicate(rule.predicate, grid) for rule in grid.exclude]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Everything that may be chosen at some point, in the order of the walk."""
        steps = [step for of, _ in self._mappings.values() for step in of]
        steps += [step for when in self._when for step in when.steps]
        chosen = [step.parameter for step in steps if step.parameter]
        return (*([self._which] if self._which else []), *chosen)

    @property
    def most_seeds(self) -> int:
        """How many seeds a point is trained with at most, rules apart."""
        return max(len(seeds) for _, seeds in self._mappings.values())

    @property
    def num_points(self) -> int | None:
        """How many points there are, seeds and what rules change apart; None: without end."""
        total = 0
        for steps, _ in self._mappings.values():
            if any(step.axis is not None for step in steps):
                return None
            total += math.prod(len(step.rows) for step in steps)
        return None if any(step.axis for when in self._when for step in when.steps) else total

    def points(self, choose: Choose) -> list[Point]:
        """The chosen point with each of its seeds; those that are excluded are left out.

        Raises:
            UnknownChoiceError: As `choose` does.
        """
        which = choose(self._which) if self._which else next(iter(self._mappings))
        steps, seeds = self._mappings[str(which)]
        point: Point = {}
        for step in steps:
            point |= step.take(choose)
        points = [{**point, "seed": seed} for seed in seeds]
        for when in self._when:
            points = [changed for each in points for changed in when.apply(each, choose)]
        return [each for each in points if not any(holds(each) for holds in self._exclude)]


class _When:
    """A rule that sets values of a drawn point, and draws those of further axes."""

    def __init__(self, rule: WhenRule, number: int, grid: Grid) -> None:
        self._rule = rule
        self._applies: Holds = compile_predicate(rule.predicate, grid)
        self._seeds = [
            {"seed": seed} for axis in rule.axes if axis.path == "seed" for seed in axis.values
        ]
        self.steps = tuple(
            _when_step(f"when[{number}].{axis.path}", axis)
            for axis in rule.axes
            if axis.path != "seed"
        )

    def apply(self, point: Point, choose: Choose) -> Iterator[Point]:
        """The point as the rule leaves it, with each seed that the rule gives it."""
        if not self._applies(point):
            yield point
            return
        changed = {**point, **self._rule.set}
        for step in self.steps:
            changed |= step.take(choose)
        for seed in self._seeds or ({},):
            yield {**changed, **seed}


def _when_step(name: str, axis: Axis) -> _Step:
    if axis.range is not None:
        return _Step((axis.path,), {}, axis, Parameter(name, axis.range))
    return _step(name, (axis.path,), [(value,) for value in axis.values])


@dataclass(frozen=True)
class Impossible:
    """A point of which nothing can be trained, and why."""

    axes: Mapping[str, Scalar]
    reason: str


class Points:
    """Resolves the points of a grid one at a time, as a search proposes them."""

    def __init__(self, grid: Grid, facts: Facts) -> None:
        self._expander = Expander(grid, facts)

    def resolve(self, points: list[Point]) -> tuple[PlannedTrial, ...] | Impossible:
        """The trials of one point with its seeds, or why there are none."""
        if not points:
            return Impossible({}, "excluded: a rule of `exclude` holds")
        resolved = [self._expander.resolve(point) for point in points]
        trials = tuple(each for each in resolved if isinstance(each, PlannedTrial))
        skipped = [each for each in resolved if isinstance(each, Skipped)]
        if not trials:
            return Impossible(skipped[0].axes, f"{skipped[0].rule}: {skipped[0].reason}")
        return trials


def survey(grid: Grid, facts: Facts) -> Plan:
    """A grid's plan; of a search what it would meet: every point, ranges at both their ends.

    Where a search has more than 20,000 of these, 2,000 points are drawn.

    Raises:
        GridError: An axis acts on no point.
    """
    corners = sum(
        math.prod(len(rows) for rows in groups_of(mapping).values()) for mapping in grid.axes
    )
    if isinstance(grid.search, GridSearch) or corners <= MOST_POINTS:
        return expand(grid, facts)
    expander = Expander(grid, facts)
    draw, space = Random(0), Space(grid, {})
    drawn = [space.points(at_random(draw)) for _ in range(DRAWN)]
    for point in itertools.chain.from_iterable(drawn):
        expander.add(point, priority=0)
    return Plan(
        trials=tuple(expander.trials),
        skipped=tuple(expander.skipped),
        collapsed=tuple(expander.collapsed),
        num_points=DRAWN,
        num_excluded=sum(1 for points in drawn if not points),
        warnings=tuple(expander.warnings.values()),
    )
