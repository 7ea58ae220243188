"""What a mistyped name was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a question, or the words there are."""
    words = list(known)
    if near := get_close_matches(word, words, n=1, cutoff=0.6):
        return f"Did you mean `{near[0]}`?"
    if not words:
        return ""
    return f"Choose from: {', '.join(f'`{known_word}`' for known_word in words)}."
