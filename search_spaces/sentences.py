"""Says of one located error what is wrong and what to write instead."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from .report import did_you_mean, looks_like_a_number, nearest, show
from .spec import LABEL_PATTERN, NAME_PATTERN
from .tree import Path

_PATTERNS: Mapping[str, str] = {
    NAME_PATTERN: "Use 1 to 64 letters, digits, `.`, `_` and `-`; the first is not a `.`",
    LABEL_PATTERN: "Use 1 to 64 letters, digits, `.`, `_`, `-` and `+`; the first is not a `.`",
    r"^[0-9a-f]{40}$": "Write the full commit: 40 hexadecimal digits",
    r"^width/[1-9][0-9]*$": "Write a number of heads, or `width/64`",
}
_COMPARISONS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


class Finding(NamedTuple):
    """One thing that is wrong with a value, by its path inside the value."""

    path: Path
    what: str
    mend: str
    at_key: bool = False


class Step(NamedTuple):
    """A part of pydantic's address of an error."""

    name: str | int
    is_tag: bool
    """A branch of a union: part of pydantic's address and not of the file."""


@dataclass(frozen=True)
class LocatedError:
    """An error of pydantic, with the branches of unions told from the file's own keys."""

    code: str
    """Pydantic's name of the error."""
    steps: tuple[Step, ...]
    value: Any
    context: Mapping[str, Any]
    models: tuple[type[BaseModel], ...]
    """What the mapping at this place may be."""

    @property
    def path(self) -> Path:
        """Keys and positions that the file has."""
        return tuple(step.name for step in self.steps if not step.is_tag)

    @property
    def known(self) -> tuple[str, ...]:
        """The keys that the mapping at this place may have."""
        return tuple(dict.fromkeys(key for model in self.models for key in known_keys(model)))


def known_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys of a mapping, as a file writes them."""
    return tuple(
        field.alias or name for name, field in model.model_fields.items() if not field.exclude
    )


def sentence(error: LocatedError) -> Finding:
    """What is wrong, with the value, and what to write instead."""
    name = str(error.path[-1]) if error.path else ""
    match error.code:
        case "missing":
            return Finding(error.path, "is missing", f"Add `{name}:`")
        case "misspelt":
            meant = error.context["meant"]
            mend = f"Did you mean `{meant}`? It is required"
            return Finding(error.path, "is not a known key", mend, at_key=True)
        case "extra_forbidden":
            mend = did_you_mean(name, error.known)
            return Finding(error.path, "is not a known key", mend, at_key=True)
        case "value_error":
            what, _, mend = str(error.context["error"]).partition("; ")
            return Finding(error.path, what, mend[:1].upper() + mend[1:])
        case _:
            return Finding(error.path, *_wrong_value(error))


def _wrong_value(error: LocatedError) -> tuple[str, str]:
    shown, context = show(error.value), error.context
    match error.code:
        case "literal_error":
            words = _expected(error)
            return f"{shown} is not one of {', '.join(words)}", did_you_mean(
                error.value, words, otherwise=f"Write one of {', '.join(words)}"
            )
        case "none_of":
            return _none_of(error)
        case "int_type" | "int_from_float" | "float_type":
            return _not_a_number(error)
        case "string_type":
            return f"{shown} is not text", f"Write {_quoted(error.value)}"
        case "model_type" | "dict_type":
            return f"{shown} is not a mapping", f"Write a mapping such as {_form(error)}"
        case "tuple_type":
            return f"{shown} is not a list", f"Write `[{str(error.value)[:40]}]`"
        case "none_required":
            return f"{shown} is not built yet", "Leave it out, or write null"
        case "finite_number":
            return f"{shown} is not a finite number", "Write a finite number"
        case "too_short":
            actual = context["actual_length"]
            return f"has {actual} entries", f"Write at least {context['min_length']}"
        case "too_long":
            actual = context["actual_length"]
            return f"has {actual} entries", f"Write at most {context['max_length']}"
        case "string_pattern_mismatch":
            pattern = context["pattern"]
            return f"{shown} does not fit", _PATTERNS.get(pattern, f"It has to match {pattern}")
        case code if code in _COMPARISONS:
            key, side = _COMPARISONS[code]
            bound = f"{side} {context[key]:g}"
            return f"{shown} is not {bound}", f"Write a number {bound}"
        case _:
            return f"{shown}: {context.get('error', error.code)}", "Write another value"


def _none_of(error: LocatedError) -> tuple[str, str]:
    words: list[str] = []
    forms: list[str] = []
    for inner in error.context["errors"]:
        match inner.code:
            case "literal_error":
                words += _expected(inner)
            case "model_type" | "dict_type":
                forms.append(_form(inner))
            case "tuple_type":
                forms.append("a list")
            case "int_type" | "float_type":
                forms.append("a number")
            case "string_type":
                forms.append("text")
            case _:
                continue
    close = nearest(error.value, words) if isinstance(error.value, str) else None
    known = ", ".join(dict.fromkeys([*words, *forms]))
    shown = show(error.value)
    return f"{shown} does not fit here", f"Did you mean `{close}`?" if close else f"Known: {known}"


def _form(error: LocatedError) -> str:
    """The keys that a mapping here needs, or else its first ones."""
    model = error.models[0]
    needed = [
        field.alias or name for name, field in model.model_fields.items() if field.is_required()
    ]
    keys = needed or known_keys(model)[:2]
    return f"`{{{', '.join(f'{key}: ...' for key in keys)}}}`"


def _expected(error: LocatedError) -> list[str]:
    return [word.strip("'") for word in error.context["expected"].replace(" or ", ", ").split(", ")]


def _not_a_number(error: LocatedError) -> tuple[str, str]:
    shown = show(error.value)
    needs = "a number" if error.code == "float_type" else "a whole number"
    match error.value:
        case bool():
            return f"{shown} is a boolean, not {needs}", f"Write {needs}"
        case str() if looks_like_a_number(error.value):
            return f"{shown} is text, not {needs}", f"Write {error.value.strip()} without quotes"
        case None:
            return f"has no value; it needs {needs}", f"Write {needs}, or leave the key out"
        case _:
            return f"{shown} is not {needs}", f"Write {needs}"


def _quoted(value: object) -> str:
    return f'`"{value}"`' if isinstance(value, int | float) else "a word or a quoted text"
