"""What a sweep costs, by its number of trials, its students' size and its rows of train.

    python benchmarks/scaling.py [tiny|small|full]

One thing grows at a time and all else stays. Of each sweep stands there what its launch took, what
an attempt took and its student of that (means), and what was left on the disk. An exponent is
fitted to each by least squares on logarithms: the cost grows like x to the power of it. 1 is
proportional, less means that something is paid only once. The spread is that of the exponents
between neighbours. Students grow by the parameters of their blocks.
"""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from printing import Ratio, tell
from tweets import KNOWLEDGE, SMALL, TINY, Launched, Prepared, Setting, count_lanes, launch, prepare

from kdsweep.search_spaces.shape import Shape, encoder_parameters

COSTS = ("launch s", "trial s", "student s", "store MB")


@dataclass(frozen=True)
class Size:
    """What grows, and how far."""

    setting: Setting
    trials: Sequence[int]
    """Of each lane."""
    widths: Sequence[int]
    rows: Sequence[int]


SIZES: Mapping[str, Size] = {
    "tiny": Size(TINY, trials=[1, 2], widths=[64, 128], rows=[32, 64]),
    "small": Size(SMALL, trials=[1, 2, 4], widths=[128, 256, 512], rows=[400, 800, 1600]),
    "full": Size(
        SMALL,
        trials=[1, 4, 16, 64],
        widths=[128, 256, 512, 768],
        rows=[400, 1600, 6400, 25_600],
    ),
}


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    size, lanes = SIZES[asked], count_lanes()
    prepared = prepare(size.setting)
    rows = [
        *(grown("trials", lanes * n, prepared, 128, lanes * n, lanes) for n in size.trials),
        *(
            grown("parameters", encoder_parameters(shape(width)), prepared, width, lanes, lanes)
            for width in size.widths
        ),
        *(grown("rows", n, prepared.resized(n), 128, lanes, lanes) for n in size.rows),
    ]
    exponents = {
        f"{cost} ~ {what}": exponent([row for row in rows if row["grows"] == what], cost)
        for what in ("trials", "parameters", "rows")
        for cost in COSTS
    }
    tell(
        "scaling",
        rows,
        columns={"grows": "", "to": ",", **dict.fromkeys(COSTS, ".2f"), "peak MB": ".0f"},
        ratios=exponents,
        notes=[
            f"labels and logits, 2 layers, {size.setting.epochs} epochs; {lanes} lanes",
            *(
                f"{what}: " + ", ".join(f"{cost} {exponents[f'{cost} ~ {what}']}" for cost in COSTS)
                for what in ("trials", "parameters", "rows")
            ),
        ],
        size=asked,
        lanes=lanes,
    )


def shape(width: int) -> Shape:
    """A student of two layers."""
    return Shape(layers=2, width=width, heads=width // 32)


def grown(
    what: str, to: int, prepared: Prepared, width: int, trials: int, lanes: int
) -> dict[str, Any]:
    """A row: a sweep of so many trials."""
    student = shape(width).model_dump(exclude_none=True)
    grid = prepared.grid([student], [KNOWLEDGE["logits"]], range(trials))
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as folder:
        launched = launch(grid, Path(folder) / "sweep", lanes=lanes)
    row = {"grows": what, "to": to, **costs(launched)}
    print(row, file=sys.stderr, flush=True)
    return row


def costs(launched: Launched) -> dict[str, float]:
    """What a sweep took; of an attempt the mean."""
    trials = launched.trials
    return {
        "launch s": launched.seconds,
        "trial s": float(trials["wall_seconds"].mean()),
        "student s": float(trials["seconds/student"].mean()),
        "store MB": launched.store_mb,
        "peak MB": float(trials["peak_memory_mb"].max()),
    }


def exponent(rows: Sequence[Mapping[str, Any]], cost: str) -> Ratio:
    """Of a cost in what grows: over all, and the least and the most between neighbours."""
    xs, ys = ([math.log(row[name]) for row in rows] for name in ("to", cost))
    slope = float(np.polyfit(xs, ys, 1)[0])
    between = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairwise(zip(xs, ys, strict=True))]
    # Of two points both are one number, rounded in two ways.
    return Ratio(slope, min(slope, *between), max(slope, *between))


if __name__ == "__main__":
    main()
