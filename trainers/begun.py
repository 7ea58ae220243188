"""What the first stages of a trial left, so that trials that begin alike train them once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .errors import CheckpointError
from .frozen import WEIGHTS, load_classifier
from .saving import save_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import BertForSequenceClassification

    from .reports import Value

RECORD = "stages.json"


@dataclass(frozen=True)
class StagesRecord:
    """What a folder of trained stages says of itself."""

    identity: str
    """The id of these stages, with everything that decides their numbers."""
    num_stages: int
    step: int
    """Optimiser steps of all of them."""
    weights: str
    """Hexadecimal SHA-256 of the weights' file."""
    values: Mapping[str, Value]
    """What the last of them ended with."""

    @classmethod
    def read(cls, folder: Path, *, identity: str) -> Self:
        """Of a folder, which has to be of these stages.

        Raises:
            CheckpointError: It is missing, damaged, or of other stages.
        """
        try:
            record = cls(**json.loads((folder / RECORD).read_bytes()))
            with (folder / WEIGHTS).open("rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder} holds no trained stages: {error}") from error
        if record.identity != identity or record.weights != weights:
            raise CheckpointError(
                f"{folder} does not hold the stages {identity} as they were written: remove it, "
                "and they are trained again"
            )
        return record


def write_stages(
    student: BertForSequenceClassification,
    tokenizer: Mapping[str, bytes],
    folder: Path,
    *,
    identity: str,
    num_stages: int,
    step: int,
    values: Mapping[str, Value],
) -> None:
    """The student as its stages left it, readable by anybody's `from_pretrained`."""
    save_model(student, tokenizer, folder)
    with (folder / WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    record = StagesRecord(identity, num_stages, step, weights, values)
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2))


def load_begun(folder: Path, student: BertForSequenceClassification) -> None:
    """Give a student the weights that its first stages left."""
    model, _ = load_classifier(folder)
    student.load_state_dict(model.state_dict())
