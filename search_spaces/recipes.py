"""Published recipes: values of the axis `knowledge` under the names of their papers."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

Recipe = Literal[
    "vanilla_kd",
    "pkd",
    "distilbert",
    "tinybert",
    "mobilebert",
    "minilm",
    "minilmv2",
    "bert_emd",
    "alp_kd",
    "ckd",
    "rail_kd",
    "dkd",
]

RECIPES: tuple[Recipe, ...] = get_args(Recipe)
"""Every name; reading the recipes themselves can wait until one is used."""


def recipe(name: str) -> dict[str, Any]:
    """What a grid would write for a recipe: its `terms` or `stages`."""
    return {key: value for key, value in _recipes()[name].items() if key != "about"}


def recipe_about(name: str) -> str:
    """What a recipe is, its paper, and where it departs from it and why."""
    about: str = _recipes()[name]["about"]
    return about.strip()


@cache
def _recipes() -> Mapping[str, dict[str, Any]]:
    from ruamel.yaml import YAML

    text = (files(__package__) / "recipes.yaml").read_text("utf-8")
    read: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load(text)
    return read


def recipe_text(name: str) -> str:
    """A recipe as a grid would write it."""
    from io import StringIO

    from ruamel.yaml import YAML

    stream = StringIO()
    writer = YAML(pure=True)
    writer.default_flow_style = None
    writer.width = 94
    writer.dump(recipe(name), stream)
    return stream.getvalue()
