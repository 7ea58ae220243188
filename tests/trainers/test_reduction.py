"""Reduction: what counts, and that squares taken in one go are those taken apart."""

import math

import pytest
import torch
from torch import Tensor

from kdsweep.trainers.distances import squared_difference
from kdsweep.trainers.reduction import Distances, reduce, reduce_squares

MASK = torch.tensor([[True, True, True], [True, False, False]])


def drawn(*shape: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def test_a_mean_of_squares_by_hand() -> None:
    # Real tokens hold 1 to 8, whose squares sum to 204, and the teacher 0; the 9s are padding.
    student = torch.tensor(
        [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 9.0], [9.0, 9.0]]]
    )
    nothing = torch.zeros_like(student)
    assert reduce_squares(student, nothing, "BLH", MASK).item() == 25.5
    assert reduce_squares(student, nothing, "BLH", MASK, sums="H").item() == 51.0


@pytest.mark.parametrize(
    ("axes", "shape", "sums"),
    [
        ("BLH", (2, 3, 4), ""),
        ("BLH", (2, 3, 4), "H"),
        ("BH", (2, 4), ""),
        ("BALK", (2, 4, 3, 3), ""),
    ],
)
def test_squares_and_their_gradient_are_those_of_the_parts(
    axes: str, shape: tuple[int, ...], sums: str
) -> None:
    student, teacher = (drawn(*shape, seed=seed).requires_grad_() for seed in (0, 1))
    squares = squared_difference(student, teacher)
    if sums:
        squares = squares.sum(dim=axes.index(sums))
    apart = reduce(Distances(squares, axes.replace(sums, "")), MASK)
    at_once = reduce_squares(student, teacher, axes, MASK, sums=sums)
    assert at_once.item() == pytest.approx(apart.item(), rel=1e-12)
    expected = torch.autograd.grad(apart, [student, teacher])
    torch.testing.assert_close(torch.autograd.grad(at_once, [student, teacher]), expected)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_what_stands_in_padding_reaches_neither_value_nor_gradient(garbage: float) -> None:
    clean = drawn(2, 3, 4, seed=0).float()
    full = clean.masked_fill(~MASK[:, :, None], garbage).requires_grad_()
    teacher = drawn(2, 3, 4, seed=1).float().masked_fill(~MASK[:, :, None], -garbage)
    found = reduce_squares(full, teacher, "BLH", MASK)
    exact = reduce_squares(clean, teacher.nan_to_num(), "BLH", MASK)
    assert found.item() == exact.item()
    [gradient] = torch.autograd.grad(found, [full])
    assert bool(gradient.isfinite().all())
    assert not bool(gradient[~MASK].any())


def test_where_nothing_is_real_nothing_is_lost() -> None:
    student = drawn(2, 3, 4, seed=0).requires_grad_()
    found = reduce_squares(student, drawn(2, 3, 4, seed=1), "BLH", torch.zeros_like(MASK))
    found.backward()
    assert found.item() == 0.0
    assert student.grad is not None
    assert not bool(student.grad.any())
