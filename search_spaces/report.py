"""Gathers every problem of one file, so that a person mends them all at once."""

import difflib
import json
import re
from collections.abc import Iterable

from .errors import GridError, Problem
from .source import Flaw
from .tree import Node, Path, Place, find_place, has_path, write_path
from .values import Written

_LONGEST_SHOWN = 60


class Report:
    """The problems of a file so far; the first at a place is the cause of the others there."""

    def __init__(self, file: str, root: Node) -> None:
        self._file = file
        self._root = root
        self._problems: dict[tuple[Place, Path], Problem] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def add(self, path: Path, what: str, mend: str, *, at_key: bool = False) -> None:
        """Notes a problem of the value at a path, or of its key."""
        self._add(find_place(self._root, path, of_key=at_key), path, what, mend)

    def add_written(self, where: Written, what: str, mend: str) -> None:
        """Notes a problem of something read before."""
        problem = where.problem(what, mend)
        self._problems.setdefault((Place(where.line, where.column), ()), problem)

    def add_flaw(self, flaw: Flaw) -> None:
        """Notes a problem that the YAML reader found."""
        self._add(flaw.place, flaw.path, flaw.what, flaw.mend)

    def written(self, path: Path) -> Written:
        """Where the file says something, by its key."""
        place = find_place(self._root, path, of_key=True)
        return Written(write_path(path), self._file, place.line, place.column)

    def raise_if_any(self) -> None:
        """Raises all problems in the order of the file.

        Raises:
            GridError: There is at least one.
        """
        if self._problems:
            found = sorted(self._problems.items(), key=lambda item: item[0][0])
            raise GridError([problem for _, problem in found])

    def _add(self, place: Place, path: Path, what: str, mend: str) -> None:
        problem = Problem(write_path(path), what, mend, self._file, place.line, place.column)
        # Several things may be missing at one place; what is there is wrong for one reason.
        absent = () if has_path(self._root, path) else path
        self._problems.setdefault((place, absent), problem)


def show(value: object) -> str:
    """A value as the grid would write it, shortened."""
    if isinstance(value, str) and not looks_like_a_number(value):
        text = value
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    return f"`{text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + '...'}`"


def looks_like_a_number(text: str) -> bool:
    """Whether a text would be a number without its quotes."""
    return re.fullmatch(r"\s*[-+]?(\d[\d_]*)?\.?\d+([eE][-+]?\d+)?\s*", text) is not None


def did_you_mean(word: object, known: Iterable[str], *, otherwise: str = "") -> str:
    """`Did you mean ...?` for the nearest known word, or else the given text or all of them."""
    words = sorted(set(known))
    if close := nearest(word, words):
        return f"Did you mean `{close}`?"
    return otherwise or f"Known: {', '.join(words)}"


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one most resembles."""
    by_lower = {name.lower().replace("-", "_"): name for name in known}
    wanted = str(word).lower().replace("-", "_")
    found = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.7)
    return by_lower[found[0]] if found else None
