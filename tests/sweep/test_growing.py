"""The best groups again, with more seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from kdsweep import results
from kdsweep.results.store import Store

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")


def test_the_best_group_gets_more_seeds_and_a_launch_trains_only_those(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    # Planned with the rows that lie here.
    assert kdsweep("launch", write_grid(), *SERIAL).returncode == 0
    before = results.load(launched)
    best = before.best(over="seeds")["group_id"].iloc[0]
    said = kdsweep("grow", launched, "--top", "1", "--seeds", "4")
    assert said.returncode == 0, said.stderr
    grown = tmp_path / "tiny-grown.yaml"
    assert f"wrote {grown}: 2 new trials in 1 group; next: kdsweep launch {grown}" in said.stderr
    assert f"# {best}: " in grown.read_text()
    planned = json.loads(kdsweep("plan", grown, "--json").stdout)
    assert (planned["trials"], planned["done"], planned["to_run"]) == (6, 4, 2)
    said = kdsweep("launch", grown, *SERIAL)
    assert said.returncode == 0, said.stderr
    assert "6 of 6 trials completed (2 now)" in said.stderr
    after = results.load(launched).trials
    assert sorted(after.loc[after["group_id"] == best, "seed"]) == [0, 1, 2, 3]
    assert set(before.trials["trial_id"]) <= set(after["trial_id"])
    # Grown again it is the grown grid that grows.
    said = kdsweep("grow", launched, "--top", "2", "--seeds", "4", "-o", tmp_path / "again.yaml")
    assert "2 new trials in 1 group" in said.stderr, said.stderr


def test_a_grid_that_would_say_nothing_new_is_not_written(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    assert kdsweep("launch", write_grid(), *SERIAL).returncode == 0
    said = kdsweep("grow", launched, "--top", "1", "--seeds", "2")
    assert said.returncode == 2
    assert "--seeds: the best 1 group have 2 seeds or more already" in said.stderr
    taken = tmp_path / "taken.yaml"
    taken.write_text("mine")
    said = kdsweep("grow", launched, "--top", "1", "--seeds", "3", "-o", taken)
    assert said.returncode == 2
    assert "taken.yaml exists" in said.stderr
    assert taken.read_text() == "mine"
    (tmp_path / "below").mkdir()
    said = kdsweep("grow", launched, "--top", "1", "--seeds", "3", "-o", tmp_path / "below/g.yaml")
    assert said.returncode == 2
    assert f"Write it into {tmp_path}" in said.stderr
    assert not list((tmp_path / "below").iterdir())


def test_a_sweep_without_a_completed_trial_has_no_best(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    teacher = {"model": "./teacher", "fine_tune": {"epochs": 1}, "floor": {"accuracy": 0.99}}
    assert kdsweep("launch", write_grid(teacher=teacher), *SERIAL).returncode == 2
    said = kdsweep("grow", tmp_path / "runs" / "tiny", "--top", "1", "--seeds", "3")
    assert (said.returncode, said.stderr) == (4, "no trial is completed yet\n")


def test_rows_that_changed_since_the_plan_are_not_grown_on(
    launched: Path, write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    assert kdsweep("launch", write_grid(), *SERIAL).returncode == 0
    rows = tmp_path / "train.csv"
    rows.write_text(rows.read_text() + "w1 w2 w3 another row,good\n")
    said = kdsweep("grow", launched, "--top", "1", "--seeds", "3")
    assert said.returncode == 2
    assert "1 group of the best 1 would have other ids now" in said.stderr


def test_a_search_is_not_grown_and_the_message_says_why(
    tmp_path: Path, write_grid: WriteGrid, kdsweep: Kdsweep
) -> None:
    grid = write_grid(search={"method": "random", "trials": 4})
    sweep = Store(tmp_path / "sweep")
    sweep.create({"base": str(tmp_path)})
    sweep.add_grid(grid.read_text())
    said = kdsweep("grow", sweep.folder, "--top", "1", "--seeds", "4")
    assert said.returncode == 2
    assert "the grid searches its points" in said.stderr
