"""Flows between layers: who teaches whom where every layer may teach every other."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

_LEAST_COST = 1e-12
"""Below it a weight cannot be divided by what its flow costs."""


class Transport(nn.Module):
    """Cheapest flows between the blocks of a student and of a teacher, with weights as state.

    References:
        Li et al., *BERT-EMD*, 2020, arXiv:2010.06133, and its code: after each step a weight
        becomes the share of the flow's cost that it carries divided by itself, then its inverse,
        divided by the sum.
    """

    def __init__(
        self,
        num_student_layers: int,
        num_teacher_layers: int,
        weights: Literal["adaptive", "uniform"],
    ) -> None:
        super().__init__()
        self.student: Tensor
        """Weights of the student's blocks, shape [S]; their sum is 1."""
        self.teacher: Tensor
        """Weights of the teacher's blocks, shape [T]; their sum is 1."""
        for name, number in (("student", num_student_layers), ("teacher", num_teacher_layers)):
            self.register_buffer(name, torch.full((number,), 1 / number, dtype=torch.float64))
        self._adapts = weights == "adaptive"

    def flow(self, costs: Tensor) -> Tensor:
        """The flow of least cost.

        Args:
            costs: Of moving from a student's block to a teacher's, shape [S, T]; no gradient flows
                through them.

        Returns:
            How much moves, shape [S, T]; rows sum to the student's weights, columns to the
            teacher's.
        """
        import ot

        detached = costs.detach()
        moved = ot.emd(
            np.ascontiguousarray(self.student.cpu().numpy()),
            np.ascontiguousarray(self.teacher.cpu().numpy()),
            detached.double().cpu().numpy(),
        )
        flow = torch.from_numpy(np.asarray(moved)).to(detached)
        if self._adapts:
            self._adapt(flow.double() * detached.double())
        return flow

    def _adapt(self, cost: Tensor) -> None:
        for weights, spent in ((self.student, cost.sum(dim=1)), (self.teacher, cost.sum(dim=0))):
            price = (spent / weights).clamp_min(_LEAST_COST)
            inverse = price.sum() / price
            weights.copy_(inverse / inverse.sum())


def entropy(shares: Tensor) -> Tensor:
    """Entropy of shares that sum to 1 along the last axis, in nats; the last axis goes."""
    logs = torch.where(shares > 0, shares, 1.0).log()
    return -(shares * logs).sum(dim=-1)
