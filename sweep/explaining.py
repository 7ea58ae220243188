"""What the command line says of the words of a grid."""

import textwrap
from collections.abc import Mapping
from itertools import groupby

from rich.console import Console

from ..search_spaces.explanation import Axis, explain, explanations

_HEADINGS: Mapping[Axis, str] = {
    "knowledge": "knowledge: what is transferred",
    "recipe": "recipes: published values of knowledge",
    "stage": "stages: knowledge one after the other",
    "matching": "matching: which teacher layer (t) teaches which student layer (s), as (t, s)",
    "initialisation": "initialisation: where the student's weights start",
}


def print_words(console: Console) -> None:
    """Every word with its first line."""
    for axis, words in groupby(explanations().values(), key=lambda each: each.axis):
        console.print(_HEADINGS[axis], style="bold")
        for each in words:
            _print(f"  {each.word:<18}{each.summary}", console)
        console.print()
    console.print("`kdsweep explain WORD`: its formula, needs, paper and settings")


def print_word(word: str, console: Console) -> None:
    """One word with its settings.

    Raises:
        InputError: There is no such word.
    """
    told = explain(word)
    console.print(f"{told.word} ({told.axis})", style="bold")
    _print(told.text, console)
    for setting in told.settings:
        console.print()
        words = f" {' | '.join(setting.words)}" if setting.words else ""
        default = "must be written" if setting.default is None else f"= {setting.default}"
        _print(f"  {setting.name}:{words} ({default})", console)
        _print(textwrap.indent(textwrap.fill(setting.help, 94), "      "), console)


def _print(text: str, console: Console) -> None:
    console.print(text, highlight=False, markup=False)
