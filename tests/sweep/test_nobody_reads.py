"""Whoever closes the pipe that a command writes into ends no launch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from toy import KDSWEEP

from kdsweep import results

WriteGrid = Callable[..., Path]


def test_a_launch_goes_on_when_nobody_reads_what_it_says(
    write_grid: WriteGrid, environment: dict[str, str], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    axes = {"knowledge": ["hard_labels"], "shape": [{"layers": 1, "width": 16, "heads": 2}]}
    words = ["launch", str(write_grid(axes=axes)), "--executor", "serial"]
    ended = subprocess.run(
        [*KDSWEEP, *words],
        cwd=tmp_path,
        env=environment,
        stdout=writer,
        stderr=writer,
        timeout=300,
    )
    os.close(writer)
    assert ended.returncode == 0
    assert set(results.load(tmp_path / "runs" / "tiny").trials["status"]) == {"completed"}


def test_what_is_complained_of_has_its_exit_code_although_nobody_reads_it() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "kdsweep.sweep", "status", "nowhere"]
    ended = subprocess.run(words, stderr=writer, timeout=300)
    os.close(writer)
    assert ended.returncode == 2
