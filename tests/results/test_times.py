"""Where lanes spent their time: every second of every attempt is told of once."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from kdsweep.results.times import lane_seconds

START = datetime(2026, 1, 1, tzinfo=UTC)
SPAN = pa.timestamp("us", tz="UTC")


def table(*attempts: tuple[float, dict[str, float]]) -> pa.Table:
    """Attempts of so many seconds, with what their clocks told."""
    phases = {phase for _, told in attempts for phase in told}
    columns = {
        f"value/seconds/{phase}": [told.get(phase) for _, told in attempts] for phase in phases
    }
    ended = [START + timedelta(seconds=seconds) for seconds, _ in attempts]
    return pa.table(
        {
            "started": pa.array([START] * len(attempts), SPAN),
            "ended": pa.array(ended, SPAN),
            **columns,
        }
    )


def test_phases_are_summed_over_attempts_and_the_longest_comes_first() -> None:
    found = lane_seconds(
        table((10.0, {"student": 7.0, "start": 2.0}), (5.0, {"student": 1.0, "start": 3.5}))
    )
    assert found == pytest.approx({"student": 8.0, "start": 5.5, "other": 1.5})
    assert list(found) == ["student", "start", "other"]


def test_a_failed_attempt_told_nothing_and_took_its_time_all_the_same() -> None:
    found = lane_seconds(table((10.0, {"student": 10.0}), (30.0, {})))
    assert found == pytest.approx({"other": 30.0, "student": 10.0})


def test_before_the_first_attempt_there_is_nothing_to_tell() -> None:
    assert lane_seconds(table()) == {}
