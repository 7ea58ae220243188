"""What `scaling` and `limit` compute of what they measured."""

import pandas as pd
import pytest
from limit import lane_share, shares, step_flops
from scaling import exponent
from tweets import Launched


def test_a_cost_that_grows_with_the_square_has_exponent_two() -> None:
    found = exponent([{"to": n, "launch s": 3.0 * n**2} for n in (1, 2, 4, 8)], "launch s")
    assert found == pytest.approx((2.0, 2.0, 2.0))


def test_the_spread_of_an_exponent_shows_what_is_paid_once() -> None:
    found = exponent([{"to": n, "launch s": 10.0 + n} for n in (1, 10, 100)], "launch s")
    assert found.low < 0.3 < found.median < 0.7 < found.high < 1.0


def launched() -> Launched:
    """One lane: after 10 s of starting, an attempt that imports and one that does not."""
    stamps = pd.to_datetime([10, 22, 20, 32], unit="s", utc=True)
    trials = pd.DataFrame(
        {
            "started": stamps[:2],
            "ended": stamps[2:],
            "wall_seconds": [10.0, 10.0],
            "seconds/start": [4.0, 1.0],
            "seconds/student": [3.0, 7.0],
            "seconds/evaluate": [1.0, 1.0],
        }
    )
    return Launched(seconds=40.0, trials=trials, store_mb=0.0)


def test_own_work_is_told_of_attempts_of_lanes_and_of_the_launch() -> None:
    assert shares(launched().trials) == pytest.approx(
        {"own %": 60.0, "start %": 25.0, "student %": 50.0, "evaluate %": 10.0, "rest %": 15.0}
    )
    assert lane_share(launched(), 1) == pytest.approx(
        {"later attempts": 8 / 10, "lanes": 12 / 22, "launch": 12 / 40}
    )


def test_operations_of_a_step_are_three_forward_passes_over_real_tokens() -> None:
    # Two layers of width 128: 12 H^2 multiply-adds a token, and 2 L H for the attention.
    forward = 2 * (2 * 12 * 128**2 + 4 * 20 * 128)
    shape = {"layers": 2, "width": 128, "heads": 4}
    assert step_flops(shape, 20.0, is_whole=True) == 3 * forward * 20 * 32


def test_of_a_last_block_that_is_not_read_nineteen_tokens_in_twenty_are_keys_and_values() -> None:
    block = 2 * 12 * 128**2 + 4 * 20 * 128
    forward = 20 * block + block + 19 * 2 * 2 * 128**2
    shape = {"layers": 2, "width": 128, "heads": 4}
    assert step_flops(shape, 20.0, is_whole=False) == 3 * forward * 32
