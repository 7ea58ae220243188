"""Dropout: how often, by how much, and that a seed and a place in the pass decide it."""

import math

import pytest
import torch
from dropped import dropped_by_heads
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from world import SHORT, World

from kdsweep.search_spaces.knowledge import HardLabels
from kdsweep.trainers import Assets, Settings, train
from kdsweep.trainers.dropout import MaskedDropout, Masks, set_dropout

CPU = torch.device("cpu")
NUM_VALUES = 2**20
NOTHING = 1e-6
"""A probability that is 0 to the nearest of 2**-16."""


def dropout(p: float, *, seed: int = 0) -> MaskedDropout:
    masks = Masks(CPU)
    masks.begin(seed)
    return MaskedDropout(p, masks)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 2**-12])
def test_the_share_of_dropped_values_is_the_probability(p: float) -> None:
    dropped = int((dropout(p)(torch.ones(NUM_VALUES)) == 0).sum())
    # Four standard deviations of a binomial distribution.
    assert abs(dropped - NUM_VALUES * p) < 4 * math.sqrt(NUM_VALUES * p * (1 - p))


def test_neighbours_are_dropped_independently_of_each_other() -> None:
    is_dropped = dropout(0.5)(torch.ones(NUM_VALUES)) == 0
    for apart in (1, 2, 3, 4, 8):
        both = int((is_dropped[apart:] & is_dropped[:-apart]).sum())
        assert abs(both - NUM_VALUES / 4) < 4 * math.sqrt(NUM_VALUES * 3 / 16)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 0.0), (torch.bfloat16, 2**-8)])
def test_what_is_kept_grows_so_that_the_mean_stays(dtype: torch.dtype, rounding: float) -> None:
    values = torch.full((64, 33), 3.0, dtype=dtype, requires_grad=True)
    found = dropout(0.1)(values)
    # 0.9 * 65536 = 58982.4, so 58982 of 65536 are kept.
    expected = 3 * 65536 / 58982
    kept = found[found != 0].float()
    assert kept.tolist() == pytest.approx([expected] * len(kept), rel=max(rounding, 1e-6))
    found.sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == dtype
    assert torch.equal(values.grad != 0, found != 0)
    assert values.grad.max().item() == pytest.approx(expected / 3, rel=max(rounding, 1e-6))


def test_a_dropped_value_gives_nothing_even_if_it_is_not_finite() -> None:
    assert dropout(1.0)(torch.tensor([1.0, math.inf, math.nan])).tolist() == [0, 0, 0]


def test_values_stay_as_they_are_in_evaluation_and_without_a_probability() -> None:
    values = torch.rand(100)
    assert torch.equal(dropout(0.5).eval()(values), values)
    assert torch.equal(dropout(0.0)(values), values)


def test_what_a_seed_draws_is_pinned() -> None:
    masks = Masks(CPU)
    masks.begin(0)
    # numpy.random.SFC64(0), its first three numbers in pieces of 16 bits, the lowest first
    drawn = masks.draw(torch.Size([10]), kept=2**15)
    assert drawn.int().tolist() == [1, 0, 0, 0, 0, 1, 0, 1, 0, 0]


def test_the_same_seed_begins_the_same_pass_and_each_place_in_it_draws_anew() -> None:
    masks = Masks(CPU)
    first, second = MaskedDropout(0.5, masks), MaskedDropout(0.5, masks)

    def a_pass(seed: int) -> list[Tensor]:
        masks.begin(seed)
        return [place(torch.ones(64)) for place in (first, second)]

    one, again, other = a_pass(1), a_pass(1), a_pass(2)
    assert torch.equal(torch.stack(one), torch.stack(again))
    assert not torch.equal(*one)
    assert not torch.equal(one[0], other[0])


def test_two_models_disturb_neither_each_other_nor_the_global_stream() -> None:
    before = torch.get_rng_state()
    alone = dropout(0.5, seed=1)
    expected = [alone(torch.ones(64)) for _ in range(2)]
    one, other = dropout(0.5, seed=1), dropout(0.5, seed=2)
    found = []
    for _ in range(2):
        found.append(one(torch.ones(64)))
        other(torch.ones(50))
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert torch.equal(torch.get_rng_state(), before)


# In a model


def bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=60,
        max_position_embeddings=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=4,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).train()


IDS = torch.arange(1, 31).view(3, 10)
MASK = (torch.arange(10) < torch.tensor([10, 4, 7])[:, None]).long()


def gradients(model: BertForSequenceClassification, precision: torch.dtype) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = model(input_ids=IDS, attention_mask=MASK).logits
    logits.float().square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("precision", "accuracy"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_that_happens_to_drop_nothing_is_fused_attention(
    precision: torch.dtype, accuracy: float
) -> None:
    fused, masked = bert(), bert()
    set_dropout(fused, 0.0, device=CPU)
    set_dropout(masked, NOTHING, device=CPU)
    expected, found = gradients(fused, torch.float32), gradients(masked, precision)
    assert found.keys() == expected.keys()
    longest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= accuracy * longest, name


def test_attention_drops_probabilities() -> None:
    model = bert()
    set_dropout(model, 0.25, device=CPU).begin(0)
    seen: list[Tensor] = []
    attention = model.bert.encoder.layer[0].attention.self
    attention.dropout.register_forward_hook(
        lambda _module, inputs, output: seen.extend([inputs[0], output])
    )
    attention.value.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    model(input_ids=IDS, attention_mask=MASK)
    value, probabilities, dropped, mixed = seen
    is_token = MASK.bool()[:, None, None, :].expand_as(probabilities)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 4, 10))
    assert bool((probabilities[~is_token] == 0).all())
    share = (dropped[is_token] == 0).float().mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / int(is_token.sum()))
    by_head = torch.einsum("balm,bmad->blad", dropped, value.view(3, 10, 4, 8))
    torch.testing.assert_close(mixed, by_head.reshape(3, 10, 32))


def test_a_model_evaluates_as_it_did_before() -> None:
    model = bert().eval()
    expected = model(input_ids=IDS, attention_mask=MASK).logits
    set_dropout(model, 0.5, device=CPU)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, expected)


def test_the_next_stages_dropout_takes_the_place_of_the_one_before() -> None:
    model = bert()
    for p in (0.1, 0.3):
        set_dropout(model, p, device=CPU)
    # Embeddings, head, and three of each block: hidden states twice, attention.
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 8


# In a trial


def test_each_step_of_each_seed_drops_others_and_a_trial_always_the_same(world: World) -> None:
    training = SHORT.model_copy(update={"dropout": 0.5})
    by_run = []
    for seed in (0, 0, 1):
        trial = world.trial(HardLabels(kind="hard_labels"), training=training, seed=seed)
        with dropped_by_heads() as found:
            list(train(trial, teacher=world.prepared, assets=Assets(Settings(), world.cache)))
        by_run.append(found)
    first, again, other = by_run
    assert len(first) > 10
    assert first == again
    assert len({*first, *other}) == len(first) + len(other)
