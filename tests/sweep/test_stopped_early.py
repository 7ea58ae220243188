"""A launch that cannot succeed stops before it has tried everything."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kdsweep import results
from kdsweep.search_spaces import expand, load_grid
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
AXES = {
    "knowledge": ["hard_labels"],
    "shape": [{"layers": 1, "width": 16, "heads": 2}],
    "seed": list(range(7)),
}
TRAINING = {"epochs": 1, "batch_size": 32, "evaluate": {"times": 1}}


def ids(grid: Path) -> list[str]:
    """Ids of the trials in the order of the plan."""
    content = Content()
    rows = plan_rows(expand(load_grid(grid), ContentFacts(content)), content)
    return [str(row.id) for row in rows if row.what == "trial"]


def test_a_launch_whose_first_five_trials_fail_alike_stops_and_can_be_resumed(
    write_grid: WriteGrid, kdsweep: Kdsweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grid = write_grid(axes=AXES, training=TRAINING, retries=0)
    points = " ".join(f"row=raise:{id}" for id in ids(grid))
    monkeypatch.setenv("KDSWEEP_FAILPOINT", points)
    said = kdsweep("launch", grid, *SERIAL)
    assert said.returncode == 3
    assert "the first 5 that failed did so alike, before any trial was completed" in said.stderr
    assert "RuntimeError: failpoint row of" in said.stderr
    store = tmp_path / "runs" / "tiny"
    trials = results.load(store).trials
    assert trials["status"].tolist() == ["failed"] * 5 + ["pending"] * 2
    assert set(trials["failure_class"].dropna()) == {"error"}
    monkeypatch.delenv("KDSWEEP_FAILPOINT")
    assert kdsweep("resume", store, *SERIAL).returncode == 0
    assert set(results.load(store).trials["status"]) == {"completed"}


def test_failures_alike_after_a_completed_trial_stop_nothing(
    write_grid: WriteGrid, kdsweep: Kdsweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grid = write_grid(axes=AXES, training=TRAINING, retries=0)
    points = " ".join(f"row=raise:{id}" for id in ids(grid)[1:])
    monkeypatch.setenv("KDSWEEP_FAILPOINT", points)
    assert kdsweep("launch", grid, *SERIAL).returncode == 3
    store = tmp_path / "runs" / "tiny"
    assert results.load(store).trials["status"].tolist() == ["completed"] + ["failed"] * 6
    # Nor in a later launch: the sweep is proven, and each of the six is tried.
    assert kdsweep("resume", store, *SERIAL).returncode == 3
    assert results.load(store).trials["attempts"].tolist() == [1] + [2] * 6
