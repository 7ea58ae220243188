"""Whether a teacher knows enough of its task to teach it; needs no torch."""

from collections.abc import Mapping
from typing import assert_never

from ..search_spaces.errors import Problem
from ..search_spaces.task import Teacher
from ..search_spaces.training import AboveMajority, Accuracy


def below_floor(teacher: Teacher, values: Mapping[str, object]) -> Problem | None:
    """What is wrong with a teacher that knows too little; None where it knows enough.

    Args:
        teacher: What the grid says, with or without a floor.
        values: What its preparation ended with.
    """
    accuracy = _number(values["select/accuracy"])
    majority = _number(values["select/majority"])
    match teacher.floor:
        case None:
            return None
        case Accuracy(accuracy=least):
            asked, why = least, ""
        case AboveMajority(above_majority=margin):
            asked, why = majority + margin, f" (majority {majority:.3f} + {margin:.3f})"
        case _:
            assert_never(teacher.floor)
    if accuracy >= asked:
        return None
    return Problem(
        "teacher.floor",
        f"accuracy {accuracy:.3f} of {teacher.model} on select is below the floor "
        f"{asked:.3f}{why}; none of its trials was started",
        "Fine-tune it longer or with another learning_rate (teacher.fine_tune), choose another "
        "teacher.model, or lower teacher.floor.",
    )


def _number(value: object) -> float:
    assert isinstance(value, float), value
    return value
