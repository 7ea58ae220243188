"""Reads what spans a grid's points: `axes`, `zip`, `when`, `exclude`; and their `order`."""

from collections.abc import Iterator, Mapping
from typing import Any

from .axes import read_fixed
from .axis_reader import SHAPE_PATHS, AxisReader
from .early_stopping import Asha
from .knowledge import MaskedLogits, open_fields
from .predicate import ExcludeRule, OrderRule, WhenRule, read_predicate
from .report import Report, did_you_mean, nearest, show
from .resources import read_resource_rules
from .search import METHODS
from .sections import Sections, section_paths
from .tree import Path
from .values import FIXED_AXES, Axis, AxisMapping, Value

REQUIRED_AXES = ("knowledge", "shape")
DEFAULTS: Mapping[str, object] = {
    "matching": "uniform",
    "temperature": 2.0,
    "initialisation": "random",
    "seed": 0,
}

MEASURED_BY = ("task.name", "task.path", "task.files", "task.select", "task.metric")
"""Begin the paths that decide how well one and the same model scores."""


class PointReader:
    """Reads the axes and rules of one file."""

    def __init__(self, sections: Sections, report: Report) -> None:
        self._sections = sections
        self._report = report
        self._axes = AxisReader(sections, report)

    def read(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields `axes`, `zip`, `when`, `exclude`, `order` and `resources` of a grid."""
        mappings = list(self._axis_mappings(data.get("axes")))
        whens = self._rule_list("when", data.get("when"))
        self._axes.read_knowledge(_written_knowledge(mappings, whens))
        groups = self._read_zip(data.get("zip"), mappings)
        axes = [self._read_mapping(at, mapping, groups) for at, mapping in mappings]
        when = [rule for at, each in whens if (rule := self._read_when(at, each))]
        exclude = [
            ExcludeRule(predicate, self._report.written(at))
            for at, each in self._rule_list("exclude", data.get("exclude"))
            if (predicate := self._read_predicate(each, at=at))
        ]
        order = [
            OrderRule(predicate, self._report.written(at))
            for at, each in self._rule_list("order", data.get("order"))
            if (predicate := self._read_predicate(each, at=at))
        ]
        resources = data.get("resources")
        if isinstance(resources, dict):
            rules = read_resource_rules(
                resources,
                read_predicate=lambda rule, at: self._read_predicate(rule, at=at),
                report=self._report,
            )
            resources = {**resources, "when": rules}
        self._check_fills(axes, when)
        self._check_language_head()
        self._check_within(data.get("early_stopping"), axes, when)
        self._check_search(data, axes, when)
        return {
            "axes": tuple(axes),
            "zip": groups,
            "when": tuple(when),
            "exclude": tuple(exclude),
            "order": tuple(order),
            **({} if resources is None else {"resources": resources}),
        }

    def _axis_mappings(self, data: object) -> Iterator[tuple[Path, dict[str, Any]]]:
        listed = isinstance(data, list)
        for n, mapping in enumerate(data if isinstance(data, list) else [data]):
            at: Path = ("axes", n) if listed else ("axes",)
            if isinstance(mapping, dict):
                yield at, mapping
            elif data is None:
                self._report.add(at, "is missing", "Add `axes:` with `knowledge:` and `shape:`")
            else:
                what = f"{show(mapping)} is not a mapping of axes"
                self._report.add(at, what, "Write `{path: [values]}`")
        if data == []:
            self._report.add(("axes",), "is empty", "Add `knowledge:` and `shape:`")

    def _rule_list(self, key: str, data: object) -> list[tuple[Path, Any]]:
        if data is None:
            return []
        if not isinstance(data, list):
            self._report.add((key,), f"{show(data)} is not a list", "Write `- ` before each rule")
            return []
        return [((key, n), each) for n, each in enumerate(data)]

    def _read_mapping(
        self, at: Path, mapping: Mapping[str, Any], groups: tuple[tuple[str, ...], ...]
    ) -> AxisMapping:
        axes = {path: self._axes.read_axis(path, data, at=at) for path, data in mapping.items()}
        found = {path: axis for path, axis in axes.items() if axis is not None}
        for path in REQUIRED_AXES:
            if path not in mapping:
                self._report.add((*at, path), "is missing", f"Add `{path}: [...]` here")
        for path, default in DEFAULTS.items():
            if path not in mapping:
                values = read_fixed(path, default, at=at, report=self._report)
                found[path] = Axis(path, tuple(values), None)
        for path in self._sections.filled - set(mapping):
            what = f"gives no `{path}`, which only axes say"
            self._report.add(at, what, f"Add `{path}: [...]` here, or the key to its section")
        zipped = []
        for n, group in enumerate(groups):
            lengths = {path: len(found[path].values) for path in group if path in found}
            if len(lengths) == len(group):
                zipped.append(group)
            if any(path in found and found[path].range for path in group):
                what = "a range cannot walk together with another axis"
                self._report.add(("zip", n), what, "Take it out of the group, or list its values")
            elif len(set(lengths.values())) > 1:
                told = ", ".join(f"{path} has {length}" for path, length in lengths.items())
                what = f"the axes differ in length: {told}"
                self._report.add(("zip", n), what, "Give each the same number of values")
        return AxisMapping(found, tuple(zipped))

    def _read_zip(
        self, data: object, mappings: list[tuple[Path, dict[str, Any]]]
    ) -> tuple[tuple[str, ...], ...]:
        groups: list[tuple[str, ...]] = []
        used: set[str] = set()
        for at, group in self._rule_list("zip", data):
            is_group = isinstance(group, list) and all(isinstance(path, str) for path in group)
            if not is_group or len(group) < 2:
                mend = "Write two or more axes: `[training.learning_rate, training.epochs]`"
                self._report.add(at, f"{show(group)} is not a group of axes", mend)
                continue
            for n, path in enumerate(group):
                holders = [mapping for _, mapping in mappings if path in mapping]
                beside = [mapping for mapping in holders if not set(group) <= set(mapping)]
                if not holders:
                    known = {path for _, mapping in mappings for path in mapping}
                    is_echo = nearest(path, known) in known - {*FIXED_AXES, *self._axes.paths}
                    if not is_echo:  # else the axis itself is misspelt, which is said there
                        mend = did_you_mean(path, known)
                        self._report.add((*at, n), f"`{path}` is not an axis", mend)
                elif beside and all(any(each in m for _, m in mappings) for each in group):
                    mend = "Add the group's other axes beside it"
                    self._report.add((*at, n), f"`{path}` stands alone in one mapping", mend)
                if path in used:
                    self._report.add((*at, n), f"`{path}` is zipped twice", "Keep one")
                used.add(path)
            groups.append(tuple(group))
        return tuple(groups)

    def _read_when(self, at: Path, rule: object) -> WhenRule | None:
        if not isinstance(rule, dict) or "if" not in rule or not {"set", "axes"} & set(rule):
            mend = "Write `{if: {path: value}, set: {path: value}}`, or `axes:` for `set:`"
            self._report.add(at, f"{show(rule)} is not a rule", mend)
            return None
        for key in set(rule) - {"if", "set", "axes"}:
            mend = did_you_mean(key, ("if", "set", "axes"))
            self._report.add((*at, key), "is not a known key", mend, at_key=True)
        predicate = self._read_predicate(rule["if"], at=(*at, "if"))
        sets: dict[str, Value] = {}
        for path, data in self._entries(rule, "set", at):
            if found := self._axes.read_set(path, data, at=(*at, "set", path)):
                sets[path] = found
        axes = [
            axis
            for path, data in self._entries(rule, "axes", at)
            if (axis := self._axes.read_axis(path, data, at=(*at, "axes")))
        ]
        if predicate is None:
            return None
        return WhenRule(predicate, sets, tuple(axes), self._report.written(at))

    def _entries(self, rule: Mapping[str, Any], key: str, at: Path) -> list[tuple[str, Any]]:
        data = rule.get(key, {})
        if isinstance(data, dict):
            return list(data.items())
        self._report.add((*at, key), f"{show(data)} is not a mapping", "Write `{path: value}`")
        return []

    def _read_predicate(self, data: object, *, at: Path) -> Any:  # noqa: ANN401
        known = [*FIXED_AXES, *SHAPE_PATHS, *self._axes.paths]
        if not self._axes.knows_terms and isinstance(data, dict):
            known += [path for path in data if path.startswith(("terms.", "stages."))]
        return read_predicate(data, at=at, known_paths=known, report=self._report)

    def _check_fills(self, axes: list[AxisMapping], when: list[WhenRule]) -> None:
        """A fixed axis that no term leaves open acts nowhere, whatever the points are."""
        if not self._axes.knows_terms or any(
            path.endswith((".distance", ".matching", ".of", ".temperature"))
            for path in self._used(axes, when)
        ):
            return
        is_open = {
            path: any(path in open_fields(term) for term in self._axes.terms)
            for path in ("matching", "temperature")
        }
        for mapping in axes:
            for path, acts in is_open.items():
                axis = mapping.axes.get(path)
                if not acts and self._axes.terms and axis and axis.where:
                    self._report.add_written(
                        axis.where, f"acts on no point: no term leaves its {path} open", "Remove it"
                    )

    def _check_language_head(self) -> None:
        """A head that is trained for nobody costs every teacher its training."""
        is_read = any(isinstance(term, MaskedLogits) for term in self._axes.terms)
        wanted = self._sections.written["teacher"].get("language_head")
        if wanted is not None and self._axes.knows_terms and not is_read:
            what = "acts on no point: no term reads what the teacher expects behind hidden tokens"
            mend = "Remove it, or add `masked_logits` to a stage with `teacher: pretrained`"
            self._report.add(("teacher", "language_head"), what, mend, at_key=True)

    def _check_within(
        self, stopping: object, axes: list[AxisMapping], when: list[WhenRule]
    ) -> None:
        """Early stopping compares by paths that there are, and only what is measured alike."""
        if not isinstance(stopping, dict):
            return
        within = stopping.get("within", list(Asha.model_fields["within"].default))
        if not isinstance(within, list):
            return
        at: Path = ("early_stopping", "within")
        used = list(dict.fromkeys(self._used(axes, when)))
        known = (*FIXED_AXES, *section_paths(), *used)
        for n, path in enumerate(within):
            if isinstance(path, str) and path not in known:
                self._report.add((*at, n), f"`{path}` is no axis", did_you_mean(path, known))
        for path in used:
            if path.startswith(MEASURED_BY) and path not in within:
                what = f"leaves out `{path}`, and scores on different data cannot be compared"
                self._report.add(at, what, f"Add `{path}`")

    def _check_search(
        self, data: Mapping[str, Any], axes: list[AxisMapping], when: list[WhenRule]
    ) -> None:
        """Ranges need a search; what it is made per, or repeats, it does not choose."""
        search = data.get("search")
        said = search if isinstance(search, dict) else {"method": "grid"}
        method = said.get("method")
        if method == "grid":
            every = [axis for mapping in axes for axis in mapping.axes.values()]
            every += [axis for rule in when for axis in rule.axes]
            for axis in every:
                if axis.range and axis.where:
                    what = "is a range, and `search: grid` trains every value"
                    mend = "Write `search: {method: tpe, trials: 40}`, or list the values: `[...]`"
                    self._report.add_written(axis.where, what, mend)
        if method not in METHODS[1:]:
            return
        if data.get("order"):
            what = "does not act: a search proposes points in an order of its own"
            self._report.add(("order",), what, "Remove it", at_key=True)
        for mapping in axes:
            for group in mapping.zipped:
                if "seed" in group:
                    what = f"`seed` walks together with {' and '.join(sorted({*group} - {'seed'}))}"
                    mend = "Take it out: a search trains every point with all seeds"
                    self._report.add(("zip",), what, mend)
        per = said.get("per")
        for n, path in enumerate(per if isinstance(per, list) else ()):
            holders = [mapping.axes[path] for mapping in axes if path in mapping.axes]
            place = ("search", "per", n)
            if path == "seed":
                self._report.add(place, "seeds are repeated in every study", "Remove it")
            elif len(holders) < len(axes):
                where = "an axis" if not holders else "an axis of every mapping"
                known = set.intersection(*({*mapping.axes} for mapping in axes)) - {"seed"}
                mend = did_you_mean(path, known)
                self._report.add(place, f"{show(path)} is not {where}", mend)
            elif any(axis.range for axis in holders):
                what = f"`{path}` is a range, which has no end of values"
                self._report.add(place, what, "List its values, or remove it here")

    def _used(self, axes: list[AxisMapping], when: list[WhenRule]) -> Iterator[str]:
        for mapping in axes:
            yield from mapping.axes
        for rule in when:
            yield from rule.set
            yield from (axis.path for axis in rule.axes)


def _written_knowledge(
    mappings: list[tuple[Path, dict[str, Any]]], whens: list[tuple[Path, Any]]
) -> Iterator[tuple[Path, object]]:
    """Every place of a file that says knowledge, and what it says there."""
    holders: list[tuple[Path, object]] = list(mappings)
    for at, rule in whens:
        for key in ("axes", "set"):
            holders.append(((*at, key), rule.get(key) if isinstance(rule, dict) else None))
    for at, holder in holders:
        data = holder.get("knowledge") if isinstance(holder, dict) else None
        if data is not None:
            yield (*at, "knowledge"), data
