"""A grid that repeats a sweep's best groups with more seeds: for `kdsweep grow`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..results import load
from ..results.leaderboard import leaderboard
from ..results.store import Store
from ..search_spaces import Identifier, expand, read_grid
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.expansion import PlannedTrial
from ..search_spaces.grid import Grid
from ..search_spaces.growth import FurtherSeeds, add_seeds
from ..search_spaces.search import GridSearch
from .errors import NothingMatchesError
from .planning import Content, ContentFacts
from .words import count


@dataclass(frozen=True)
class Grown:
    """What was written."""

    file: Path
    groups: int
    """With more seeds than before."""
    new_trials: int
    folder: Path
    """The sweep's."""


def grow(
    folder: Path, *, top: int, seeds: int, into: Path | None, allow_plugins: bool = False
) -> Grown:
    """Write the sweep's newest grid again, with more seeds for its best groups.

    Everything else of the grid stays, so nothing that is completed becomes inactive when it is
    launched. The file is read back, and it is checked by ids that it has the old trials, and the
    new ones of these groups, and no other.

    Args:
        folder: The sweep's.
        top: How many groups: the best by their mean over seeds on select.
        seeds: How many seeds each of them is to have in all.
        into: The new file; unless said `<name>-grown.yaml` beside the first one.
        allow_plugins: Whether the grid may bring code of its own; it is read, never executed.

    Raises:
        InputError: There is no sweep, nothing would be new, or the file cannot be written so that
            it means this.
        NothingMatchesError: No trial is completed yet.
        FileExistsError: There is such a file.
    """
    sweep = Store(folder)
    if not sweep.exists():
        raise InputError([Problem(str(folder), "is no sweep", "Name the folder of a launch.")])
    base = Path(sweep.read_sweep()["base"])
    text = sweep.newest_grid()
    place = str(folder / "grids")
    grid = read_grid(text, file=place, base=base, allow_plugins=allow_plugins)
    if not isinstance(grid.search, GridSearch):
        what = "the grid searches its points, and only those of a whole grid can be grown"
        mend = (
            "Write a grid with the values of the best points, without `search` and with more seeds."
        )
        raise InputError([Problem(place, what, mend)])
    best = leaderboard(load(folder), top)
    if best.empty:
        raise NothingMatchesError("no trial is completed yet")
    content = Content()

    def trials_of(grid: Grid) -> dict[str, dict[int, PlannedTrial]]:
        """Every planned trial, by its group's id and its seed."""
        identify = Identifier().identify
        found: dict[str, dict[int, PlannedTrial]] = {}
        for planned in expand(grid, ContentFacts(content)).trials:
            ids = identify(planned.trial, content.of_trial(planned.trial))
            found.setdefault(ids.group, {}).setdefault(planned.trial.seed, planned)
        return found

    before = trials_of(grid)
    scores = dict(zip(best["group_id"], best["select/primary"], strict=True))
    if strangers := scores.keys() - before.keys():
        what = (
            f"{count(len(strangers), 'group')} of the best {len(scores)} would have other ids now"
        )
        mend = "Rows or teacher have changed since the plan was made, or another version made it."
        raise InputError([Problem(place, what, mend)])
    further = _further(before, scores, seeds=seeds)
    if not further:
        what = f"the best {count(len(scores), 'group')} have {seeds} seeds or more already"
        raise InputError([Problem("--seeds", what, "Ask for more seeds, or for more groups.")])
    heading = (
        f"{count(len(scores), 'group')} of {folder.name} that {'is' if len(scores) == 1 else 'are'}"
        f" best on select, mean over seeds: {count(seeds, 'seed')} each (kdsweep grow)"
    )
    grown = add_seeds(text, grid, list(further.values()), heading=heading)
    file = into or base / f"{grid.name}-grown.yaml"
    _check(
        _read_back(grown, file, allow_plugins=allow_plugins, trials_of=trials_of),
        before,
        further,
        file=file,
        base=base,
    )
    with file.open("x", encoding="utf-8") as target:
        target.write(grown)
    new = sum(len(each.seeds) for each in further.values())
    return Grown(file, groups=len(further), new_trials=new, folder=folder)


def _further(
    before: Mapping[str, Mapping[int, PlannedTrial]], scores: Mapping[str, float], *, seeds: int
) -> dict[str, FurtherSeeds]:
    """The seeds that the groups lack: the smallest that they do not have, so that they pair up."""
    found = {}
    for group, score in scores.items():
        known = before[group]
        if len(known) >= seeds:
            continue
        free = (seed for seed in range(seeds + len(known)) if seed not in known)
        first = min(known)
        found[group] = FurtherSeeds(
            axes=known[first].axes,
            seed=first,
            seeds=[next(free) for _ in range(seeds - len(known))],
            comment=f"{group}: {score:.4f} over {count(len(known), 'seed')}",
        )
    return found


def _read_back(
    text: str,
    file: Path,
    *,
    allow_plugins: bool,
    trials_of: Callable[[Grid], dict[str, dict[int, PlannedTrial]]],
) -> set[tuple[str, int]]:
    """Group and seed of every trial that the new file stands for; none where it cannot be read."""
    try:
        base = file.parent.resolve()
        grid = read_grid(text, file=str(file), base=base, allow_plugins=allow_plugins)
        return set(_pairs(trials_of(grid)))
    except InputError:
        return set()


def _pairs(trials: Mapping[str, Iterable[int]]) -> Iterable[tuple[str, int]]:
    return ((group, seed) for group, seeds in trials.items() for seed in seeds)


def _check(
    found: set[tuple[str, int]],
    before: Mapping[str, Iterable[int]],
    further: Mapping[str, FurtherSeeds],
    *,
    file: Path,
    base: Path,
) -> None:
    new = {(group, seed) for group, each in further.items() for seed in each.seeds}
    if found == set(_pairs(before)) | new:
        return
    if file.parent.resolve() != base.resolve():
        what = "what the grid's relative paths name is not the same there"
        raise InputError([Problem("--output", what, f"Write it into {base}.")])
    problem = Problem(
        str(file),
        "these groups cannot be told from others of the grid by the labels of their values",
        "Add the seeds by hand: a mapping of `axes` for them, with `seed: [...]`.",
    )
    raise InputError([problem])
