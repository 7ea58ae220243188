"""How long a person waits for an answer that needs no training, beside a bare interpreter."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

REPEATS = 7


def seconds(*command: str) -> list[float]:
    """Wall time of a command, several times."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Print a table and one JSON line."""
    kdsweep = [sys.executable, "-m", "kdsweep.sweep"]
    with TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.yaml"
        bad.write_text("name: bad\naxes: {knowledge: [hard_label], shape: [{layers: 2}]}\n")
        commands = {
            "bare interpreter": [sys.executable, "-c", ""],
            "--help": [*kdsweep, "--help"],
            "refusing a grid": [*kdsweep, "launch", str(bad)],
            "schema": [*kdsweep, "schema"],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        rows = [{"what": name, "seconds": seconds(*words)} for name, words in commands.items()]
    bare = statistics.median(rows[0]["seconds"])
    print(f"{'':18} {'median s':>9} {'spread s':>9} {'x bare':>7}")
    for row in rows:
        taken = row["seconds"]
        median, spread = statistics.median(taken), max(taken) - min(taken)
        print(f"{row['what']:18} {median:9.3f} {spread:9.3f} {median / bare:7.1f}")
    print(json.dumps({"bench": "startup", "rows": rows}))


if __name__ == "__main__":
    main()
