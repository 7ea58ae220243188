"""A toy sweep for each test to break."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from toy import Toy, wait_for
from world import write_model, write_rows


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a toy grid reads."""
    folder = tmp_path_factory.mktemp("toy")
    write_model(folder / "teacher")
    write_rows(folder / "train.csv", num_rows=240, seed=1)
    write_rows(folder / "report.csv", num_rows=60, seed=2)
    return folder


@pytest.fixture
def toy(toy_files: Path, tmp_path: Path) -> Iterator[Toy]:
    """A sweep that nothing has happened to yet; afterwards none of its processes is left."""
    for path in toy_files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    made = Toy(tmp_path, tmp_path / "cache")
    made.write_grid()
    yield made
    try:
        wait_for(lambda: not made.processes(), seconds=90)
    finally:
        for process in made.processes():
            process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def reference(toy_files: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """How the sweep ends when nothing happens to it."""
    folder = tmp_path_factory.mktemp("reference")
    for path in toy_files.iterdir():
        (folder / path.name).symlink_to(path)
    made = Toy(folder, folder / "cache")
    made.write_grid()
    assert made.launch() == 0, made.said
    frame = made.frame()
    assert set(frame["status"]) == {"completed"}
    return frame


@pytest.fixture
def kills() -> int:
    """How many processes are killed at random moments: `make faults N=50`."""
    return int(os.environ.get("KILLS", "6"))
