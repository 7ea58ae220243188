"""A prepared teacher, read from its folder, that nothing wakes or changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

from ..search_spaces.errors import Problem, TeacherError
from .bert import sizes
from .errors import FrozenError

if TYPE_CHECKING:
    from torch import Tensor

    from .features import Sizes
    from .reports import Value

RECORD_FORMAT = 1
"""Raised when a prepared teacher's folder changes so that older ones cannot be read."""

RECORD = "teacher.json"
WEIGHTS = "model.safetensors"
LOGITS = "logits.safetensors"


@dataclass(frozen=True)
class TeacherRecord:
    """What a prepared teacher's folder says of itself."""

    digest: str
    """Of the inputs from which the teacher was made."""
    model: str
    """The name the grid gave it."""
    classes: tuple[str, ...]
    """Of the task, in the order of the logits."""
    weights: str
    """Hexadecimal SHA-256 of the weights' file."""
    step: int
    """Optimiser steps of its fine-tuning."""
    values: Mapping[str, Value]
    """What its preparation ended with, `select/accuracy` for one."""
    format: int = RECORD_FORMAT

    def write(self, folder: Path) -> None:
        """Beside the weights."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Of a prepared teacher.

        Raises:
            TeacherError: The folder is no prepared teacher, or of another version.
        """
        try:
            values: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
            known = values.pop("format") == RECORD_FORMAT
            record = cls(**values | {"classes": tuple(values["classes"])}) if known else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, f"{RECORD} cannot be read: {error}") from error
        if record is None:
            raise _damaged(folder, "was prepared by another version")
        return record


class FrozenTeacher(nn.Module):
    """A model in evaluation mode for good, without gradients."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False)
        self.sizes: Sizes = sizes(model)
        self.train(mode=False)
        self._bits = _bits(model)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002 (nn.Module's own signature)
        """Stay in evaluation mode, even when a module that holds this one starts to train."""
        return super().train(mode=False)

    def check_unchanged(self) -> None:
        """Compare every weight's bits with those at the start.

        Raises:
            FrozenError: Something wrote to a weight.
        """
        now = _bits(self.model)
        changed = [name for name, bits in self._bits.items() if now[name] != bits]
        if changed:
            raise FrozenError(f"the teacher's weights changed while it taught: {changed[:3]}")


def load_teacher(folder: Path, *, device: str = "cpu") -> FrozenTeacher:
    """The teacher that `prepare_teacher` wrote into a folder.

    Raises:
        TeacherError: The folder is no prepared teacher, or its weights are not those it wrote.
    """
    record = TeacherRecord.read(folder)
    if weights_digest(folder) != record.weights:
        raise _damaged(folder, f"{WEIGHTS} is not the file that was written")
    model, _ = load_classifier(folder)
    return FrozenTeacher(model).to(device)


def weights_digest(folder: Path) -> str:
    """Hexadecimal SHA-256 of a folder's weights."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_classifier(
    folder: Path, *, may_lack: Collection[str] = (), config: Mapping[str, Any] | None = None
) -> tuple[BertForSequenceClassification, frozenset[str]]:
    """A checkpoint in fp32, with a head.

    Args:
        folder: Where its files lie.
        may_lack: Parts (`classifier`, `bert.pooler`) that the checkpoint need not have, or may
            have in another shape; they are then random.
        config: Fields of the model's config that are to be others.

    Returns:
        The model, and the names of the weights that the checkpoint did not have.

    Raises:
        TeacherError: The checkpoint lacks any other weight.
    """
    model: BertForSequenceClassification
    found: dict[str, Any]
    with _quiet():
        model, found = BertForSequenceClassification.from_pretrained(  # type: ignore[misc]
            folder,
            config=BertConfig.from_pretrained(folder, **(config or {})),
            dtype=torch.float32,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    lacking = frozenset({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    needed = sorted(name for name in lacking if not name.startswith(tuple(may_lack)))
    if needed:
        raise TeacherError(
            [Problem(str(folder), f"lacks weights: {needed[:3]}", "Give a whole checkpoint.")]
        )
    # Weights may still lie in the mapped file, at addresses on which fast kernels depend.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model, lacking


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bar and its report of random weights, which are meant."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def teacher_logits(folder: Path) -> dict[str, Tensor]:
    """A prepared teacher's logits on `select` and `report`, fp32, in the order of the rows."""
    return load_file(folder / LOGITS)


def _bits(model: nn.Module) -> dict[str, int]:
    """The sum of each weight's bits, read as integers: fast, and changed by any one number."""
    return {
        name: int(parameter.detach().view(torch.int32).sum(dtype=torch.int64))
        for name, parameter in model.named_parameters()
    }


def _damaged(folder: Path, what: str) -> TeacherError:
    return TeacherError(
        [Problem(str(folder), what, "Remove the folder, and prepare the teacher again.")]
    )
