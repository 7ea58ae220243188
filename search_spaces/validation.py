"""Turns pydantic's errors into sentences about the file: its own paths, one cause one message."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .report import nearest
from .sentences import Finding, LocatedError, Step, sentence
from .tree import Path

_WRONG_TYPE = frozenset(
    {"model_type", "literal_error", "string_type", "tuple_type", "dict_type", "none_required"}
    | {"int_type", "int_from_float", "float_type", "bool_type", "none_of"}
)


def findings(error: ValidationError, model: type[BaseModel], data: object) -> list[Finding]:
    """What is wrong with the data, in sentences, each cause once."""
    errors = [
        LocatedError(
            code=str(raw["type"]),
            steps=tuple(_steps(raw["loc"], data, is_missing=raw["type"] == "missing")),
            value=raw["input"],
            context=raw.get("ctx", {}),
            models=_models_at(model, raw["loc"], of_parent=raw["type"] != "model_type"),
        )
        for raw in error.errors(include_url=False)
        if not _is_echo(raw)
    ]
    return [sentence(error) for error in _join_misspelt(_best_branches(errors))]


def _is_echo(raw: ErrorDetails) -> bool:
    """Whether pydantic counts a list as too short because it left out its wrong entries."""
    return raw["type"] == "too_short" and len(raw["input"]) >= raw["ctx"]["min_length"]


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Every model that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from models_in(argument)


def _steps(loc: Iterable[str | int], data: object, *, is_missing: bool) -> Iterator[Step]:
    value: Any = data
    steps = list(loc)
    for n, step in enumerate(steps):
        is_key = isinstance(value, dict) and step in value
        if is_key or (isinstance(value, list) and isinstance(step, int) and step < len(value)):
            value = value[step]
            yield Step(step, is_tag=False)
        else:
            yield Step(step, is_tag=not (is_missing and n == len(steps) - 1))


def _models_at(
    model: type[BaseModel], loc: tuple[str | int, ...], *, of_parent: bool
) -> tuple[type[BaseModel], ...]:
    models = [model]
    for step in loc[:-1] if of_parent else loc:
        if isinstance(step, int):
            continue
        named = [each for each in models if step == each.__name__ or step in _tags(each)]
        below = [
            found
            for each in models
            for name, field in each.model_fields.items()
            if step in (name, field.alias)
            for found in models_in(field.annotation)
        ]
        models = named or below or models
    return tuple(models)


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    """What tells a model from others of its union, by either name of such a field."""
    tag = model.model_fields.get("kind") or model.model_fields.get("method")
    return get_args(tag.annotation) if tag else ()


def _best_branches(errors: list[LocatedError]) -> list[LocatedError]:
    """Keeps, of each union, the errors of the branch that the value comes nearest to."""
    kept = [error for error in errors if not any(step.is_tag for step in error.steps)]
    unions: dict[Path, dict[str | int, list[LocatedError]]] = {}
    for error in errors:
        first = next((n for n, step in enumerate(error.steps) if step.is_tag), None)
        if first is None:
            continue
        steps = error.steps[:first] + error.steps[first + 1 :]
        union = tuple(step.name for step in error.steps[:first])
        inner = LocatedError(error.code, steps, error.value, error.context, error.models)
        unions.setdefault(union, {}).setdefault(error.steps[first].name, []).append(inner)
    for path, branches in unions.items():
        inner_errors = {tag: _best_branches(found) for tag, found in branches.items()}
        kept += _nearest_branch(path, inner_errors)
    return kept


def _nearest_branch(
    path: Path, branches: Mapping[str | int, list[LocatedError]]
) -> list[LocatedError]:
    fitting = [
        errors
        for errors in branches.values()
        if not any(error.path == path and error.code in _WRONG_TYPE for error in errors)
    ]
    if fitting:
        return min(fitting, key=_distance)
    if len(branches) == 1:
        return next(iter(branches.values()))
    everything = [error for errors in branches.values() for error in errors]
    first = everything[0]
    return [LocatedError("none_of", first.steps, first.value, {"errors": everything}, first.models)]


def _distance(errors: list[LocatedError]) -> tuple[int, int]:
    joined = _join_misspelt(errors)
    return sum(error.code in ("missing", "extra_forbidden") for error in joined), len(joined)


def _join_misspelt(errors: list[LocatedError]) -> list[LocatedError]:
    """A missing key beside an unknown one that resembles it is one cause."""
    joined = []
    missing = [error for error in errors if error.code == "missing"]
    for error in errors:
        if error.code == "extra_forbidden":
            beside = {str(e.path[-1]): e for e in missing if e.path[:-1] == error.path[:-1]}
            meant = nearest(error.path[-1], beside)
            if meant:
                missing.remove(beside[meant])
                error = LocatedError(
                    "misspelt", error.steps, error.value, {"meant": meant}, error.models
                )
        if error.code != "missing":
            joined.append(error)
    return joined + missing
