"""A raw point becomes what a trial is made of, each part made once and shared."""

from dataclasses import dataclass
from typing import NamedTuple, cast

from pydantic import ValidationError

from .columns import column_paths, short_names
from .grid import Grid
from .initialisation import Initialisation
from .objective import Objective, resolve_terms
from .product import Point
from .rules import Broken
from .sections import SECTIONS, get_typed, override
from .shape import Shape
from .spec import Spec
from .stages import LengthError, stage_trainings
from .task import Task, Teacher
from .texts import Text
from .training import Training
from .tree import Scalar
from .trial import Stage, canonical_json, canonical_stage
from .values import Value, label_of


@dataclass(frozen=True, slots=True)
class Group:
    """The parts of trials that differ in their seed alone; equal parts are one object."""

    number: int
    """Equal for groups that are spellings of one."""
    task: Task
    teacher: Teacher
    shape: Shape
    initialisation: Initialisation
    stages: tuple[Stage, ...]
    rules_key: tuple[int, ...]
    """What the rules depend on."""
    columns: dict[str, Scalar]
    """Values by short name, but for the seed's."""
    reason: str
    """Why this group may equal another."""


class _KnownObjective(NamedTuple):
    number: int
    objective: Objective
    reason: str
    terms: dict[str, Scalar]
    """Columns of term addresses, by short name."""


class Resolver:
    """Resolves the points of one grid."""

    def __init__(self, grid: Grid) -> None:
        self._paths = column_paths(grid)
        self._names = short_names(self._paths)
        self._addresses = tuple(path for path in self._paths if _is_address(path))
        self._sections = {name: _Section(name, grid, self._paths) for name in SECTIONS}
        self._section_columns = [
            (path, self._names[path], section)
            for section in self._sections.values()
            for path in section.paths
        ]
        self._section_paths = [path for path, _, _ in self._section_columns]
        self._combinations: dict[
            tuple[Value | None, ...], tuple[Task, Teacher, Training] | Broken
        ] = {}
        self._objectives: dict[tuple[Value | None, ...], _KnownObjective] = {}
        self._made_stages: dict[tuple[int, int], tuple[int, tuple[Stage, ...]]] = {}
        self._interned_stages: dict[int, tuple[Stage, ...]] = {}
        self._numbers: dict[object, int] = {}
        self._by_value: dict[Value, int] = {}
        self._acting: set[str] = set()
        self._last_rest: Point = {}
        self._last_group: Group | Broken = Broken("", "")
        self._several = _paths_with_several_values(grid)

    def group(self, point: Point) -> Group | Broken:
        """The group that a point's trial belongs to, or why its parts do not fit together."""
        rest = {path: value for path, value in point.items() if path != "seed"}
        if rest != self._last_rest:
            self._last_rest = rest
            self._last_group = self._new_group(point)
        return self._last_group

    def _new_group(self, point: Point) -> Group | Broken:
        models = self._models(point)
        if isinstance(models, Broken):
            return models
        known = self._objective(point)
        if known.objective.refused:
            return Broken("terms", known.objective.refused)
        task, teacher, training = models
        shape, initialisation = point["shape"], point["initialisation"]
        try:
            number, stages = self._stages(known, training)
        except LengthError as error:
            return Broken("length", str(error))
        rules_key = (
            id(task),
            id(teacher),
            number,
            self._by_value.get(shape) or self._number_shape(shape),
            self._by_value.get(initialisation) or self._number_start(initialisation),
        )
        return Group(
            self._number(rules_key),
            task,
            teacher,
            shape.data,
            initialisation.data,
            stages,
            rules_key,
            self._columns(point, known),
            known.reason,
        )

    def _stages(self, known: _KnownObjective, training: Training) -> tuple[int, tuple[Stage, ...]]:
        """The stages of terms under a section `training`, with a number that equal ones share."""
        key = known.number, id(training)
        made = self._made_stages.get(key)
        if made is None:
            # Every part is checked already; checking a hundred thousand trials again takes seconds.
            written = known.objective.stages
            stages = tuple(
                Stage.model_construct(
                    terms=each.terms, training=trained, data=each.data, teacher=each.teacher
                )
                for each, trained in zip(written, stage_trainings(training, written), strict=True)
            )
            number = self._number(_content(stages))
            made = self._made_stages[key] = number, self._interned_stages.setdefault(number, stages)
        return made

    def written(self, point: Point) -> dict[str, Scalar]:
        """A point's values before anything is dropped, by short name."""
        return {self._names[path]: point[path].label for path in self._paths if path in point}

    def acts(self, path: str) -> bool:
        """Whether an axis has changed a term so far; those of other things always act."""
        is_filling = path in ("matching", "temperature") or _is_address(path)
        return not is_filling or path in self._acting

    def _models(self, point: Point) -> tuple[Task, Teacher, Training] | Broken:
        key = tuple([point.get(path) for path in self._section_paths])
        models = self._combinations.get(key)
        if models is None:
            models = self._combinations[key] = self._combine(point)
        return models

    def _combine(self, point: Point) -> tuple[Task, Teacher, Training] | Broken:
        models = []
        for section in self._sections.values():
            model = section.get(point)
            if isinstance(model, Broken):
                return model
            models.append(model)
        return cast(tuple[Task, Teacher, Training], tuple(models))

    def _columns(self, point: Point, known: _KnownObjective) -> dict[str, Scalar]:
        filled = known.objective.columns
        columns = {
            "knowledge": point["knowledge"].label,
            "matching": filled["matching"],
            "temperature": filled["temperature"],
            "shape": point["shape"].label,
            "initialisation": point["initialisation"].label,
        }
        for path, name, section in self._section_columns:
            value = point.get(path)
            columns[name] = section.label(path, point) if value is None else value.label
        columns.update(known.terms)
        return columns

    def _objective(self, point: Point) -> _KnownObjective:
        key = (
            point["knowledge"],
            point["matching"],
            point["temperature"],
            *[point.get(path) for path in self._addresses],
        )
        known = self._objectives.get(key)
        if known is None:
            known = self._objectives[key] = self._new_objective(point)
        return known

    def _new_objective(self, point: Point) -> _KnownObjective:
        overrides = {path: point[path] for path in self._addresses if path in point}
        objective = resolve_terms(
            point["knowledge"].data,
            matching=point["matching"],
            temperature=point["temperature"],
            overrides=overrides,
            addresses=self._addresses,
        )
        self._acting |= objective.acting
        idle = [
            path
            for path in ("matching", "temperature", *overrides)
            if path in self._several and path not in objective.acting
        ]
        return _KnownObjective(
            self._number(objective.identity),
            objective,
            _reason(idle, str(point["knowledge"].label)),
            {self._names[path]: objective.columns[path] for path in self._addresses},
        )

    def _number(self, identity: object) -> int:
        return self._numbers.setdefault(identity, len(self._numbers) + 1)

    def _number_shape(self, value: Value) -> int:
        shape = value.data
        sizes = shape.layers, shape.width, shape.heads, shape.intermediate_size
        return self._by_value.setdefault(value, self._number(f"shape {sizes}"))

    def _number_start(self, value: Value) -> int:
        start = value.data
        written = start if isinstance(start, str) else start.model_dump(exclude_defaults=True)
        return self._by_value.setdefault(value, self._number(f"start {canonical_json(written)}"))


class _Section:
    """One section's models by the overrides of a point, each checked once."""

    def __init__(self, name: str, grid: Grid, paths: tuple[str, ...]) -> None:
        self.paths = tuple(path for path in paths if path.startswith(f"{name}."))
        self._name = name
        self._written = grid.sections.written[name]
        self._base: Spec = getattr(grid, name)
        self._known: dict[tuple[Value | None, ...], Spec | Broken] = {}
        self._interned: dict[Spec, Spec] = {}

    def get(self, point: Point) -> Spec | Broken:
        """The section at a point, or what is wrong with it."""
        if not self.paths:
            return self._base
        key = tuple([point.get(path) for path in self.paths])
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._resolve(key)
        return found

    def label(self, path: str, point: Point) -> Scalar:
        """What a path came to where the point does not say it."""
        try:
            return label_of(get_typed(cast(Spec, self.get(point)), path.split(".")[1:]))
        except LookupError:
            return None

    def _resolve(self, key: tuple[Value | None, ...]) -> Spec | Broken:
        written = self._written
        for path, value in zip(self.paths, key, strict=True):
            if value is not None:
                written = override(written, path.split(".")[1:], value.written)
        try:
            model = SECTIONS[self._name].model_validate(written)
        except ValidationError as error:
            return Broken(self._name, str(error.errors()[0]["msg"]))
        return self._interned.setdefault(model, model)


def _content(stages: tuple[Stage, ...]) -> str:
    """Equal for stages that are spellings of one; what a text holds is not known here."""
    return canonical_json(
        [
            (canonical_stage(stage), stage.data.text if isinstance(stage.data, Text) else None)
            for stage in stages
        ]
    )


def _is_address(path: str) -> bool:
    return path.startswith(("terms.", "stages."))


def _paths_with_several_values(grid: Grid) -> frozenset[str]:
    several: set[str] = set()
    first: dict[str, Value] = {}
    for mapping in grid.axes:
        for path, axis in mapping.axes.items():
            if len(axis.values) > 1 or first.setdefault(path, axis.values[0]) != axis.values[0]:
                several.add(path)
    for rule in grid.when:
        several |= {*rule.set, *(axis.path for axis in rule.axes)}
    return frozenset(several)


def _reason(idle: list[str], knowledge: str) -> str:
    if not idle:
        return "another spelling of the same trial"
    paths = " and ".join(f"`{path}`" for path in idle)
    return f"{paths} {'does' if len(idle) == 1 else 'do'} not act on {knowledge}"
