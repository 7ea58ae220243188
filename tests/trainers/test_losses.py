"""Each loss against another library or a loop over unpadded samples."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdsweep.trainers.losses import (
    attention_log_probabilities,
    attention_probability_kl,
    attention_score_mse,
    hard_label_loss,
    hidden_state_cosine,
    hidden_state_mse,
    mean_of_head_log_probabilities,
    mean_of_heads,
    soft_logit_kl,
    soft_logit_mse,
    zero_padding,
)

MaskedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
LogitLoss = Callable[[Tensor, Tensor], Tensor]

LENGTHS = [5, 1, 3]
HEADS = 3
WIDTH = 4
GARBAGE = [math.nan, math.inf, -math.inf, 1e38, -7.0]


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The distance of probabilities, from scores."""
    return attention_probability_kl(
        attention_log_probabilities(student, mask), attention_log_probabilities(teacher, mask), mask
    )


def mean_attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The distance of the heads' mean probabilities, from scores."""
    return attention_probability_kl(
        mean_of_head_log_probabilities(attention_log_probabilities(student, mask)),
        mean_of_head_log_probabilities(attention_log_probabilities(teacher, mask)),
        mask,
    )


def mean_attention_score_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The distance of the heads' mean scores."""
    return attention_score_mse(mean_of_heads(student), mean_of_heads(teacher), mask)


HIDDEN_LOSSES = [hidden_state_mse, hidden_state_cosine]
ATTENTION_LOSSES = [
    attention_score_mse,
    mean_attention_score_mse,
    attention_kl,
    mean_attention_kl,
]
LOGIT_LOSSES = [partial(soft_logit_kl, temperature=2.0), soft_logit_mse]


def hidden_states(*, seed: int, length: int = 5) -> Tensor:
    return torch.randn(3, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def scores(*, seed: int, length: int = 5, heads: int = HEADS) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(3, heads, length, length, generator=stream)


def logits(*, seed: int) -> Tensor:
    return 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def token_mask(length: int = 5) -> Tensor:
    return torch.arange(length) < torch.tensor(LENGTHS)[:, None]


def pad(features: Tensor, *, to: int, garbage: float) -> Tensor:
    """Put garbage wherever a token of padding is involved, and add more padding."""
    length = features.shape[-2]
    real = token_mask(to)
    if features.ndim == 3:
        padded = torch.zeros(3, to, WIDTH)
        padded[:, :length] = features
        return padded.masked_fill(~real[:, :, None], garbage)
    padded = torch.zeros(3, features.shape[1], to, to)
    padded[:, :, :length, :length] = features
    return padded.masked_fill(~(real[:, None, :, None] & real[:, None, None, :]), garbage)


# Values


def test_hard_label_loss_is_scikit_learns_log_loss() -> None:
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    probabilities = scipy.special.softmax(logits(seed=1).double().numpy(), axis=1)
    expected = sklearn.metrics.log_loss(labels.numpy(), probabilities, labels=[0, 1, 2, 3])
    assert hard_label_loss(logits(seed=1), labels).item() == pytest.approx(expected, rel=1e-6)


def test_soft_logit_kl_by_hand() -> None:
    # Teacher (1/4, 3/4), student (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2)
    teacher = torch.tensor([[0.0, math.log(3)]])
    student = torch.zeros(1, 2)
    assert soft_logit_kl(student, teacher, temperature=1.0).item() == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_logit_kl_is_scipys_relative_entropy_times_the_squared_temperature(
    temperature: float,
) -> None:
    student, teacher = (logits(seed=n).double().numpy() / temperature for n in (1, 2))
    divergences = scipy.stats.entropy(
        scipy.special.softmax(teacher, axis=1), scipy.special.softmax(student, axis=1), axis=1
    )
    expected = temperature**2 * divergences.mean()
    loss = soft_logit_kl(logits(seed=1), logits(seed=2), temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_soft_logit_mse_is_scikit_learns_mean_squared_error() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    expected = sklearn.metrics.mean_squared_error(teacher.numpy(), student.numpy())
    assert soft_logit_mse(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_hidden_state_mse_by_hand_is_a_mean_over_the_batchs_tokens_and_not_over_rows() -> None:
    # One token differs by (3, 1), three tokens by (1, 1): (5 + 1 + 1 + 1) / 4, not (5 + 1) / 2
    student = torch.tensor([[[3.0, 1.0], [9.0, 9.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    assert hidden_state_mse(student, torch.zeros(2, 3, 2), mask).item() == pytest.approx(2.0)


def test_hidden_state_mse_equals_a_loop_over_unpadded_tokens() -> None:
    student, teacher = hidden_states(seed=1), hidden_states(seed=2)
    expected = np.mean(
        [
            sklearn.metrics.mean_squared_error(teacher[row, token], student[row, token])
            for row, length in enumerate(LENGTHS)
            for token in range(length)
        ]
    )
    loss = hidden_state_mse(student, teacher, token_mask())
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_hidden_state_cosine_equals_scipys_distance_over_unpadded_tokens() -> None:
    student, teacher = hidden_states(seed=1), hidden_states(seed=2)
    expected = np.mean(
        [
            scipy.spatial.distance.cosine(student[row, token], teacher[row, token])
            for row, length in enumerate(LENGTHS)
            for token in range(length)
        ]
    )
    loss = hidden_state_cosine(student, teacher, token_mask())
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_attention_score_mse_equals_a_loop_over_unpadded_pairs() -> None:
    student, teacher = scores(seed=1), scores(seed=2)
    squares = [
        np.square(student[row, head, :n, :n].numpy() - teacher[row, head, :n, :n].numpy()).ravel()
        for row, n in enumerate(LENGTHS)
        for head in range(HEADS)
    ]
    loss = attention_score_mse(student, teacher, token_mask())
    assert loss.item() == pytest.approx(np.concatenate(squares).mean(), rel=1e-6)


def test_mean_attention_score_mse_compares_the_means_of_unlike_numbers_of_heads() -> None:
    student, teacher = scores(seed=1, heads=2), scores(seed=2, heads=5)
    squares = [
        np.square(student[row].numpy().mean(0) - teacher[row].numpy().mean(0))[:n, :n].ravel()
        for row, n in enumerate(LENGTHS)
    ]
    loss = mean_attention_score_mse(student, teacher, token_mask())
    assert loss.item() == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)


def test_attention_kl_equals_scipys_relative_entropy_over_unpadded_rows() -> None:
    student, teacher = scores(seed=1), scores(seed=2)
    divergences = [
        scipy.stats.entropy(
            _softmax(teacher[row, head, :n, :n]), _softmax(student[row, head, :n, :n]), axis=1
        )
        for row, n in enumerate(LENGTHS)
        for head in range(HEADS)
    ]
    loss = attention_kl(student, teacher, token_mask())
    assert loss.item() == pytest.approx(np.concatenate(divergences).mean(), rel=1e-5)


def test_mean_attention_kl_compares_the_mean_probabilities_of_unlike_numbers_of_heads() -> None:
    student, teacher = scores(seed=1, heads=2), scores(seed=2, heads=5)
    divergences = [
        scipy.stats.entropy(
            _softmax(teacher[row, :, :n, :n]).mean(0),
            _softmax(student[row, :, :n, :n]).mean(0),
            axis=1,
        )
        for row, n in enumerate(LENGTHS)
    ]
    loss = mean_attention_kl(student, teacher, token_mask())
    assert loss.item() == pytest.approx(np.concatenate(divergences).mean(), rel=1e-5)


def _softmax(values: Tensor) -> np.ndarray:
    return scipy.special.softmax(values.double().numpy(), axis=-1)


# A student that equals its teacher


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
def test_logit_losses_are_zero_when_the_student_equals_the_teacher(loss: LogitLoss) -> None:
    assert loss(logits(seed=1), logits(seed=1)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", HIDDEN_LOSSES)
def test_hidden_state_losses_are_zero_when_the_student_equals_the_teacher(
    loss: MaskedLoss,
) -> None:
    same = hidden_states(seed=1)
    assert loss(same, same, token_mask()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ATTENTION_LOSSES)
def test_attention_losses_are_zero_when_the_student_equals_the_teacher(loss: MaskedLoss) -> None:
    same = scores(seed=1)
    assert loss(same, same, token_mask()).item() == pytest.approx(0, abs=1e-6)


def test_hard_label_loss_of_an_undecided_student_is_the_logarithm_of_the_classes() -> None:
    assert hard_label_loss(torch.zeros(2, 4), torch.tensor([0, 3])).item() == pytest.approx(
        math.log(4)
    )


def test_opposite_hidden_states_have_the_largest_cosine_distance() -> None:
    states = hidden_states(seed=1)
    assert hidden_state_cosine(states, -states, token_mask()).item() == pytest.approx(2)


@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4), st.floats(0.25, 20))
def test_a_divergence_is_never_negative(values: list[float], temperature: float) -> None:
    student, teacher = torch.tensor(values).view(2, 1, 2)
    assert soft_logit_kl(student, teacher, temperature=temperature).item() >= -1e-3


# Padding


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("loss", [*HIDDEN_LOSSES, *ATTENTION_LOSSES])
def test_padding_changes_neither_loss_nor_gradient_whatever_it_holds(
    loss: MaskedLoss, garbage: float
) -> None:
    make = hidden_states if loss in HIDDEN_LOSSES else scores
    student, teacher = make(seed=1).requires_grad_(), make(seed=2)
    expected = loss(student, teacher, token_mask())
    expected.backward()
    padded = pad(student.detach(), to=9, garbage=garbage).requires_grad_()
    value = loss(padded, pad(teacher, to=9, garbage=garbage), token_mask(9))
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert student.grad is not None
    torch.testing.assert_close(
        padded.grad, pad(student.grad, to=9, garbage=0.0), atol=1e-7, rtol=1e-5
    )


@given(st.floats(allow_nan=True, allow_infinity=True, width=32), st.integers(5, 8))
@settings(deadline=None, max_examples=30)
def test_attention_log_probabilities_sum_to_one_over_the_real_keys(
    garbage: float, length: int
) -> None:
    padded = pad(scores(seed=1), to=length, garbage=garbage)
    log_probabilities = attention_log_probabilities(padded, token_mask(length))
    assert bool(log_probabilities.isfinite().all())
    for row, n in enumerate(LENGTHS):
        sums = log_probabilities[row, :, :n, :n].exp().sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_zero_padding_keeps_real_tokens_and_zeroes_the_others() -> None:
    kept = zero_padding(torch.full((1, 2, 1), math.nan), torch.tensor([[False, False]]))
    assert kept.flatten().tolist() == [0.0, 0.0]
    assert zero_padding(torch.ones(1, 2, 1), torch.tensor([[True, False]])).flatten().tolist() == [
        1.0,
        0.0,
    ]


# Gradients


def _inputs(loss: MaskedLoss | LogitLoss) -> tuple[Tensor, Tensor, list[Tensor]]:
    make = logits if loss in LOGIT_LOSSES else hidden_states if loss in HIDDEN_LOSSES else scores
    return make(seed=1), make(seed=2), [] if loss in LOGIT_LOSSES else [token_mask()]


@pytest.mark.parametrize("loss", [*LOGIT_LOSSES, *HIDDEN_LOSSES, *ATTENTION_LOSSES])
def test_the_gradient_reaches_the_student_and_never_the_teacher(
    loss: Callable[..., Tensor],
) -> None:
    student, teacher, mask = _inputs(loss)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher, *mask).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [*LOGIT_LOSSES, *HIDDEN_LOSSES, *ATTENTION_LOSSES])
def test_the_gradient_is_that_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    student, teacher, mask = _inputs(loss)
    teacher = teacher.double()
    assert torch.autograd.gradcheck(
        lambda features: loss(features, teacher, *mask), student.double().requires_grad_()
    )


@pytest.mark.parametrize("temperature", [2.0, 4.0, 16.0])
def test_the_squared_temperature_keeps_the_gradients_size(temperature: float) -> None:
    # Without the square it would fall to 1 / temperature**2, below 0.004 at 16.
    sizes = []
    for value in (1.0, temperature):
        student = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        teacher = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
        soft_logit_kl(student, teacher, temperature=value).backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert 0.5 < sizes[1] / sizes[0] < 2


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [*LOGIT_LOSSES, *HIDDEN_LOSSES, *ATTENTION_LOSSES])
def test_losses_of_low_precision_features_are_computed_in_float32(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    student, teacher, mask = _inputs(loss)
    student, teacher = student.to(dtype), teacher.to(dtype)
    value = loss(student, teacher, *mask)
    assert value.dtype == torch.float32
    assert value.item() == loss(student.float(), teacher.float(), *mask).item()


@pytest.mark.parametrize("loss", [*LOGIT_LOSSES, *HIDDEN_LOSSES, *ATTENTION_LOSSES])
def test_large_bfloat16_features_give_finite_losses_and_gradients(
    loss: Callable[..., Tensor],
) -> None:
    student, teacher, mask = _inputs(loss)
    student = (1e4 * student).bfloat16().requires_grad_()
    value = loss(student, (-1e4 * teacher).bfloat16(), *mask)
    value.backward()
    assert student.grad is not None
    assert bool(value.isfinite())
    assert bool(student.grad.isfinite().all())
