"""What a schedule makes of a weight at each share of a stage."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from kdsweep.search_spaces.schedules import Cosine, Gate, LinearDown, LinearUp, planned_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # at progress            0, 1/4, 1/2, 3/4, 1
        ({"linear_up": 0.5}, [0.0, 0.5, 1.0, 1.0, 1.0]),
        ({"linear_up": 1.0}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"linear_up": 0.0}, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"linear_down": 1.0}, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ({"linear_down": 0.5}, [1.0, 0.5, 0.0, 0.0, 0.0]),
        # (1 + cos 45 degrees) / 2 is 0.854
        ({"cosine": 1.0}, [1.0, 0.8535534, 0.5, 0.1464466, 0.0]),
        ({"gate": [0.25, 0.75]}, [0.0, 1.0, 1.0, 0.0, 0.0]),
    ],
)
def test_a_schedule_is_a_factor_between_0_and_1(
    schedule: dict[str, Any], expected: list[float]
) -> None:
    parsed = parse(schedule)
    found = [planned_factor(parsed, progress=share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx(expected)


def test_a_gate_that_never_opens_is_refused() -> None:
    with pytest.raises(ValidationError, match="is never open"):
        parse({"gate": [0.5, 0.5]})


def parse(schedule: dict[str, Any]) -> LinearUp | LinearDown | Cosine | Gate:
    planned = TypeAdapter[LinearUp | LinearDown | Cosine | Gate](
        LinearUp | LinearDown | Cosine | Gate
    )
    return planned.validate_python(schedule)
