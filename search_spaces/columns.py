"""Which paths become columns of a plan's tables, and their short names."""

from collections import Counter

from .grid import Grid
from .values import FIXED_AXES, grid_axes

_TAKEN = frozenset({"precision"})
"""Words that are columns of results already."""


def column_paths(grid: Grid) -> tuple[str, ...]:
    """Every path that an axis or a rule gives values to; the fixed axes come first."""
    paths = [*FIXED_AXES, *(axis.path for axis in grid_axes(grid.axes))]
    for rule in grid.when:
        paths += [*rule.set, *(axis.path for axis in rule.axes)]
    return tuple(dict.fromkeys(paths))


def short_names(paths: tuple[str, ...]) -> dict[str, str]:
    """The last component of each path, or the whole path where that would be ambiguous."""
    last = {path: path.rsplit(".", 1)[-1] for path in paths}
    uses = Counter(last.values())
    return {
        path: name if uses[name] == 1 and name not in _TAKEN else path
        for path, name in last.items()
    }
