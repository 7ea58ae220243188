"""What a point's axes make of its terms: filled, overridden, sorted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from .axes import scalar_label
from .knowledge import Term, inert_fields, open_fields, term_label
from .sections import get_written, override
from .sentences import known_keys
from .stages import Knowledge, StageTerms
from .terms import override_term
from .texts import Text
from .tree import Scalar
from .trial import canonical_json, canonical_term
from .values import Value


@dataclass(frozen=True, slots=True)
class Objective:
    """The resolved terms of a point, and which of its axes took part."""

    stages: Knowledge
    """Their terms in the order of their canonical form; a stage without terms is left out."""
    identity: str
    """Canonical JSON of the terms, and of what stages say of their training."""
    acting: frozenset[str]
    """Paths of axes that changed a term."""
    columns: Mapping[str, Scalar]
    """By path: what `matching`, `temperature` and term addresses came to; None: does not act."""
    refused: str | None = None
    """Why an override does not fit this point's term."""


def resolve_terms(
    knowledge: Knowledge,
    *,
    matching: Value,
    temperature: Value,
    overrides: Mapping[str, Value],
    addresses: tuple[str, ...],
) -> Objective:
    """Fills what terms leave open and applies full addresses, which win.

    Args:
        knowledge: The stages as written.
        matching: Fills the layers of terms that leave them open.
        temperature: Fills the temperature of softened logits that leave it open.
        overrides: By full address; those of terms and stages that are not here do not act.
        addresses: Every address that is a column of the plan's tables.
    """
    acting: set[str] = set()
    columns: dict[str, Scalar] = {"matching": None, "temperature": None}
    columns |= dict.fromkeys(addresses)
    stages: list[StageTerms] = []
    identities: list[str] = []
    refused = None
    for written in knowledge:
        stage, fields = _addressed(written, overrides, addresses)
        terms: list[tuple[str, Term]] = []
        for term in stage.terms:
            prefix = f"terms.{term_label(term)}."
            mine = {
                path: value
                for path, value in overrides.items()
                if path.startswith(prefix) and path.removeprefix(prefix) in known_keys(type(term))
            }
            try:
                changed = _override(term, {p.removeprefix(prefix): v for p, v in mine.items()})
            except ValidationError as error:
                refused = f"`{term_label(term)}`: {error.errors()[0]['msg']}"
                continue
            if changed.weight == 0:
                columns[f"{prefix}weight"] = 0.0
                acting |= mine.keys() & {f"{prefix}weight"}
                continue
            filled, axes = _fill(changed, matching=matching, temperature=temperature)
            columns |= {path: value.label for path, value in axes.items()}
            acting |= axes.keys()
            acting |= mine.keys() - {f"{prefix}{field}" for field in inert_fields(filled)}
            columns |= _term_columns(filled, prefix, mine, addresses)
            terms.append((canonical_json(canonical_term(filled)), filled))
        if terms:
            terms.sort(key=lambda pair: pair[0])
            stages.append(replace(stage, terms=tuple(term for _, term in terms)))
            identities += [*(identity for identity, _ in terms), _said_of(stage)]
            columns |= fields
            acting |= fields.keys() & overrides.keys()
    return Objective(tuple(stages), "\n".join(identities), frozenset(acting), columns, refused)


def _addressed(
    stage: StageTerms, overrides: Mapping[str, Value], addresses: tuple[str, ...]
) -> tuple[StageTerms, dict[str, Scalar]]:
    """The stage with what its addresses override, and what each address came to."""
    prefix = f"stages.{stage.name}."
    mine = [path for path in addresses if stage.name and path.startswith(prefix)]
    for path in mine:
        if path not in overrides:
            continue
        field, *below = path.removeprefix(prefix).split(".")
        value = overrides[path]
        if field == "training":
            stage = replace(stage, training=override(stage.training, below, value.written))
        else:
            stage = replace(stage, **{field: value.data})
    columns = {
        path: overrides[path].label
        if path in overrides
        else scalar_label(said_of_stage(stage, path.split(".")[2:]))
        for path in mine
    }
    return stage, columns


def said_of_stage(stage: StageTerms, steps: Sequence[str]) -> Any:  # noqa: ANN401 - of any field
    """What a stage says of itself under an address's steps; None where it says nothing."""
    field, *below = steps
    return get_written(stage.training, below) if field == "training" else getattr(stage, field)


def _said_of(stage: StageTerms) -> str:
    """What a stage says beside its terms, as canonical JSON."""
    data = stage.data.text if isinstance(stage.data, Text) else stage.data
    return canonical_json([dict(stage.training), data, stage.teacher, stage.share])


def _override(term: Term, fields: Mapping[str, Value]) -> Term:
    for field, value in fields.items():
        term = override_term(term, field, value.written)
    return term


def _fill(term: Term, *, matching: Value, temperature: Value) -> tuple[Term, Mapping[str, Value]]:
    """The term with nothing left open, and the axes that filled it."""
    given = {"matching": matching, "temperature": temperature}
    filled = {path: given[path] for path in sorted(open_fields(term))}
    idle = {"matching", "temperature"} & inert_fields(term)
    fields = {path: value.data for path, value in filled.items()} | dict.fromkeys(idle)
    return term.model_copy(update=fields) if fields else term, filled


def _term_columns(
    term: Term, prefix: str, mine: Mapping[str, Value], addresses: tuple[str, ...]
) -> dict[str, Scalar]:
    columns: dict[str, Scalar] = {}
    inert = inert_fields(term)
    for path in addresses:
        field = path.removeprefix(prefix)
        if not path.startswith(prefix) or field in inert or field not in known_keys(type(term)):
            continue
        columns[path] = mine[path].label if path in mine else scalar_label(getattr(term, field))
    return columns
