"""Terms as the file writes them: values of the axis `knowledge`, and of addresses of fields."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from .axes import AxisValue, labelled, refuse_not_built, take_label, validated_axis
from .knowledge import TERM_CLASSES, Term, kind_of, term_label
from .not_built import NOT_BUILT, STAGE_KEYS
from .recipes import RECIPES, recipe
from .report import Report, did_you_mean, show
from .sentences import Finding, known_keys
from .spec import Spec
from .stages import Knowledge, StageTerms, all_terms
from .training import Training
from .tree import Path
from .validation import findings
from .values import Value, knowledge_label

TERM_KINDS: Mapping[str, type[Spec]] = {kind_of(each): each for each in TERM_CLASSES}
_NOT_ADDRESSED = ("kind", "label")
"""What of a term is no axis: its kind is another term, its label is its address."""


def read_knowledge(data: object, *, at: Path, report: Report) -> Value | None:
    """A value of the axis `knowledge`; what is wrong with it goes to the report."""
    if isinstance(data, str) and data in RECIPES:
        return _read_recipe(data, at=at, report=report)
    if not isinstance(data, dict) or "kind" in data:
        return _value(_one_stage(data, at=at, report=report), None, at=at, report=report)
    unknown = [key for key in data if key not in ("label", "terms", "stages")]
    for key in unknown:
        mend = did_you_mean(key, ("label", "terms", "stages", "kind"))
        report.add((*at, key), "is not a known key", mend, at_key=True)
    if unknown:
        return None
    if ("terms" in data) == ("stages" in data):
        what = "has terms and stages" if "terms" in data else "has no terms"
        report.add(at, f"{show(data)} {what}", "Write `kind:` or `{label:, terms: [...]}`")
        return None
    label = None
    if "label" in data:
        label = validated_axis("label", data["label"], at=(*at, "label"), report=report)
    if "terms" in data:
        stages = _one_stage(data["terms"], at=(*at, "terms"), report=report)
    else:
        stages = _read_stages(data["stages"], at=(*at, "stages"), report=report)
    return _value(stages, label, at=at, report=report)


def _read_recipe(name: str, *, at: Path, report: Report) -> Value | None:
    """A recipe is a value in the language itself; its label is its name."""
    value = read_knowledge({"label": name, **recipe(name)}, at=at, report=report)
    assert value is not None, f"the recipe {name} is wrong"
    return value


def _value(
    knowledge: Knowledge | None, label: str | None, *, at: Path, report: Report
) -> Value | None:
    if knowledge is None:
        return None
    if label is None and len(knowledge) > 1:
        report.add(at, "has stages and no label", "Write `{label: <name>, stages: [...]}`")
        return None
    try:
        return Value(knowledge, label or knowledge_label(tuple(all_terms(knowledge))))
    except LookupError:
        report.add(at, "its label would be longer than 64 characters", _KNOWLEDGE_MEND)
        return None


def _one_stage(items: object, *, at: Path, report: Report) -> Knowledge | None:
    terms = _read_terms(items, at=at, report=report)
    return None if terms is None else (StageTerms(terms),)


def _read_stages(items: object, *, at: Path, report: Report) -> Knowledge | None:
    if not isinstance(items, list) or not items:
        report.add(at, f"{show(items)} is not a list of stages", f"Write `[{_STAGE}, ...]`")
        return None
    found = [_read_stage(item, at=(*at, n), report=report) for n, item in enumerate(items)]
    stages = tuple(stage for stage in found if stage is not None)
    if len(stages) < len(found):
        return None
    names = [stage.name for stage in stages]
    for n, name in enumerate(names):
        if name in names[:n]:
            report.add((*at, n, "name"), f"a second stage is called `{name}`", "Give it another")
    return stages if len(set(names)) == len(names) else None


def _read_stage(item: object, *, at: Path, report: Report) -> StageTerms | None:
    if not isinstance(item, dict):
        report.add(at, f"{show(item)} is not a stage", f"Write `{_STAGE}`")
        return None
    for key in item:
        if key in STAGE_KEYS:
            report.add((*at, key), f"`{key}` of a stage {NOT_BUILT}", "Remove it", at_key=True)
        elif key not in _STAGE_KEYS:
            mend = did_you_mean(key, _STAGE_KEYS)
            report.add((*at, key), "is not a known key", mend, at_key=True)
    missing = [key for key in ("name", "terms") if key not in item]
    for key in missing:
        report.add((*at, key), "is missing", f"Write `{_STAGE}`")
    if missing or not set(item) <= set(_STAGE_KEYS):
        return None
    name = validated_axis("label", item["name"], at=(*at, "name"), report=report)
    terms = _read_terms(item["terms"], at=(*at, "terms"), report=report)
    training = item.get("training") or {}
    try:
        Training.model_validate(training)
    except ValidationError as error:
        for path, what, mend, at_key in findings(error, Training, training):
            report.add((*at, "training", *path), what, mend, at_key=at_key)
        return None
    return None if terms is None or name is None else StageTerms(terms, training, name)


_STAGE_KEYS = ("name", "terms", "training")
_STAGE = "{name: <name>, terms: [...]}"
_MEND = "Write a kind, such as `hard_labels`; `kdsweep explain` lists them"
_KNOWLEDGE_MEND = "Write `{label: <name>, terms: [...]}`"


def _read_terms(items: object, *, at: Path, report: Report) -> tuple[Term, ...] | None:
    if not isinstance(items, list):
        term = _read_term(items, at=at, report=report)
        return (term,) if term else None
    if not items:
        report.add(at, "has no terms", "Write at least one, such as `hard_labels`")
        return None
    found = [_read_term(item, at=(*at, n), report=report) for n, item in enumerate(items)]
    terms = tuple(term for term in found if term is not None)
    if len(terms) < len(found):
        return None
    labels: set[str] = set()
    for n, term in enumerate(terms):
        if term_label(term) in labels:
            what = f"a second term is called `{term_label(term)}`"
            report.add((*at, n), what, "Give it another `label`")
        labels.add(term_label(term))
    return terms if len(labels) == len(terms) else None


def _read_term(item: object, *, at: Path, report: Report) -> Term | None:
    if isinstance(item, str):
        item = {"kind": item}
        place = at
    elif isinstance(item, dict) and "kind" in item:
        place = (*at, "kind")
    else:
        report.add(at, f"{show(item)} is not a term", _MEND)
        return None
    kind = item["kind"]
    if not isinstance(kind, str):
        report.add(place, f"{show(kind)} is not a kind", _MEND)
        return None
    if kind in RECIPES:
        what = f"recipe `{kind}` stands among terms"
        report.add(place, what, f"Write `- {kind}` as a value of its own")
        return None
    if kind not in TERM_KINDS:
        report.add(
            place, f"{show(kind)} is not a kind", did_you_mean(kind, (*TERM_KINDS, *RECIPES))
        )
        return None
    if refuse_not_built("matching", item.get("matching"), at=(*at, "matching"), report=report):
        return None
    term: Term | None = _validated_term(item, at=at, report=report)
    return term


def _validated_term(item: dict[str, Any], *, at: Path, report: Report) -> Term | None:
    payload = {"term": item}
    try:
        return AxisValue.model_validate(payload).term
    except ValidationError as error:
        for path, what, mend, at_key in findings(error, AxisValue, payload):
            report.add((*at, *path[1:]), what, mend, at_key=at_key)
        return None


def term_paths(terms: Iterable[Term]) -> tuple[str, ...]:
    """The full address of every field of these terms that may be an axis."""
    return tuple(
        dict.fromkeys(
            f"terms.{term_label(term)}.{key}"
            for term in terms
            for key in known_keys(type(term))
            if key not in _NOT_ADDRESSED
        )
    )


def override_term(term: Term, field: str, written: object) -> Term:
    """A term with one field replaced and checked again.

    Raises:
        ValidationError: This kind does not take this value, or has no such field.
    """
    data = term.model_dump(exclude_unset=True) | {field: written}
    changed = AxisValue.model_validate({"term": data}).term
    assert changed is not None
    return changed


def read_term_field(
    path: str, data: object, *, terms: Iterable[Term], at: Path, report: Report
) -> Value | None:
    """A value of `terms.<label>.<field>`, right for at least one term of this label."""
    _, rest = path.split(".", 1)
    label, field = rest.rsplit(".", 1)
    name, bare = take_label(data, at=at, report=report)
    if refuse_not_built(field, bare, at=at, report=report):
        return None
    wrong: list[Finding] = []
    for term in terms:
        if term_label(term) != label or field not in known_keys(type(term)):
            continue
        try:
            typed = getattr(override_term(term, field, bare), field)
        except ValidationError as error:
            payload = {"term": term.model_dump(exclude_unset=True) | {field: bare}}
            wrong = findings(error, AxisValue, payload)
        else:
            value = labelled(typed, name, at=at, report=report)
            return value and Value(value.data, value.label, bare)
    for inner, what, mend, at_key in wrong:
        report.add((*at, *inner[2:]), what, mend, at_key=at_key and len(inner) > 2)
    return None
