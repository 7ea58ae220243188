"""Columns of terms: stored by the canonical index of the term, shown by its label.

An index is the same whatever the grid calls the term, so a grid may rename its terms.
"""

import re
from collections.abc import Mapping, Sequence

from .snapshot import Snapshot

_TERM = re.compile(r"train/term/(\d+)/(.+)")


def term_labels(snapshot: Snapshot) -> Mapping[str, tuple[str, ...]]:
    """The labels of each trial's terms, by canonical index; the newest plan's."""
    labels: dict[str, tuple[str, ...]] = {}
    for plan in (snapshot.plan, *snapshot.older_plans):
        for id, found in zip(plan["id"].to_pylist(), plan["labels"].to_pylist(), strict=True):
            if id is not None:
                labels.setdefault(id, tuple(found))
    return labels


def labelled(name: str, labels: Sequence[str]) -> str:
    """A column's name with the label of its term in place of the index."""
    match = _TERM.fullmatch(name)
    if match is None or int(match[1]) >= len(labels):
        return name
    return f"train/term/{labels[int(match[1])]}/{match[2]}"


def is_of_term(name: str) -> bool:
    """Whether a stored column is about one term."""
    return _TERM.fullmatch(name) is not None
