"""Learned maps from a student's width to its teacher's; they train and are then thrown away."""

import torch
from torch import nn


def make_projection(
    student_width: int, teacher_width: int, *, generator: torch.Generator
) -> nn.Linear:
    """A linear map with weights from N(0, 0.02) and a bias of 0.

    The teacher is never projected: a map that may change its target has the solution zero.

    References:
        Jiao et al., *TinyBERT*, 2020, arXiv:1909.10351, equation 8 (the W of one layer; its
        published code adds the bias and this initialisation, and shares one map by all layers).
    """
    # Skipping PyTorch's own initialisation leaves the global random stream untouched.
    projection: nn.Linear = nn.utils.skip_init(nn.Linear, student_width, teacher_width)
    nn.init.normal_(projection.weight, std=0.02, generator=generator)
    nn.init.zeros_(projection.bias)
    return projection
