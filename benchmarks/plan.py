"""How long planning takes, and how it grows: 1,000 to 100,000 points, each in a fresh process."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

SIZES = (1_000, 10_000, 100_000)
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
    print(json.dumps({"trials": len(ids), "seconds": seconds, "memory_mb": memory}))


def main() -> None:
    """Print a table and one JSON line."""
    rows = []
    with TemporaryDirectory() as folder:
        for points in SIZES:
            file = Path(folder) / f"{points}.yaml"
            file.write_text(json.dumps(grid(points)))
            told = subprocess.run(
                [sys.executable, __file__, str(file)], check=True, capture_output=True, text=True
            )
            rows.append({"points": points, **json.loads(told.stdout)})
    print(f"{'points':>8} {'trials':>8} {'seconds':>8} {'us/trial':>9} {'peak MB':>8}")
    for row in rows:
        each = row["seconds"] / row["trials"] * 1e6
        print(
            f"{row['points']:8} {row['trials']:8} {row['seconds']:8.2f} {each:9.1f}"
            f" {row['memory_mb']:8.0f}"
        )
    print(json.dumps({"bench": "plan", "rows": rows}))


if __name__ == "__main__":
    measure(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
