"""Which rows make a batch, and the batch itself: pure functions of lengths, seed and epoch.

Shapes: B rows of a batch, L tokens of its longest row, N rows of a split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .streams import generator

if TYPE_CHECKING:
    from .tokens import TokenisedSplit

MEGA_BATCH = 50
"""Batches that are sorted by length together: enough for equal lengths, few enough for chance."""


@dataclass(frozen=True)
class Split:
    """A tokenised split in memory."""

    input_ids: Tensor
    """Of all rows, one after the other, int64."""
    token_type_ids: Tensor
    """Likewise."""
    offsets: Tensor
    """Where each row starts, and the end; int64, shape [N + 1]."""
    labels: Tensor
    """int64, shape [N]."""

    @classmethod
    def of(cls, split: TokenisedSplit) -> Split:
        """Copied, so that a memory-mapped file is read once."""
        return cls(
            input_ids=torch.from_numpy(np.asarray(split.input_ids, dtype=np.int64).copy()),
            token_type_ids=torch.from_numpy(
                np.asarray(split.token_type_ids, dtype=np.int64).copy()
            ),
            offsets=torch.from_numpy(np.asarray(split.offsets, dtype=np.int64).copy()),
            labels=torch.from_numpy(np.asarray(split.labels, dtype=np.int64).copy()),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, shape [N]."""
        return self.offsets.diff()


@dataclass(frozen=True)
class Batch:
    """Rows of a split, padded to the longest of them."""

    rows: Tensor
    """Their numbers in the split, on the CPU, shape [B]."""
    input_ids: Tensor
    """Shape [B, L]."""
    attention_mask: Tensor
    """1 for a token and 0 for padding, int64, shape [B, L]."""
    token_type_ids: Tensor
    """Shape [B, L]."""
    labels: Tensor
    """Shape [B]."""
    targets: Tensor | None = None
    """What hidden tokens were, -100 at all others, int64, shape [B, L]; None: none is hidden."""

    @property
    def is_hidden(self) -> Tensor | None:
        """Where tokens are hidden, shape [B, L]; None: nowhere."""
        return None if self.targets is None else self.targets >= 0

    def to(self, device: torch.device) -> Batch:
        """On a device; from pinned memory, so that the copy runs beside the arithmetic."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return Batch(
            rows=self.rows,
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            token_type_ids=move(self.token_type_ids),
            labels=move(self.labels),
            targets=None if self.targets is None else move(self.targets),
        )


def collate(split: Split, rows: Tensor, *, pad_token_id: int) -> Batch:
    """The batch of some rows, on the CPU."""
    starts = split.offsets[rows]
    index, mask = padded_index(starts, split.offsets[rows + 1] - starts)
    return Batch(
        rows=rows,
        input_ids=split.input_ids[index].masked_fill_(~mask, pad_token_id),
        attention_mask=mask.long(),
        token_type_ids=split.token_type_ids[index].masked_fill_(~mask, 0),
        labels=split.labels[rows],
    )


def padded_index(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens of some rows lie, padded to the longest row.

    Args:
        starts: Where each row's tokens start, shape [B].
        lengths: How many it has, shape [B].

    Returns:
        The index, where padding points at the row's first token, and the mask (True for a token);
        both of shape [B, L].
    """
    position = torch.arange(int(lengths.max()))
    mask = position < lengths[:, None]
    return starts[:, None] + position * mask, mask


def length_batches(lengths: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """All rows in the order of their lengths, ties in the order of the split."""
    batches: tuple[Tensor, ...] = torch.argsort(lengths, stable=True).split(batch_size)
    return batches


def epoch_batches(lengths: Tensor, *, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch: rows of like length together, everything else left to chance.

    Every row comes exactly once; one batch of the epoch may be smaller than the others.
    """
    order = generator(seed, "order", str(epoch))
    shuffled = torch.randperm(len(lengths), generator=order)
    batches = [
        batch
        for mega_batch in shuffled.split(batch_size * MEGA_BATCH)
        for batch in mega_batch[torch.argsort(lengths[mega_batch], stable=True)].split(batch_size)
    ]
    return tuple(batches[n] for n in torch.randperm(len(batches), generator=order).tolist())


def steps_per_epoch(num_rows: int, *, batch_size: int) -> int:
    """Batches in which every row comes once: the last partial one counts."""
    return -(-num_rows // batch_size)
