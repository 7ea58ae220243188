"""Learned maps from a student's width to its teacher's; they train and are then thrown away."""

from typing import assert_never

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from ..search_spaces.knowledge import Projection


def make_projection(
    kind: Projection, student_width: int, teacher_width: int, *, generator: torch.Generator
) -> nn.Module:
    """A map of vectors; weights come from N(0, 0.02) or are orthonormal, biases are 0.

    The teacher is not projected here: a map that may change its target has the solution zero,
    unless a contrast forbids it (`contrast.py`).

    Args:
        kind: Its form; not `none`.
        student_width: Of the vectors that go in.
        teacher_width: Of those that come out.
        generator: Of the weights; the global random stream stays untouched.

    References:
        Jiao et al., *TinyBERT*, 2020, arXiv:1909.10351 (the W_h of one layer; its
        published code adds the bias and this initialisation, and shares one map by all layers).
    """
    match kind:
        case "linear":
            return linear(student_width, teacher_width, generator)
        case "linear_norm":
            first = linear(student_width, teacher_width, generator)
            return nn.Sequential(first, nn.LayerNorm(teacher_width))
        case "mlp":
            first = linear(student_width, teacher_width, generator)
            second = linear(teacher_width, teacher_width, generator)
            return nn.Sequential(first, nn.GELU(), second)
        case "orthogonal":
            return _orthogonal(student_width, teacher_width, generator)
        case "none":
            raise ValueError("no projection is not made")
        case _:
            assert_never(kind)


def linear(ins: int, outs: int, generator: torch.Generator) -> nn.Linear:
    """A map of vectors; weights come from N(0, 0.02), biases are 0."""
    # Skipping PyTorch's own initialisation leaves the global random stream untouched.
    made: nn.Linear = nn.utils.skip_init(nn.Linear, ins, outs)
    nn.init.normal_(made.weight, std=0.02, generator=generator)
    nn.init.zeros_(made.bias)
    return made


def _orthogonal(ins: int, outs: int, generator: torch.Generator) -> nn.Module:
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, ins, outs, bias=False)
    nn.init.orthogonal_(linear.weight, generator=generator)
    # PyTorch completes the columns to a square matrix with its global random stream.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return orthogonal(linear, "weight")
