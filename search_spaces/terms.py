"""Terms as the file writes them, and the values of addresses of their fields."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from .axes import AxisValue, labelled, refuse_not_built, take_label
from .knowledge import TERM_CLASSES, Term, kind_of, term_label
from .recipes import RECIPES
from .report import Report, did_you_mean, show
from .sentences import Finding, known_keys
from .spec import Spec
from .tree import Path
from .validation import findings
from .values import Value

TERM_KINDS: Mapping[str, type[Spec]] = {kind_of(each): each for each in TERM_CLASSES}
_NOT_ADDRESSED = ("kind", "label")
"""What of a term is no axis: its kind is another term, its label is its address."""
_MEND = "Write a kind, such as `hard_labels`; `kdsweep explain` lists them"


def read_terms(items: object, *, at: Path, report: Report) -> tuple[Term, ...] | None:
    """A list of terms, or one; what is wrong goes to the report."""
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
