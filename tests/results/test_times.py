"""Where lanes spent their time: every second of every attempt is told of once."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from kdsweep.results.times import Spared, lane_seconds, spared_by_features

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


def with_features(*told: tuple[str, float | None]) -> pa.Table:
    """Attempts of 10 seconds, with what they read and what it spared them."""
    read, spared = zip(*told, strict=True)
    return (
        table(*[(10.0, {"student": 10.0})] * len(told))
        .append_column("value/features", pa.array(read))
        .append_column("value/seconds_spared", pa.array(spared, pa.float64()))
    )


def test_what_was_spared_is_a_share_of_what_lanes_would_have_taken_without() -> None:
    # The first one computed them: that took more than it was spared itself.
    found = spared_by_features(
        with_features(("cached as fp32", -2.0), ("cached as fp32", 12.0), ("none", 0.0))
    )
    assert found == Spared(seconds=10.0, share=0.25, unknown=0)


def test_what_nobody_measured_is_counted_and_not_guessed() -> None:
    found = spared_by_features(with_features(("cached as fp16", None), ("cached as fp32", 10.0)))
    assert found == Spared(seconds=10.0, share=1 / 3, unknown=1)


def test_an_attempt_that_failed_or_asked_its_teacher_is_not_unknown() -> None:
    found = with_features(("online", 0.0), ("none", 0.0))
    assert spared_by_features(found) is None
    failed = table((30.0, {})).append_column("value/features", pa.nulls(1, pa.string()))
    assert spared_by_features(failed) is None


def test_of_a_store_without_the_column_it_is_unknown() -> None:
    older = with_features(("cached as fp32", 1.0), ("none", 0.0)).drop(["value/seconds_spared"])
    assert spared_by_features(older) == Spared(seconds=0.0, share=0.0, unknown=1)
    assert spared_by_features(table()) is None
