"""What a model says about a split, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .batches import collate, length_batches
from .features import LOGITS
from .forward import forward
from .metrics import score

if TYPE_CHECKING:
    from torch import nn

    from .batches import Split
    from .glue import Metric
    from .settings import Precision

BATCH_SIZE = 64
"""Of an evaluation; fixed, because sums differ with the shape of what is multiplied."""


@torch.no_grad()
def predict(
    model: nn.Module,
    split: Split,
    *,
    pad_token_id: int,
    device: torch.device,
    precision: Precision,
) -> Tensor:
    """The logits of a split's rows, in their order, without dropout; fp32 on the CPU, [N, C].

    The model's mode is as before afterwards.
    """
    was_training = model.training
    model.eval()
    try:
        batches = length_batches(split.lengths, BATCH_SIZE)
        logits = []
        for rows in batches:
            batch = collate(split, rows, pad_token_id=pad_token_id).to(device)
            features = forward(model, batch, frozenset({LOGITS}), precision=precision)
            logits.append(features[LOGITS])
        sorted_logits = torch.cat(logits).float().cpu()
        return torch.empty_like(sorted_logits).index_copy_(0, torch.cat(batches), sorted_logits)
    finally:
        model.train(was_training)


def score_logits(metrics: Sequence[Metric], logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Each metric of the most likely classes; the lowest class wins a tie."""
    return score(metrics, logits.numpy().argmax(axis=1), labels.numpy())


def majority_share(labels: Tensor) -> float:
    """The accuracy of always naming the largest class."""
    return float(np.bincount(labels.numpy()).max() / len(labels))


def evaluation_steps(num_steps: int, times: int) -> frozenset[int]:
    """After which steps select is evaluated: spread evenly, the last step included."""
    return frozenset(-(-num_steps * n // times) for n in range(1, times + 1))
