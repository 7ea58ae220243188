"""Parts are merged while a sweep runs and on demand, and few files are left."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest

from kdsweep import results
from kdsweep.sweep import upkeep
from kdsweep.sweep.lock import take

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]


def test_compact_leaves_one_file_a_trial_beside_its_student_and_the_same_results(
    launched: Path, kdsweep: Kdsweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, history = results.load(launched).trials, results.load(launched).history()
    monkeypatch.setattr(upkeep, "GRACE_SECONDS", 0.5)
    said = kdsweep("compact", launched)
    assert said.returncode == 0, said.stderr
    assert "when readers on every host know where they went" in said.stderr
    for kind in ("attempts", "history", "predictions"):
        assert list((launched / kind).iterdir()) == []
    found = results.load(launched)
    pd.testing.assert_frame_equal(found.trials, trials)
    pd.testing.assert_frame_equal(found.history().sort_index(axis=1), history.sort_index(axis=1))
    for id in trials["trial_id"]:
        places = [path.relative_to(launched) for path in launched.rglob("*") if path.is_file()]
        own = [place for place in places if id in place.parts and place.parts[0] != "students"]
        # Beside the folder of its student, if that is kept.
        assert [place.name for place in own] == ["log.txt"]
    assert len(list((launched / "compact").iterdir())) == 3
    said = kdsweep("resume", launched, "--executor", "serial", "--quiet")
    assert "4 of 4 trials completed (0 now)" in said.stderr
    assert kdsweep("compact", launched).stdout == "merged 0 parts, removed 0 files\n"


def test_a_held_sweep_is_not_compacted(launched: Path, kdsweep: Kdsweep) -> None:
    take(launched / "locks")
    assert kdsweep("compact", launched).returncode == 73


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path, kdsweep: Kdsweep) -> None:
    said = kdsweep("compact", tmp_path)
    assert said.returncode == 2
    assert "is no sweep" in said.stderr


def test_a_launch_merges_while_it_runs(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "EVERY", 1)
    said = kdsweep("launch", write_grid(), "--executor", "serial", "--quiet")
    assert said.returncode == 0, said.stderr
    store = tmp_path / "runs" / "tiny"
    assert list((store / "compact").glob("attempts.1-*"))
    assert set(results.load(store).trials["status"]) == {"completed"}
