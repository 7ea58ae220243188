"""A batch in parts: the whole batch's gradient in about the memory of a part.

The student runs over one part after the other, the objective looks at all rows at once, and each
part runs again to carry the gradients of its features on. So a mean over the batch's tokens, a
projection, or a term that relates rows is that of the whole batch. What is needed of all rows at
once is their features and what the objective makes of them.

References:
    Gao et al., *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup*, 2021,
    arXiv:2101.06983, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import Batch
from .features import Feature

if TYPE_CHECKING:
    from .features import Features


def split(batch: Batch, number: int) -> tuple[Batch, ...]:
    """At most so many parts of equal size, the last perhaps smaller; each as long as the batch."""
    size = -(-len(batch.rows) // number)
    fields = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
    parts = zip(*(tensor.split(size) for tensor in fields.values()), strict=True)
    return tuple(Batch(**dict(zip(fields, part, strict=True))) for part in parts)


def join(parts: Iterable[Features]) -> dict[Feature, Tensor]:
    """The features of a batch from those of its parts, in order."""
    held = [dict(part) for part in parts]
    # Popped, so that one feature at a time is there twice.
    return {feature: torch.cat([part.pop(feature) for part in held]) for feature in list(held[0])}


class CachedFeatures:
    """Features of a batch that ran in parts, with a way back into the parameters."""

    def __init__(self, run: Callable[[Batch, int], Features], parts: Sequence[Batch]) -> None:
        """Run every part once.

        Args:
            run: Gives a part's features, and the same ones when it is asked again: dropout is to
                be a function of the part's number, from 0.
            parts: Of the batch, in order.
        """
        self._run = run
        self._parts = parts
        seen = [self._without_graph(part, number) for number, part in enumerate(parts)]
        self.features: Features = {
            feature: tensor.requires_grad_() for feature, tensor in join(seen).items()
        }
        """Of all rows; leaves, whose gradients `backward` carries on."""

    def _without_graph(self, part: Batch, number: int) -> Features:
        # PyTorch chooses kernels, and with them dropout, by whether there is to be a gradient: a
        # graph that is thrown away keeps the second run equal to the first.
        return {feature: tensor.detach() for feature, tensor in self._run(part, number).items()}

    def backward(self) -> None:
        """Add to the parameters' gradients what the features' gradients, as they are now, give."""
        gradients = {
            feature: tensor.grad
            for feature, tensor in self.features.items()
            if tensor.grad is not None
        }
        for tensors, of_part in self._again(gradients):
            torch.autograd.backward(tensors, of_part)

    def gradient_norms(self, losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[float]:
        """As `optim.gradient_norms`, for losses of the features; each runs every part again."""
        return [self._gradient_norm(loss, parameters) for loss in losses]

    def _gradient_norm(self, loss: Tensor, parameters: Sequence[Tensor]) -> float:
        of_features: Sequence[Tensor | None] = torch.autograd.grad(
            loss, list(self.features.values()), retain_graph=True, allow_unused=True
        )
        found = zip(self.features, of_features, strict=True)
        gradients = {feature: each for feature, each in found if each is not None}
        sums: list[Tensor | None] = [None] * len(parameters)
        for tensors, of_part in self._again(gradients):
            more: Sequence[Tensor | None] = torch.autograd.grad(
                tensors, parameters, of_part, allow_unused=True
            )
            sums = [_sum(*each) for each in zip(sums, more, strict=True)]
        reached = [gradient for gradient in sums if gradient is not None]
        return float(torch.nn.utils.get_total_norm(reached))

    def _again(
        self, gradients: Mapping[Feature, Tensor]
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Of each part: its features, with their graph, and their share of the gradients."""
        left = dict(gradients)
        for number, part in enumerate(self._parts):
            seen = self._run(part, number)
            shares = []
            for feature, gradient in left.items():
                # Most features have a row of the batch in a row, words a hidden token.
                size = len(seen[feature])
                shares.append(gradient[:size])
                left[feature] = gradient[size:]
            yield [seen[feature] for feature in gradients], shares


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
