"""Whatever becomes of a lane's process is an outcome, and a row in the store."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kdsweep.results.store import Store
from kdsweep.search_spaces import expand, load_grid
from kdsweep.sweep.dispatch import Dispatch
from kdsweep.sweep.lane_process import LaneProcess
from kdsweep.sweep.lock import take
from kdsweep.sweep.pinned import new_sweep, pinned_for
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows
from kdsweep.sweep.work import Outcome, Work

WriteGrid = Callable[..., Path]


@pytest.fixture
def work(write_grid: WriteGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """The preparation of the tiny grid's teacher."""
    monkeypatch.setenv("KDSWEEP_CACHE_DIR", str(tmp_path / "cache"))
    grid = load_grid(write_grid())
    content = Content()
    rows = plan_rows(expand(grid, ContentFacts(content)), content)
    store = Store(tmp_path / "store")
    store.create(new_sweep(grid))
    lock = take(store.locks_folder)
    planned = {str(row.id): row for row in rows}
    teacher = next(row for row in rows if row.what == "teacher")
    dispatch = Dispatch(store, grid, planned, pinned_for(store, grid), epoch=lock.epoch)
    return dispatch(str(teacher.id))


def finish(lane: LaneProcess) -> Outcome:
    while (outcome := lane.poll(1.0)) is None:
        pass
    return outcome


def only_row(work: Work) -> tuple[str, str | None]:
    [row] = Store(work.store).read_attempts()
    return row.status, row.failure_class


def test_work_past_its_limit_is_ended_and_recorded_as_timeout(work: Work) -> None:
    lane = LaneProcess()
    # Nothing imports torch and trains a teacher in a hundredth of a second.
    lane.begin(work.model_copy(update={"timeout_seconds": 0.01}))
    process = psutil.Process().children()[0]
    outcome = finish(lane)
    assert (outcome.status, outcome.failure_class) == ("failed", "timeout")
    assert only_row(work) == ("failed", "timeout")
    assert not process.is_running()


def test_a_lane_that_is_killed_is_recorded_as_signal_and_the_next_work_gets_a_new_one(
    work: Work,
) -> None:
    lane = LaneProcess()
    lane.begin(work)
    first = psutil.Process().children()[0].pid
    os.kill(first, signal.SIGKILL)
    outcome = finish(lane)
    assert (outcome.status, outcome.failure_class) == ("failed", "signal")
    assert "SIGKILL" in str(outcome.error)
    assert only_row(work) == ("failed", "signal")
    lane.begin(work.model_copy(update={"number": 2}))
    assert psutil.Process().children()[0].pid != first
    assert finish(lane).status == "completed"
    lane.close()
    assert psutil.Process().children() == []


def test_an_attempt_of_an_overtaken_launch_commits_nothing(work: Work) -> None:
    locks = Store(work.store).locks_folder
    (locks / "000002.json").write_text("{}")
    lane = LaneProcess()
    lane.begin(work)
    assert finish(lane).status == "overtaken"
    lane.close()
    assert Store(work.store).read_attempts() == ()


def test_a_lane_leaves_when_its_standard_input_closes(work: Work) -> None:
    lane = LaneProcess()
    lane.begin(work)
    process = psutil.Process().children()[0]
    assert lane._process is not None
    assert lane._process.stdin is not None
    lane._process.stdin.close()
    assert process.wait(timeout=60) == 0
