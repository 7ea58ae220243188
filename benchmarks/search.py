"""Random search, TPE and NSGA-II on the quickstart's space, each killed once in the middle.

`python benchmarks/search.py` fills 40 slots by each method, one trial after another, on fewer rows
and steps than the quickstart has, with ranges in place of its constant learning rate and
temperature. Half-way the launch is killed (SIGKILL) and resumed. It prints the best on select by
the number of trials and the Pareto front of quality and parameters, and says whether what had been
proposed before the kill is still there byte for byte. With so few steps and one seed the figures
tell how a search goes, not which student is good.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdsweep import results

METHODS: Mapping[str, Mapping[str, Any]] = {
    "random": {},
    "tpe": {},
    "nsga2": {"objective": {"metrics": ["primary", "parameters"]}, "population": 8},
}
RATE = {"log": [1e-4, 3e-2]}
HARD, SOFT = "hard_labels", "soft_logits"
GRID: Mapping[str, Any] = {
    "name": "search",
    "task": {
        "name": "tweets",
        "max_length": 32,
        "report": {"from": "train", "fraction": 0.02},
        "limit": {"train": 800, "select": 400},
    },
    "teacher": {
        "model": "minilm-l6-h384",
        "fine_tune": {"epochs": 2, "learning_rate": 1e-4, "batch_size": 16},
    },
    "axes": [
        {
            "knowledge": [HARD, [HARD, SOFT], [HARD, SOFT, "hidden_states"]],
            "matching": ["first", "last"],
            "temperature": {"uniform": [1, 8]},
            "shape": [{"layers": n, "width": 128, "heads": 4} for n in (1, 2)],
            "training.learning_rate": RATE,
        },
        {
            "knowledge": [HARD, [HARD, SOFT]],
            "temperature": {"uniform": [1, 8]},
            "shape": [{"layers": 1, "width": 384, "heads": 12}],
            "initialisation": ["random", {"teacher_layers": "first", "head": "copy"}],
            "training.learning_rate": RATE,
        },
    ],
    "training": {"total_steps": 100, "batch_size": 16, "evaluate": {"times": 2}},
    "keep": {"students": "none", "predictions": "none"},
}


def main() -> None:
    """Print a table for each method and one JSON line."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as name:
        folder = Path(name)
        # The teacher is the same for all: it is prepared once.
        launch(
            write(folder, "base", {"method": "random", "trials": 1, "seed": 99}), folder / "base"
        )
        told = [measure(folder, method, trials) for method in METHODS]
    print(json.dumps({"bench": "search", "trials": trials, "methods": told}))


def measure(folder: Path, method: str, trials: int) -> dict[str, Any]:
    """Fill the slots of one method, with a kill in the middle."""
    store = folder / method
    shutil.copytree(folder / "base", store)
    grid = write(folder, method, {"method": method, "trials": trials, **METHODS[method]})
    began = time.perf_counter()
    kept = kill(grid, store, after=trials // 2)
    launch(grid, store)
    seconds = time.perf_counter() - began
    unharmed = all((store / "proposals" / each).read_bytes() == kept[each] for each in kept)
    found = results.load(store)
    search, front = found.search(), found.pareto()
    by_number = {n: search["best"][n - 1] for n in range(5, trials + 1, 5)}
    statuses = {str(name): int(n) for name, n in search["status"].value_counts().items() if n}
    print(
        f"\n{method}: {len(search)} slots ({statuses}), {len(found.trials)} trials, {seconds:.0f} s"
    )
    print(f"  killed with {len(kept)} slots filled; unharmed: {unharmed}")
    print("  best on select by trials: " + "  ".join(f"{n}: {v:.4f}" for n, v in by_number.items()))
    print("  Pareto front of select/primary and parameters:")
    columns = ["select/primary", "parameters", "report/primary", "knowledge", "shape"]
    print("    " + front[columns].to_string(index=False).replace("\n", "\n    "), flush=True)
    return {
        "method": method,
        "seconds": round(seconds),
        "slots": statuses,
        "trials": len(found.trials),
        "killed_at": len(kept),
        "unharmed": unharmed,
        "best": by_number,
        "front": front[columns].astype({"knowledge": str, "shape": str}).to_dict("records"),
    }


def write(folder: Path, name: str, search: Mapping[str, Any]) -> Path:
    """The grid of one method."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({**GRID, "search": search}))
    return path


def command(grid: Path, store: Path) -> list[str]:
    """A launch, one trial after another."""
    words = ["launch", str(grid), "--store", str(store), "--yes", "--quiet", "--executor", "serial"]
    return [sys.executable, "-m", "kdsweep.sweep", *words]


def launch(grid: Path, store: Path) -> None:
    """Run to the end; trials that diverge are results as well."""
    said = subprocess.run(command(grid, store), capture_output=True, text=True)
    if said.returncode not in (0, 3):
        raise RuntimeError(said.stderr)


def kill(grid: Path, store: Path, *, after: int) -> dict[str, bytes]:
    """Launch, kill once so many slots are filled, and give what was proposed by then."""
    before = {file.name for file in (store / "proposals").iterdir()}
    process = subprocess.Popen(
        command(grid, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def proposed() -> list[Path]:
        files = (store / "proposals").glob("[!.]*.parquet")
        return [file for file in files if file.name not in before]

    while len(proposed()) < after and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.wait()
    return {file.name: file.read_bytes() for file in proposed()}


if __name__ == "__main__":
    main()
