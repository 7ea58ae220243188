"""What a sweep fixes at its first launch, and what it records of each launch."""

import platform
import socket
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.grid import Grid
from .work import Pinned

FEATURES_GB = 1.0
"""Outputs of a teacher up to this size are kept by a lane; beyond it the teacher runs with each
batch."""

MOST_TEACHER_THREADS = 8
"""A teacher is prepared alone, so it may use the whole host; more threads gain little."""

PACKAGES = ("kdsweep", "torch", "transformers", "tokenizers", "datasets", "ray", "numpy")


def new_sweep(grid: Grid) -> dict[str, Any]:
    """What `sweep.json` says of a sweep that nobody has launched yet."""
    return {
        "format": 1,
        "kdsweep": version("kdsweep"),
        "name": grid.name,
        "pinned": pin(grid).model_dump(),
        "launches": [],
    }


def record_launch(sweep: Store, *, epoch: int, base: Path) -> None:
    """Add this launch's provenance to `sweep.json`."""
    told = sweep.read_sweep()
    launch = {
        "epoch": epoch,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "command": sys.argv[1:],
    }
    sweep.write_sweep(told | {"base": str(base), "launches": [*told["launches"], launch]})


def read_pinned(sweep: Store, grid: Grid) -> Pinned:
    """What this sweep's attempts share.

    Raises:
        InputError: The grid now asks for what would change the numbers of its trials.
    """
    pinned = Pinned.model_validate(sweep.read_sweep()["pinned"])
    asked = {"cpus": (grid.resources.cpus, pinned.threads), "gpus": (_device(grid), pinned.device)}
    problems = [
        Problem(
            f"resources.{key}",
            f"this sweep was launched with {before}, and the grid now asks for {now}: sums would "
            "round differently",
            "Keep it as it was, or launch into another folder with `--store`.",
        )
        for key, (now, before) in asked.items()
        if now != before
    ]
    if problems:
        raise InputError(problems)
    return pinned


def pin(grid: Grid) -> Pinned:
    """What a first launch of this grid fixes on this host."""
    from ..trainers.settings import fast_precision

    device = _device(grid)
    return Pinned(
        precision=fast_precision(device),
        threads=grid.resources.cpus,
        teacher_threads=max(
            grid.resources.cpus, min(MOST_TEACHER_THREADS, psutil.cpu_count() or 1)
        ),
        device=device,
        features_gb=FEATURES_GB,
    )


def _device(grid: Grid) -> Literal["cpu", "cuda"]:
    return "cuda" if grid.resources.gpus else "cpu"
