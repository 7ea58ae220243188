"""Where the rungs of early stopping lie, and what a grid may say of it."""

from pathlib import Path

import pytest

from kdsweep.search_spaces import GridError, Plan, expand, read_grid
from kdsweep.search_spaces.early_stopping import Asha, rung_steps
from kdsweep.search_spaces.facts import ModelFacts, ShippedFacts, TaskFacts
from kdsweep.search_spaces.task import Task, Teacher

GRID = """
name: stopping
task: {name: glue/sst2}
teacher: {model: minilm-l6-h384, fine_tune: {epochs: 1}}
axes:
  knowledge: [hard_labels, [hard_labels, soft_logits]]
  shape: [{layers: 2, width: 128, heads: 2}]
"""


class MeasuredFacts(ShippedFacts):
    """As a launch knows them, with the rows at hand."""

    def task(self, task: Task) -> TaskFacts:
        return TaskFacts(num_classes=2, train_rows=1000, metrics=("accuracy",))


def planned(stopping: str, *, axes: str = "", training: str = "{}") -> Plan:
    text = f"{GRID}{axes}training: {training}\nearly_stopping: {stopping}\n"
    return expand(read_grid(text, file="grid.yaml", base=Path()), MeasuredFacts())


def refusals(stopping: str, **sections: str) -> list[str]:
    with pytest.raises(GridError) as refused:
        planned(stopping, **sections)
    return [f"{each.path}: {each.what}" for each in refused.value.problems]


@pytest.mark.parametrize(
    ("written", "rungs"),
    [
        (Asha(method="asha"), (0.2, 0.6)),
        (Asha(method="asha", grace=0.1, reduction=2), (0.1, 0.2, 0.4, 0.8)),
        (Asha(method="asha", grace=0.5, reduction=2), (0.5,)),
        (Asha(method="asha", grace=0.05, reduction=4), (0.05, 0.2, 0.8)),
    ],
)
def test_rungs_are_the_grace_times_powers_of_the_reduction(
    written: Asha, rungs: tuple[float, ...]
) -> None:
    assert written.rungs == rungs


@pytest.mark.parametrize(
    ("num_steps", "times", "expected"),
    [
        # Evaluations after 2, 4, ..., 16: the first at or after 3.2 is 4, after 9.6 is 10.
        (16, 8, {4: 0.2, 10: 0.6}),
        # After 20, 40, ..., 100: both rungs are evaluations themselves.
        (100, 5, {20: 0.2, 60: 0.6}),
        # After 34, 67 and 100.
        (100, 3, {34: 0.2, 67: 0.6}),
        # After 50 and 100: the second rung would be the end.
        (100, 2, {50: 0.2}),
        (100, 1, {}),
        # Ten evaluations in three steps fall on each other: the second, sixth and last.
        (3, 10, {1: 0.2, 2: 0.6}),
        (1, 10, {}),
    ],
)
def test_a_rung_is_the_first_evaluation_at_or_after_its_share_and_the_end_is_none(
    num_steps: int, times: int, expected: dict[int, float]
) -> None:
    assert rung_steps((0.2, 0.6), num_steps=num_steps, times=times) == expected


def test_a_rung_that_is_an_evaluation_is_not_moved_to_the_next_by_rounding() -> None:
    # In floating point 0.07 * 100 is a little more than 7.
    assert rung_steps((0.07,), num_steps=100, times=100) == {7: 0.07}


def test_of_rungs_that_fall_on_one_evaluation_the_first_stands_for_all() -> None:
    # Evaluations after 50 and 100 of 100.
    assert rung_steps((0.1, 0.2, 0.4, 0.8), num_steps=100, times=2) == {50: 0.1}


@pytest.mark.parametrize(
    ("stopping", "expected"),
    [
        ("asha", "early_stopping: `asha` is not a mapping"),
        ("{method: hyperband}", "early_stopping.method: `hyperband` is not one of asha"),
        ("{method: asha, grace: 1}", "early_stopping.grace: `1` is not less than 1"),
        ("{method: asha, reduction: 1}", "early_stopping.reduction: `1` is not at least 2"),
        (
            "{method: asha, metric: train/loss}",
            "early_stopping.metric: `train/loss` is not one of primary, accuracy, f1, matthews",
        ),
        ("{method: asha, metric: f1}", "early_stopping.metric: `f1` is not measured on glue/sst2"),
        (
            "{method: asha, within: [knowlege]}",
            "early_stopping.within[0]: `knowlege` is no axis",
        ),
    ],
)
def test_what_cannot_stop_a_trial_is_refused(stopping: str, expected: str) -> None:
    assert refusals(stopping) == [expected]


def test_trials_on_different_data_are_never_compared() -> None:
    axes = "  task.name: [glue/sst2, glue/rte]\n"
    [said] = refusals("{method: asha, within: [knowledge]}", axes=axes)
    assert said.startswith("early_stopping.within: leaves out `task.name`")
    assert planned("{method: asha}", axes=axes).trials


def test_a_path_that_does_not_vary_may_be_compared_within() -> None:
    stopping = "{method: asha, within: [task.name, shape, training.learning_rate]}"
    assert planned(stopping).warnings == ()


def test_trials_that_are_evaluated_at_their_end_alone_cannot_be_stopped() -> None:
    [said] = refusals("{method: asha}", training="{evaluate: {times: 1}}")
    assert said == (
        "early_stopping: cannot stop 2 of 2 trials: select is not evaluated between the first "
        "rung, at 0.2 of the steps, and their end"
    )
    axes = "  training.evaluate.times: [1, 10]\n"
    [warning] = planned("{method: asha}", axes=axes).warnings
    assert "cannot stop 2 of 4 trials" in warning.what


def test_the_metric_is_not_checked_where_nothing_is_known_of_the_task() -> None:
    class UnknownFacts(MeasuredFacts):
        def model(self, teacher: Teacher) -> ModelFacts | None:
            return None

        def task(self, task: Task) -> None:  # type: ignore[override]
            return None

    text = GRID + "early_stopping: {method: asha, metric: f1}\n"
    assert expand(read_grid(text, file="grid.yaml", base=Path()), UnknownFacts()).trials
