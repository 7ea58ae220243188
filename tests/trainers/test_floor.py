"""A teacher that knows too little teaches nobody."""

import pytest

from kdsweep.search_spaces.task import Teacher
from kdsweep.search_spaces.training import AboveMajority, Accuracy, Floor
from kdsweep.trainers.floor import below_floor

VALUES = {"select/accuracy": 0.41, "select/majority": 0.5}


def test_a_teacher_below_its_floor_is_told_by_how_much_and_what_to_do() -> None:
    teacher = Teacher(model="small", floor=AboveMajority(above_majority=0.05))
    problem = below_floor(teacher, VALUES)
    assert problem is not None
    assert problem.what.startswith(
        "accuracy 0.410 of small on select is below the floor 0.550 (majority 0.500 + 0.050)"
    )
    assert "teacher.fine_tune" in problem.mend


@pytest.mark.parametrize(
    ("floor", "is_enough"),
    [
        (None, True),
        (Accuracy(accuracy=0.41), True),
        (Accuracy(accuracy=0.5), False),
        (AboveMajority(above_majority=0.05), False),
    ],
)
def test_a_teacher_at_its_floor_is_good_enough(floor: Floor | None, is_enough: bool) -> None:
    assert (below_floor(Teacher(model="small", floor=floor), VALUES) is None) == is_enough
