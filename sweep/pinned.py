"""What a sweep fixes at its first launch, and what it records of each launch."""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.feature_choice import SourceChoice
from ..search_spaces.grid import Grid
from .provenance import Provenance, commit_of, differences, provenance_here
from .redaction import redact_command
from .survey import Device, Precision
from .work import Pinned

MOST_TEACHER_THREADS = 8
"""A teacher is prepared alone, so it may use the whole host; more threads gain little."""


def new_sweep(grid: Grid) -> dict[str, Any]:
    """What `sweep.json` says of a sweep that nobody has launched yet."""
    return {
        "format": 1,
        "kdsweep": version("kdsweep"),
        "name": grid.name,
        "launches": [],
    }


def record_launch(
    sweep: Store,
    pinned: Pinned,
    *,
    epoch: int,
    base: Path,
    plugins: Mapping[str, str],
    nodes: Sequence[Provenance] = (),
) -> list[str]:
    """Write what is pinned and this launch's provenance to `sweep.json`.

    Of the environment nothing is written but versions and commits.

    Args:
        sweep: Whose store.
        pinned: What every attempt shares.
        epoch: Of the launch.
        base: The folder that paths in the grid are relative to.
        plugins: Digests of the files of losses, by their place.
        nodes: With what other hosts run trials.

    Returns:
        How that differs from the launch before, so far as it may change numbers.
    """
    told = sweep.read_sweep()
    here = provenance_here()
    folder = commit_of(Path.cwd())
    launch = {
        "epoch": epoch,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **here.model_dump(),
        "folder": folder and folder.model_dump(),
        "command": redact_command(sys.argv[1:]),
        "nodes": [node.model_dump() for node in nodes],
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
    before = _hosts(told["launches"][-1]) if told["launches"] else []
    return differences(before, [here, *nodes])


def _hosts(launch: Mapping[str, Any]) -> list[Provenance]:
    """The hosts of a launch; one that an older kdsweep recorded tells less of them."""
    known = Provenance.model_fields.keys()
    hosts = [
        {key: host[key] for key in known & host.keys()}
        for host in (launch, *launch.get("nodes", ()))
    ]
    return [Provenance.model_validate({"code": None, **host}) for host in hosts]


def pinned_for(
    sweep: Store,
    grid: Grid,
    *,
    precision: Precision | None = None,
    features: tuple[SourceChoice, ...] | None = (),
) -> Pinned:
    """What this sweep's attempts share: fixed by the first launch that comes to an attempt.

    Args:
        sweep: Whose store.
        grid: The grid.
        precision: What all hosts that will train multiply fast; None: this one will.
        features: What is kept of teachers where nothing is fixed yet.

    Raises:
        InputError: Grid or host would change the numbers of trials, so they are refused.
    """
    pinned = pinned_of(sweep)
    if pinned is None:
        return pin(grid, precision=precision).model_copy(update={"features": features})
    compared: dict[str, tuple[object, object, str]] = {
        "resources.cpus": (grid.resources.cpus, pinned.threads, "threads of a trial"),
        "resources.gpus": (device_of(grid), pinned.device, "device"),
    }
    if pinned.precision == "bf16":
        # Whoever was pinned to fp32 can go on anywhere, and need not import torch to know it.
        now = pin(grid, precision=precision).precision
        compared["training.precision"] = (now, pinned.precision, "precision")
    problems = [
        Problem(
            path,
            f"this sweep is pinned to {before} ({what}); grid and hosts now make it {now}: sums "
            "would round differently",
            "Keep it as it was, or launch into another folder with `--store`.",
        )
        for path, (now, before, what) in compared.items()
        if now != before
    ]
    if problems:
        raise InputError(problems)
    return pinned


def planned_features(sweep: Store) -> tuple[SourceChoice, ...] | None:
    """What the newest launch decided to keep, whether or not it came to an attempt."""
    told = sweep.read_sweep().get("pinned")
    return () if told is None else Pinned.model_validate(told).features


def pinned_of(sweep: Store) -> Pinned | None:
    """What a sweep's attempts share; None before the first."""
    if not sweep.exists() or "pinned" not in (told := sweep.read_sweep()):
        return None
    return Pinned.model_validate(told["pinned"]) if sweep.has_attempts() else None


def pin(grid: Grid, *, precision: Precision | None = None) -> Pinned:
    """What a first launch of this grid fixes.

    Args:
        grid: The grid.
        precision: What all hosts that will train multiply fast; None: this one will.

    Raises:
        InputError: The grid asks for a GPU, and this host has none that torch can use.
    """
    device = device_of(grid)
    return Pinned(
        precision=precision or _fast_here(device),
        threads=grid.resources.cpus,
        teacher_threads=max(
            grid.resources.cpus, min(MOST_TEACHER_THREADS, psutil.cpu_count() or 1)
        ),
        device=device,
        # Which of them are kept is decided once the plan is known.
        features=(),
    )


def device_of(grid: Grid) -> Device:
    """What the trials of a grid compute on: all on the same."""
    return "cuda" if grid.resources.gpus else "cpu"


def _fast_here(device: Device) -> Precision:
    from ..trainers.settings import fast_precision

    if device == "cuda":
        _check_cuda()
    return fast_precision(device)


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        what = "trials ask for a GPU, and torch finds none on this host"
        raise InputError([Problem("resources.gpus", what, "Write `gpus: 0`, or launch elsewhere.")])
