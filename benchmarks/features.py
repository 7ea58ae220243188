"""Whether students of kept features are those of a teacher that runs in every step.

    python benchmarks/features.py [tiny|small|full]

The same trials, seed by seed, once with the teacher's outputs kept (`cache_budget_gb` as it is) and
once with none kept (`cache_budget_gb: 0`), in turns for each precision. Kept outputs come from
batches of other rows than a step's, so sums differ by rounding; beside bf16 hidden states and
attentions are kept in fp16.

Of accuracy on select and report, and of the training loss at the end, there stands the mean
difference, kept less online, with the 95 % interval of Student's t over the seeds, beside the
standard deviation between the seeds. `trial` is how many times as long a trial takes online, median
and spread over the seeds without each lane's first, which imports, and computes what is kept.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from printing import Ratio, tell
from scipy import stats
from tweets import (
    FULL,
    KNOWLEDGE,
    SHAPES,
    SMALL,
    TINY,
    Launched,
    Prepared,
    Setting,
    count_lanes,
    launch,
    prepare,
)

COMPARED = {
    "select": "select/primary",
    "report": "report/primary",
    "loss": "train/loss",
}


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    setting: Setting
    knowledge: Sequence[str]
    precisions: Sequence[str]
    seeds: int


TAUGHT = ("logits", "logits+hidden+attention")

SIZES: Mapping[str, Size] = {
    "tiny": Size(TINY, TAUGHT[:1], ["fp32"], seeds=4),
    "small": Size(SMALL, TAUGHT, ["fp32", "bf16"], seeds=10),
    # Students of hidden states leave the largest class after some hundred steps.
    "full": Size(replace(FULL, epochs=6), TAUGHT, ["fp32", "bf16"], seeds=10),
}


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    size, lanes = SIZES[asked], count_lanes()
    prepared = prepare(size.setting)
    rows = []
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as folder:
        for precision in size.precisions:
            kept, online = (
                by_point(launch(grid, Path(folder) / name, lanes=lanes), lanes)
                for name, grid in (
                    ("kept", grid_of(prepared, size, precision)),
                    ("online", grid_of(prepared, size, precision) | {"cache_budget_gb": 0}),
                )
            )
            assert kept["features"].str.startswith("cached").all(), "a teacher ran in the steps"
            assert not online["features"].str.startswith("cached").any(), "outputs were kept"
            rows += compared(kept, online, precision)
    tell(
        "features",
        rows,
        columns={
            "precision": "",
            "knowledge": "",
            **{
                column: spec
                for name in COMPARED
                for column, spec in ((name, ""), (f"sd {name}", ".4f"))
            },
            "trial": "",
        },
        ratios={f"{row['precision']} {row['knowledge']}": row["trial"] for row in rows},
        notes=[
            f"{size.seeds} seeds of 2x128, {size.setting.num_steps} steps, {lanes} lanes;"
            " kept less online: mean [95 % interval], beside the deviation between seeds",
            "trial: time of one online beside the same with kept features",
        ],
        size=asked,
        lanes=lanes,
        steps=size.setting.num_steps,
        seeds=size.seeds,
    )


def grid_of(prepared: Prepared, size: Size, precision: str) -> dict[str, Any]:
    """All seeds with all knowledge."""
    knowledge = [KNOWLEDGE[name] for name in size.knowledge]
    grid = prepared.grid([SHAPES["2x128"]], knowledge, range(size.seeds))
    training = {**prepared.setting.training(SHAPES["2x128"]), "precision": precision}
    return {**grid, "training": training}


def by_point(launched: Launched, lanes: int) -> pd.DataFrame:
    """The trials in one order, whichever way they were trained."""
    trials = launched.trials.assign(
        took=launched.ended - launched.started,
        is_first=launched.started.rank(method="first") <= lanes,
    )
    return trials.sort_values(["knowledge", "seed"], ignore_index=True)


def compared(kept: pd.DataFrame, online: pd.DataFrame, precision: str) -> list[dict[str, Any]]:
    """A row for each knowledge."""
    assert kept["trial_id"].tolist() == online["trial_id"].tolist(), "other trials"
    rows = []
    for knowledge, some in kept.groupby("knowledge", sort=False):
        ours, theirs = kept.loc[some.index], online.loc[some.index]
        row: dict[str, Any] = {"precision": precision, "knowledge": knowledge}
        for name, column in COMPARED.items():
            row[name] = Difference.of((ours[column] - theirs[column]).tolist())
            row[f"sd {name}"] = statistics.stdev(ours[column])
        counted = ~(ours["is_first"] | theirs["is_first"])
        row["trial"] = Ratio.of((theirs["took"] / ours["took"])[counted].tolist())
        rows.append(row)
    return rows


class Difference(Ratio):
    """A mean, with its 95 % interval over the seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Difference":
        """From that of each seed."""
        mean, count = statistics.mean(values), len(values)
        deviation = statistics.stdev(values) / math.sqrt(count)
        half = float(stats.t.ppf(0.975, count - 1)) * deviation
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.median:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


if __name__ == "__main__":
    main()
