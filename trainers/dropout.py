"""Dropout whose masks are a function of a seed, drawn fast on the CPU.

PyTorch draws one number of 64 bits for each value that it may drop, which took a seventh of the
step of a small student, and its fused attention on the CPU knows no dropout. Here four values
share such a number, and what is kept for the way back is a byte a value. On CUDA, where drawing is
no cost, it is PyTorch's own dropout whose generator begins anew.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .masking import and_bits, as_bits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "sdpa_or_masked"
"""Our attention's name among those of transformers."""
_STEPS = 2**16
"""A probability is a number of these."""


class Masks:
    """Where the masks of a model come from: one stream, place after place in the order of a pass.

    So a pass keeps the same whenever it begins with the same seed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = np.random.SFC64(0)

    def begin(self, seed: int) -> None:
        """Before each pass."""
        if self._device.type == "cuda":
            torch.manual_seed(seed)
        else:
            self._stream = np.random.SFC64(seed)

    def draw(self, shape: torch.Size, *, kept: int) -> Tensor:
        """What is kept, as booleans, each with the probability `kept / 2**16`; on the CPU."""
        size = math.prod(shape)
        pieces = self._stream.random_raw(-(-size // 4)).view(np.uint16)[:size]
        return torch.from_numpy(pieces < kept).view(shape)


class MaskedDropout(nn.Dropout):
    """Drops with the probability `p`, to the nearest of 2**-16; the mean stays what it was."""

    def __init__(self, p: float, masks: Masks) -> None:
        super().__init__(p)
        self.masks = masks

    def forward(self, values: Tensor) -> Tensor:
        """The values, some of them 0 and the others larger; as they are in evaluation."""
        if values.is_cuda:
            return functional.dropout(values, self.p, self.training)
        kept = round((1 - self.p) * _STEPS)
        if not self.training or kept == _STEPS:
            return values
        scale = _STEPS / kept if kept else 0.0
        is_kept = self.masks.draw(values.shape, kept=kept)
        dropped: Tensor = _Drop.apply(values, is_kept, scale)  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, is_kept: Tensor, scale: float) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(is_kept)
        ctx.scale = scale
        return _kept(values, is_kept, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (is_kept,) = ctx.saved_tensors
        return _kept(gradient, is_kept, ctx.scale), None, None


def _kept(values: Tensor, is_kept: Tensor, scale: float) -> Tensor:
    # Booleans become numbers of another size one by one; integers, and all bits of -1, in vectors.
    bits = as_bits(is_kept, values.dtype)
    return and_bits(values, bits, out=bits).mul_(scale)


def _attention(
    module: nn.Module,
    query_BALD: Tensor,
    key_BALD: Tensor,
    value_BALD: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Fused attention, except where the CPU's has none: with dropout. For encoders.

    Args:
        module: The block's attention, whose `dropout` this is.
        query_BALD: Shape [B, A, L, D].
        key_BALD: Shape [B, A, L, D].
        value_BALD: Shape [B, A, L, D].
        attention_mask: Shape [B, 1, L, L], the same for each query; False is padding.
        dropout: Of the probabilities; 0 in evaluation.
        scaling: Of the scores.
        options: What transformers hands on.

    Returns:
        Shape [B, L, A, D]; and no probabilities.
    """
    if query_BALD.is_cuda or not dropout:
        return sdpa_attention_forward(
            module,
            query_BALD,
            key_BALD,
            value_BALD,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **options,
        )
    scores = torch.matmul(query_BALD, key_BALD.transpose(2, 3)).float().mul(scaling)
    if attention_mask is not None:
        is_padding = ~attention_mask[:, :, :1]
        scores += torch.zeros(is_padding.shape).masked_fill_(is_padding, -math.inf)
    probabilities = scores.softmax(-1).to(value_BALD.dtype)
    mixed = torch.matmul(module.get_submodule("dropout")(probabilities), value_BALD)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def set_dropout(model: PreTrainedModel, dropout: float, *, device: torch.device) -> Masks:
    """Drop this share of hidden states, attention probabilities and the head's input.

    Args:
        model: A BERT classifier, whose dropout and attention are exchanged.
        dropout: 0 to 1.
        device: Where the model is.

    Returns:
        The masks, which have to begin before each pass in training.
    """
    masks = Masks(device)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, MaskedDropout(dropout, masks).train(module.training))
    model.set_attn_implementation(_ATTENTION)
    return masks
