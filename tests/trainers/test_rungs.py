"""A trial stands still at its rungs; one that is stopped there can go on as if it never was."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from world import SHORT, World

from kdsweep.search_spaces.knowledge import HardLabels, HiddenStates, SoftLogits
from kdsweep.search_spaces.training import Evaluate
from kdsweep.search_spaces.trial import Trial, make_stage
from kdsweep.trainers import (
    Assets,
    Finished,
    Interrupted,
    Report,
    Row,
    Rung,
    Saving,
    Settings,
    Stopped,
    train,
)
from kdsweep.trainers.reports import GoesOn

HARD = HardLabels(kind="hard_labels")
SOFT = SoftLogits(kind="soft_logits", temperature=2.0)
HIDDEN = HiddenStates(kind="hidden_states", matching="uniform")
EIGHT = SHORT.model_copy(update={"evaluate": Evaluate(times=8)})
"""16 steps; select is evaluated after every second one."""
STEPS = 16
MEASURED = ("seconds", "latency_ms", "peak_memory_mb", "resumed_from_step")
"""Columns that say how a trial ran, not what came out."""


@pytest.fixture(scope="module")
def trial(world: World) -> Trial:
    return world.trial(HARD, SOFT, training=EIGHT)


def run(world: World, trial: Trial, **keywords: Any) -> list[Report]:
    assets = Assets(Settings(), world.cache)
    return list(train(trial, teacher=world.prepared, assets=assets, **keywords))


def numbers(reports: Iterable[Report]) -> list[tuple[int, dict[str, object]]]:
    """Everything that must be the same each time, to the last bit."""
    return [
        (each.step, {k: v for k, v in each.values.items() if not k.startswith(MEASURED)})
        for each in reports
        if isinstance(each, Row | Finished)
    ]


class Asked:
    """Keeps what it is asked, and says no from some step on."""

    def __init__(self, *, until: int = STEPS) -> None:
        self.rungs: list[Rung] = []
        self._until = until

    def __call__(self, rung: Rung) -> bool:
        self.rungs.append(rung)
        return rung.step < self._until

    @property
    def steps(self) -> list[int]:
        return [rung.step for rung in self.rungs]


def scores_in_history(reports: list[Report]) -> dict[int, float]:
    rows = [report for report in reports if isinstance(report, Row)]
    return {r.step: r.values["select/accuracy"] for r in rows if "select/accuracy" in r.values}


def stopped(reports: list[Report]) -> Stopped:
    last = reports[-1]
    assert isinstance(last, Stopped)
    return last


def test_a_trial_is_asked_at_its_rungs_with_the_scores_of_that_evaluation(
    world: World, trial: Trial
) -> None:
    asked = Asked()
    reports = run(world, trial, rungs=(0.2, 0.6), goes_on=asked)
    assert asked.steps == [4, 10]
    assert [rung.share for rung in asked.rungs] == [0.2, 0.6]
    in_history = scores_in_history(reports)
    for rung in asked.rungs:
        assert rung.scores == dict.fromkeys(("accuracy", "primary"), in_history[rung.step])


def test_standing_still_changes_no_number(world: World, trial: Trial) -> None:
    paused = run(world, trial, rungs=(0.2, 0.6), goes_on=Asked())
    assert numbers(paused) == numbers(run(world, trial))


def test_a_stopped_trial_ends_at_the_rung_with_its_scores_and_nothing_of_report(
    world: World, trial: Trial, tmp_path: Path
) -> None:
    reports = run(
        world, trial, rungs=(0.2, 0.6), goes_on=Asked(until=10), checkpoints=tmp_path / "c"
    )
    last = stopped(reports)
    in_history = scores_in_history(reports)
    assert last.step == max(in_history) == 10
    assert last.values["select/primary"] == in_history[10]
    assert last.values["select/primary/best"] == max(in_history.values())
    assert not [name for name in last.values if name.startswith("report/")]
    assert [report.step for report in reports if isinstance(report, Saving)] == [10]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00-000000010"]


def test_a_stopped_trial_that_goes_on_later_ends_as_if_it_had_never_been_stopped(
    world: World, trial: Trial, tmp_path: Path
) -> None:
    whole = run(world, trial, rungs=(0.2, 0.6), goes_on=Asked())
    before = run(world, trial, rungs=(0.2,), goes_on=Asked(until=0), checkpoints=tmp_path / "c")
    assert stopped(before).step == 4
    after = run(world, trial, resume_from=tmp_path / "c")
    assert numbers([*before, *after]) == numbers(whole)
    last = after[-1]
    assert isinstance(last, Finished)
    assert last.values["resumed_from_step"] == 4


def test_a_trial_that_was_left_at_a_rung_is_asked_again_there(
    world: World, trial: Trial, tmp_path: Path
) -> None:
    first, leaves = Asked(), False

    def leave_while_waiting(rung: Rung) -> bool:
        nonlocal leaves
        leaves = True
        return first(rung)

    def attempt(goes_on: GoesOn, **keywords: Any) -> list[Report]:
        return run(world, trial, rungs=(0.2, 0.6), goes_on=goes_on, **keywords)

    left = attempt(leave_while_waiting, checkpoints=tmp_path / "c", stop=lambda: leaves)
    assert left[-1] == Interrupted(step=4)
    again = Asked(until=0)
    ended = attempt(again, resume_from=tmp_path / "c", checkpoints=tmp_path / "d")
    assert again.rungs == first.rungs
    assert stopped(ended).step == 4
    # Its checkpoint is the one that it began with.
    assert not (tmp_path / "d").exists()


def test_rungs_are_shares_of_the_last_stage(world: World) -> None:
    first = make_stage((HIDDEN,), EIGHT)
    trial = world.trial(HARD).model_copy(
        update={"stages": (first, make_stage((HARD, SOFT), EIGHT))}
    )
    asked = Asked(until=26)
    reports = run(world, trial, rungs=(0.2, 0.6), goes_on=asked)
    assert asked.steps == [16 + 4, 16 + 10]
    assert stopped(reports).step == 26
