"""Reads single axes: their path, their values, and what is wrong with either."""

from collections.abc import Iterable
from typing import Any, get_args

from .axes import read_fixed, take_label
from .knowledge import Term
from .knowledge_reader import read_knowledge, read_stage_field, stage_paths
from .not_built import NOT_BUILT, TASKS
from .report import Report, did_you_mean, show
from .sections import SECTIONS, Sections, section_paths
from .shape import Shape
from .stages import all_terms
from .terms import read_term_field, term_paths
from .tree import Path
from .values import FIXED_AXES, Axis, Range, RangeKind, Value

RANGES: tuple[RangeKind, ...] = get_args(RangeKind)
SHAPE_PATHS = tuple(f"shape.{name}" for name in Shape.model_fields)
_SAME_LABEL = "if they differ, give each its own `label`"
_AXES_MEND = (
    "Write a dotted path of task, teacher, training, terms or stages, such as `training.epochs`"
)


class AxisReader:
    """Reads the axes of one file; knowledge first, since terms make addresses."""

    def __init__(self, sections: Sections, report: Report) -> None:
        self._sections = sections
        self._report = report
        self.terms: list[Term] = []
        self._term_paths: tuple[str, ...] = ()
        self._stage_paths: tuple[str, ...] = ()
        self._knowledge: dict[Path, tuple[Value, ...]] = {}
        self.knows_terms = True
        """Whether all knowledge is right; else an unknown address may have the same cause."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every dotted path that may be an axis, but for the fixed axes."""
        return (*section_paths(), *self._term_paths, *self._stage_paths)

    def read_knowledge(self, written: Iterable[tuple[Path, object]]) -> None:
        """Reads every list of knowledge in the file, and single values that rules set."""
        before = len(self._report)
        for place, data in written:
            is_single = place[-2:] == ("set", "knowledge")
            read = self._value if is_single else self._values
            self._knowledge[place] = tuple(read("knowledge", data, at=place))
        found = [value for values in self._knowledge.values() for value in values]
        self.terms = [term for value in found for term in all_terms(value.data)]
        self._term_paths = term_paths(self.terms)
        self._stage_paths = stage_paths(found)
        self.knows_terms = len(self._report) == before

    def read_axis(self, path: str, data: object, *, at: Path) -> Axis | None:
        """The axis of a path below a mapping of axes."""
        place = (*at, path)
        if path not in FIXED_AXES and path not in self.paths:
            self._refuse_path(path, place)
            return None
        if isinstance(data, dict) and (kind := next(filter(data.__contains__, RANGES), None)):
            return self._read_range(path, kind, data, at=place)
        values = self._knowledge.get(place) or self._values(path, data, at=place)
        return Axis(path, values, self._report.written(place)) if values else None

    def _read_range(
        self, path: str, kind: RangeKind, data: dict[str, Any], *, at: Path
    ) -> Axis | None:
        ends = data[kind]
        if path in FIXED_AXES and path != "temperature":
            what = "cannot be a range"
            mend = (
                "A search repeats seeds and never chooses them: list them, `[0, 1]`"
                if path == "seed"
                else "List the values: `[...]`"
            )
        elif len(data) > 1:
            what, mend = f"has more keys than `{kind}`", f"Write `{{{kind}: [from, to]}}`"
        elif flaw := _flaw_of_ends(kind, ends):
            what, mend = flaw
        else:
            values = [
                value
                for n, end in enumerate(ends)
                for value in self._value(path, end, at=(*at, kind, n))
            ]
            if len(values) < 2:
                return None
            if kind == "integers" or not isinstance(values[0].data, int):
                return Axis(path, tuple(values), self._report.written(at), Range(kind, *ends))
            what, mend = "takes whole numbers", f"Write `{{integers: {show(ends).strip('`')}}}`"
        self._report.add((*at, kind), what, mend)
        return None

    def _values(self, path: str, data: object, *, at: Path) -> tuple[Value, ...]:
        if not isinstance(data, list):
            self._report.add(at, f"{show(data)} is not a list of values", f"Write `[{data}]`")
            return ()
        if not data:
            self._report.add(at, "has no values", "Write at least one, or remove the axis")
        values: list[Value] = []
        seen: dict[object, int] = {}
        for n, item in enumerate(data):
            found = self._value(path, item, at=(*at, n))
            for value in found:
                if value.label in seen and value.written != "iso" and seen[value.label] != n:
                    what = f"{show(value.label)} stands twice"
                    mend = f"Remove it; {_SAME_LABEL}" if _is_composite(item) else "Remove it"
                    self._report.add((*at, n), what, mend)
                seen.setdefault(value.label, n)
            values += found
        return tuple(values)

    def _value(self, path: str, item: object, *, at: Path) -> list[Value]:
        if path == "knowledge":
            value = read_knowledge(item, at=at, report=self._report, base=self._sections.base)
            return [value] if value else []
        if path in FIXED_AXES:
            return read_fixed(path, item, at=at, report=self._report)
        if path in self._term_paths:
            value = read_term_field(path, item, terms=self.terms, at=at, report=self._report)
            return [value] if value else []
        if path in self._stage_paths:
            base = self._sections.base
            value = read_stage_field(path, item, at=at, report=self._report, base=base)
            return [value] if value else []
        label, bare = take_label(item, at=at, report=self._report)
        if path == "task.name" and isinstance(bare, str) and bare in TASKS:
            self._report.add(at, f"{TASKS[bare]} (`{bare}`) {NOT_BUILT}", "Remove it")
        value = self._sections.read(path, bare, at=at, report=self._report)
        if value is None:
            return []
        if label is None and value.label is None and bare is not None:
            mend = "Write `{label: <name>, value: ...}`"
            self._report.add(at, f"{show(bare)} needs a label to be told apart in tables", mend)
        return [Value(value.data, label or value.label, value.written)]

    def _refuse_path(self, path: str, place: Path) -> None:
        section = path.split(".", maxsplit=1)[0]
        if section in ("terms", "stages") and not self.knows_terms:
            return
        if path in SHAPE_PATHS:
            what, mend = (
                "is a part of an axis",
                "Write whole shapes, or `{iso: ...}`, under `shape`",
            )
        elif path in SECTIONS:
            what, mend = "is a whole section", f"Write a dotted path, such as `{path}.<key>`"
        else:
            what = "is not a path that may be an axis"
            mend = did_you_mean(path, (*FIXED_AXES, *self.paths), otherwise=_AXES_MEND)
        self._report.add(place, what, mend, at_key=True)

    def read_set(self, path: str, data: object, *, at: Path) -> Value | None:
        """The one value that a rule sets."""
        if path not in FIXED_AXES and path not in self.paths:
            self._refuse_path(path, at)
            return None
        values = self._knowledge.get(at) or self._value(path, data, at=at)
        if len(values) > 1:
            self._report.add(at, "gives several shapes", "Write one shape, or use `axes:`")
        return values[0] if values else None


def _is_composite(item: object) -> bool:
    return isinstance(item, dict | list)


def _flaw_of_ends(kind: RangeKind, ends: object) -> tuple[str, str] | None:
    """What is wrong with a range's ends, and how to mend it; None if nothing is."""
    form = f"Write `{{{kind}: [from, to]}}`"
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_number, ends)):
        return f"{show(ends)} are not the two ends of a range", form
    low, high = ends
    if low >= high:
        return f"{show(ends)} is empty", f"{form}, the lower end first"
    if kind == "log" and low <= 0:
        return f"{show(low)} has no logarithm", "Begin above 0, or write `uniform`"
    if kind == "integers" and not all(float(end).is_integer() for end in ends):
        return f"{show(ends)} are not whole numbers", "Write whole numbers, or `uniform`"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
