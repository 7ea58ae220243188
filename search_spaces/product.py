"""The raw points of a grid: products of axes, changed by `when`, thinned by `exclude`."""

import itertools
from collections.abc import Callable, Iterator

from .errors import Problem
from .grid import Grid
from .knowledge import term_label
from .objective import said_of_stage
from .predicate import IsOneOf, Predicate, WhenRule, holds
from .report import nearest, show
from .resources import Request
from .sections import get_typed
from .stages import all_terms
from .values import FIXED_AXES, Axis, AxisMapping, Value, Written, label_of

Point = dict[str, Value]
"""Path to value; every fixed axis is there."""

Holds = Callable[[Point], bool]


class RawPoints:
    """Iterates over the points of a grid, and counts what its rules matched."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._when = [(rule, compile_predicate(rule.predicate, grid)) for rule in grid.when]
        self._exclude = [(rule, compile_predicate(rule.predicate, grid)) for rule in grid.exclude]
        self._order = [(rule, compile_predicate(rule.predicate, grid)) for rule in grid.order]
        self._matched: set[Written] = set()
        self.num_points = 0
        self.num_excluded = 0

    def __iter__(self) -> Iterator[Point]:
        for mapping in self._grid.axes:
            for point in _product(mapping):
                for changed in self._apply_when(point) if self._when else (point,):
                    self.num_points += 1
                    if self._exclude and self._is_excluded(changed):
                        self.num_excluded += 1
                    else:
                        yield changed

    def _apply_when(self, point: Point) -> list[Point]:
        points = [point]
        for rule, applies in self._when:
            changed: list[Point] = []
            for each in points:
                if applies(each):
                    self._matched.add(rule.where)
                    changed += _rewrite(each, rule)
                else:
                    changed.append(each)
            points = changed
        return points

    def _is_excluded(self, point: Point) -> bool:
        excluded = False
        for rule, applies in self._exclude:
            if applies(point):
                self._matched.add(rule.where)
                excluded = True
        return excluded

    def priority(self, point: Point) -> int:
        """Where `order` puts a point: lower runs first.

        An earlier condition outweighs all later ones together, so each is a binary digit.
        """
        priority = 0
        for rule, applies in self._order:
            is_first = applies(point)
            if is_first:
                self._matched.add(rule.where)
            priority = 2 * priority + (not is_first)
        return priority

    def unmatched(self) -> list[Problem]:
        """The rules that matched no point, once all points have been seen."""
        rules = [(rule.where, rule.predicate) for rule in self._grid.when]
        rules += [(rule.where, rule.predicate) for rule in self._grid.exclude]
        rules += [(rule.where, rule.predicate) for rule in self._grid.order]
        return [
            where.problem("matches no point", _mend(predicate, self._grid))
            for where, predicate in rules
            if where not in self._matched
        ]


class Requests:
    """What the points of a grid ask for, by the rules of `resources`."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._rules = [
            (rule, compile_predicate(rule.predicate, grid)) for rule in grid.resources.when
        ]
        self._made: dict[tuple[int, ...], Request] = {}
        self._matched: set[int] = set()

    def of(self, point: Point) -> Request | None:
        """What a point asks for; None where no rule says that it differs from the others."""
        rules = tuple([n for n, (_, applies) in enumerate(self._rules) if applies(point)])
        if not rules:
            return None
        self._matched.update(rules)
        if rules not in self._made:
            asked = self._grid.resources.common.model_dump()
            for n in rules:
                asked |= self._rules[n][0].changes
            self._made[rules] = Request.model_validate(asked)
        return self._made[rules]

    def unmatched(self) -> list[Problem]:
        """The rules that no point so far has met."""
        return [
            rule.where.problem("matches no point", _mend(rule.predicate, self._grid))
            for n, (rule, _) in enumerate(self._rules)
            if n not in self._matched
        ]


def groups_of(mapping: AxisMapping) -> dict[tuple[str, ...], list[tuple[Value, ...]]]:
    """The values of paths that walk together, by their paths; the seeds' group is the last."""
    groups: dict[tuple[str, ...], list[tuple[Value, ...]]] = {}
    group_of = {path: group for group in mapping.zipped for path in group}
    ordered = sorted(mapping.axes, key=lambda path: path == "seed")
    for path in ordered:
        group = group_of.get(path, (path,))
        if group not in groups:
            columns = [mapping.axes[member].values for member in group]
            groups[group] = list(zip(*columns, strict=True))
    return groups


def _product(mapping: AxisMapping) -> Iterator[Point]:
    """Every combination in the file's order; seeds innermost."""
    groups = groups_of(mapping)
    paths = [path for group in groups for path in group]
    for rows in itertools.product(*groups.values()):
        yield dict(zip(paths, itertools.chain.from_iterable(rows), strict=True))


def _rewrite(point: Point, rule: WhenRule) -> list[Point]:
    changed = {**point, **rule.set}
    paths = [axis.path for axis in rule.axes]
    return [
        {**changed, **dict(zip(paths, values, strict=True))}
        for values in itertools.product(*(axis.values for axis in rule.axes))
    ]


def compile_predicate(predicate: Predicate, grid: Grid) -> Holds:
    """A predicate as a function that tests each value once."""
    conditions = [
        (_getter(path, grid), test, dict[Value, bool]()) for path, test in predicate.tests.items()
    ]

    def applies(point: Point) -> bool:
        for get, test, known in conditions:
            value = get(point)
            if value is None:
                return False
            passes = known.get(value)
            if passes is None:
                passes = known[value] = holds(test, value)
            if not passes:
                return False
        return True

    return applies


def _getter(path: str, grid: Grid) -> Callable[[Point], Value | None]:
    section, *steps = path.split(".")
    if path in FIXED_AXES:
        return lambda point: point.get(path)
    if section == "shape":
        return _derived("shape", lambda shape: _shape_part(shape, steps[0]))
    if section == "terms":
        label, field = path.removeprefix("terms.").rsplit(".", 1)
        written = _derived("knowledge", lambda value: _term_field(value, label, field))
        return lambda point: _addressed(point, path, written, label)
    if section == "stages":
        return _of_stage(path, *steps)
    typed = get_typed(getattr(grid, section), steps)
    base = None if typed is None else _constant(typed)
    return lambda point: point.get(path, base)


def _derived(axis: str, derive: Callable[[Value], Value | None]) -> Callable[[Point], Value | None]:
    known: dict[Value, Value | None] = {}

    def get(point: Point) -> Value | None:
        value = point[axis]
        if value not in known:
            known[value] = derive(value)
        return known[value]

    return get


def _shape_part(shape: Value, part: str) -> Value:
    name = "intermediate_size" if part == "feed_forward" else part
    return _constant(getattr(shape.data, name))


def _term_field(knowledge: Value, label: str, field: str) -> Value | None:
    found = [term for term in all_terms(knowledge.data) if term_label(term) == label]
    typed = getattr(found[0], field, None) if found else None
    return None if typed is None else _constant(typed)


def _addressed(
    point: Point, path: str, written: Callable[[Point], Value | None], label: str
) -> Value | None:
    has_term = any(term_label(term) == label for term in all_terms(point["knowledge"].data))
    return point.get(path) or written(point) if has_term else None


def _of_stage(path: str, name: str, *field: str) -> Callable[[Point], Value | None]:
    """What a stage's address comes to; None where no stage has the name, or says nothing."""

    def said(knowledge: Value) -> Value | None:
        found = [stage for stage in knowledge.data if stage.name == name]
        data = said_of_stage(found[0], field) if found else None
        return None if data is None else _constant(data)

    written = _derived("knowledge", said)

    def get(point: Point) -> Value | None:
        has_stage = any(stage.name == name for stage in point["knowledge"].data)
        return point.get(path) or written(point) if has_stage else None

    return get


def _constant(typed: object) -> Value:
    try:
        return Value(typed, label_of(typed))
    except LookupError:
        return Value(typed, None)


def _mend(predicate: Predicate, grid: Grid) -> str:
    """A hint at the value that no axis has, if that is the cause."""
    for path, test in predicate.tests.items():
        labels = {str(value.label) for axis in _axes(grid, path) for value in axis.values}
        for word in test.alternatives if isinstance(test, IsOneOf) else ():
            if labels and str(word) not in labels:
                close = nearest(word, labels)
                hint = (
                    f"did you mean `{close}`?" if close else f"it has {', '.join(sorted(labels))}"
                )
                return f"`{path}` is never {show(word)}; {hint}"
    return "Remove the rule, or mend its condition"


def _axes(grid: Grid, path: str) -> list[Axis]:
    found = [mapping.axes[path] for mapping in grid.axes if path in mapping.axes]
    return found + [axis for rule in grid.when for axis in rule.axes if axis.path == path]
