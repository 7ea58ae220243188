"""Whether a lane's memory grows from trial to trial.

    python benchmarks/memory.py [tiny|small|full]

One lane of `kdsweep launch` trains one short trial after another. Knowledge (labels alone, kept
features of all kinds, memories of rows), shape, batch size, number of steps and dropout are drawn
at random for each, so that few have tensors of the sizes that an earlier one had. The lane is
looked at from without ten times a second. Own memory is what `resources.memory_gb` limits:
resident, without mapped files.

A trial's peak is mostly its student's, and its floor, the least while it runs, what the lane keeps.
Of both there stands the median over the ten trials up to one, beside the most until then. The
ratio is that of each of the last ten trials to the first row's; growth is the median of the slopes
between all pairs of trials after the first row's (Theil and Sen), with its 95 % interval.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from printing import Ratio, tell
from scipy import stats
from tweets import ATTENTIONS, SHAPES, TINY, Launched, Prepared, Setting, launch, prepare
from watching import Watch

WINDOW = 10
"""Trials whose median stands for the last of them."""

KNOWLEDGE = [
    ["hard_labels"],
    ["hard_labels", "soft_logits"],
    ["hard_labels", "soft_logits", "hidden_states", ATTENTIONS],
    ["hard_labels", {"kind": "relations", "heads": 4}],
    ["hard_labels", "crd"],
]

STEPS = (5, 40)


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    setting: Setting
    marks: Sequence[int]
    """Trials that have a row; the last one ends the sweep."""


ROWS = Setting(train=400, epochs=1, report=0.02)

SIZES: Mapping[str, Size] = {
    "tiny": Size(TINY, marks=[3, 6]),
    "small": Size(ROWS, marks=[20, 50]),
    "full": Size(ROWS, marks=[20, 50, 100, 200]),
}


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    size = SIZES[asked]
    grid = drawn_grid(prepare(size.setting), size.marks[-1])
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as folder:
        sweep = Path(folder) / "sweep"
        with Watch(sweep / "cache") as watch:
            launched = launch(grid, sweep, lanes=1)
    trials = by_trial(launched, watch.looks)
    assert len(trials) == size.marks[-1], "a trial was not trained, or not seen"
    assert trials.pop("pid").nunique() == 1, "the lane was replaced"
    kept = launched.trials["features"].str.startswith("cached").sum()
    growth = {
        name: slope(trials[name].iloc[size.marks[0] :]) for name in ("own MB", "floor MB", "RSS MB")
    }
    tell(
        "memory",
        [at_mark(trials, mark) for mark in size.marks],
        columns={
            "trial": "d",
            **{
                f"{what}{name} MB": ".0f"
                for name in ("own", "floor", "RSS")
                for what in ("", "most ")
            },
        },
        ratios={
            f"{name.removesuffix(' MB')} {size.marks[-1]}/{size.marks[0]}": grown(
                trials[name], size.marks
            )
            for name in growth
        },
        notes=[
            f"one lane, {len(trials)} trials of {STEPS[0]} to {STEPS[1]} steps,"
            f" {kept} with features",
            *(
                f"growth of {name}: {each.median:+.2f} ({each.low:+.2f} to {each.high:+.2f})"
                f" in 100 trials"
                for name, each in growth.items()
            ),
        ],
        size=asked,
        growth={name: each._asdict() for name, each in growth.items()},
        trials=trials.round(2).to_dict("list"),
    )


def drawn_grid(prepared: Prepared, trials: int) -> dict[str, object]:
    """Points drawn at random."""
    training = dict(prepared.setting.training(SHAPES["2x128"]))
    del training["epochs"]
    shapes = [
        {"layers": 1, "width": 64, "heads": 2},
        {"layers": 4, "width": 96, "heads": 4},
        *SHAPES.values(),
    ]
    return {
        **prepared.grid([SHAPES["2x128"]], [["hard_labels"]], [0]),
        "axes": {
            "knowledge": KNOWLEDGE,
            "shape": shapes,
            "training.batch_size": [8, 16, 32],
            "training.total_steps": {"integers": STEPS},
            "training.dropout": {"uniform": [0.0, 0.2]},
        },
        "training": training,
        "search": {"method": "random", "trials": trials},
    }


def by_trial(launched: Launched, looks: pd.DataFrame) -> pd.DataFrame:
    """The lane's memory during each trial, in the order of their ends."""
    rows = []
    for started, ended in sorted(
        zip(launched.started, launched.ended, strict=True), key=lambda pair: pair[1]
    ):
        during = looks[looks["at"].between(started, ended)]
        if during.empty:
            continue
        # The teacher's lane may stand beside it, and does nothing.
        used = during.groupby("pid")["processor_seconds"].agg(lambda s: s.max() - s.min())
        during = during[during["pid"] == used.idxmax()]
        rows.append(
            {
                "pid": used.idxmax(),
                "own MB": during["own_mb"].max(),
                "floor MB": during["own_mb"].min(),
                "RSS MB": during["rss_mb"].max(),
            }
        )
    return pd.DataFrame(rows)


def at_mark(trials: pd.DataFrame, mark: int) -> dict[str, Any]:
    """A row: the median of some trials up to one, and the most of all until then."""
    until = trials.iloc[:mark]
    medians = until.iloc[-WINDOW:].median().to_dict()
    return {"trial": mark, **medians, **until.max().add_prefix("most ").to_dict()}


def grown(series: pd.Series, marks: Sequence[int]) -> Ratio:
    """Each of the last trials beside the median at the first mark."""
    first = series.iloc[: marks[0]].iloc[-WINDOW:].median()
    return Ratio.of([float(each / first) for each in series.iloc[-WINDOW:]])


def slope(series: pd.Series) -> Ratio:
    """By which it grows in a hundred trials, with the 95 % interval."""
    found = stats.theilslopes(series.to_numpy())
    return Ratio(*(100 * float(each) for each in (found[0], found[2], found[3])))


if __name__ == "__main__":
    main()
