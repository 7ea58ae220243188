"""Words of the grid language whose machinery is not built yet: refused by name, never ignored."""

from collections.abc import Mapping

NOT_BUILT = "is not built yet"

MATCHINGS = frozenset({"search"})
INITIALISATIONS = frozenset({"checkpoint", "from_trial", "slice", "importance", "svd", "theseus"})
SHAPES = frozenset({"parameters", "flops", "total_parameters"})
"""Budgets that `iso` may come to hold equal."""
TASKS: Mapping[str, str] = {"glue/stsb": "regression"}
"""Tasks that need more than classification."""


def word_not_built(data: object, words: frozenset[str]) -> str | None:
    """The word of `words` that a value is, or that is a key of it."""
    match data:
        case str() if data in words:
            return data
        case dict():
            return next((key for key in data if key in words), None)
        case _:
            return None
