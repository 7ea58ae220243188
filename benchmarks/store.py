"""How long a sweep of thousands of trials takes to read, before its parts are merged and after.

    python benchmarks/store.py [tiny|small|full]

The store is made by the functions that lanes write with; nothing is trained. Each figure is the
median of several readings in one process, or of several runs of a command.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from printing import Ratio, tell
from safetensors.numpy import save_file

from kdsweep import results
from kdsweep.results.compaction import Compaction
from kdsweep.results.files import publish
from kdsweep.results.schema import Attempt, PlanRow
from kdsweep.results.store import Store
from kdsweep.results.tables import write_table
from kdsweep.search_spaces import expand, load_grid
from kdsweep.sweep.lock import take
from kdsweep.sweep.pinned import new_sweep, pinned_for, record_launch
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows

START = datetime(2026, 1, 1, tzinfo=UTC)


class Size(NamedTuple):
    """How much is stored and how often it is read."""

    trials: int
    """Hundreds of them."""
    steps: int
    repeats: int


SIZES: Mapping[str, Size] = {
    "tiny": Size(100, 10, 1),
    "small": Size(1_000, 100, 5),
    "full": Size(10_000, 1_000, 5),
}
METRICS = (
    "train/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "train/term/0/loss",
    "train/term/1/loss",
)


def write_inputs(folder: Path, trials: int) -> Path:
    """A grid of so many trials (tens of them) with data and a teacher that nobody trains."""
    teacher = folder / "teacher"
    teacher.mkdir()
    config = {
        "model_type": "bert",
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    (teacher / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (teacher / name).write_text("{}")
    save_file({"weight": np.zeros(8, np.float32)}, teacher / "model.safetensors")
    for name, count in (("train", 200), ("report", 40)):
        lines = [f"{name} text {n},{('bad', 'good')[n % 2]}" for n in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    file = folder / "grid.yaml"
    grid = {
        "name": "bench",
        "task": {
            "files": {"train": "train.csv", "report": "report.csv"},
            "text": ["text"],
            "max_length": 16,
            "select": {"from": "train", "fraction": 0.2},
            "report": "report",
        },
        "teacher": {"model": "./teacher", "fine_tune": {"epochs": 1, "learning_rate": 1e-4}},
        "axes": {
            "knowledge": [["hard_labels", "soft_logits"], ["soft_logits", "hidden_states"]],
            "shape": [{"layers": 1, "width": width, "heads": 2} for width in (16, 32, 48, 64, 80)],
            "training.learning_rate": [n * 1e-5 for n in range(1, 11)],
            "seed": list(range(trials // 100)),
        },
    }
    file.write_text(json.dumps(grid))
    return file


def write_store(folder: Path, grid_file: Path, *, steps: int) -> Store:
    """A completed sweep as lanes leave it: for each trial a row, a history and two predictions."""
    store, grid, content = Store(folder), load_grid(grid_file), Content()
    rows = plan_rows(expand(grid, ContentFacts(content)), content)
    store.create(new_sweep(grid))
    lock = take(store.locks_folder)
    base = grid_file.resolve().parent
    record_launch(store, pinned_for(store, grid), epoch=lock.epoch, base=base, plugins={})
    store.add_grid(grid_file.read_text())
    store.write_plan(rows, epoch=lock.epoch)
    draw = np.random.default_rng(0)
    for place, row in enumerate(row for row in rows if row.what in ("teacher", "trial")):
        write_attempt(store, row, place, lock.epoch, draw, steps=steps)
    lock.release()
    return store


def write_attempt(
    store: Store, row: PlanRow, place: int, epoch: int, draw: np.random.Generator, *, steps: int
) -> None:
    """What one piece of work leaves."""
    id = str(row.id)
    if row.what == "trial":
        columns = {"step": pa.array(np.arange(1, steps + 1))}
        columns |= {name: pa.array(draw.standard_normal(steps)) for name in METRICS}
        score = draw.random(steps)
        is_evaluated = np.arange(1, steps + 1) % max(1, steps // 10) == 0
        columns["select/accuracy"] = pa.array(score, mask=~is_evaluated)
        stamps = {"attempt": f"{id}.{epoch}-1"}
        publish(
            store.folder / "history" / f"{id}.{epoch}-1.1.parquet",
            partial(write_table, pa.table(columns), kind="history", metadata=stamps),
        )
        for split, count in (("select", 40), ("report", 40)):
            labels = np.arange(count) % 2
            logits = draw.standard_normal((count, 2))
            store.write_predictions(id, epoch, 1, split, np.arange(count), labels, logits)
        work = store.work_folder(id, epoch, 1)
        work.mkdir(parents=True)
        (work / "log.txt").write_text("a trial was trained\n")
    values: dict[str, str | float] = {
        f"{split}/{metric}{suffix}": float(draw.random())
        for split in ("select", "report")
        for metric in ("primary", "accuracy", "f1", "majority")
        for suffix in ("", "/best", "/at_best")
    }
    values |= {f"seconds/{name}": 1.0 for name in ("wait", "start", "data", "teacher", "student")}
    values |= {f"train/term/{n}/loss": float(draw.random()) for n in range(2)}
    values |= {"select/primary/best_step": 100.0, "parameters": 4.0e6, "latency_ms": 3.5}
    values |= {"host": "node", "device": "cpu", "versions": json.dumps({"torch": "2.13"})}
    values |= {"primary_metric": "accuracy", "select/accuracy": 0.9, "select/majority": 0.5}
    attempt = Attempt(
        id=id,
        what="teacher" if row.what == "teacher" else "trial",
        group_id=row.group_id,
        epoch=epoch,
        number=1,
        status="completed",
        failure_class=None,
        error=None,
        started=START + timedelta(seconds=place),
        ended=START + timedelta(seconds=place + 30),
        config_json=str(row.config_json),
        resumed_from=None,
        resumed_from_step=0,
        values=values,
        resolved_json=json.dumps({"terms": [{"kind": "soft_logits", "pairs": [[1, 3]]}] * 2}),
    )
    store.commit_attempt(attempt, fence=lambda: None)


def seconds(question: Callable[[], object], repeats: int) -> list[float]:
    """Wall time of an answer, several times."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        question()
        taken.append(time.perf_counter() - start)
    return taken


def best_steps(folder: Path, metric: str) -> None:
    """The step of each trial at which a metric was highest."""
    history = results.load(folder).history(metrics=metric)
    rows = history.groupby("trial_id", observed=True)[metric].idxmax()
    history.loc[rows, ["trial_id", "step"]]


def measure(store: Store, repeats: int) -> dict[str, list[float]]:
    """How long each question takes."""
    folder = store.folder
    kdsweep = [sys.executable, "-m", "kdsweep.sweep"]
    quiet = partial(subprocess.run, capture_output=True, check=True)
    [id, *_] = results.load(folder).trials["trial_id"]
    return {
        "trials": seconds(lambda: results.load(folder).trials, repeats),
        "best step, evaluations": seconds(lambda: best_steps(folder, "select/accuracy"), repeats),
        "best step, all steps": seconds(lambda: best_steps(folder, "train/loss"), repeats),
        "history of one trial": seconds(lambda: results.load(folder).history(id), repeats),
        "predictions of one trial": seconds(lambda: results.load(folder).predictions(id), repeats),
        "status (command)": seconds(lambda: quiet([*kdsweep, "status", str(folder)]), repeats),
        "resume (command)": seconds(
            lambda: quiet([*kdsweep, "resume", str(folder), "--executor", "serial"]), repeats
        ),
    }


def files_of(folder: Path) -> tuple[int, float]:
    """Files below a folder, and their megabytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes) / 2**20


def main() -> None:
    """Print a table and one JSON line."""
    [asked] = sys.argv[1:] or ["small"]
    size = SIZES[asked]
    with TemporaryDirectory() as name:
        grid_file = write_inputs(Path(name), size.trials)
        start = time.perf_counter()
        store = write_store(Path(name) / "sweep", grid_file, steps=size.steps)
        writing = time.perf_counter() - start
        files, megabytes = files_of(store.folder)
        loose = measure(store, 1)
        start = time.perf_counter()
        lock = take(store.locks_folder)
        compaction = Compaction(store.folder, epoch=lock.epoch, grace_seconds=0)
        compaction.merge()
        compaction.merge(fan=2)
        compaction.collect()
        lock.release()
        merging = time.perf_counter() - start
        files_after, megabytes_after = files_of(store.folder)
        merged = measure(store, size.repeats)
    rows = []
    for what, taken in merged.items():
        [before] = loose[what]
        rows.append(
            {"question": what, "parts s": before, "merged s": statistics.median(taken)}
            | {"least s": min(taken), "most s": max(taken)}
            | {"parts/merged": Ratio.of([before / each for each in taken])}
        )
    tell(
        "store",
        rows,
        columns={"question": "", "parts s": ".3f", "merged s": ".3f", "least s": ".3f"}
        | {"most s": ".3f", "parts/merged": ""},
        ratios={f"parts/merged, {row['question']}": row["parts/merged"] for row in rows},
        notes=[
            f"{size.trials:,} trials x {size.steps:,} steps; written in {writing:.0f} s",
            f"{files:,} files, {megabytes:.0f} MB; merged in {merging:.0f} s into"
            f" {files_after:,} files, {megabytes_after:.0f} MB",
        ],
        size=asked,
        trials=size.trials,
        steps=size.steps,
        files=[files, files_after],
        megabytes=[megabytes, megabytes_after],
        writing_seconds=writing,
        merging_seconds=merging,
    )


if __name__ == "__main__":
    main()
