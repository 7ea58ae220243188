"""The values of the axes that live under `axes` alone, but for knowledge."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import Field, ValidationError

from .initialisation import Initialisation
from .knowledge import Term
from .matching import Matching, Rule
from .not_built import (
    INITIALISATIONS,
    MATCHINGS,
    NOT_BUILT,
    SHAPES,
    word_not_built,
)
from .report import Report
from .shape import IsoShapes, Shape, iso_shapes
from .spec import LABEL_PATTERN, Positive, Seed, Spec
from .tree import Path, Scalar
from .validation import findings
from .values import Value, label_of


class AxisValue(Spec):
    """One value of each axis that lives under `axes` alone."""

    term: Term | None = None
    matching: Matching | None = None
    """Which teacher layer teaches which student layer; fills what terms leave open."""
    temperature: Positive | None = None
    """Of soft logits; fills what terms leave open."""
    shape: Shape | IsoShapes | None = None
    """The student's size, or a budget with the depths to try."""
    initialisation: Initialisation | None = None
    """Where the student's weights start."""
    seed: Seed | None = None
    """Of everything random in a trial."""
    label: str | None = Field(default=None, pattern=LABEL_PATTERN)
    """Names a composite value in tables and predicates."""


_NOT_BUILT_WORDS: Mapping[str, frozenset[str]] = {
    "matching": MATCHINGS,
    "initialisation": INITIALISATIONS,
}


def read_fixed(axis: str, data: object, *, at: Path, report: Report) -> list[Value]:
    """One value of a fixed axis; several for an iso shape, none if it is wrong."""
    label, bare = take_label(data, at=at, report=report)
    if refuse_not_built(axis, bare, at=at, report=report):
        return []
    typed = validated_axis(axis, bare, at=at, report=report)
    if typed is None:
        return []
    if isinstance(typed, IsoShapes):
        return _read_iso(typed, at=at, report=report)
    value = labelled(typed, label, at=at, report=report)
    return [value] if value else []


def take_label(data: object, *, at: Path, report: Report) -> tuple[str | None, object]:
    """Splits `{label: ..., value: ...}`, or the `label` from a composite's own keys."""
    if not isinstance(data, dict) or "label" not in data:
        return None, data
    label = data["label"]
    rest = {key: value for key, value in data.items() if key != "label"}
    label = validated_axis("label", label, at=(*at, "label"), report=report)
    return label, rest["value"] if set(rest) == {"value"} else rest


def labelled(typed: object, label: str | None, *, at: Path, report: Report) -> Value | None:
    """A typed value under its own label or the one the file gives it."""
    try:
        return Value(typed, label or label_of(typed))
    except LookupError:
        report.add(at, "needs a label to be told apart in tables", _LABEL_MEND)
        return None


_LABEL_MEND = "Add `label: <name>` to it, or write `{label: <name>, value: ...}`"


def refuse_not_built(axis: str, data: object, *, at: Path, report: Report) -> bool:
    """Whether a value names machinery that is not built; says so in the report."""
    word = word_not_built(data, _NOT_BUILT_WORDS.get(axis, frozenset()))
    if axis == "shape" and isinstance(data, dict):
        word = word_not_built(data.get("iso"), SHAPES)
    if word is None:
        return False
    known = {
        "matching": f"{', '.join(get_args(Rule))}, {{first_k: N}}, {{last_k: N}}, "
        "{top_minus: N}, {pairs: [[T, S]]}, {reverse: RULE}",
        "initialisation": "random, {teacher_layers: ...}",
        "shape": "iso: encoder_parameters",
    }[axis]
    report.add(at, f"{axis} `{word}` {NOT_BUILT}", f"Built: {known}")
    return True


def validated_axis(
    axis: str,
    data: object,
    *,
    at: Path,
    report: Report,
) -> Any:  # noqa: ANN401 - of any axis
    """A value typed by its axis; None if it is wrong."""
    payload = {axis: data}
    if data is None:
        report.add(at, "has no value", "Write a value, or remove it")
        return None
    try:
        return getattr(AxisValue.model_validate(payload), axis)
    except ValidationError as error:
        for path, what, mend, at_key in findings(error, AxisValue, payload):
            report.add((*at, *path[1:]), what, mend, at_key=at_key)
        return None


def _read_iso(spec: IsoShapes, *, at: Path, report: Report) -> list[Value]:
    shapes = iso_shapes(spec)
    if not shapes:
        what = f"no shape has {spec.target:g} parameters within {spec.tolerance:g} of it"
        report.add(at, what, "Widen `tolerance`, lower `width_multiple` or list other `layers`")
    return [Value(shape, label_of(shape), written="iso") for shape in shapes]


def scalar_label(data: object) -> Scalar:
    """A label for tables; None where a value has none of its own."""
    try:
        return label_of(data)
    except LookupError:
        return None
