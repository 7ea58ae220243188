"""Zeros in the place of what does not count, whatever stands there."""

import math

import pytest
import torch
from torch import Tensor

from kdsweep.trainers.masking import kept

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

IS_KEPT = torch.tensor([[True], [False]])


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_kept_stays_and_everything_else_is_zero(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.5, -0.25, math.inf], [math.nan, -math.inf, 3.0]], dtype=dtype)
    found = kept(values, IS_KEPT)
    assert found.dtype == dtype
    assert found.tolist() == [[1.5, -0.25, math.inf], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", TYPES)
def test_no_gradient_reaches_what_is_not_kept_even_one_that_is_no_number(
    dtype: torch.dtype,
) -> None:
    values = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    kept(values, IS_KEPT).backward(torch.tensor([[2.0, 3.0, 4.0], [math.nan, math.inf, 1.0]]))
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, 3.0, 4.0], [0.0, 0.0, 0.0]]


def test_views_and_expanded_values_are_read_as_they_are() -> None:
    values = torch.arange(6.0).view(3, 2).t()
    expected = torch.where(IS_KEPT, values, 0.0)
    assert torch.equal(kept(values, IS_KEPT), expected)
    assert torch.equal(kept(torch.ones(1, 1).expand(2, 3), IS_KEPT), IS_KEPT.expand(2, 3).float())


def test_a_gradient_may_be_differentiated_again() -> None:
    def cubed(values: Tensor) -> Tensor:
        return kept(values, IS_KEPT).pow(3)

    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cubed, values)
    assert torch.autograd.gradgradcheck(cubed, values)
