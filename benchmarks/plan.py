"""How long planning takes, and how it grows: 1,000 to 100,000 points, each in a fresh process.

    python benchmarks/plan.py [tiny|small|full]

The ratio is of the time for a trial, of the largest grid beside the smallest: 1 is proportional.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from printing import Ratio, tell

SIZES: Mapping[str, Sequence[int]] = {
    "tiny": [1_000],
    "small": [1_000, 10_000, 100_000],
    "full": [1_000, 10_000, 100_000],
}
REPEATS: Mapping[str, int] = {"tiny": 1, "small": 3, "full": 7}
MATCHINGS = ["uniform", "last", "first", {"last_k": 1}, {"last_k": 2}]


def grid(points: int) -> dict[str, object]:
    """4 knowledge kinds x 5 matchings x 5 temperatures x 10 learning rates x seeds."""
    return {
        "name": "bench",
        "task": {"name": "glue/sst2"},
        "teacher": {"model": "bert-base-uncased", "revision": "0" * 40, "fine_tune": {}},
        "axes": {
            "knowledge": [
                ["soft_logits", "hidden_states"],
                ["soft_logits", "attentions"],
                ["hard_labels", "soft_logits", "hidden_states"],
                ["hard_labels", "soft_logits", "attentions"],
            ],
            "matching": MATCHINGS,
            "temperature": [1.0, 2.0, 4.0, 8.0, 16.0],
            "shape": [{"layers": 4, "width": 312, "heads": 12}],
            "training.learning_rate": [n * 1e-5 for n in range(1, 11)],
            "seed": list(range(points // 1000)),
        },
    }


def measure(file: Path) -> None:
    """Plan one grid in this process and print what it took."""
    from kdsweep.search_spaces import expand, load_grid
    from kdsweep.search_spaces.facts import ShippedFacts
    from kdsweep.search_spaces.ids import Identifier
    from kdsweep.search_spaces.trial import Digests

    start = time.perf_counter()
    plan = expand(load_grid(file), ShippedFacts())
    identify = Identifier().identify
    ids = {identify(planned.trial, Digests("0", "0")).trial for planned in plan.trials}
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"trials": len(ids), "seconds": seconds, "peak MB": memory}))


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    with TemporaryDirectory() as folder:
        # Sizes take turns: a machine that slows down slows all of them.
        turns = [
            [run(points, Path(folder)) for points in SIZES[asked]] for _ in range(REPEATS[asked])
        ]
    rows = [median(repeats) for repeats in zip(*turns, strict=True)]
    tell(
        "plan",
        rows,
        columns={
            "points": ",",
            "trials": ",",
            "seconds": ".2f",
            "us/trial": ".1f",
            "peak MB": ".0f",
        },
        ratios={
            "us/trial, most/fewest": Ratio.of(
                [turn[-1]["us/trial"] / turn[0]["us/trial"] for turn in turns]
            ),
            f"seconds, {rows[-1]['points']:,} points": Ratio.of(
                [turn[-1]["seconds"] for turn in turns]
            ),
        },
        size=asked,
    )


def run(points: int, folder: Path) -> dict[str, float]:
    """Plan a grid in a process of its own."""
    file = folder / f"{points}.yaml"
    file.write_text(json.dumps(grid(points)))
    told = subprocess.run(
        [sys.executable, __file__, "--measure", str(file)],
        check=True,
        capture_output=True,
        text=True,
    )
    row = {"points": points, **json.loads(told.stdout)}
    return row | {"us/trial": row["seconds"] / row["trials"] * 1e6}


def median(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(row[name] for row in repeats) for name in repeats[0]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
    else:
        main()
