"""The grids that are shipped plan offline, to what a hand counts."""

from importlib.resources import files
from pathlib import Path

import pytest

from kdsweep.search_spaces import ShippedFacts, expand, load_grid
from kdsweep.sweep.forecast import forecast

REVISITED = Path(str(files("kdsweep.search_spaces") / "grids" / "revisited.yaml"))


def test_the_papers_grid_counts_as_by_hand() -> None:
    plan = expand(load_grid(REVISITED), ShippedFacts())
    # Labels and logits match no layers; five kinds of knowledge have six matchings each.
    knowledge = 2 + 5 * 6
    # Thirteen shapes start at random, 6x768 also by three rules, and 3x768 in all four ways.
    starts = 13 + 3 + 4
    assert len(plan.trials) == 7 * 3 * knowledge * starts == 13_440
    assert plan.skipped == ()
    # Six matchings of labels and of logits are one, in 13 + 8 starts; 6x768 at random stands twice.
    assert len(plan.collapsed) == 7 * 3 * (2 * 5 * 21 + knowledge)


def test_a_grid_on_a_hub_out_of_reach_is_counted_without_ids(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    told = forecast(load_grid(REVISITED), tmp_path / "store")
    assert told.ids is None
    assert told.without_ids is not None
    assert "nyu-mll/glue" in told.without_ids
    assert told.to_run == 13_440
    assert told.cost.student_flops is not None
