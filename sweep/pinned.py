"""What a sweep fixes at its first launch, and what it records of each launch."""

import platform
import socket
import sys
from collections.abc import Mapping
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
        "launches": [],
    }


def record_launch(
    sweep: Store, pinned: Pinned, *, epoch: int, base: Path, plugins: Mapping[str, str]
) -> None:
    """Write what is pinned and this launch's provenance to `sweep.json`.

    Args:
        sweep: Whose store.
        pinned: What every attempt shares.
        epoch: Of the launch.
        base: The folder that paths in the grid are relative to.
        plugins: Digests of the files of losses, by their place.
    """
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
    sweep.write_sweep(
        told
        | {
            "pinned": pinned.model_dump(),
            "base": str(base),
            "plugins": {**told.get("plugins", {}), **plugins},
            "launches": [*told["launches"], launch],
        }
    )


def pinned_for(sweep: Store, grid: Grid) -> Pinned:
    """What this sweep's attempts share: fixed by the first launch that comes to an attempt.

    Raises:
        InputError: Grid or host would change the numbers of trials, so they are refused.
    """
    told = sweep.read_sweep()
    if "pinned" not in told or not sweep.has_attempts():
        return pin(grid)
    pinned = Pinned.model_validate(told["pinned"])
    compared: dict[str, tuple[object, object, str]] = {
        "resources.cpus": (grid.resources.cpus, pinned.threads, "threads of a trial"),
        "resources.gpus": (_device(grid), pinned.device, "device"),
    }
    if pinned.precision == "bf16":
        # Whoever was pinned to fp32 can go on anywhere, and need not import torch to know it.
        compared["training.precision"] = (pin(grid).precision, pinned.precision, "precision")
    problems = [
        Problem(
            path,
            f"this sweep is pinned to {before} ({what}), and grid and host now make it {now}: sums "
            "would round differently",
            "Keep it as it was, or launch into another folder with `--store`.",
        )
        for path, (now, before, what) in compared.items()
        if now != before
    ]
    if problems:
        raise InputError(problems)
    return pinned


def pin(grid: Grid) -> Pinned:
    """What a first launch of this grid fixes on this host.

    Raises:
        InputError: The grid asks for a GPU, and this host has none that torch can use.
    """
    from ..trainers.settings import fast_precision

    device = _device(grid)
    if device == "cuda":
        _check_cuda()
    return Pinned(
        precision=fast_precision(device),
        threads=grid.resources.cpus,
        teacher_threads=max(
            grid.resources.cpus, min(MOST_TEACHER_THREADS, psutil.cpu_count() or 1)
        ),
        device=device,
        features_gb=FEATURES_GB,
    )


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        what = "trials ask for a GPU, and torch finds none on this host"
        raise InputError([Problem("resources.gpus", what, "Write `gpus: 0`, or launch elsewhere.")])


def _device(grid: Grid) -> Literal["cpu", "cuda"]:
    return "cuda" if grid.resources.gpus else "cpu"
