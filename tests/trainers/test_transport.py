"""Layers that teach in shares: flows, attention over layers, all layers at once, one by one."""

import json
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from terms import (
    HIDDEN,
    LABELS,
    LENGTHS,
    MODEL,
    features_of,
    parse,
    random_features,
    token_mask,
)

from kdsweep.search_spaces.errors import GridError
from kdsweep.search_spaces.resolution import Feature, resolve_term
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.search_spaces.training import Training
from kdsweep.search_spaces.trial import make_stage
from kdsweep.trainers.objective import Objective, TermLosses, build_objective
from kdsweep.trainers.transport import Transport, entropy

DEEP = Sizes(num_hidden_layers=5, hidden_size=6, num_attention_heads=2, num_labels=4)
WIDE = Sizes(num_hidden_layers=5, hidden_size=10, num_attention_heads=2, num_labels=4)
STUDENT = random_features(seed=1)
TEACHER = random_features(seed=2, sizes=DEEP)
EMD = {"matching": {"emd": "adaptive"}}


def objective(term: dict[str, Any], *, teacher: Sizes = DEEP) -> Objective:
    stage = make_stage((parse({"kind": "hard_labels"}), parse(term)), Training())
    return build_objective(stage, student=MODEL, teacher=teacher, seed=0)


def losses(made: Objective, *, progress: float = 0.0) -> TermLosses:
    given = {"labels": LABELS, "attention_mask": token_mask(), "progress": progress}
    return made(STUDENT, TEACHER, **given)


def pair_loss(student: int, teacher: int) -> float:
    made = objective(HIDDEN | {"matching": {"pairs": [[teacher, student]]}})
    return losses(made).by_term[1].loss.item()


def costs() -> np.ndarray:
    return np.array([[pair_loss(s, t) for t in range(1, 6)] for s in range(1, 4)])


# Flows


def cheapest(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """The least cost of a transport, as a linear programme."""
    s, t = cost.shape
    sums = [np.kron(np.eye(s), np.ones(t)), np.kron(np.ones(s), np.eye(t))]
    found = scipy.optimize.linprog(
        cost.ravel(), A_eq=np.vstack(sums), b_eq=np.concatenate([rows, columns])
    )
    return float(found.fun)


@pytest.mark.parametrize("weights", ["adaptive", "uniform"])
def test_the_loss_of_a_first_step_is_the_least_cost_of_a_transport(weights: str) -> None:
    made = objective(HIDDEN | {"matching": {"emd": weights}})
    expected = cheapest(costs(), np.full(3, 1 / 3), np.full(5, 1 / 5))
    assert losses(made).by_term[1].loss.item() == pytest.approx(expected, rel=1e-5)


def test_blocks_whose_flow_costs_more_lose_weight_after_a_step() -> None:
    # BERT-EMD's code: w <- cost / w, then sum / w, then divided by the sum.
    transport = Transport(2, 2, "adaptive")
    flow = transport.flow(torch.tensor([[1.0, 9.0], [9.0, 3.0]]))
    assert flow.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    # Costs of 1/2 and 3/2 at weights of 1/2: prices 1 and 3, inverses 4 and 4/3, shares 3/4, 1/4.
    assert transport.student.tolist() == pytest.approx([0.75, 0.25])
    assert transport.teacher.tolist() == pytest.approx([0.75, 0.25])


def test_uniform_weights_stay() -> None:
    transport = Transport(2, 3, "uniform")
    transport.flow(torch.tensor([[1.0, 9.0, 2.0], [9.0, 3.0, 1.0]]))
    assert transport.student.tolist() == [0.5, 0.5]


def test_weights_are_state_and_a_resumed_objective_goes_on_with_them() -> None:
    first, fresh = objective(HIDDEN | EMD), objective(HIDDEN | EMD)
    losses(first)
    fresh.load_state_dict(first.state_dict())
    assert losses(fresh).by_term[1].loss.item() == losses(first).by_term[1].loss.item()
    assert "transports.0.student" in first.state_dict() or "transports.1.student" in (
        first.state_dict()
    )


def test_a_flow_reads_every_block_and_tells_its_entropy() -> None:
    made = objective(HIDDEN | EMD)
    assert made.teacher_needs == features_of(hidden_states=range(1, 6))
    found = losses(made).by_term[1].entropy
    assert found is not None
    # Between one pair a block of the deeper side and all pairs equally.
    assert np.log(5) <= found.item() <= np.log(15)


def test_entropy_is_scipys() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    expected = scipy.stats.entropy(shares.numpy(), axis=1)
    assert entropy(shares).tolist() == pytest.approx(expected.tolist())


# Attention over layers


@pytest.mark.parametrize("of", ["cls", "tokens"])
def test_a_block_learns_from_the_teachers_sum_weighted_by_their_products(of: str) -> None:
    made = objective(HIDDEN | {"matching": "attention", "of": of})
    teachers = np.stack(
        [TEACHER[Feature("hidden_states", n)].double().numpy() for n in range(1, 6)], axis=2
    )
    by_layer, entropies = [], []
    for layer in range(1, 4):
        student = STUDENT[Feature("hidden_states", layer)].double().numpy()
        shares = scipy.special.softmax(np.einsum("blh,blth->blt", student, teachers), axis=-1)
        squares = np.square(student - np.einsum("blt,blth->blh", shares, teachers)).mean(-1)
        real = [(b, n) for b, length in enumerate(LENGTHS) for n in range(length)]
        places = real if of == "tokens" else [(b, 0) for b in range(4)]
        by_layer.append(np.mean([squares[place] for place in places]))
        entropies.append(np.mean([scipy.stats.entropy(shares[place]) for place in places]))
    found = losses(made).by_term[1]
    assert found.loss.item() == pytest.approx(np.mean(by_layer), rel=1e-5)
    assert found.entropy is not None
    assert found.entropy.item() == pytest.approx(np.mean(entropies), rel=1e-5)


def test_attention_has_one_projection_a_student_block() -> None:
    made = objective(HIDDEN | {"matching": "attention"}, teacher=WIDE)
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters() if "weight" in name}
    assert list(shapes.values()) == [(10, 6)] * 3


# All blocks at once


def test_combined_blocks_are_one_long_vector_a_side() -> None:
    made = objective(HIDDEN | {"matching": "combine"}, teacher=WIDE)
    [weight] = [p for name, p in made.named_parameters() if name.endswith("weight")]
    assert tuple(weight.shape) == (5 * 10, 3 * 6)


def test_combined_blocks_of_equal_models_are_compared_block_by_block() -> None:
    teacher = random_features(seed=2)
    stage = make_stage(
        tuple(parse(HIDDEN | {"matching": rule, "label": rule}) for rule in ("combine", "first")),
        Training(),
    )
    made = build_objective(stage, student=MODEL, teacher=MODEL, seed=0)
    found = made(STUDENT, teacher, labels=LABELS, attention_mask=token_mask())
    combined, first = (each.loss.item() for each in found.by_term)
    assert combined == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("matching", ["attention", "combine"])
def test_soft_rules_are_for_hidden_states_alone(matching: str) -> None:
    with pytest.raises(GridError, match="which is for `hidden_states` alone"):
        objective({"kind": "attentions", "matching": matching})


# One after the other


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        # A student of three blocks: a third of the stage for each.
        ("all", [[(1, 2)], [(1, 2), (2, 4)], [(1, 2), (2, 4), (3, 5)]]),
        ("newest", [[(1, 2)], [(2, 4)], [(3, 5)]]),
    ],
)
def test_progressive_pairs_begin_one_after_the_other(
    keep: str, expected: list[list[tuple[int, int]]]
) -> None:
    term = parse(HIDDEN | {"matching": {"progressive": "uniform", "keep": keep}})
    resolved = resolve_term(term, student=MODEL, teacher=DEEP)
    for third in range(3):
        for within in (0.0, 0.33):
            assert list(resolved.at((third + within) / 3)) == expected[third]


def test_a_progressive_loss_is_that_of_its_unlocked_pairs() -> None:
    made = objective(HIDDEN | {"matching": {"progressive": "uniform"}})
    assert losses(made, progress=0.0).by_term[1].loss.item() == pytest.approx(pair_loss(1, 2))
    both = (pair_loss(1, 2) + pair_loss(2, 4)) / 2
    assert losses(made, progress=0.5).by_term[1].loss.item() == pytest.approx(both)


def test_every_soft_matching_describes_itself_as_json() -> None:
    for matching in ({"emd": "uniform"}, "attention", "combine", {"progressive": "first"}):
        assert json.dumps(objective(HIDDEN | {"matching": matching}).describe())
