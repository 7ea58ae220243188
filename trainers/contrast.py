"""Rows told from each other by what the other model remembers of them.

B rows of a batch, K negatives of each, N rows that the stage trains on, H width, D dimension of
the vectors that are compared. The maps and memories train and are then thrown away.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..search_spaces.knowledge import Crd, Term
from ..search_spaces.matching import LayerPair
from ..search_spaces.resolution import ResolvedTerm
from ..search_spaces.trial import canonical_json, canonical_term
from .projection import linear
from .streams import generator
from .transforms import unit

OF_LOGITS = LayerPair(0, 0)
"""Stands for the pair of a term that contrasts logits."""

Contrasting = Callable[[Tensor, Tensor, LayerPair], Tensor]
"""The loss of a student's and a teacher's rows, [B, H_S] and [B, H_T], at a pair of layers."""


class Contrasts(nn.Module):
    """The maps and memories of a contrastive term: a set for each of its pairs of layers.

    In evaluation mode (`eval()`) nothing is kept of a batch.
    """

    def __init__(self, resolved: ResolvedTerm, *, num_rows: int, seed: int) -> None:
        """Draw maps and memories.

        Args:
            resolved: Its widths are known.
            num_rows: Rows that the stage trains on; at least 2.
            seed: The trial's seed.
        """
        super().__init__()
        assert isinstance(resolved.term, Crd)
        self._term, self._num_rows, self._seed = resolved.term, num_rows, seed
        keys = [_key(pair) for pair in resolved.pairs or (OF_LOGITS,)]
        self.pairs = nn.ModuleDict(
            {key: Contrast(resolved, key, num_rows=num_rows, seed=seed) for key in keys}
        )

    def of_batch(self, rows: Tensor, *, step: int) -> Contrasting:
        """The losses of one batch, with negatives that depend on seed, term, rows and step alone.

        Args:
            rows: Their numbers in train, each once, on the CPU, shape [B].
            step: Optimiser steps that the stage has taken.
        """
        stream = _stream(self._term, self._seed, "negatives", str(step))
        number = self._term.negatives
        negatives = draw_negatives(rows, number, num_rows=self._num_rows, stream=stream)
        return partial(self._loss, torch.cat([rows[:, None], negatives], dim=1))

    def remember(self) -> None:
        """Take the last batch up into the memories."""
        for pair in self.pairs.values():
            assert isinstance(pair, Contrast)
            pair.remember()

    def _loss(self, drawn: Tensor, student: Tensor, teacher: Tensor, pair: LayerPair) -> Tensor:
        loss: Tensor = self.pairs[_key(pair)](student, teacher, drawn.to(student.device))
        return loss


class Contrast(nn.Module):
    """Both sides' maps and memories at one pair of layers.

    References:
        Tian, Krishnan and Isola, *Contrastive Representation Distillation*, 2020,
        arXiv:1910.10699; its code: github.com/HobbitLong/RepDistiller, `crd`.
    """

    def __init__(self, resolved: ResolvedTerm, key: str, *, num_rows: int, seed: int) -> None:
        super().__init__()
        sizes = resolved.contrast
        assert isinstance(resolved.term, Crd)
        assert sizes is not None
        self._tau, self._momentum = resolved.term.tau, resolved.term.momentum
        widths = {"student": sizes.student_width, "teacher": sizes.teacher_width}
        made = {}
        for side, width in widths.items():
            assert width is not None, "a trainer knows the classes"
            weights, start = (
                _stream(resolved.term, seed, role, key, side) for role in ("projection", "memory")
            )
            made[side] = _Side(
                linear(width, sizes.dimension, weights),
                torch.randn(num_rows, sizes.dimension, generator=start),
            )
        self.student, self.teacher = made["student"], made["teacher"]
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, student: Tensor, teacher: Tensor, drawn: Tensor) -> Tensor:
        """The loss of a batch; in training `remember` may take its vectors up.

        Args:
            student: Shape [B, H_S].
            teacher: Shape [B, H_T]; a gradient reaches its map.
            drawn: Rows of train: of each row itself first, then its negatives; shape [B, 1 + K].

        Returns:
            Sum over both sides and over a row's negatives, mean over rows, in nats, shape [].
        """
        ours, theirs = self.student.embed(student), self.teacher.embed(teacher)
        loss = self.student.contrast(ours, self.teacher.recall(drawn), tau=self._tau)
        loss = loss + self.teacher.contrast(theirs, self.student.recall(drawn), tau=self._tau)
        if self.training:
            self._seen = ours.detach(), theirs.detach(), drawn[:, 0]
        return loss

    def remember(self) -> None:
        """Take the last batch up into both memories, if there is one."""
        if self._seen is not None:
            ours, theirs, rows = self._seen
            self.student.remember(ours, rows, momentum=self._momentum)
            self.teacher.remember(theirs, rows, momentum=self._momentum)
            self._seen = None


class _Side(nn.Module):
    def __init__(self, to_dimension: nn.Linear, start: Tensor) -> None:
        super().__init__()
        self.map = to_dimension
        self.memory: Tensor
        """A vector of length 1 for each row of train, shape [N, D]."""
        self.register_buffer("memory", unit(start))
        self.level: Tensor
        """Logarithm of the mean of exp(product / tau) over the first batch; NaN before it."""
        self.register_buffer("level", torch.tensor(math.nan))

    def embed(self, vectors: Tensor) -> Tensor:
        mapped: Tensor = self.map(vectors)
        return unit(mapped)

    def contrast(self, vectors: Tensor, remembered: Tensor, *, tau: float) -> Tensor:
        """The loss of vectors [B, D] against the other side's [B, 1 + K, D], its own row first."""
        products = (vectors.unsqueeze(1) @ remembered.transpose(1, 2)).squeeze(1) / tau
        first = products.detach().flatten().logsumexp(dim=0) - math.log(products.numel())
        level = torch.where(self.level.isnan(), first, self.level)
        if self.training:
            self.level.copy_(level)
        # The paper's h is e / (e + K c): a logistic function of log e - log c - log K.
        odds = products - level - math.log(products.shape[1] - 1)
        return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)).mean()

    def recall(self, rows: Tensor) -> Tensor:
        # A copy: what is remembered later must not reach this step's gradient.
        return F.embedding(rows, self.memory)

    @torch.no_grad()
    def remember(self, vectors: Tensor, rows: Tensor, *, momentum: float) -> None:
        mixed = momentum * self.memory[rows] + (1 - momentum) * vectors
        self.memory[rows] = unit(mixed)


def draw_negatives(rows: Tensor, number: int, *, num_rows: int, stream: torch.Generator) -> Tensor:
    """For each row some others, each as likely as any other, with replacement.

    Args:
        rows: Numbers below `num_rows`, shape [B].
        number: K.
        num_rows: N, at least 2.
        stream: Where they are drawn from.

    Returns:
        Numbers of rows, shape [B, K].
    """
    others = torch.randint(num_rows - 1, (len(rows), number), generator=stream)
    return others + (others >= rows[:, None])


def _stream(term: Term, seed: int, role: str, *rest: str) -> torch.Generator:
    return generator(seed, role, canonical_json(canonical_term(term)), *rest)


def _key(pair: LayerPair) -> str:
    return f"{pair.teacher}-{pair.student}"
