"""From the distances of all positions to one number: what counts, and how it is averaged."""

from typing import NamedTuple

import torch
from torch import Tensor

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
    values = torch.where(valid, values, 0.0)
    means = [n for n, axis in enumerate(axes) if axis in FEATURE_AXES and axis not in sums]
    summed = [n for n, axis in enumerate(axes) if axis in FEATURE_AXES and axis in sums]
    if means:
        values = values.mean(dim=means, keepdim=True)
    if summed:
        values = values.sum(dim=summed, keepdim=True)
    return values.sum() / valid.expand_as(values).sum().clamp_min(1)


def _valid(axes: str, token_mask: Tensor) -> Tensor:
    """True at valid positions, in a shape that the distances' broadcasts with."""
    rows, length = token_mask.shape
    valid = torch.ones([1] * len(axes), dtype=torch.bool, device=token_mask.device)
    for axis in set(axes) & set("LK"):
        shape = [1] * len(axes)
        shape[axes.index("B")], shape[axes.index(axis)] = rows, length
        valid = valid & token_mask.view(shape)
    return valid
