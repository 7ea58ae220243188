"""What the first stages of a trial left, so that trials that begin alike train them once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .errors import CheckpointError
from .frozen import load_classifier, weights_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import BertForSequenceClassification

    from .reports import Value

RECORD = "stages.json"


@dataclass(frozen=True)
class StagesRecord:
    """What a folder of trained stages says of itself, beside the student that they left."""

    identity: str
    """The id of these stages, with everything that decides their numbers."""
    num_stages: int
    step: int
    """Optimiser steps of all of them."""
    weights: str
    """Hexadecimal SHA-256 of the weights' file."""
    values: Mapping[str, Value]
    """What the last of them ended with."""

    def write(self, folder: Path) -> None:
        """Beside the weights."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, folder: Path, *, identity: str) -> Self:
        """Of a folder, which has to be of these stages.

        Raises:
            CheckpointError: It is missing, damaged, or of other stages.
        """
        try:
            record = cls(**json.loads((folder / RECORD).read_bytes()))
            weights = weights_digest(folder)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder} holds no trained stages: {error}") from error
        if record.identity != identity or record.weights != weights:
            raise CheckpointError(
                f"{folder} does not hold the stages {identity} as they were written: remove it, "
                "and they are trained again"
            )
        return record


def load_begun(folder: Path, student: BertForSequenceClassification) -> None:
    """Give a student the weights that its first stages left."""
    model, _ = load_classifier(folder)
    student.load_state_dict(model.state_dict())
