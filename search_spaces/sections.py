"""Task, teacher and training as a file writes them, and dotted paths that override their keys."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError

from .embedded import EMBEDDED_MODELS
from .report import Report
from .sentences import Finding
from .spec import Spec
from .task import Task, Teacher
from .training import Training
from .tree import Path
from .validation import findings, models_in
from .values import Value, label_of

SECTIONS: Mapping[str, type[Spec]] = {"task": Task, "teacher": Teacher, "training": Training}

_DECIDES_NOTHING = "teacher.floor"
"""Not an axis: it says whether trials start, and nothing about any trial."""

_REQUIRED_PATHS = ("task.name", "task.files", "task.files.train", "task.text", "teacher.model")
"""What a section needs and axes may give in its place."""

_FILE_PATHS = (
    "task.path",
    "task.files.train",
    "task.files.select",
    "task.files.report",
    "teacher.language_head.data.text",
)


@cache
def section_paths() -> tuple[str, ...]:
    """Every dotted path of a section that may be an axis."""
    found = [path for name, model in SECTIONS.items() for path in paths_below(model, name)]
    return tuple(path for path in dict.fromkeys(found) if not path.startswith(_DECIDES_NOTHING))


def paths_below(model: type[BaseModel], prefix: str) -> list[str]:
    """The dotted path of every field of a model, and of models that are its fields."""
    paths = []
    for name, field in model.model_fields.items():
        path = f"{prefix}.{field.alias or name}"
        paths.append(path)
        for inner in models_in(field.annotation):
            paths += paths_below(inner, path)
    return paths


def make_absolute(section: str, written: Mapping[str, Any], base: FilePath) -> dict[str, Any]:
    """A section's data with the paths of local files and folders made absolute."""
    data = dict(written)
    for path in (*_FILE_PATHS, "teacher.model"):
        name, *steps = path.split(".")
        value = get_written(data, steps) if name == section else None
        if isinstance(value, str):
            data = override(data, steps, absolute_path(path, value, base))
    return data


def absolute_path(path: str, value: object, base: FilePath) -> object:
    """A value of a dotted path; absolute, if it names a local file or folder."""
    if not isinstance(value, str) or not (path in _FILE_PATHS or path == "teacher.model"):
        return value
    local = FilePath(value).expanduser()
    if path == "teacher.model":
        is_local = value.startswith((".", "/", "~")) or (
            value not in EMBEDDED_MODELS and (base / local).is_dir()
        )
        if not is_local:
            return value
    return local_path(value, base)


def local_path(path: str, base: FilePath) -> str:
    """A local file or folder, absolute."""
    return str((base / FilePath(path).expanduser()).resolve())


def override(data: Mapping[str, Any], steps: list[str], value: object) -> dict[str, Any]:
    """A copy of nested mappings with one value replaced; missing mappings are added."""
    first, *rest = steps
    if not rest:
        return {**data, first: value}
    inner = data.get(first)
    return {**data, first: override(inner if isinstance(inner, dict) else {}, rest, value)}


def get_written(data: Mapping[str, Any], steps: list[str]) -> object:
    """What the file writes under nested keys; None where it writes nothing."""
    value: object = data
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def get_typed(section: Spec | None, steps: list[str]) -> Any:  # noqa: ANN401 - of any field
    """The checked value under nested keys; None where a mapping on the way is absent."""
    value: Any = section
    for step in steps:
        if not isinstance(value, BaseModel):
            return None
        names = [
            name for name, field in type(value).model_fields.items() if step in (name, field.alias)
        ]
        value = getattr(value, names[0]) if names else None
    return value


def read_sections(data: Mapping[str, Any], *, base: FilePath) -> "Sections":
    """The sections of a file; what they need and only axes give takes its first value."""
    sections = {name: dict(_mapping(data.get(name))) for name in SECTIONS}
    axes = data.get("axes")
    filled = set()
    for mapping in axes if isinstance(axes, list) else [axes]:
        for path, values in _mapping(mapping).items():
            name, *steps = str(path).split(".")
            is_list = isinstance(values, list) and values
            if path in _REQUIRED_PATHS and is_list and not get_written(sections[name], steps):
                first = _mapping(values[0]).get("value", values[0])
                sections[name] = override(sections[name], steps, first)
                filled.add(path)
    written = {name: make_absolute(name, each, base) for name, each in sections.items()}
    return Sections(written, base=base, filled=frozenset(filled))


def _mapping(data: object) -> Mapping[str, Any]:
    return data if isinstance(data, dict) else {}


class Sections:
    """The sections as written, against which the values of their axes are checked."""

    def __init__(
        self,
        written: Mapping[str, dict[str, Any]],
        *,
        base: FilePath,
        filled: frozenset[str] = frozenset(),
    ) -> None:
        self.written = written
        self.filled = filled
        """Paths that only axes give; `written` has their first values."""
        self.base = base
        """The folder that local paths are relative to."""
        self._known_errors = {name: self._errors(name, data) for name, data in written.items()}

    def read(self, path: str, data: object, *, at: Path, report: Report) -> Value | None:
        """A value of a section's axis, typed by the field it overrides."""
        name, *steps = path.split(".")
        written = absolute_path(path, data, self.base)
        model = SECTIONS[name]
        merged = override(self.written[name], steps, written)
        known = self._known_errors[name]
        here = tuple(steps)
        wrong = [
            each
            for each in self._errors(name, merged)
            if each not in known or each.path[: len(here)] == here
        ]
        for where, what, mend, at_key in wrong:
            inside = where[len(here) :] if where[: len(here)] == here else ()
            report.add((*at, *inside), what, mend, at_key=at_key and bool(inside))
        if wrong or known:
            return None
        typed = get_typed(model.model_validate(merged), steps)
        try:
            label = data if isinstance(data, str) else label_of(typed)
        except LookupError:
            label = None
        return Value(typed, label if isinstance(label, int | float | str) else None, written)

    def _errors(self, name: str, data: Mapping[str, Any]) -> list[Finding]:
        model = SECTIONS[name]
        try:
            model.model_validate(data)
        except ValidationError as error:
            return findings(error, model, data)
        return []
