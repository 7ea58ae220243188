"""A sweep from its grid to its frame: launched again, grown, resumed, asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest

from kdsweep import results

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
TIMINGS = ("seconds", "latency_ms", "peak_memory_mb", "started", "ended")


def numbers(folder: Path) -> pd.DataFrame:
    """What of a frame must never depend on how, where or how often a trial was run."""
    frame = results.load(folder).trials.set_index("trial_id").sort_index()
    kept = [
        name
        for name in frame.columns
        if name.startswith(("select/", "report/", "teacher/", "train/", "parameters"))
        or name in (*results.load(folder).axes, "status", "group_id", "seed")
    ]
    return frame[kept]


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of a sweep but its locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_launch_trains_what_the_plan_counts_and_ends_with_its_best_students(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid = write_grid()
    planned = json.loads(kdsweep("plan", grid, "--json").stdout)
    assert planned["trials"] == planned["to_run"] == 4
    said = kdsweep("launch", grid, *SERIAL)
    assert said.returncode == 0, said.stderr
    assert "hard_labels+soft_logits+hidden_states" in said.stdout
    assert "4 of 4 trials completed (4 now)" in said.stderr
    trials = results.load(tmp_path / "runs" / "tiny").trials
    assert sorted(trials["trial_id"]) == sorted(planned["ids"])
    assert set(trials["status"]) == {"completed"}
    assert trials["report/accuracy"].between(0, 1).all()


def test_launching_again_trains_nothing_and_growing_trains_only_what_is_new(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    before = numbers(launched)
    said = kdsweep("launch", write_grid(), *SERIAL)
    assert "4 of 4 trials completed (0 now)" in said.stderr
    axes = {
        "knowledge": ["hard_labels", ["hard_labels", "soft_logits", "hidden_states"]],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "seed": [0, 1, 2],
    }
    grown = write_grid(axes=axes)
    planned = json.loads(kdsweep("plan", grown, "--json").stdout)
    assert (planned["trials"], planned["done"], planned["to_run"]) == (6, 4, 2)
    said = kdsweep("launch", grown, *SERIAL)
    assert "6 of 6 trials completed (2 now)" in said.stderr
    after = numbers(launched).loc[before.index]
    pd.testing.assert_frame_equal(after, before, check_exact=True, check_categorical=False)


def test_a_grid_that_drops_completed_trials_asks_first(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    axes = {"knowledge": ["hard_labels"], "shape": [{"layers": 1, "width": 16, "heads": 2}]}
    smaller = write_grid(axes=axes)
    before = contents(launched)
    said = kdsweep("launch", smaller, *SERIAL)
    assert said.returncode == 2
    assert "no longer names 3 completed trials" in said.stderr
    assert contents(launched) == before
    assert kdsweep("launch", smaller, *SERIAL, "--yes").returncode == 0
    assert len(results.load(launched).trials) == 1
    assert len(results.load(launched, include_inactive=True).trials) == 4


def test_the_same_grid_in_another_folder_has_the_same_ids(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid = write_grid()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("train.csv", "report.csv", "grid.yaml"):
        shutil.copy(tmp_path / name, elsewhere / name)
    shutil.copytree(tmp_path / "teacher", elsewhere / "teacher")
    ids = [
        json.loads(kdsweep("plan", path, "--json").stdout)["ids"]
        for path in (grid, elsewhere / "grid.yaml")
    ]
    assert ids[0] == ids[1]


def test_resume_refuses_rows_that_changed_since_the_plan(
    launched: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    # Planned with the rows that lie here.
    assert kdsweep("launch", tmp_path / "grid.yaml", *SERIAL).returncode == 0
    rows = tmp_path / "train.csv"
    rows.write_text(rows.read_text() + "w1 w2 w3 another row,good\n")
    said = kdsweep("resume", launched, *SERIAL)
    assert said.returncode == 2
    assert "the task's rows have changed since the plan" in said.stderr
    assert "Re-plan" in said.stderr


def test_a_teacher_below_its_floor_stops_the_sweep_with_one_message(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    teacher = {
        "model": "./teacher",
        "fine_tune": {"epochs": 1, "learning_rate": 1e-9},
        "floor": {"accuracy": 0.99},
    }
    grid = write_grid(teacher=teacher)
    for _ in range(2):
        said = kdsweep("launch", grid, *SERIAL)
        assert said.returncode == 2
        assert said.stderr.count("below the floor") == 1
    assert set(results.load(tmp_path / "runs" / "tiny").trials["status"]) <= {"blocked", "pending"}


def test_a_weak_teacher_stops_its_own_trials_and_not_those_of_another(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    teacher = {
        "model": "./teacher",
        "fine_tune": {"epochs": 4, "learning_rate": 5e-3, "batch_size": 16},
        "floor": {"accuracy": 0.9},
    }
    axes = {
        "knowledge": ["soft_logits"],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "teacher.fine_tune.learning_rate": [5e-3, 1e-9],
    }
    said = kdsweep("launch", write_grid(teacher=teacher, axes=axes), *SERIAL)
    assert said.returncode == 2
    assert said.stderr.count("below the floor") == 1
    trials = results.load(tmp_path / "runs" / "tiny").trials
    status = trials.set_index("learning_rate")["status"]
    assert status[5e-3] == "completed"
    assert status[1e-9] in {"blocked", "pending"}


def test_a_teacher_that_knows_the_task_already_is_only_evaluated(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    [prepared] = (launched / "teachers").iterdir()
    grid = write_grid(teacher={"model": str(prepared)})
    store = tmp_path / "ready"
    said = kdsweep("launch", grid, "--store", store, *SERIAL)
    assert said.returncode == 0, said.stderr
    [before], [after] = (
        results.load(each).teachers["report/accuracy"] for each in (launched, store)
    )
    assert after == before
    assert set(results.load(store).trials["status"]) == {"completed"}


@pytest.mark.usefixtures("checkpointing")
def test_failed_only_also_runs_what_the_failure_blocked(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever trains first is the teacher.
    monkeypatch.setenv("KDSWEEP_FAILPOINT", f"checkpoint=raise::{tmp_path / 'once'}")
    store = tmp_path / "runs" / "tiny"
    said = kdsweep("launch", write_grid(retries=0), "--executor", "serial", "--quiet")
    assert said.returncode == 3, said.stderr
    assert "1 failed, 4 blocked" in said.stderr
    said = kdsweep("resume", store, "--failed-only", "--executor", "serial", "--quiet")
    assert said.returncode == 0, said.stderr
    assert "4 of 4 trials completed (4 now)" in said.stderr


def test_a_refused_launch_leaves_the_sweep_as_it_was(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    before = contents(launched)
    said = kdsweep("launch", write_grid(resources={"cpus": 2}), *SERIAL)
    assert said.returncode == 2
    assert "this sweep is pinned to 1" in said.stderr
    assert contents(launched) == before
    assert kdsweep("resume", launched, *SERIAL).returncode == 0


def test_ray_and_serial_give_a_trial_the_same_numbers_bit_for_bit(
    launched: Path, write_grid: WriteGrid, process: Kdsweep, tmp_path: Path
) -> None:
    # Two lanes share the trials, so some train first in their lane and some after another.
    store = tmp_path / "by-ray"
    said = process("launch", write_grid(), "--store", store, "--quiet")
    assert said.returncode == 0, said.stderr
    pd.testing.assert_frame_equal(numbers(store), numbers(launched), check_exact=True)


def test_a_completed_sweep_leaves_no_temporary_file_and_no_checkpoint(launched: Path) -> None:
    files = [path.relative_to(launched) for path in launched.rglob("*")]
    assert not [path for path in files if path.name.startswith(".")]
    assert not [path for path in files if "checkpoints" in path.parts]
