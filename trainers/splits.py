"""Which rows are trained on, which guide choices, and which are reported.

Every draw is decided by SHA-256 of the seed and the text alone. It stays the same for ever, on
every machine and with every version of every library, which matters because trial ids depend on
the rows; a library's random generator promises no such thing.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..search_spaces.errors import DataError, Problem
from ..search_spaces.task import Carve
from .rows import Rows


class Deduplicated(NamedTuple):
    """Rows without duplicates, and what it cost."""

    rows: Rows
    """The rows that stay, in order."""
    duplicates: int
    """Rows dropped because an earlier one has the same text and label."""
    conflicts: int
    """Rows dropped because another one has the same text and another label."""


def drop_duplicates(rows: Rows) -> Deduplicated:
    """The first of equal rows; none of a text that stands under two labels."""
    first: dict[tuple[str, ...], int] = {}
    conflicting: set[tuple[str, ...]] = set()
    labels = rows.labels.tolist()
    for index, text in enumerate(rows.texts):
        if labels[first.setdefault(text, index)] != labels[index]:
            conflicting.add(text)
    kept = [index for text, index in first.items() if text not in conflicting]
    conflicts = sum(text in conflicting for text in rows.texts) if conflicting else 0
    return Deduplicated(rows.take(kept), len(rows) - len(kept) - conflicts, conflicts)


def drop_texts(rows: Rows, unwanted: Rows) -> Rows:
    """The rows whose text is not among the unwanted ones', whatever the labels."""
    texts = set(unwanted.texts)
    return rows.take([index for index, text in enumerate(rows.texts) if text not in texts])


def carve(
    rows: Rows, rule: Carve, *, role: str, classes: Sequence[str], of: int | None = None
) -> tuple[Rows, Rows]:
    """A stratified part, and the rest; both in the order of `rows`.

    Each class gives its share, rounded so that the sum is exact (largest remainders first), but
    at least one row, and it keeps at least one.

    Args:
        rows: Rows without duplicates.
        rule: The share and the seed.
        role: The split that is carved; two roles with one seed draw apart from each other.
        classes: The class names, for messages.
        of: The number of rows that the fraction refers to; `len(rows)` unless said.

    Raises:
        DataError: A class with a single row, or a part with fewer rows than classes.
    """
    place = f"task.{role}"
    sizes = _class_sizes(rows)
    size = int(rule.fraction * (of or len(rows)) + 0.5)
    single = [f"`{classes[label]}`" for label, number in enumerate(sizes) if number == 1]
    if single:
        raise DataError(
            [
                Problem(
                    place,
                    f"class {', '.join(single)} has a single row, which cannot be in "
                    f"both train and {role}",
                    "Give the class more rows, drop it, or name a split of its own.",
                )
            ]
        )
    present = sum(number > 0 for number in sizes)
    if not present <= size <= len(rows) - present:
        raise DataError(
            [
                Problem(
                    place,
                    f"a fraction of {rule.fraction} gives {size} of {len(rows)} rows, too few or "
                    f"too many for {present} classes on both sides",
                    "Change the fraction, or give more rows.",
                )
            ]
        )
    quotas = largest_remainders(
        size, sizes, least=[min(number, 1) for number in sizes], most=[n - 1 for n in sizes]
    )
    part = _draw(rows, quotas, seed=rule.seed, role=role)
    taken = set(part)
    rest = [index for index in range(len(rows)) if index not in taken]
    return rows.take(part), rows.take(rest)


def limit_rows(rows: Rows, size: int | None, *, seed: int, role: str) -> Rows:
    """A stratified draw of at most `size` rows, in the order of `rows`; a larger one holds it.

    Raises:
        DataError: Fewer rows than classes.
    """
    if size is None or size >= len(rows):
        return rows
    sizes = _class_sizes(rows)
    present = sum(number > 0 for number in sizes)
    if size < present:
        raise DataError(
            [
                Problem(
                    f"task.limit.{role}",
                    f"{size} is fewer than the {present} classes",
                    f"Write at least {present}.",
                )
            ]
        )
    quotas = largest_remainders(size, sizes, least=[min(n, 1) for n in sizes], most=sizes)
    return rows.take(_draw(rows, quotas, seed=seed, role=f"limit {role}"))


def largest_remainders(
    size: int, sizes: Sequence[int], *, least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Whole numbers in proportion to `sizes` that add up to `size`, within bounds.

    Each gets the whole part of its share, then the largest remainders get one more, the first of
    equal ones first; what a bound forbids moves to the classes furthest below, or above, their
    share.

    Args:
        size: The sum; between the sum of `least` and the sum of `most`.
        sizes: What the shares are in proportion to.
        least: The least of each.
        most: The most of each.
    """
    total = sum(sizes)
    quotas = [
        min(max(size * number // total, low), max(high, 0))
        for number, low, high in zip(sizes, least, most, strict=True)
    ]
    while (missing := size - sum(quotas)) != 0:
        step = 1 if missing > 0 else -1
        bounds = most if missing > 0 else least
        # How far each lies from its share, times the total, which keeps it a whole number.
        gaps = [
            (step * (size * number - quota * total), -index)
            for index, (number, quota, bound) in enumerate(zip(sizes, quotas, bounds, strict=True))
            if step * (bound - quota) > 0
        ]
        quotas[-max(gaps)[1]] += step
    return quotas


def _draw(rows: Rows, quotas: Sequence[int], *, seed: int, role: str) -> list[int]:
    keys = [_key(text, seed=seed, role=role) for text in rows.texts]
    drawn: list[int] = []
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(rows.labels == label).tolist()
        drawn += sorted(members, key=lambda index: (keys[index], index))[:quota]
    return sorted(drawn)


def _key(text: tuple[str, ...], *, seed: int, role: str) -> bytes:
    return hashlib.sha256(
        json.dumps([seed, role, *text], ensure_ascii=False, separators=(",", ":")).encode()
    ).digest()


def _class_sizes(rows: Rows) -> list[int]:
    return [int(number) for number in np.bincount(rows.labels)] if len(rows) else []
