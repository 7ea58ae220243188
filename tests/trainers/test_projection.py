import torch

from kdsweep.trainers.projection import make_projection
from kdsweep.trainers.streams import generator


def test_a_projection_maps_the_students_width_to_the_teachers() -> None:
    projection = make_projection(8, 12, generator=generator(0, "projection"))
    assert projection(torch.zeros(2, 5, 8)).shape == (2, 5, 12)


def test_weights_are_normal_with_deviation_one_fiftieth_and_biases_are_zero() -> None:
    projection = make_projection(300, 200, generator=generator(0, "projection"))
    assert abs(projection.weight.mean().item()) < 1e-3
    assert abs(projection.weight.std().item() - 0.02) < 1e-3
    assert torch.equal(projection.bias, torch.zeros(200))
    assert projection.weight.requires_grad
    assert projection.bias.requires_grad


def test_weights_come_from_the_given_stream_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        make_projection(8, 12, generator=generator(seed, "projection")) for seed in (0, 0, 1)
    )
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)
