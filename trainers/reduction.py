"""From the distances of all positions to one number: what counts, and how it is averaged."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .masking import kept

FEATURE_AXES = "AHC"
"""Heads, features and classes: every one of them counts at every position."""


class Distances(NamedTuple):
    """Distances of which nothing is masked or reduced."""

    values: Tensor
    axes: str
    """One letter an axis: B rows, L tokens, K the keys of a token, A heads, H features, C classes,
    P pairs or triples of rows."""


def reduce(
    distances: Distances, token_mask: Tensor, *, also: Tensor | None = None, sums: str = ""
) -> Tensor:
    """The mean over the batch's valid positions; padding is none.

    Args:
        distances: Of any axes.
        token_mask: Shape [B, L], True at real tokens.
        also: What else must be true of a position; of the distances' shape.
        sums: Axes of heads, features or classes that are summed instead.

    Returns:
        Shape []; 0 where no position is valid.
    """
    values, axes = distances
    valid = _valid(axes, token_mask)
    if also is not None:
        valid = valid & also
    # One sum: a mean on the way would cost the gradient another pass over all values.
    total = kept(values, valid).sum()
    alike = [n for n, axis in enumerate(axes) if axis in FEATURE_AXES]
    averaged = math.prod(values.shape[n] for n in alike if axes[n] not in sums)
    positions = [1 if n in alike else size for n, size in enumerate(values.shape)]
    return total / (valid.expand(positions).sum().clamp_min(1) * averaged)


def _valid(axes: str, token_mask: Tensor) -> Tensor:
    """True at valid positions, in a shape that the distances' broadcasts with."""
    rows, length = token_mask.shape
    valid = torch.ones([1] * len(axes), dtype=torch.bool, device=token_mask.device)
    for axis in set(axes) & set("LK"):
        shape = [1] * len(axes)
        shape[axes.index("B")], shape[axes.index(axis)] = rows, length
        valid = valid & token_mask.view(shape)
    return valid
