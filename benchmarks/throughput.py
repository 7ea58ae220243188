"""Trials per hour of the same points by three ways: naive, tuned by hand, and kdsweep.

    python benchmarks/throughput.py [tiny|small|medium|full|long]

A point is a student's shape, what it learns, and a seed; rows, teacher, steps, batch size, learning
rate and evaluations of select are the same. Each way trains the seeds of a cell (shape and
knowledge) as one sweep, in a process of its own, with one trial a core. The ways take turns, cell
by cell and repeat by repeat, so that a machine that slows down slows all of them; a ratio is always
of one turn. Beside one another stand:

* the pace, from the end of the first trial of each lane to the end of the last: one-time costs
  (imports, Ray, a lane's first trial, the teacher's outputs) are not in it, nor in any ratio that
  is not marked `whole`;
* whole: all of the command, those costs included. The sweeps here are short: of a long one the
  pace is what counts.

The teacher's fine-tuning is in none: all read the same folder. kdsweep does what the others do not
(it keeps the best weights and measures them too, the student's latency, history, predictions and
checkpoints); all of that is in its time.

Is it the same training? The mean over all points of the difference in accuracy on report has a 90 %
interval, and stands as equivalent if it lies within MARGIN (two one-sided tests at 5 %, differences
paired by point). Random numbers are drawn in another order, so points differ like two seeds.

In each further repeat come new seeds. `medium` has all cells once, with trials of 100 steps: less
than an hour on two cores, where `full` takes days. `full` has 300 steps a trial: after 50, students
of hidden states still name the largest class alone, and their accuracy says nothing. `long` is for
how the ratios depend on the length of a trial: 1,000 steps, for the smallest and the largest
student.
"""

import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from by_hand import Point, Work, heard, write_work
from printing import Ratio, tell
from scipy import stats
from tweets import (
    FULL,
    KNOWLEDGE,
    SHAPES,
    SMALL,
    TINY,
    Prepared,
    Setting,
    count_lanes,
    launch,
    prepare,
    run,
)

WAYS = ("naive", "tuned", "kdsweep")
HERE = Path(__file__).parent

MARGIN = 0.015
"""Of accuracy: about the standard deviation between two seeds of one point."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    setting: Setting
    shapes: Sequence[str]
    knowledge: Sequence[str]
    waves: int
    """Trials of a lane in each sweep, of which the first is not counted."""
    repeats: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(TINY, ["2x128"], ["logits+hidden+attention"], waves=2, repeats=1),
    "small": Size(SMALL, ["2x128"], ["logits"], waves=2, repeats=2),
    "medium": Size(replace(SMALL, epochs=4), list(SHAPES), list(KNOWLEDGE), waves=2, repeats=1),
    "full": Size(replace(FULL, epochs=6), list(SHAPES), list(KNOWLEDGE), waves=4, repeats=3),
    "long": Size(replace(FULL, epochs=20), ["2x128", "3x384"], ["logits"], waves=2, repeats=2),
}


class Cell(NamedTuple):
    """What the points of a sweep have in common."""

    shape: str
    knowledge: str


@dataclass(frozen=True)
class Swept:
    """A sweep of one cell that was run by one way."""

    lanes: int
    seconds: float
    """Of the whole command."""
    ended: Sequence[float]
    """When its trials ended, in order."""
    report: Sequence[float]
    """Accuracy of its trials, in the order of their seeds."""

    @property
    def trial_seconds(self) -> float:
        """Between two trials, after the first of each lane."""
        counted = len(self.ended) - self.lanes
        return (self.ended[-1] - self.ended[self.lanes - 1]) / counted

    @property
    def whole_seconds(self) -> float:
        """A trial's share of the command."""
        return self.seconds / len(self.ended)

    @property
    def once_seconds(self) -> float:
        """What the command took beyond its pace."""
        return self.seconds - self.trial_seconds * len(self.ended)


Turns = Mapping[Cell, Sequence[Mapping[str, Swept]]]
"""By cell, for each repeat the three ways."""


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    size, lanes = SIZES[asked], count_lanes()
    prepared = prepare(size.setting)
    turns = take_turns(size, prepared, lanes)
    rows = [*cell_rows(turns), *mean_rows(turns)]
    paces = {f"/{way}" for way in WAYS[:-1]}
    accuracy = {way: equivalence(turns, way) for way in WAYS[:-1]}
    once = {
        way: statistics.mean(each[way].once_seconds for by in turns.values() for each in by)
        for way in WAYS
    }
    tell(
        "throughput",
        rows,
        columns={"shape": "", "knowledge": "", **{f"{way}/h": ".0f" for way in WAYS}}
        | {f"{kind}/{way}": "" for kind in ("", "whole ") for way in WAYS[:-1]},
        ratios={f"kdsweep{name}": rows[-1][name] for name in sorted(paces)},
        notes=[
            f"{size.setting.num_steps} steps a trial, {lanes} lanes, {size.waves} trials a lane,"
            f" {size.repeats} repeats",
            "pace in trials an hour; kdsweep beside the others: median [least, most]",
            f"once a sweep, s: {', '.join(f'{way} {once[way]:.0f}' for way in WAYS)};"
            f" the teacher, for all: {prepared.seconds:.0f}",
            *(accuracy_note(way, accuracy[way]) for way in accuracy),
        ],
        size=asked,
        lanes=lanes,
        steps=size.setting.num_steps,
        once_seconds=once,
        teacher_seconds=prepared.seconds,
        accuracy=accuracy,
    )


def take_turns(size: Size, prepared: Prepared, lanes: int) -> Turns:
    """Every cell by every way, as often as asked."""
    turns: dict[Cell, list[dict[str, Swept]]] = defaultdict(list)
    count = lanes * size.waves
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as name:
        folder = Path(name)
        files = prepared.write_files(folder)
        for repeat in range(size.repeats):
            seeds = range(repeat * count, (repeat + 1) * count)
            # Each way comes first, second and last equally often.
            ways = [*WAYS[repeat % 3 :], *WAYS[: repeat % 3]]
            for shape in size.shapes:
                for knowledge in size.knowledge:
                    cell = Cell(shape, knowledge)
                    turn = {}
                    for way in ways:
                        turn[way] = sweep(way, cell, seeds, prepared, files, folder, lanes=lanes)
                        say(way, cell, turn[way])
                    turns[cell].append(turn)
    return turns


def say(way: str, cell: Cell, swept: Swept) -> None:
    """How it goes, for whoever waits."""
    pace = f"{swept.trial_seconds:.1f} s a trial, {swept.seconds:.0f} s in all"
    print(f"{cell.shape} {cell.knowledge} {way}: {pace}", file=sys.stderr, flush=True)


def sweep(
    way: str,
    cell: Cell,
    seeds: Sequence[int],
    prepared: Prepared,
    files: Mapping[str, str],
    folder: Path,
    *,
    lanes: int,
) -> Swept:
    """Train a cell's seeds."""
    shape, terms = SHAPES[cell.shape], KNOWLEDGE[cell.knowledge]
    if way == "kdsweep":
        grid = prepared.grid([shape], [terms], seeds)
        launched = launch(grid, folder / "sweep", lanes=lanes)
        report = launched.trials.sort_values("seed")["report/accuracy"]
        ended = sorted(launched.ended)
        return Swept(lanes, launched.seconds, ended, report.tolist())
    work = Work(
        lanes=lanes,
        teacher=str(prepared.teacher),
        files=dict(files),
        max_length=prepared.setting.task["max_length"],
        training=prepared.setting.training(shape),
        points=[Point(shape=dict(shape), knowledge=list(terms), seed=seed) for seed in seeds],
    )
    return by_hand(way, work, folder)


def by_hand(way: str, work: Work, folder: Path) -> Swept:
    """Run one of the two programs beside this one."""
    file = write_work(work, folder / "work.json")
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        start = time.perf_counter()
        # Libraries keep rows and tokens on the disk; like a sweep, each begins with nothing kept.
        said = run([sys.executable, str(HERE / f"{way}_tune.py"), str(file)], {"HF_HOME": kept})
        seconds = time.perf_counter() - start
    trials = heard(said)
    return Swept(
        work["lanes"],
        seconds,
        sorted(trial.ended for trial in trials),
        [trial.report for trial in trials],
    )


def speedups(turn: Mapping[str, Swept]) -> dict[str, float]:
    """How many trials kdsweep trains in the time of one by another way."""
    own = turn["kdsweep"]
    return {
        name: value
        for way in WAYS[:-1]
        for name, value in (
            (f"/{way}", turn[way].trial_seconds / own.trial_seconds),
            (f"whole /{way}", turn[way].whole_seconds / own.whole_seconds),
        )
    }


def cell_rows(turns: Turns) -> list[dict[str, Any]]:
    """A row a cell."""
    rows = []
    for cell, repeats in turns.items():
        pace = {
            f"{way}/h": 3600 / statistics.median(turn[way].trial_seconds for turn in repeats)
            for way in WAYS
        }
        rows.append(
            {**cell._asdict(), **pace, **over_repeats([speedups(turn) for turn in repeats])}
        )
    return rows


def mean_rows(turns: Turns) -> list[dict[str, Any]]:
    """Geometric means over shapes, for each knowledge and for all."""
    kinds = list(dict.fromkeys(cell.knowledge for cell in turns))
    groups = {kind: [cell for cell in turns if cell.knowledge == kind] for kind in kinds}
    if len(groups) > 1:
        groups["all"] = list(turns)
    rows = []
    for kind, cells in groups.items():
        by_repeat = [
            geometric_means([speedups(turn) for turn in turns_of_a_repeat])
            for turns_of_a_repeat in zip(*(turns[cell] for cell in cells), strict=True)
        ]
        rows.append({"shape": "geometric mean", "knowledge": kind, **over_repeats(by_repeat)})
    return rows


def geometric_means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.geometric_mean(each[name] for each in found) for name in found[0]}


def over_repeats(found: Sequence[Mapping[str, float]]) -> dict[str, Ratio]:
    """The median and the spread of each figure."""
    return {name: Ratio.of([each[name] for each in found]) for name in found[0]}


def equivalence(turns: Turns, way: str) -> dict[str, float | int | bool]:
    """How much more accurate kdsweep's students are, with the interval of two one-sided tests."""
    differences = [
        ours - theirs
        for repeats in turns.values()
        for turn in repeats
        for ours, theirs in zip(turn["kdsweep"].report, turn[way].report, strict=True)
    ]
    mean, count = statistics.mean(differences), len(differences)
    half = float(stats.t.ppf(0.95, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    low, high = mean - half, mean + half
    is_equivalent = low > -MARGIN and high < MARGIN
    return {"difference": mean, "low": low, "high": high, "margin": MARGIN, "points": count} | {
        "equivalent": is_equivalent
    }


def accuracy_note(way: str, found: Mapping[str, float | int | bool]) -> str:
    """One line on equivalence."""
    verdict = "equivalent" if found["equivalent"] else "not shown to be equivalent"
    return (
        f"accuracy, kdsweep less {way}: {found['difference']:+.4f}"
        f" ({found['low']:+.4f} to {found['high']:+.4f}) over {found['points']} points:"
        f" {verdict} within {MARGIN}"
    )


if __name__ == "__main__":
    main()
