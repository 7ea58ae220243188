"""What a teacher says about the rows of a stage: asked for each batch, or once and kept.

Kept outputs come from one canonical pass (rows in the order of their lengths, fixed batches), so
that they are the same in every lane whichever trial wanted them first. Of each row the tokens
alone are kept, packed one row after the other:

* logits [N, C];
* hidden states, queries, keys or values of a layer [sum of L, H];
* attention scores of a block [sum of L * L, A], heads last, so that one pair of tokens is one
  stretch of memory.

N rows, L tokens of a row, H width, A heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, assert_never

import torch
from torch import Tensor

from .batches import collate, length_batches, token_index
from .errors import StoppedError
from .features import Feature, Features, Needs
from .forward import forward

if TYPE_CHECKING:
    from torch import nn

    from .batches import Batch, Split
    from .features import Sizes
    from .language import LanguageHead
    from .settings import Precision

BATCH_SIZE = 32
"""Of the canonical pass."""

_FP32_BYTES = 4
_NOT_KEPT = "hidden tokens are others in every step"


class TeacherOutputs(Protocol):
    """Where the objective gets the teacher's side from."""

    def features(self, batch: Batch) -> Features:
        """The teacher's outputs for a batch of them, on the batch's device."""
        ...


@dataclass(frozen=True)
class Online:
    """The teacher runs on every batch."""

    teacher: nn.Module
    needs: Needs
    precision: Precision
    language_head: LanguageHead | None = None

    @torch.no_grad()
    def features(self, batch: Batch) -> Features:
        """The outputs of one forward pass."""
        return forward(
            self.teacher,
            batch,
            self.needs,
            precision=self.precision,
            language_head=self.language_head,
        )


@dataclass(frozen=True)
class Kept:
    """The teacher has run once."""

    kept: Mapping[Feature, Tensor]
    offsets: Tensor
    """Where each row's tokens start, and the end, shape [N + 1]."""
    square_offsets: Tensor
    """Where each row's pairs of tokens start, and the end, shape [N + 1]."""

    def features(self, batch: Batch) -> Features:
        """What is kept of the batch's rows; padding repeats a row's first token."""
        device = batch.labels.device
        return {feature: _onto(self._gather(feature, batch.rows), device) for feature in self.kept}

    def _gather(self, feature: Feature, rows: Tensor) -> Tensor:
        packed = self.kept[feature]
        if feature.kind == "logits":
            return packed[rows]
        index, mask = token_index(self.offsets, rows)
        if feature.kind != "attentions":
            return packed.index_select(0, index.flatten()).view(*index.shape, -1)
        pairs = _pair_index(self.offsets, self.square_offsets, rows, mask)
        return packed.index_select(0, pairs.flatten()).view(*pairs.shape, -1).permute(0, 3, 1, 2)


def feature_bytes(feature: Feature, *, sizes: Sizes, lengths: Tensor) -> int:
    """What keeping a feature of all rows takes in memory."""
    match feature.kind:
        case "logits":
            assert sizes.num_labels is not None, "a model that runs has its classes"
            numbers = len(lengths) * sizes.num_labels
        case "hidden_states" | "queries" | "keys" | "values":
            numbers = int(lengths.sum()) * sizes.hidden_size
        case "attentions":
            numbers = int(lengths.square().sum()) * sizes.num_attention_heads
        case "words":
            raise AssertionError(_NOT_KEPT)
        case _:
            assert_never(feature.kind)
    return numbers * _FP32_BYTES


def square_offsets(offsets: Tensor) -> Tensor:
    """Where each row's pairs of tokens start, and the end, shape [N + 1]."""
    squares = offsets.diff().square().cumsum(0)
    return torch.cat([squares.new_zeros(1), squares])


@torch.no_grad()
def canonical_pass(
    teacher: nn.Module,
    split: Split,
    features: Needs,
    *,
    sizes: Sizes,
    pad_token_id: int,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool],
) -> dict[Feature, Tensor]:
    """Run the teacher once over a split, and keep features packed, in fp32, on the CPU.

    Raises:
        StoppedError: `stop` became true on the way.
    """
    squares = square_offsets(split.offsets)
    kept = {
        feature: torch.empty(
            feature_bytes(feature, sizes=sizes, lengths=split.lengths) // _FP32_BYTES
        ).view(_packed_rows(feature, split, squares), -1)
        for feature in sorted(features)
    }
    for rows in length_batches(split.lengths, BATCH_SIZE):
        if stop():
            raise StoppedError
        batch = collate(split, rows, pad_token_id=pad_token_id)
        outputs = forward(teacher, batch.to(device), features, precision=precision)
        tokens, mask = token_index(split.offsets, rows)
        pairs = _pair_index(split.offsets, squares, rows, mask)
        pair_mask = mask[:, :, None] & mask[:, None, :]
        for feature, packed in kept.items():
            output = outputs[feature].float().cpu()
            match feature.kind:
                case "logits":
                    packed[rows] = output
                case "hidden_states" | "queries" | "keys" | "values":
                    packed[tokens[mask]] = output[mask]
                case "attentions":
                    packed[pairs[pair_mask]] = output.permute(0, 2, 3, 1)[pair_mask]
                case "words":
                    raise AssertionError(_NOT_KEPT)
                case _:
                    assert_never(feature.kind)
    return kept


def _packed_rows(feature: Feature, split: Split, squares: Tensor) -> int:
    match feature.kind:
        case "logits":
            return len(split)
        case "hidden_states" | "queries" | "keys" | "values":
            return int(split.offsets[-1])
        case "attentions":
            return int(squares[-1])
        case "words":
            raise AssertionError(_NOT_KEPT)


def _pair_index(offsets: Tensor, squares: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """Where the pairs of tokens lie, [B, L, L]; with padding, at the row's first pair."""
    lengths = offsets[rows + 1] - offsets[rows]
    position = torch.arange(mask.shape[1])
    within = position[:, None] * lengths[:, None, None] + position
    return squares[rows][:, None, None] + within * (mask[:, :, None] & mask[:, None, :])


def _onto(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return tensor
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
