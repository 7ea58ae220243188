from collections.abc import Callable

import pytest
import torch

from kdsweep.search_spaces.knowledge import Projection
from kdsweep.trainers.projection import make_projection
from kdsweep.trainers.streams import generator

KINDS: list[Projection] = ["linear", "linear_norm", "mlp", "orthogonal"]

every_kind: Callable[..., pytest.MarkDecorator] = pytest.mark.parametrize("kind", KINDS)


def make(kind: Projection, ins: int = 8, outs: int = 12, *, seed: int = 0) -> torch.nn.Module:
    return make_projection(kind, ins, outs, generator=generator(seed, "projection"))


@every_kind
def test_a_projection_maps_the_students_width_to_the_teachers(kind: Projection) -> None:
    assert make(kind)(torch.zeros(2, 5, 8)).shape == (2, 5, 12)


def test_weights_are_normal_with_deviation_one_fiftieth_and_biases_are_zero() -> None:
    projection = make("linear", 300, 200)
    assert isinstance(projection, torch.nn.Linear)
    assert abs(projection.weight.mean().item()) < 1e-3
    assert abs(projection.weight.std().item() - 0.02) < 1e-3
    assert torch.equal(projection.bias, torch.zeros(200))


@every_kind
def test_weights_come_from_the_given_stream_alone_and_learn(kind: Projection) -> None:
    before = torch.get_rng_state()
    first, second, other = (make(kind, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in make(kind).parameters())


def test_an_orthogonal_projection_keeps_lengths_also_after_a_step() -> None:
    projection = make("orthogonal")
    vectors = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(projection.parameters(), lr=0.5)
    for _ in range(2):
        mapped = projection(vectors)
        torch.testing.assert_close(mapped.norm(dim=-1), vectors.norm(dim=-1))
        mapped[:, 0].sum().backward()
        optimiser.step()


def test_a_projection_of_its_state_is_the_same_map() -> None:
    trained, fresh = make("orthogonal", seed=0), make("orthogonal", seed=1)
    fresh.load_state_dict(trained.state_dict())
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fresh(vectors), trained(vectors))
