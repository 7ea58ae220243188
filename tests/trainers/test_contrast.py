"""What a contrast remembers, when, and what it draws: everything but its value, see `terms`."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from terms import CRD, FIRST, LABELS, MODEL, ROWS, parse, random_features, token_mask
from torch import Tensor

from kdsweep.search_spaces.errors import GridError
from kdsweep.search_spaces.resolution import resolve_term
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.search_spaces.training import Training
from kdsweep.search_spaces.trial import canonical_json, canonical_term, make_stage
from kdsweep.trainers.contrast import Contrast, Contrasts, draw_negatives
from kdsweep.trainers.features import Feature, Features
from kdsweep.trainers.objective import Objective, TermLosses, build_objective
from kdsweep.trainers.optim import gradient_norms
from kdsweep.trainers.streams import generator

WIDE = Sizes(num_hidden_layers=4, hidden_size=10, num_attention_heads=2, num_labels=4)
STUDENT = random_features(seed=1)
TEACHER = random_features(seed=2, sizes=WIDE)
LAST = CRD | {"matching": {"last_k": 1}}


def objective(term: dict[str, Any] = LAST, *, seed: int = 0, num_rows: int = 9) -> Objective:
    stage = make_stage((parse(term),), Training())
    return build_objective(stage, student=MODEL, teacher=WIDE, seed=seed, num_rows=num_rows)


def losses(
    made: Objective,
    *,
    step: int = 0,
    student: Features = STUDENT,
    teacher: Features = TEACHER,
) -> TermLosses:
    """Of a step that counts."""
    given = {"labels": LABELS, "attention_mask": token_mask(), "rows": ROWS, "step": step}
    found: TermLosses = made(student, teacher, **given)
    made.remember()
    return found


def only_pair(made: Objective) -> Contrast:
    (contrasts,) = made.contrasts.values()
    assert isinstance(contrasts, Contrasts)
    (pair,) = contrasts.pairs.values()
    assert isinstance(pair, Contrast)
    return pair


def copied(made: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


# What is remembered


def test_memories_are_vectors_of_length_one_for_each_row_of_train_and_each_side() -> None:
    pair = only_pair(objective())
    for side in (pair.student, pair.teacher):
        assert side.memory.shape == (9, 5)
        torch.testing.assert_close(side.memory.norm(dim=1), torch.ones(9))
    assert not torch.equal(pair.student.memory, pair.teacher.memory)


def test_a_step_moves_the_rows_of_its_batch_by_momentum_and_no_other_row() -> None:
    made = objective(LAST | {"momentum": 0.8})
    pair = only_pair(made)
    features = (STUDENT, TEACHER)
    before = [side.memory.clone() for side in (pair.student, pair.teacher)]
    losses(made)
    others = [n for n in range(9) if n not in ROWS]
    for side, old, seen in zip((pair.student, pair.teacher), before, features, strict=True):
        assert torch.equal(side.memory[others], old[others])
        last = max(feature for feature in seen if feature.kind == "hidden_states")
        vectors = side.map(seen[last][:, 0]).detach().numpy()
        mixed = 0.8 * old[ROWS].numpy() + 0.2 * vectors / np.linalg.norm(vectors, axis=1)[:, None]
        expected = mixed / np.linalg.norm(mixed, axis=1)[:, None]
        assert side.memory[ROWS].numpy() == pytest.approx(expected, abs=1e-6)


def test_a_step_that_is_taken_back_leaves_no_trace() -> None:
    made = objective()
    before = copied(made)
    state = made.state_of_a_step()
    made(STUDENT, TEACHER, labels=LABELS, attention_mask=token_mask(), rows=ROWS)
    made.take_back(state)
    assert all(
        torch.equal(tensor, before[name]) or tensor.isnan().all()
        for name, tensor in copied(made).items()
    )


def test_a_batch_is_compared_with_what_was_remembered_before_it() -> None:
    made, same = objective(), objective()
    same.eval()
    assert losses(made).total.item() == losses(same).total.item()


def test_the_level_is_the_mean_of_the_first_batch_for_good() -> None:
    # RepDistiller's Z is this mean times the number of rows.
    made = objective()
    pair = only_pair(made)
    assert math.isnan(pair.student.level)
    stream = generator(0, "negatives", canonical_json(canonical_term(made.terms[0].term)), "0")
    negatives = draw_negatives(ROWS, 3, num_rows=9, stream=stream).tolist()
    memory = pair.teacher.memory.double().numpy().copy()
    vectors = pair.student.embed(STUDENT[Feature("hidden_states", 3)][:, 0]).detach().numpy()
    compared = [
        math.exp(memory[row] @ vector / 0.07)
        for vector, own, others in zip(vectors, ROWS.tolist(), negatives, strict=True)
        for row in (own, *others)
    ]
    for step in range(3):
        losses(made, step=step)
        assert math.exp(pair.student.level) == pytest.approx(np.mean(compared), rel=1e-5)


def test_the_first_loss_of_a_random_start_is_near_that_of_no_knowledge() -> None:
    # Every e near its mean c: h = 1 / (1 + K), so ln(1 + K) + K ln(1 + 1 / K) a side.
    k = 3
    unlearned = 2 * (math.log(1 + k) + k * math.log(1 + 1 / k))
    assert losses(objective(LAST | {"tau": 100.0})).total.item() == pytest.approx(
        unlearned, rel=1e-2
    )


def test_evaluation_and_measuring_gradients_remember_nothing() -> None:
    made = objective()
    losses(made)
    made.eval()
    before = copied(made)
    losses(made, step=1)
    assert equal(copied(made), before)
    made.train()
    found = losses(made, step=2)
    after_a_step = copied(made)
    assert not equal(after_a_step, before)
    gradient_norms([each.loss for each in found.by_term], [*made.parameters()])
    made.weigh(found.by_term, progress=0.0)
    assert equal(copied(made), after_a_step)


def test_maps_memories_and_levels_are_state_and_a_resumed_objective_goes_on_with_them() -> None:
    whole = objective()
    found = [losses(whole, step=step).total.item() for step in range(6)]
    first, resumed = objective(), objective()
    for step in range(3):
        losses(first, step=step)
    resumed.load_state_dict(first.state_dict())
    assert [losses(resumed, step=step).total.item() for step in range(3, 6)] == found[3:]
    assert equal(copied(resumed), copied(whole))


def test_each_pair_of_layers_has_maps_and_memories_of_its_own_and_logits_have_one() -> None:
    (of_layers,) = objective(CRD | FIRST).contrasts.values()
    assert isinstance(of_layers, Contrasts)
    assert list(of_layers.pairs) == ["1-1", "2-2", "3-3"]
    assert only_pair(objective(CRD | {"of": "logits"})).student.map.weight.shape == (5, 4)


# What learns


def test_both_maps_are_the_only_parameters() -> None:
    made = objective()
    at = "contrasts.0.pairs.4-3"
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
        f"{at}.student.map.weight": (5, 6),
        f"{at}.student.map.bias": (5,),
        f"{at}.teacher.map.weight": (5, 10),
        f"{at}.teacher.map.bias": (5,),
    }
    assert made.describe()[0]["maps"] == [[6, 5], [10, 5]]


def test_the_first_step_reaches_the_student_and_both_maps_and_never_the_teacher() -> None:
    made = objective()
    student, teacher = (
        {feature: tensor.clone().requires_grad_() for feature, tensor in features.items()}
        for features in (STUDENT, TEACHER)
    )
    losses(made, student=student, teacher=teacher).total.backward()
    last = Feature("hidden_states", 3)
    for learning in (student[last], *made.parameters()):
        assert learning.grad is not None
        assert learning.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in teacher.values())


def test_maps_and_memories_depend_on_seed_term_and_pair_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (copied(objective(CRD | FIRST, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    drawn = [name for name in first if name.endswith(("weight", "memory"))]
    assert len(drawn) == 3 * 2 * 2
    assert all(torch.equal(first[name], second[name]) for name in drawn)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    starts = [first[name] for name in drawn if name.endswith("memory")]
    assert not any(torch.equal(a, b) for n, a in enumerate(starts) for b in starts[:n])


# What is drawn


@given(st.integers(2, 12), st.integers(0, 99), st.data())
def test_a_row_is_never_its_own_negative(num_rows: int, seed: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, num_rows - 1))
    stream = torch.Generator().manual_seed(seed)
    found = draw_negatives(torch.tensor([row]), 200, num_rows=num_rows, stream=stream)
    assert found.shape == (1, 200)
    assert set(found[0].tolist()) <= set(range(num_rows)) - {row}


def test_every_other_row_is_as_likely() -> None:
    stream = torch.Generator().manual_seed(0)
    found = draw_negatives(torch.tensor([2]), 40_000, num_rows=5, stream=stream)
    counts = torch.bincount(found[0], minlength=5)
    assert counts.tolist() == pytest.approx([10_000, 10_000, 0, 10_000, 10_000], rel=0.05)


def test_negatives_depend_on_seed_and_step_alone() -> None:
    # In evaluation nothing else changes from call to call.
    def values(seed: int, *steps: int) -> list[float]:
        made = objective(seed=seed).eval()
        return [losses(made, step=step).total.item() for step in steps]

    assert values(0, 7, 8) == [*values(0, 7), *values(0, 8)]
    assert len(set(values(0, *range(5)))) == 5
    assert values(0, 7) != values(1, 7)


# What does not fit


def test_one_row_of_train_cannot_be_told_from_others() -> None:
    with pytest.raises(GridError, match="tells rows of train from each other, and there is one"):
        objective(num_rows=1)


def test_a_plan_resolves_a_contrast_of_logits_before_the_classes_are_known() -> None:
    unknown = Sizes(num_hidden_layers=3, hidden_size=6, num_attention_heads=2, num_labels=None)
    resolved = resolve_term(parse(CRD | {"of": "logits"}), student=unknown, teacher=unknown)
    assert resolved.describe()["maps"] == [[None, 5], [None, 5]]
