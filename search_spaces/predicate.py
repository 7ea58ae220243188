"""Conditions of `when`, `exclude` and `order`.

They are data that map a path to what its value may be, never code.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, assert_never, get_args

from .knowledge import term_label
from .report import Report, did_you_mean, looks_like_a_number, show
from .stages import all_terms
from .tree import Path, Scalar
from .values import Axis, Value, Written

Comparison = Literal["lt", "le", "gt", "ge"]
OPERATORS = ("not", *get_args(Comparison), "has")

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


@dataclass(frozen=True)
class IsOneOf:
    """The value is, or is labelled, one of these."""

    alternatives: tuple[Scalar, ...]


@dataclass(frozen=True)
class Compares:
    """The value is a number on this side of the bound."""

    comparison: Comparison
    bound: float


@dataclass(frozen=True)
class Has:
    """The knowledge has a term of one of these kinds or labels."""

    terms: tuple[str, ...]


@dataclass(frozen=True)
class Not:
    """The value is there and the test fails."""

    test: "Test"


@dataclass(frozen=True)
class All:
    """Every test holds: `{ge: 2, lt: 6}`."""

    tests: tuple["Test", ...]


Test = IsOneOf | Compares | Has | Not | All


@dataclass(frozen=True)
class Predicate:
    """Holds for a point if every path's value passes its test; an absent path never does."""

    tests: Mapping[str, Test]


@dataclass(frozen=True)
class WhenRule:
    """Values, or further axes, for the points of a predicate."""

    predicate: Predicate
    set: Mapping[str, Value]
    axes: tuple[Axis, ...]
    where: Written


@dataclass(frozen=True)
class ExcludeRule:
    """Points that are left out."""

    predicate: Predicate
    where: Written


@dataclass(frozen=True)
class OrderRule:
    """Points that run before those for which it does not hold."""

    predicate: Predicate
    where: Written


def holds(test: Test, value: Value) -> bool:
    """Whether a value passes a test."""
    match test:
        case IsOneOf(alternatives=alternatives):
            return any(_same(value.label, each) for each in alternatives)
        case Compares(comparison=comparison, bound=bound):
            label = value.label
            is_number = isinstance(label, int | float) and not isinstance(label, bool)
            return is_number and _COMPARE[comparison](label, bound)
        case Has(terms=terms):
            names = {
                name for term in all_terms(value.data) for name in (term.kind, term_label(term))
            }
            return not names.isdisjoint(terms)
        case Not(test=inner):
            return not holds(inner, value)
        case All(tests=tests):
            return all(holds(each, value) for each in tests)
        case _:
            assert_never(test)


def _same(left: Scalar, right: Scalar) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def read_predicate(
    data: object, *, at: Path, known_paths: Collection[str], report: Report
) -> Predicate | None:
    """A predicate from the file; what is wrong with it goes to the report."""
    if not isinstance(data, dict) or not data:
        what = "is empty and would hold for every point" if data == {} else f"{show(data)} is no"
        what += "" if data == {} else " condition"
        report.add(at, what, "Write `{path: value}`, such as `{initialisation: random}`")
        return None
    tests: dict[str, Test] = {}
    for path, condition in data.items():
        if path not in known_paths:
            mend = did_you_mean(path, known_paths, otherwise="Write the dotted path of an axis")
            report.add((*at, path), "is not a path of this grid", mend, at_key=True)
        elif test := _read_test(condition, path=path, at=(*at, path), report=report):
            tests[path] = test
    return Predicate(tests)


def _read_test(data: object, *, path: str, at: Path, report: Report) -> Test | None:
    if isinstance(data, dict):
        tests = [
            _read_operator(name, operand, path=path, at=at, report=report)
            for name, operand in data.items()
        ]
        found = tuple(test for test in tests if test is not None)
        return found[0] if len(found) == 1 else All(found)
    alternatives: list[Any] = data if isinstance(data, list) else [data]
    for n, each in enumerate(alternatives):
        place = (*at, n) if isinstance(data, list) else at
        if isinstance(each, dict | list):
            mend = "Composites match by their label, such as `last_k-2`, `3x384x12`"
            report.add(place, f"{show(each)} is not a plain value", mend)
        elif isinstance(each, str) and looks_like_a_number(each):
            report.add(place, f"{show(each)} is text", f"Write {each.strip()} without quotes")
    if not alternatives:
        report.add(at, "has no alternatives", "Write at least one value")
    return IsOneOf(tuple(each for each in alternatives if not isinstance(each, dict | list)))


def _read_operator(
    name: str, operand: object, *, path: str, at: Path, report: Report
) -> Test | None:
    place = (*at, name)
    match name:
        case "not":
            inner = _read_test(operand, path=path, at=place, report=report)
            return Not(inner) if inner else None
        case "lt" | "le" | "gt" | "ge":
            if isinstance(operand, int | float) and not isinstance(operand, bool):
                return Compares(name, operand)
            what = f"{show(operand)} is not a number"
            is_quoted = isinstance(operand, str) and looks_like_a_number(operand)
            report.add(place, what, f"Write {operand} without quotes" if is_quoted else "Write one")
        case "has":
            terms: list[Any] = operand if isinstance(operand, list) else [operand]
            if path != "knowledge":
                report.add(place, f"`{path}` has no terms", "Write `{knowledge: {has: ...}}`")
            elif terms and all(isinstance(term, str) for term in terms):
                return Has(tuple(terms))
            else:
                report.add(place, f"{show(operand)} is no term", "Write a term's kind or label")
        case _:
            what = "is not an operator"
            mend = f"Write one of {', '.join(OPERATORS)}; composites match by their label"
            report.add(place, what, did_you_mean(name, OPERATORS, otherwise=mend), at_key=True)
    return None
