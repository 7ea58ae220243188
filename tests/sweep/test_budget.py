"""A sweep stops by itself when its budget is used up, and goes on when there is more."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep import results
from kdsweep.results.store import Store
from kdsweep.search_spaces.grid import Budget
from kdsweep.sweep.agenda import Agenda, Item
from kdsweep.sweep.budget import Meter, Used, trials_left, used_by_launches
from kdsweep.sweep.lock import take
from kdsweep.sweep.work import Outcome

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
COMPLETED = Outcome(status="completed")
FAILED = Outcome(status="failed", failure_class="error")


class Clock:
    """Stands still unless it is told otherwise."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter_of(budget: Budget, clock: Clock, *, before: Used | None = None) -> Meter:
    gpus = {"a": 1.0, "b": 0.5}
    return Meter(budget, before=before or Used(), gpus=gpus.__getitem__, clock=clock)


def test_time_counts_once_however_many_lanes_work_and_gpu_time_for_each() -> None:
    clock = Clock()
    meter = meter_of(Budget(), clock)
    clock.now += 100
    meter.tick(["a", "b"])
    clock.now += 10
    meter.tick(["b"])
    clock.now += 1
    meter.tick([])
    assert meter.here == Used(seconds=111, gpu_seconds=100 * 1.5 + 10 * 0.5)


@pytest.mark.parametrize(
    ("budget", "seconds", "limit"),
    [
        (Budget(hours=1), 3599, None),
        (Budget(hours=1), 3600, "hours"),
        (Budget(gpu_hours=1), 2399, None),
        (Budget(gpu_hours=1), 2400, "gpu_hours"),
        (Budget(), 1e9, None),
    ],
)
def test_a_limit_on_time_is_reached_to_the_second(
    budget: Budget, seconds: float, limit: str | None
) -> None:
    clock = Clock()
    meter = meter_of(budget, clock)
    clock.now += seconds
    meter.tick(["a", "b"])
    assert meter.spent == limit


def test_earlier_launches_count() -> None:
    clock = Clock()
    meter = meter_of(Budget(hours=1), clock, before=Used(seconds=3590))
    assert meter.spent is None
    clock.now += 10
    meter.tick([])
    assert meter.spent == "hours"


def test_what_launches_used_is_in_their_last_beats_whether_they_left_in_order_or_not(
    tmp_path: Path,
) -> None:
    in_order = take(tmp_path)
    in_order.beat(1, [], used=asdict(Used(10, 5)))
    in_order.beat(2, [], used=asdict(Used(12, 6)))
    in_order.release()
    without_work = take(tmp_path)
    without_work.release()
    (tmp_path / "000003.json").write_text("{}")
    killed = tmp_path / "000003.beat"
    killed.write_text(json.dumps({"count": 1, "running": [], "used": asdict(Used(100, 1))}))
    assert used_by_launches(tmp_path) == Used(112, 7)
    killed.write_text("")
    assert used_by_launches(tmp_path) == Used(12, 6)


def test_trials_are_counted_down_and_never_below_zero() -> None:
    assert trials_left(Budget(), ended=5) is None
    assert trials_left(Budget(trials=7), ended=5) == 2
    assert trials_left(Budget(trials=3), ended=5) == 0


def test_no_more_trials_start_than_may_end_and_a_failure_gives_its_place_back() -> None:
    agenda = Agenda(
        [Item("teacher"), *(Item(id, ("teacher",)) for id in "abcd")],
        allowed=lambda _: 0,
        failures={},
        counted="abcd",
        most=2,
    )
    assert agenda.take() == "teacher"
    agenda.settle("teacher", COMPLETED)
    assert [agenda.take(), agenda.take(), agenda.take()] == ["a", "b", None]
    agenda.settle("a", FAILED)
    assert [agenda.take(), agenda.take()] == ["c", None]
    agenda.settle("b", COMPLETED)
    assert not agenda.is_over
    agenda.settle("c", COMPLETED)
    assert agenda.is_over
    assert agenda.take() is None


def test_without_a_place_not_even_a_teacher_is_prepared() -> None:
    agenda = Agenda(
        [Item("teacher"), Item("a", ("teacher",))],
        allowed=lambda _: 0,
        failures={},
        counted="a",
        most=0,
    )
    assert agenda.is_over
    assert agenda.take() is None


@given(
    most=st.integers(0, 5),
    lanes=st.integers(1, 4),
    endings=st.lists(st.sampled_from([COMPLETED, FAILED, Outcome(status="interrupted")])),
)
def test_however_trials_end_at_most_the_limit_runs_or_is_completed(
    most: int, lanes: int, endings: list[Outcome]
) -> None:
    ids = "abcdefgh"
    agenda = Agenda(
        [Item(id) for id in ids],
        allowed=lambda _: 1,
        failures={},
        wait=lambda *_: 0.0,
        counted=ids,
        most=most,
    )
    for outcome in [*endings, *[COMPLETED] * 99]:
        while len(agenda.running) < lanes and agenda.take() is not None:
            pass
        assert len(agenda.running) + len(agenda.completed) <= most
        if agenda.is_over:
            break
        agenda.settle(agenda.running[0], outcome)
    assert len(agenda.completed) == min(most, len(ids) - len(agenda.failed))


def test_a_sweep_trains_as_many_trials_as_its_budget_says_and_the_rest_once_it_is_raised(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    store = tmp_path / "runs" / "tiny"
    grid = write_grid(budget={"trials": 3})
    said = kdsweep("launch", grid, *SERIAL)
    assert said.returncode == 75, said.stderr
    assert "3 of 4 trials completed (3 now)" in said.stderr
    assert "`budget.trials: 3` is used up; to go on, raise it in the grid" in said.stderr
    said = kdsweep("resume", store, *SERIAL)
    assert (said.returncode, "(0 now)" in said.stderr) == (75, True)
    said = kdsweep("launch", write_grid(budget={"trials": 4}), *SERIAL)
    assert said.returncode == 0, said.stderr
    assert "used up" not in said.stderr
    assert set(results.load(store).trials["status"]) == {"completed"}


def test_when_its_hours_are_over_what_runs_is_checkpointed_and_the_next_launch_begins_nothing(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    # More steps than any machine takes, so that the limit comes first.
    training = {"epochs": 20_000, "learning_rate": 1e-3, "batch_size": 16}
    grid = write_grid(training=training, budget={"hours": 1e-9})
    store = tmp_path / "runs" / "tiny"
    said = kdsweep("launch", grid, *SERIAL)
    assert said.returncode == 75, said.stderr
    assert "`budget.hours: 1e-09` is used up" in said.stderr
    used = used_by_launches(store / "locks")
    assert used.seconds > 0
    assert {attempt.status for attempt in Store(store).read_attempts()} <= {
        "completed",
        "interrupted",
    }
    before = len(Store(store).read_attempts())
    assert kdsweep("resume", store, *SERIAL).returncode == 75
    assert len(Store(store).read_attempts()) == before
    assert used_by_launches(store / "locks") == used


def test_trials_run_in_the_order_that_the_grid_asks_for_and_keep_their_ids(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    plain = json.loads(kdsweep("plan", write_grid(), "--json").stdout)["ids"]
    order = [{"seed": 1}, {"knowledge": {"has": "soft_logits"}}]
    said = kdsweep("launch", write_grid(order=order, budget={"trials": 3}), *SERIAL)
    assert said.returncode == 75, said.stderr
    trials = results.load(tmp_path / "runs" / "tiny").trials
    assert list(trials["trial_id"]) == plain
    ran = trials.dropna(subset="started").sort_values("started")
    both = "hard_labels+soft_logits+hidden_states"
    assert list(zip(ran["seed"], ran["knowledge"], strict=True)) == [
        (1, both),
        (1, "hard_labels"),
        (0, both),
    ]
