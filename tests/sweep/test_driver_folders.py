"""Whatever ends a driver of Ray leaves no folder of Tune's behind."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from kdsweep.sweep.ray_executor import Driver


def scratches(folder: Path) -> list[Path]:
    return list(folder.glob("kdsweep-tune-*"))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A driver that waits for its first word."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Driver("toy_lane", tmp_path / "log.txt", os.environ)


def test_a_driver_that_is_killed(driver: Driver, tmp_path: Path) -> None:
    with driver:
        assert len(scratches(tmp_path)) == 1
        driver.end_all()
    assert scratches(tmp_path) == []


def test_a_driver_whose_launch_is_gone(driver: Driver, tmp_path: Path) -> None:
    # As when the launch was killed: the driver hears nobody any more.
    driver._answers.close()
    until = time.monotonic() + 120
    while scratches(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert scratches(tmp_path) == []
    driver.end_all()
