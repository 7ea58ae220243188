"""From the distances of all positions to one number: what counts, and how it is averaged."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .masking import and_bits, as_bits, kept

FEATURE_AXES = "AHC"
"""Heads, features and classes: every one of them counts at every position."""


class Distances(NamedTuple):
    """Distances of which nothing is masked or reduced."""

    values: Tensor
    axes: str
    """One letter an axis: B rows, L tokens, K the keys of a token, A heads, H features, C classes,
    P pairs or triples of rows."""


def reduce(distances: Distances, token_mask: Tensor, *, also: Tensor | None = None) -> Tensor:
    """The mean over the batch's valid positions; padding is none.

    Args:
        distances: Of any axes.
        token_mask: Shape [B, L], True at real tokens.
        also: What else must be true of a position; of the distances' shape.

    Returns:
        Shape []; 0 where no position is valid.
    """
    values, axes = distances
    valid = _valid(axes, token_mask)
    if also is not None:
        valid = valid & also
    # One sum: a mean on the way would cost the gradient another pass over all values.
    return kept(values, valid).sum() / _count(valid, values.shape, axes)


def reduce_squares(
    student: Tensor, teacher: Tensor, axes: str, token_mask: Tensor, *, sums: str = ""
) -> Tensor:
    """The mean squared difference over the batch's valid positions, as `reduce` has it.

    What stands at other positions does not matter, NaN included, to value or gradient.

    Args:
        student: Of any axes.
        teacher: Of the same shape.
        axes: As in `Distances`.
        token_mask: Shape [B, L], True at real tokens.
        sums: Axes of heads, features or classes that are summed instead.

    Returns:
        Shape []; 0 where no position is valid.
    """
    assert student.shape == teacher.shape, "each number has one that it is compared with"
    valid = _valid(axes, token_mask)
    bits = as_bits(valid, student.dtype)
    total: Tensor = _SumOfSquares.apply(student, teacher, bits)  # type: ignore[no-untyped-call]
    return total / _count(valid, student.shape, axes, sums=sums)


class _SumOfSquares(torch.autograd.Function):
    # What is compared is larger than a processor's cache, so that time goes with the passes over
    # it: mask, difference and square as functions of their own take half as long again. Once
    # differentiable: nothing asks for a second derivative, and this one's would be 0.
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, bits: Tensor) -> Tensor:  # noqa: ANN401
        difference = student - teacher
        and_bits(difference, bits, out=difference.view(bits.dtype))
        ctx.save_for_backward(difference)
        return difference.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:  # noqa: ANN401
        (difference,) = ctx.saved_tensors
        of_student = difference * (2 * gradient)
        return of_student, -of_student if ctx.needs_input_grad[1] else None, None


def _count(valid: Tensor, shape: torch.Size, axes: str, *, sums: str = "") -> Tensor:
    """What a sum over all valid positions is divided by."""
    alike = [n for n, axis in enumerate(axes) if axis in FEATURE_AXES]
    averaged = math.prod(shape[n] for n in alike if axes[n] not in sums)
    positions = [1 if n in alike else size for n, size in enumerate(shape)]
    return valid.expand(positions).sum().clamp_min(1) * averaged


def _valid(axes: str, token_mask: Tensor) -> Tensor:
    """True at valid positions, in a shape that the distances' broadcasts with."""
    rows, length = token_mask.shape
    valid = torch.ones([1] * len(axes), dtype=torch.bool, device=token_mask.device)
    for axis in set(axes) & set("LK"):
        shape = [1] * len(axes)
        shape[axes.index("B")], shape[axes.index(axis)] = rows, length
        valid = valid & token_mask.view(shape)
    return valid
