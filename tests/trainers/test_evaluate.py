"""Evaluation: without dropout, in the rows' order, spread evenly over the steps."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdsweep.trainers.batches import Split
from kdsweep.trainers.evaluate import (
    evaluation_steps,
    majority_share,
    predict,
    score_logits,
)

CPU = torch.device("cpu")


@pytest.fixture
def split() -> Split:
    stream = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 12, (130,), generator=stream)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Split(
        input_ids=torch.randint(1, 60, (int(offsets[-1]),), generator=stream),
        token_type_ids=torch.zeros(int(offsets[-1]), dtype=torch.int64),
        offsets=offsets,
        labels=torch.randint(0, 3, (130,), generator=stream),
    )


def test_logits_come_in_the_order_of_the_rows(
    split: Split, make_bert: Callable[..., nn.Module]
) -> None:
    model = make_bert()
    logits = predict(model, split, pad_token_id=0, device=CPU, precision="fp32")
    for row in (0, 17, 129):
        ids = split.input_ids[split.offsets[row] : split.offsets[row + 1]][None]
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        torch.testing.assert_close(logits[row], alone.detach(), rtol=1e-4, atol=1e-4)


def test_dropout_sleeps_and_the_mode_comes_back(
    split: Split, make_bert: Callable[..., nn.Module]
) -> None:
    model = make_bert().train()
    first = predict(model, split, pad_token_id=0, device=CPU, precision="fp32")
    assert model.training
    assert torch.equal(first, predict(model, split, pad_token_id=0, device=CPU, precision="fp32"))
    assert torch.equal(
        first, predict(model.eval(), split, pad_token_id=0, device=CPU, precision="fp32")
    )
    assert not model.training


def test_evaluation_draws_no_random_number(
    split: Split, make_bert: Callable[..., nn.Module]
) -> None:
    model = make_bert().train()
    before = torch.get_rng_state()
    predict(model, split, pad_token_id=0, device=CPU, precision="fp32")
    assert torch.equal(before, torch.get_rng_state())


def test_bf16_gives_finite_fp32_logits_near_those_of_fp32(
    split: Split, make_bert: Callable[..., nn.Module]
) -> None:
    model = make_bert()
    exact = predict(model, split, pad_token_id=0, device=CPU, precision="fp32")
    fast = predict(model, split, pad_token_id=0, device=CPU, precision="bf16")
    assert fast.dtype == torch.float32
    assert fast.isfinite().all()
    assert not torch.equal(exact, fast)
    # bf16 has 8 bits of precision, and errors add up over four blocks.
    assert (exact - fast).abs().max() < 0.1 * exact.abs().max()


@given(num_steps=st.integers(1, 400), times=st.integers(1, 60))
def test_the_last_step_is_always_evaluated_and_gaps_are_even(num_steps: int, times: int) -> None:
    steps = sorted(evaluation_steps(num_steps, times))
    assert steps[-1] == num_steps
    assert len(steps) == min(times, num_steps)
    gaps = {after - before for before, after in zip([0, *steps], steps, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_evaluations_by_hand() -> None:
    assert evaluation_steps(10, 3) == {4, 7, 10}


def test_scores_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])
    scores = score_logits(["accuracy", "f1"], logits, torch.tensor([1, 1, 1, 0]))
    # Predicted 1, 0, 1, 0: precision 1, recall 2/3.
    assert scores == {"accuracy": 0.75, "f1": pytest.approx(0.8)}


def test_the_majority_share_by_hand() -> None:
    assert majority_share(torch.tensor([0, 2, 2, 1, 2])) == 0.6
