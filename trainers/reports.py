"""What training tells whoever drives it; the trainer does not know who listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = float | int | str | None


@dataclass(frozen=True)
class Resolved:
    """The first report: what a trial turned out to be, once models and data were there."""

    values: Mapping[str, Any]
    """JSON-able: terms with pairs, shapes and projections, parameters, steps, features."""


@dataclass(frozen=True)
class Row:
    """One row of the history."""

    step: int
    """Optimiser steps taken so far."""
    values: Mapping[str, float]
    """Losses are means over the steps since the previous row."""


@dataclass(frozen=True)
class Saving:
    """A checkpoint is about to be published: the history up to it must be safe first."""

    step: int


@dataclass(frozen=True)
class SplitPredictions:
    """What a student said about the rows of a split, in their order."""

    labels: NDArray[np.int64]
    """Shape [rows]."""
    last: NDArray[np.float32]
    """Logits of the last weights, shape [rows, classes]."""
    best: NDArray[np.float32]
    """Logits of the weights chosen on select, shape [rows, classes]."""


@dataclass(frozen=True)
class Predictions:
    """A student's logits on the two splits that it was not trained on."""

    select: SplitPredictions
    report: SplitPredictions


@dataclass(frozen=True)
class Finished:
    """The last report of a trial, of its first stages or of a teacher that came to its end."""

    step: int
    values: Mapping[str, Value]
    """Metrics and provenance by column name."""
    predictions: Predictions | None
    """None for stages that come before a trial's last."""
    save_student: Callable[[Path], None]
    """Writes the model that was chosen on select into a folder, as `save_pretrained` would."""


@dataclass(frozen=True)
class Stopped:
    """The last report of a trial that ends at a rung, with a checkpoint if there is a place."""

    step: int
    values: Mapping[str, Value]
    """Metrics and provenance by column name; nothing of report."""


@dataclass(frozen=True)
class Interrupted:
    """The last report where `stop` became true; a checkpoint was published if there is a place."""

    step: int


Report = Resolved | Row | Saving | Finished | Stopped | Interrupted


@dataclass(frozen=True)
class Rung:
    """A trial in its last stage, at a place where it goes on or not."""

    share: float
    """Of the steps of its last stage; the select split was evaluated at or after it."""
    step: int
    """Optimiser steps taken so far, in all stages."""
    scores: Mapping[str, float]
    """The last evaluation of select by metric; `primary` is the main one."""


GoesOn = Callable[[Rung], bool]
"""Whether a trial goes on from a rung; asked while the training stands still."""
