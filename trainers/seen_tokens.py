"""Train the embeddings of the tokens that a stage reads, and leave the others where they are.

A student of width 128 with BERT's vocabulary has nine tenths of its weights in word embeddings, of
which the rows of a task touch a few thousand of thirty thousand. A token that is never read has a
gradient of zero, so Adam's moments of it stay zero, and all that ever happens to its embedding is
weight decay: a factor. Clearing, clipping, stepping and copying them would be work for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .bert import parts

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from .batches import Split

_NOT_SEEN = -1
_WEIGHT = "bert.embeddings.word_embeddings.weight"


def seen_ids(splits: Iterable[Split], *, pad_token_id: int) -> Tensor:
    """The ids of all tokens of some splits and of padding, in ascending order."""
    found = [split.input_ids for split in splits]
    ids: Tensor = torch.cat([*found, torch.tensor([pad_token_id])]).unique()
    return ids


class SeenEmbedding(nn.Module):
    """Embeddings [S, W] of S of the V tokens of a vocabulary, called with the vocabulary's ids.

    An id that is none of them is out of range: an error on the CPU, an assertion on CUDA.
    """

    lookup: Tensor

    def __init__(self, whole: nn.Embedding, ids: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            whole.weight.detach()[ids], requires_grad=whole.weight.requires_grad
        )
        lookup = torch.full((whole.num_embeddings,), _NOT_SEEN, device=whole.weight.device)
        lookup[ids] = torch.arange(len(ids), device=whole.weight.device)
        self.register_buffer("lookup", lookup, persistent=False)
        padding = whole.padding_idx
        self.padding_idx = None if padding is None else int(lookup[padding])

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings [B, L, W] of ids [B, L]."""
        return functional.embedding(self.lookup[input_ids], self.weight, self.padding_idx)


class SeenTokens:
    """A model whose word embeddings are those of some tokens, and what it takes to undo that."""

    def __init__(self, model: BertForSequenceClassification, ids: Tensor) -> None:
        """Exchange the model's word embeddings.

        Args:
            model: A student or teacher that is to be trained.
            ids: The tokens that it will be asked for, ascending, shape [S].
        """
        self._model = model
        self._whole = parts(model).embeddings[0]
        device = self._whole.weight.device
        self._ids = ids.to(device)
        is_unseen = torch.ones(self._whole.num_embeddings, dtype=torch.bool, device=device)
        is_unseen[self._ids] = False
        self._unseen_ids = is_unseen.nonzero().flatten()
        self._seen = SeenEmbedding(self._whole, self._ids)
        self.unseen = self._whole.weight.detach()[self._unseen_ids]
        """Of the other tokens, as they were when the stage began, shape [V - S, W]."""
        self.decay = 1.0
        """What weight decay has made of them since, as a factor."""
        self._place(self._seen)

    def step(self, *, learning_rate: float, weight_decay: float) -> None:
        """Follow a step of AdamW, whose moments of tokens without a gradient are zero.

        References:
            Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
            algorithm 2, line 12.
        """
        # Where nothing has a gradient, AdamW leaves the weights alone.
        if self._seen.weight.requires_grad:
            self.decay *= 1 - learning_rate * weight_decay

    def widen(self, weights: Mapping[str, Tensor], *, decay: float) -> dict[str, Tensor]:
        """The whole model's weights, from the state of one with the embeddings of seen tokens."""
        return {**weights, _WEIGHT: self._widened(weights[_WEIGHT], decay)}

    def give_back(self) -> None:
        """Put the embeddings of all tokens back into the model."""
        with torch.no_grad():
            self._whole.weight.copy_(self._widened(self._seen.weight.detach(), self.decay))
        self._place(self._whole)

    def _widened(self, seen: Tensor, decay: float) -> Tensor:
        widened = torch.empty_like(self._whole.weight.detach())
        widened[self._ids] = seen
        widened[self._unseen_ids] = self.unseen * decay
        return widened

    def _place(self, embedding: nn.Module) -> None:
        self._model.bert.embeddings.set_submodule("word_embeddings", embedding)


@contextmanager
def seeing(model: BertForSequenceClassification, ids: Tensor) -> Iterator[SeenTokens]:
    """Train the embeddings of these tokens alone; afterwards all are in the model again."""
    seen = SeenTokens(model, ids)
    try:
        yield seen
    finally:
        seen.give_back()
