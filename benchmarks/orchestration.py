"""What it costs to run a trial that trains nothing, beside bare Ray Tune with reused actors.

    python benchmarks/orchestration.py [tiny|small|full]
    python benchmarks/orchestration.py 1000 5000 10000

Both run for each number of trials, in turn; the spread is over these numbers. A trial of
kdsweep starts and commits an attempt: files are written whole and synced, history and locks looked
after. Bare Tune's trials return at once; its loggers and snapshots are off, since with them it
would be slower. Time a trial is counted from the first trial that ends to the last.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from printing import Ratio, tell

ROOT = Path(__file__).parents[1]
TESTS = (ROOT / "tests", ROOT / "tests" / "sweep")
sys.path += map(str, TESTS)

LANES = 2
SIZES: Mapping[str, Sequence[int]] = {"tiny": [20], "small": [300], "full": [1_000, 5_000, 10_000]}


def main() -> None:
    """Print a table and one JSON line."""
    words = sys.argv[1:] or ["small"]
    if words[0] == "--bare":
        print(json.dumps(bare_tune(int(words[1]))))
        return
    counts = SIZES[words[0]] if words[0] in SIZES else [int(word) for word in words]
    rows = [measure(count) for count in counts]
    tell(
        "orchestration",
        rows,
        columns={"trials": ",", "kdsweep ms": ".1f", "bare ms": ".1f", "kdsweep/bare": ".2f"}
        | {f"{whose} MB": ".0f" for whose in ("launch", "driver", "bare")}
        | {"files/trial": ".1f", "resume s": ".1f", "status s": ".1f"},
        ratios={"kdsweep/bare": Ratio.of([row["kdsweep/bare"] for row in rows])},
        lanes=LANES,
    )


def measure(count: int) -> dict[str, float]:
    """Both ways, one after the other."""
    bare = run_bare(count)
    with tempfile.TemporaryDirectory(prefix="kdsweep-bench-") as name:
        folder = Path(name)
        write_sweep(folder, count)
        launch = peak_memory([*toy(), "launch", "grid.yaml", "--quiet"], folder)
        store = folder / "runs" / "toy"
        files = sum(path.is_file() for path in store.rglob("*"))
        ms = pace(store)
        again = seconds([*toy(), "resume", str(store), "--quiet"], folder)
        status = seconds([*toy(), "status", str(store)], folder)
    return {
        "trials": count,
        "kdsweep ms": ms,
        "bare ms": bare["ms"],
        "kdsweep/bare": ms / bare["ms"],
        "launch MB": launch["launch"],
        "driver MB": launch["driver"],
        "bare MB": bare["mb"],
        "files": files,
        "files/trial": files / count,
        "resume s": again,
        "status s": status,
    }


def run_bare(count: int) -> dict[str, float]:
    """Bare Tune, in a process of its own."""
    command = [sys.executable, __file__, "--bare", str(count)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def bare_tune(count: int) -> dict[str, float]:
    """Trials that return at once, under Tune alone."""
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_GLOBAL_CHECKPOINT_S="1000000000",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_CHDIR_TO_TRIAL_DIR="0",
    )
    import ray
    from ray import tune

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            del config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            del new_config
            return True

        def step(self) -> dict[str, Any]:
            return {"score": 1.0, "done": True}

    class Clock(tune.Callback):
        ended: list[float] = []  # noqa: RUF012  (one of its kind)

        def on_trial_complete(self, **_: Any) -> None:
            self.ended.append(time.monotonic())

    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=LANES)
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        tune.Tuner(
            Nothing,
            param_space={"number": tune.grid_search(list(range(count)))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=LANES),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                callbacks=[clock],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    took = clock.ended[-1] - clock.ended[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": took / (count - 1) * 1000, "mb": peak}


def write_sweep(folder: Path, count: int) -> None:
    """A grid of so many trials, with all that it names."""
    from toy import GRID
    from world import write_model, write_rows

    write_model(folder / "teacher")
    write_rows(folder / "train.csv", num_rows=240, seed=1)
    write_rows(folder / "report.csv", num_rows=60, seed=2)
    rates = [round(1e-6 * (n + 1), 6) for n in range(count // 2)]
    axes = {**GRID["axes"], "knowledge": ["hard_labels"], "training.learning_rate": rates}
    grid = {**GRID, "axes": axes, "keep": {"students": "none", "predictions": "none"}}
    (folder / "grid.yaml").write_text(json.dumps(grid))


def toy() -> list[str]:
    """The command line with a lane that trains nothing."""
    return [sys.executable, str(ROOT / "tests" / "sweep" / "toy_lane.py")]


def environment() -> dict[str, str]:
    """A lane that needs no time at all."""
    path = os.pathsep.join([*map(str, TESTS), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "TOY_STEPS": "0", "TOY_SECONDS": "0"}


def peak_memory(command: list[str], folder: Path) -> dict[str, float]:
    """Run a launch; the peak resident memory of it and of its driver in MB."""
    import psutil

    peak = {"launch": 0.0, "driver": 0.0}
    process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL)
    launch = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak["launch"] = max(peak["launch"], launch.memory_info().rss / 2**20)
            for child in launch.children():
                peak["driver"] = max(peak["driver"], child.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.5)
    assert process.returncode == 0, "the launch failed"
    return peak


def pace(store: Path) -> float:
    """Milliseconds a trial, from the first that ended to the last."""
    from kdsweep import results

    ended = results.load(store).trials["ended"]
    return float((ended.max() - ended.min()).total_seconds() / (len(ended) - 1) * 1000)


def seconds(command: list[str], folder: Path) -> float:
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
