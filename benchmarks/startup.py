"""How long a person waits for an answer that needs no training, beside a bare interpreter.

    python benchmarks/startup.py [tiny|small|full]

Resuming a sweep of which nothing is left to do is measured by `store.py`, with all its trials.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from printing import Ratio, tell

REPEATS: Mapping[str, int] = {"tiny": 1, "small": 7, "full": 25}
BARE = "bare interpreter"


def seconds(command: Sequence[str]) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    kdsweep = [sys.executable, "-m", "kdsweep.sweep"]
    with TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.yaml"
        bad.write_text("name: bad\naxes: {knowledge: [hard_label], shape: [{layers: 2}]}\n")
        commands = {
            BARE: [sys.executable, "-c", ""],
            "--help": [*kdsweep, "--help"],
            "refusing a grid": [*kdsweep, "launch", str(bad)],
            "schema": [*kdsweep, "schema"],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        # They take turns: a machine that slows down slows all of them.
        turns = [
            {name: seconds(words) for name, words in commands.items()}
            for _ in range(REPEATS[asked])
        ]
    ratios = {
        f"{name}/{BARE}": Ratio.of([turn[name] / turn[BARE] for turn in turns])
        for name in commands
        if name != BARE
    }
    rows = []
    for name in commands:
        taken = [turn[name] for turn in turns]
        rows.append(
            {"command": name, "median s": statistics.median(taken), "least s": min(taken)}
            | {"most s": max(taken), f"/{BARE}": ratios.get(f"{name}/{BARE}")}
        )
    tell(
        "startup",
        rows,
        columns={"command": "", "median s": ".3f", "least s": ".3f", "most s": ".3f"}
        | {f"/{BARE}": ""},
        ratios=ratios,
        size=asked,
    )


if __name__ == "__main__":
    main()
