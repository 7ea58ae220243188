"""How people write: what a word names, and counts that read as they are said."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..search_spaces.errors import InputError, Problem

LISTED = 5


def count(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """A text from a trial or a stranger without what would command a terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def clock(seconds: float) -> str:
    """`2:05`, `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def size(number: float) -> str:
    """Bytes as `0.36 GB`, `12 MB`, `116 TB`."""
    unit, scale = next(
        ((unit, scale) for unit, scale in _UNITS if number >= scale / 10), ("MB", 1e6)
    )
    value = number / scale
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"


_UNITS = (("TB", 1e12), ("GB", 1e9))


def where_ids_are(folder: Path) -> str:
    """Which commands tell the ids of a sweep."""
    return (
        f"`kdsweep results {folder}` tells those of groups, and `kdsweep show {folder} GROUP` "
        f"those of a group's trials; `kdsweep results {folder} failures` those of what failed."
    )


def named(word: str, groups: Mapping[str, str], *, place: str, mend: str) -> tuple[str, ...]:
    """The ids that a word names: that of one trial, or those of all trials of a group.

    Args:
        word: An id or a group's id, or a beginning that no other has.
        groups: The group's id of each id.
        place: Where the word was written, for messages.
        mend: Where ids are found, for the message that there is none.

    Raises:
        InputError: It names nothing, or several things.
    """
    known: dict[str, tuple[str, ...]] = {}
    for id, group in groups.items():
        known[group] = (*known.get(group, ()), id)
    known |= {id: (id,) for id in groups}
    match [word] if word in known else [name for name in known if name.startswith(word)]:
        case [name]:
            return known[name]
        case []:
            raise InputError([Problem(place, f"`{word}` names no trial, group or teacher", mend)])
        case many:
            what = f"`{word}` begins {len(many)} ids of trials and groups"
            more = f" and {len(many) - LISTED} more" if len(many) > LISTED else ""
            listed = f"Write more digits: {', '.join(many[:LISTED])}{more}"
            raise InputError([Problem(place, what, listed)])


def named_ids(words: Sequence[str], groups: Mapping[str, str], *, folder: Path) -> frozenset[str]:
    """The ids of trials that the words behind `--trial` name (`named`).

    Raises:
        InputError: Some name nothing, or several things; all of them at once.
    """
    found: set[str] = set()
    problems: list[Problem] = []
    for word in words:
        try:
            found |= {*named(word, groups, place="--trial", mend=where_ids_are(folder))}
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return frozenset(found)
