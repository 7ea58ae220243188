"""The help text of a model's fields: the string that follows each in the source.

Pydantic can read it when a class is made, which costs every start of the program a quarter of its
time; only the schema needs it.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence

from pydantic import BaseModel

from .validation import models_in


def field_help(model: type[BaseModel]) -> dict[str, str]:
    """The help text of each field, by the name a file gives it."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.__module__.startswith(__package__):
            found |= _documented(base)
    return {
        field.alias or name: found[name]
        for name, field in model.model_fields.items()
        if name in found
    }


def models_below(*roots: type[BaseModel]) -> Sequence[type[BaseModel]]:
    """Models and every model that their fields may hold, each once."""
    found: dict[type[BaseModel], None] = {}
    waiting = list(reversed(roots))
    while waiting:
        model = waiting.pop()
        if model not in found:
            found[model] = None
            fields = model.model_fields.values()
            waiting += [inner for field in fields for inner in models_in(field.annotation)]
    return tuple(found)


def _documented(model: type[BaseModel]) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(help_text))),
            ):
                found[name] = inspect.cleandoc(help_text)
            case _:
                continue
    return found
