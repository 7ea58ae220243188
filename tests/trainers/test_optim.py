"""The optimiser: who decays, how the rate moves, what clipping and measuring do."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kdsweep.search_spaces.training import Training
from kdsweep.trainers.optim import (
    clip_gradients,
    gradient_norms,
    learning_rate,
    make_optimiser,
)


def test_biases_and_layer_norms_do_not_decay(make_bert: Callable[..., nn.Module]) -> None:
    model = make_bert()
    projection = nn.Linear(3, 4)
    decays, stays = make_optimiser([model, projection], Training(weight_decay=0.3)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    names |= {id(projection.weight): "projection.weight", id(projection.bias): "projection.bias"}
    assert (decays["weight_decay"], stays["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for group in (decays, stays) for p in group["params"]} == names.keys()
    for parameter in stays["params"]:
        assert names[id(parameter)].endswith("bias") or "LayerNorm" in names[id(parameter)]
    assert not any("LayerNorm" in names[id(parameter)] for parameter in decays["params"])


def test_the_rate_rises_then_falls_linearly() -> None:
    training = Training(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(training, step=step, num_steps=10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_a_warm_up_may_last_to_the_end_or_not_exist() -> None:
    whole = Training(learning_rate=1.0, warmup=1.0)
    assert learning_rate(whole, step=3, num_steps=4) == 1.0
    none = Training(learning_rate=1.0, warmup=0.0)
    assert learning_rate(none, step=0, num_steps=4) == 1.0


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_equals_that_of_pytorch(max_norm: float) -> None:
    ours = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2, 3))]
    theirs = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2, 3))]
    for parameters in (ours, theirs):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, 1.0 + number)
    clip_gradients(ours, max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_gradient_norms_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = nn.Parameter(torch.tensor([1.0]))
    losses = [(3 * weight[0] + 4 * weight[1]), weight.square().sum()]
    assert gradient_norms(losses, [weight, unused]) == pytest.approx([5.0, 20**0.5])


def test_measuring_gradients_changes_no_gradient(make_bert: Callable[..., nn.Module]) -> None:
    def gradients(*, measures: bool) -> list[torch.Tensor]:
        model = make_bert().train()
        torch.manual_seed(0)
        logits = model(input_ids=torch.arange(1, 11).view(2, 5)).logits
        losses = [logits.square().mean(), logits.sum(dim=1).exp().mean()]
        if measures:
            gradient_norms(losses, list(model.base_model.parameters()))
        (losses[0] + 0.5 * losses[1]).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for with_norms, without in zip(
        gradients(measures=True), gradients(measures=False), strict=True
    ):
        assert torch.equal(with_norms, without)
