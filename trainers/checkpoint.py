"""Everything that decides the rest of a training, on disk: safetensors and JSON, no pickle.

A checkpoint is a folder `step-<stage>-<step>` that is there whole or not at all. Two are kept, and
a damaged one is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from .errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
"""Raised when older checkpoints can no longer be read: what they hold is trained again."""

KEPT = 2
"""Checkpoints that stay: the newest, and one to fall back to."""

_MANIFEST = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training between two steps."""

    identity: str
    """Of the trial or teacher, with everything that decides its numbers."""
    stage: int
    """Index of the stage in which it was written."""
    step: int
    """Optimiser steps taken so far, in all stages."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By file: weights, the optimiser's moments, sums of losses, ..."""
    state: Mapping[str, Any]
    """What else there is, as JSON."""


def publish(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint into a folder of checkpoints, then remove those that are too old."""
    target = folder / f"step-{checkpoint.stage:02}-{checkpoint.step:09}"
    with whole_folder(target) as partial:
        sums = {}
        for name, tensors in checkpoint.tensors.items():
            content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
            (partial / f"{name}.safetensors").write_bytes(content)
            sums[name] = hashlib.sha256(content).hexdigest()
        manifest = {
            "format": FORMAT,
            "identity": checkpoint.identity,
            "stage": checkpoint.stage,
            "step": checkpoint.step,
            "sha256": sums,
            "state": checkpoint.state,
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest))
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)


def newest(folder: Path, *, identity: str) -> Checkpoint | None:
    """The newest checkpoint of a folder that is whole and can be read; None where there is none.

    Raises:
        CheckpointError: It is of another trial, or written by a newer version.
    """
    for path in _newest_first(folder):
        checkpoint = _read(path, identity=identity)
        if checkpoint is not None:
            return checkpoint
    return None


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes it at the end, unless something fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: Path, pattern: str) -> None:
    """Remove what killed processes left of `whole_folder` for names of a pattern."""
    for path in folder.glob(f".{pattern}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _read(path: Path, *, identity: str) -> Checkpoint | None:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        contents = {
            name: (path / f"{name}.safetensors").read_bytes() for name in manifest["sha256"]
        }
    except (OSError, ValueError):
        return None
    if any(
        hashlib.sha256(content).hexdigest() != manifest["sha256"][name]
        for name, content in contents.items()
    ):
        return None
    if manifest["format"] < FORMAT:
        return None
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has the format {manifest['format']}, and this version reads {FORMAT}: "
            "use the version that wrote it, or remove the folder to start anew"
        )
    if manifest["identity"] != identity:
        raise CheckpointError(
            f"{path} is of the training {manifest['identity']}, not of {identity}: "
            "its trial, its task's rows or its teacher are others"
        )
    return Checkpoint(
        identity=identity,
        stage=manifest["stage"],
        step=manifest["step"],
        tensors={name: load(content) for name, content in contents.items()},
        state=manifest["state"],
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
