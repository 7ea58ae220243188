"""Zeros where something does not count, in place of whatever stands there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
"""Integers of the same size."""


def kept(values: Tensor, is_kept: Tensor) -> Tensor:
    """The values where they are kept, and 0 elsewhere, even in place of NaN; so with gradients.

    Args:
        values: Any shape.
        is_kept: Boolean, of a shape that broadcasts to that of the values.
    """
    found: Tensor = _Kept.apply(values, as_bits(is_kept, values.dtype))  # type: ignore[no-untyped-call]
    return found


def as_bits(is_kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers of the size of a floating type: all bits set where something is kept, else none."""
    return is_kept.to(_BITS[dtype]).neg_()


def and_bits(values: Tensor, bits: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The values where all bits are set, and 0 where none is.

    Args:
        values: Floating.
        bits: What `as_bits` made; its shape broadcasts to that of the values.
        out: Written to; of the type of `bits` and the shape of the values.
    """
    return torch.bitwise_and(values.view(bits.dtype), bits, out=out).view(values.dtype)


class _Kept(torch.autograd.Function):
    # `torch.where` took three times as long on a CPU: it is not vectorised over mixed types.
    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(bits)
        return and_bits(values, bits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (bits,) = ctx.saved_tensors
        # As a function of autograd's, so that a loss of the user's may differentiate twice.
        return _Kept.apply(gradient, bits), None  # type: ignore[no-untyped-call]
