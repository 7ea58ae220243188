"""One value of an axis: what it is, the name it goes by, and how the file wrote it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import Problem
from .initialisation import TeacherLayers, initialisation_label
from .knowledge import Term, term_label
from .matching import (
    Emd,
    FirstK,
    LastK,
    Pairs,
    Progressive,
    RandomSorted,
    Reverse,
    TopMinus,
    matching_label,
)
from .shape import Shape, shape_label
from .spec import LABEL_PATTERN
from .tree import Scalar

FIXED_AXES = ("knowledge", "matching", "temperature", "shape", "initialisation", "seed")
"""Axes that live under `axes` alone; every point has a value of each."""

RangeKind = Literal["uniform", "log", "integers"]
"""How numbers are drawn: evenly, evenly in their logarithm, or whole ones evenly."""


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """One value of one axis; compared by identity, so that a plan can count on it as a key."""

    data: Any
    """What it means, checked and typed."""
    label: Scalar
    """What stands for it in tables and predicates: a number, a word, or a composite's label."""
    written: Any = None
    """What the file says, with paths made absolute: what overrides a key of a section."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where the file says something."""

    path: str
    file: str
    line: int
    column: int

    def problem(self, what: str, mend: str) -> Problem:
        """A problem at this place."""
        return Problem(self.path, what, mend, self.file, self.line, self.column)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two ends, both included."""

    kind: RangeKind
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Axis:
    """A dotted path and the values it takes, in the file's order."""

    path: str
    values: tuple[Value, ...]
    """Of a range its two ends."""
    where: Written | None
    """None: a fixed axis that the file leaves out."""
    range: Range | None = None
    """What the axis spans, where it is no list."""

    def at(self, number: float) -> Value:
        """The value of a number of the range, of the type that its ends have."""
        low = self.values[0].data
        typed = int(number) if isinstance(low, int) else float(number)
        return Value(typed, typed, typed)


@dataclass(frozen=True, slots=True)
class AxisMapping:
    """Axes whose product is a set of points."""

    axes: Mapping[str, Axis]
    """By path, in the file's order."""
    zipped: tuple[tuple[str, ...], ...] = field(default=())
    """Paths that walk together instead of multiplying."""


def grid_axes(mappings: Iterable[AxisMapping]) -> list[Axis]:
    """The axes of all mappings, in the file's order."""
    return [axis for mapping in mappings for axis in mapping.axes.values()]


def label_of(data: object) -> Scalar:
    """The label that a typed value carries by itself.

    Raises:
        LookupError: It is a composite that needs a `label`.
    """
    label: Scalar
    match data:
        case None | bool() | int() | float() | str():
            return data
        case Shape():
            label = shape_label(data)
        case FirstK() | LastK() | TopMinus() | RandomSorted() | Pairs() | Reverse():
            label = matching_label(data)
        case Emd() | Progressive():
            label = matching_label(data)
        case TeacherLayers():
            label = initialisation_label(data)
        case _:
            label = None
    if label is None or not re.match(LABEL_PATTERN, label):
        raise LookupError
    return label


def knowledge_label(terms: tuple[Term, ...]) -> str:
    """The terms' labels, joined by `+`.

    Raises:
        LookupError: That is too long for a label.
    """
    label = "+".join(term_label(term) for term in terms)
    if not re.match(LABEL_PATTERN, label):
        raise LookupError
    return label
