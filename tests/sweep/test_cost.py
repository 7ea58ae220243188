"""What is left would take so long and so much, as far as anything like it was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kdsweep.results.store import Store
from kdsweep.search_spaces.grid import Resources
from kdsweep.sweep.cost import Between, Disk, Measured, Piece, checkpoint_bytes, reckon
from kdsweep.sweep.errors import NoRoomError
from kdsweep.sweep.estimate import Cost, check_room, lanes_here

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")

SMALL, LARGE, OTHER = (("student", name) for name in ("small", "large", "other"))
TEACHER = ("teacher", "a")

ROW_FLOPS = 3 * 16 * (2 * (4 * 16**2 + 2 * 16 * 64) + 4 * 16 * 16)
"""Of training on a row of 16 tokens: a block of width 16 with a feed-forward width of 64."""

ROWS = 192
"""Of 240 rows a fifth is select."""


def test_work_goes_at_the_pace_of_work_that_is_like_it() -> None:
    measured = [Measured(Piece(SMALL, 100), 20), Measured(Piece(LARGE, 1000), 50)]
    assert reckon([Piece(SMALL, 50)], measured).seconds == Between(10, 10, 10)
    assert reckon([Piece(LARGE, 50)], measured).seconds == Between(2.5, 2.5, 2.5)


def test_what_nothing_is_like_goes_at_the_pace_of_all_students_between_the_extremes() -> None:
    measured = [
        Measured(Piece(SMALL, 100), 20),
        Measured(Piece(LARGE, 1000), 50),
        Measured(Piece(TEACHER, 1), 1e6),
    ]
    told = reckon([Piece(OTHER, 1100)], measured)
    assert told.seconds == Between(pytest.approx(55), pytest.approx(70), pytest.approx(220))
    assert told.num_unknown == 0


def test_what_cannot_be_known_is_counted_and_left_out() -> None:
    measured = [Measured(Piece(SMALL, 100), 20), Measured(Piece(LARGE, None), 5)]
    told = reckon([Piece(SMALL, 100), Piece(SMALL, None), Piece(TEACHER, 100)], measured)
    assert told.seconds == Between(20, 20, 20)
    assert told.num_unknown == 2
    assert reckon([Piece(SMALL, 100)], []) == (Between(0, 0, 0), 1)


def test_of_many_measurements_the_fastest_and_the_slowest_tenth_say_nothing() -> None:
    measured = [Measured(Piece(SMALL, 1), seconds) for seconds in [*range(1, 20), 1000]]
    [low, middle, high] = (getattr(reckon([Piece(SMALL, 1)], measured).seconds, n) for n in ENDS)
    assert middle == (190 + 1000) / 20
    assert 1 < low < 4
    assert high == middle


ENDS = ("low", "middle", "high")


def cost_of(disk: Disk) -> Cost:
    return Cost(student_flops=1, lane_hours=None, num_unknown=0, lanes=2, disk=disk)


def test_a_launch_that_would_fill_the_disk_is_refused_to_the_byte() -> None:
    gb = 10**9
    disk = Disk(kept=5 * gb, rows=1 * gb, checkpoints=(3 * gb, 1 * gb, 2), free=10 * gb)
    check_room(cost_of(disk), Path("runs/x"), lanes=2)
    with pytest.raises(NoRoomError, match="runs/x: the sweep needs about 10 GB, and 10 GB"):
        check_room(cost_of(disk), Path("runs/x"), lanes=3)


def test_checkpoints_are_two_of_weights_moments_and_best_weights() -> None:
    # Of 17.4 million parameters one was seen to take 278 MB.
    assert checkpoint_bytes(17_400_000) == pytest.approx(2 * 278e6, rel=0.01)


def test_lanes_are_as_many_as_the_machine_bears_and_one_at_the_least() -> None:
    assert lanes_here(Resources(memory_gb=1e-9, cpus=1_000)) == 1
    assert lanes_here(Resources(memory_gb=1e9)) == 1
    one = lanes_here(Resources(memory_gb=1e-9, cpus=1))
    assert lanes_here(Resources(memory_gb=1e-9, cpus=2)) == max(1, one // 2)


def cost(kdsweep: Kdsweep, grid: Path) -> dict[str, Any]:
    said = kdsweep("plan", grid, "--json")
    assert said.returncode == 0, said.stderr
    told: dict[str, Any] = json.loads(said.stdout)["cost"]
    return told


def test_a_stage_that_trials_share_counts_once_and_so_does_a_teacher(
    write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    def stage(name: str, term: str) -> dict[str, Any]:
        return {"name": name, "terms": [term], "training": {"epochs": 1}}

    inner = stage("inner", "hidden_states")
    knowledge = [
        {"label": "hard", "stages": [inner, stage("task", "hard_labels")]},
        {"label": "soft", "stages": [inner, stage("task", "soft_logits")]},
    ]
    shape = [{"layers": 1, "width": 16, "heads": 2}]
    told = cost(kdsweep, write_grid(axes={"knowledge": knowledge, "shape": shape}))
    assert told["student_flops"] == 3 * ROWS * ROW_FLOPS
    assert told["lane_hours"] is None
    assert told["not_in_hours"] == 4, "a teacher, a stage, two trials"
    [alone] = [cost(kdsweep, write_grid(axes={"knowledge": knowledge[:1], "shape": shape}))]
    assert alone["student_flops"] == 2 * ROWS * ROW_FLOPS
    # A student in two groups, 45 words of width 16, 64 places, two segments, and a block; the
    # teacher and the stage beside them.
    student = (45 + 64 + 2) * 16 + 2 * 16 + 4 * (16**2 + 16) + 2 * 16 * 64 + 64 + 16 + 4 * 16
    teacher = (45 + 64 + 2) * 32 + 2 * 32 + 3 * (4 * (32**2 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32)
    assert told["disk_bytes"]["kept"] == 4 * (3 * student + teacher)
    assert alone["disk_bytes"]["kept"] == 4 * (student + teacher)


def test_hours_and_disk_come_from_what_is_completed(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    # Planned with the rows that lie here.
    assert kdsweep("launch", write_grid(), *SERIAL).returncode == 0
    axes = {
        "knowledge": ["hard_labels", ["hard_labels", "soft_logits", "hidden_states"]],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "seed": [0, 1, 2],
    }
    told = cost(kdsweep, write_grid(axes=axes))
    took = [
        (attempt.ended - attempt.started).total_seconds()
        for attempt in Store(launched).read_attempts()
        if attempt.what == "trial"
    ]
    # All trials have the same FLOPs, so the new ones take what the others took.
    hours = told["lane_hours"]
    assert hours["middle"] == pytest.approx(2 * sum(took) / 4 / 3600)
    assert hours["low"] == pytest.approx(2 * min(took) / 3600)
    assert hours["high"] == pytest.approx(2 * max(took) / 3600)
    assert told["wall_hours"]["middle"] == pytest.approx(hours["middle"] / told["lanes"])
    assert told["not_in_hours"] == 0
    files = [
        file
        for name in ("attempts", "history", "predictions")
        for file in (launched / name).iterdir()
    ]
    assert told["disk_bytes"]["rows"] == sum(file.stat().st_size for file in files) / 4 * 2
    assert told["disk_bytes"]["kept"] == 0, "each group has its student already"
    said = kdsweep("plan", write_grid(axes=axes)).stdout
    assert "of one lane, about" in said
    done = cost(kdsweep, write_grid())
    assert done["lane_hours"] == {"low": 0, "middle": 0, "high": 0}


def test_a_sweep_for_which_the_disk_is_too_small_is_refused_before_anything_is_written(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    # 12 * 16384 * 16384 parameters a block: 1,000 blocks are 13 TB, and their checkpoints 100.
    axes = {
        "knowledge": ["hard_labels"],
        "shape": [{"layers": 1000, "width": 16384, "heads": 2}],
    }
    grid = write_grid(axes=axes)
    said = kdsweep("launch", grid, *SERIAL)
    assert said.returncode == 74, said.stderr
    assert "the sweep needs about 116 TB" in said.stderr
    assert "Free some, keep fewer students (`keep`)" in said.stderr
    assert not (tmp_path / "runs").exists()
    assert "only" in kdsweep("plan", grid).stdout
