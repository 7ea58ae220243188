"""What every word of the grid language means, from the docstrings of the classes that check it."""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from .documentation import field_help
from .errors import InputError, Problem
from .initialisation import TeacherLayers
from .knowledge import TERM_CLASSES, kind_of
from .knowledge_reader import WrittenStage
from .matching import (
    RULES,
    Emd,
    FirstK,
    LastK,
    Pairs,
    Progressive,
    RandomSorted,
    Reverse,
    TopMinus,
)
from .recipes import RECIPES, recipe_about, recipe_text
from .report import did_you_mean

_MATCHINGS = (FirstK, LastK, TopMinus, RandomSorted, Emd, Progressive, Pairs, Reverse)

Axis = Literal["knowledge", "recipe", "stage", "matching", "initialisation"]


@dataclass(frozen=True)
class Setting:
    """A key that may be written under a word."""

    name: str
    default: str | None
    """As a grid would write it; None: it must be written."""
    words: tuple[str, ...]
    """Words that may be written; none where it takes no words."""
    help: str


@dataclass(frozen=True)
class Explanation:
    """One word of the grid language."""

    word: str
    axis: Axis
    """Where it is written."""
    text: str
    """Formula, needs and paper; the first line says what it is."""
    settings: tuple[Setting, ...]

    @property
    def summary(self) -> str:
        """Its first line."""
        return self.text.splitlines()[0]


def explain(word: str) -> Explanation:
    """One word.

    Raises:
        InputError: There is no such word.
    """
    known = explanations()
    if word not in known:
        mend = did_you_mean(word, known)
        raise InputError([Problem("explain", f"`{word}` is no word of the grid language", mend)])
    return known[word]


@cache
def explanations() -> Mapping[str, Explanation]:
    """Every word, in the order in which a reader meets them."""
    found: dict[str, Explanation] = {}
    for each in _explanations():
        # `tinybert` is a recipe and a rule.
        word = each.word if each.word not in found else f"{each.axis}.{each.word}"
        found[word] = replace(each, word=word)
    return found


def _explanations() -> Iterator[Explanation]:
    for term_class in TERM_CLASSES:
        yield _of_class(kind_of(term_class), "knowledge", term_class)
    for name in RECIPES:
        yield Explanation(name, "recipe", f"{recipe_about(name)}\n\n{recipe_text(name)}", ())
    yield _of_class("stages", "stage", WrittenStage)
    for rule, text in RULES.items():
        yield Explanation(rule, "matching", text, ())
    for matching_class in _MATCHINGS:
        word = next(iter(matching_class.model_fields))
        yield _of_class(word, "matching", matching_class)
    random = "Every weight from N(0, 0.02), biases 0, LayerNorms 1 and 0, as in BERT."
    yield Explanation("random", "initialisation", random, ())
    yield _of_class("teacher_layers", "initialisation", TeacherLayers)


def _of_class(word: str, axis: Axis, model: type[BaseModel]) -> Explanation:
    helps = field_help(model)
    settings = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key == "kind":
            continue
        default = None if field.default is PydanticUndefined else _written(field.default)
        help_text = " ".join(helps.get(key, "").split())
        settings.append(Setting(key, default, tuple(_words(field.annotation)), help_text))
    return Explanation(word, axis, inspect.cleandoc(model.__doc__ or ""), tuple(settings))


def _words(annotation: object) -> Iterator[str]:
    """The words of every `Literal` in an annotation."""
    for each in get_args(annotation):
        if get_origin(annotation) is Literal and isinstance(each, str):
            yield each
        else:
            yield from _words(each)


def _written(default: object) -> str:
    """A default as a grid would write it."""
    value: object = default
    if isinstance(default, BaseModel):
        value = default.model_dump(exclude_defaults=True)
    return value if isinstance(value, str) else json.dumps(value)
