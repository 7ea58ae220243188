import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from terms import by_layer, features_of
from torch import Tensor
from transformers import BertForSequenceClassification

from kdsweep.search_spaces.errors import GridError
from kdsweep.search_spaces.knowledge import Term
from kdsweep.search_spaces.training import Training
from kdsweep.search_spaces.trial import Stage, make_stage
from kdsweep.trainers.bert import read_features, sizes
from kdsweep.trainers.features import LOGITS, Feature, Features, Sizes
from kdsweep.trainers.objective import Objective, TermLosses, build_objective

MakeBert = Callable[..., BertForSequenceClassification]
MakeBatch = Callable[..., dict[str, Tensor]]

STUDENT = Sizes(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_labels=3)
TEACHER = Sizes(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, num_labels=3)
WIDE_TEACHER = Sizes(num_hidden_layers=4, hidden_size=12, num_attention_heads=3, num_labels=3)

HARD = {"kind": "hard_labels"}
KL = {"kind": "soft_logits", "temperature": 2.0}
LOGIT_MSE = {"kind": "soft_logits", "distance": "mse"}
HIDDEN = {"kind": "hidden_states", "matching": "uniform"}
COSINE = {"kind": "hidden_states", "distance": "cosine", "matching": "uniform"}
SCORES = {"kind": "attentions", "matching": "uniform"}
MEAN_SCORES = {"kind": "attentions", "head_map": "mean", "matching": "uniform"}
PROBABILITIES = {"kind": "attentions", "of": "probabilities", "matching": "uniform"}
MEAN_PROBABILITIES = PROBABILITIES | {"head_map": "mean"}

EVERY_KIND_WITH_EQUAL_HEADS = [
    HARD, KL, LOGIT_MSE, HIDDEN, COSINE, SCORES, MEAN_SCORES, PROBABILITIES, MEAN_PROBABILITIES
]  # fmt: skip
FOR_ANY_HEADS = [HARD, KL, LOGIT_MSE, HIDDEN, COSINE, MEAN_SCORES, MEAN_PROBABILITIES]


def stage(*terms: dict[str, Any]) -> Stage:
    return make_stage(tuple(map(TypeAdapter(Term).validate_python, terms)), Training())


def objective(
    *terms: dict[str, Any], student: Sizes = STUDENT, teacher: Sizes = TEACHER, seed: int = 0
) -> Objective:
    return build_objective(stage(*terms), student=student, teacher=teacher, seed=seed)


def constant_layers(size: Sizes) -> Features:
    """Features whose layer n holds n everywhere: a value tells from which layers it came."""
    heads = size.num_attention_heads
    features = {LOGITS: torch.zeros(2, 3)}
    for n in range(size.num_hidden_layers + 1):
        features[Feature("hidden_states", n)] = torch.full((2, 5, size.hidden_size), float(n))
        features[Feature("attentions", n)] = torch.full((2, heads, 5, 5), float(n))
    return features


def losses_of_constants(*terms: dict[str, Any]) -> TermLosses:
    return objective(*terms)(
        constant_layers(STUDENT),
        constant_layers(TEACHER),
        labels=torch.tensor([0, 2]),
        attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    )


# The sum


def test_the_total_is_the_weighted_sum_of_the_terms_and_terms_come_without_weight() -> None:
    # Hard labels of an undecided student: ln 3. uniform pairs (2, 1) and (4, 2): (1 + 4) / 2
    losses = losses_of_constants(HARD | {"weight": 0.5}, HIDDEN | {"weight": 10.0})
    assert [each.loss.item() for each in losses.by_term] == pytest.approx([math.log(3), 2.5])
    assert losses.total.item() == pytest.approx(0.5 * math.log(3) + 10 * 2.5)


def test_terms_stand_in_the_stages_canonical_order() -> None:
    made = objective(KL, HIDDEN, HARD)
    assert [term.term for term in made.terms] == list(stage(HIDDEN, HARD, KL).terms)
    assert [term["index"] for term in made.describe()] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["hidden_states", "attentions"])
@pytest.mark.parametrize(
    ("matching", "expected"),
    [
        # pairs (teacher, student) of a 2-layer student of 4 layers, and the mean of their squares
        ("first", 0),  # (1, 1), (2, 2)
        ("last", 4),  # (3, 1), (4, 2)
        ("uniform", (1 + 4) / 2),  # (2, 1), (4, 2)
        ("gap", (1 + 4) / 2),
        ({"last_k": 1}, 4),  # (4, 2)
        ({"reverse": "uniform"}, 9 / 2),  # (4, 1), (2, 2)
        ({"pairs": [[-1, 1]]}, 9),
        ({"pairs": [[4, -1], [1, 1], [3, 2]]}, (4 + 0 + 1) / 3),
    ],
)
def test_a_matching_compares_the_layers_it_names_and_takes_the_mean_over_pairs(
    kind: str, matching: object, expected: float
) -> None:
    losses = losses_of_constants({"kind": kind, "matching": matching})
    assert losses.total.item() == pytest.approx(expected)


def test_layer_0_is_the_embedding_output() -> None:
    assert losses_of_constants(HIDDEN | {"matching": {"pairs": [[3, 0]]}}).total.item() == 9


def test_random_layers_are_drawn_anew_in_each_epoch_and_again_after_a_resume() -> None:
    term = HIDDEN | {"matching": {"random_sorted": 2}}
    features = constant_layers(STUDENT), constant_layers(TEACHER)
    given = {"labels": torch.tensor([0, 2]), "attention_mask": torch.ones(2, 5)}

    def losses(*epochs: int) -> list[float]:
        made, found = objective(HARD, term), []
        for epoch in epochs:
            made.begin_epoch(epoch)
            found.append(made(*features, **given).by_term[1].loss.item())
        return found

    # Layers 1 and 2 learn from two of the teacher's layers 1 to 3.
    assert set(losses(*range(30))) == {0.0, 0.5, 1.0}
    assert losses(3, 4, 5) == losses(*range(6))[3:]
    assert objective(HARD, term).teacher_needs == features_of(hidden_states=[1, 2, 3])


def _random(size: Sizes, *, seed: int, length: int = 3) -> dict[Feature, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    features = {LOGITS: torch.randn(2, 3, generator=stream)}
    heads = (2, size.num_attention_heads, length, length)
    for n in range(size.num_hidden_layers + 1):
        hidden = torch.randn(2, length, size.hidden_size, generator=stream)
        features[Feature("hidden_states", n)] = hidden
        scores = torch.randn(heads, generator=stream)
        features[Feature("attentions", n)] = scores
        features[Feature("attention_means", n)] = scores.softmax(-1).mean(1, keepdim=True)
    return features


# What changes on the way


def at(made: Objective, progress: float, *, seed: int = 1) -> TermLosses:
    return made(
        _random(STUDENT, seed=seed),
        _random(TEACHER, seed=2),
        labels=torch.tensor([0, 1]),
        attention_mask=torch.ones(2, 3),
        progress=progress,
    )


def test_a_schedule_multiplies_the_base_weight() -> None:
    made = objective(HARD, KL | {"weight": 3.0, "schedule": {"linear_up": 0.5}})
    for progress, weight in ((0.0, 0.0), (0.25, 1.5), (0.5, 3.0), (0.9, 3.0)):
        losses = at(made, progress)
        assert losses.weights.tolist() == pytest.approx([1.0, weight])
        expected = losses.by_term[0].loss + weight * losses.by_term[1].loss
        assert losses.total.item() == pytest.approx(expected.item())


def test_a_term_waits_until_another_loss_has_fallen_and_then_stays() -> None:
    by_seed = {seed: at(objective(HARD, HIDDEN), 0, seed=seed).by_term[1].loss for seed in (1, 3)}
    far, near = sorted(by_seed, key=lambda seed: -by_seed[seed].item())
    between = (by_seed[far] + by_seed[near]).item() / 2
    waiting = KL | {"schedule": {"once": {"kind": "hidden_states", "loss": between}}}
    made = objective(HARD, HIDDEN, waiting)
    opened = [at(made, 0, seed=seed).weights[2].item() for seed in (far, near, far)]
    assert opened == [0.0, 1.0, 1.0]
    resumed = objective(HARD, HIDDEN, waiting)
    resumed.load_state_dict(made.state_dict())
    assert at(resumed, 0, seed=far).weights[2].item() == 1.0


def test_a_ratio_gives_a_term_the_weight_of_another_without_a_gradient() -> None:
    made = objective(KL, HIDDEN | {"weight": 2.0, "schedule": {"ratio_to": "soft_logits"}})
    losses = at(made, 0)
    # hidden_states comes first in the canonical order
    assert losses.total.item() == pytest.approx(3 * losses.by_term[1].loss.item())
    assert not losses.weights.requires_grad


def test_gradients_are_equalised_at_their_mean_and_the_factors_are_state() -> None:
    made = objective(HARD, HIDDEN | {"scale": "gradient_norm", "weight": 2.0}, KL)
    made.equalise([1.0, 9.0, 2.0])
    assert made.scales.tolist() == pytest.approx([1.0, 4 / 9, 1.0])
    assert at(made, 0).weights.tolist() == pytest.approx([1.0, 8 / 9, 1.0])
    assert made.state_dict()["scales"].tolist() == pytest.approx([1.0, 4 / 9, 1.0])


@pytest.mark.parametrize("followed", ["attentions", "soft_logits"])
def test_a_schedule_that_follows_no_other_term_is_refused(followed: str) -> None:
    with pytest.raises(GridError, match="Name the kind of exactly one other term"):
        objective(HARD, KL | {"schedule": {"ratio_to": followed}})


# What is read


def test_needs_are_the_layers_of_the_matching_and_the_logits_of_whom_they_are_read() -> None:
    made = objective(HARD, HIDDEN, SCORES | {"matching": "last"})
    both = [1, 2]
    assert made.student_needs == features_of("logits", hidden_states=both, attentions=both)
    assert made.teacher_needs == features_of(hidden_states=[2, 4], attentions=[3, 4])


def test_a_control_without_a_teacher_reads_none() -> None:
    made = objective(HARD)
    assert not made.teacher_needs
    losses = made(
        constant_layers(STUDENT),
        None,
        labels=torch.tensor([0, 1]),
        attention_mask=torch.ones(2, 5),
    )
    assert losses.total.item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("term", FOR_ANY_HEADS[1:])
def test_another_teacher_gives_another_loss(term: dict[str, Any]) -> None:
    made = objective(term, teacher=WIDE_TEACHER)
    first, second = (
        made(
            _random(STUDENT, seed=1),
            _random(WIDE_TEACHER, seed=seed),
            labels=torch.tensor([0, 1]),
            attention_mask=torch.ones(2, 3),
        ).total.item()
        for seed in (2, 3)
    )
    assert first != second


# What is written down


def test_the_resolved_terms_are_json() -> None:
    made = objective(HARD, HIDDEN | {"label": "states", "weight": 2.0}, teacher=WIDE_TEACHER)
    assert json.loads(json.dumps(made.describe())) == [
        {
            "index": 0,
            "label": "hard_labels",
            "kind": "hard_labels",
            "weight": 1.0,
            "settings": {"label_smoothing": 0.0},
            "pairs": [],
            "projection": None,
        },
        {
            "index": 1,
            "label": "states",
            "kind": "hidden_states",
            "weight": 2.0,
            "settings": {
                "reduce_layers": "mean",
                "of": "tokens",
                "distance": "mse",
                "normalise": False,
                "projection": "linear",
                "share_projection": False,
                "reduce_features": "mean",
            },
            "pairs": [[2, 1], [4, 2]],
            "projection": [8, 12],
        },
    ]


# Projections


def test_projections_are_the_only_parameters_one_for_each_pair_where_the_widths_differ() -> None:
    made = objective(HARD, HIDDEN, teacher=WIDE_TEACHER)
    shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}
    assert shapes == {
        "projections.1.2-1.weight": (12, 8),
        "projections.1.2-1.bias": (12,),
        "projections.1.4-2.weight": (12, 8),
        "projections.1.4-2.bias": (12,),
    }
    assert list(objective(HARD, HIDDEN).parameters()) == []


def test_a_projection_depends_on_seed_term_and_pair_and_not_on_its_company() -> None:
    alone = objective(HIDDEN, teacher=WIDE_TEACHER).state_dict()
    before = torch.get_rng_state()
    together = objective(KL, HARD, COSINE, HIDDEN, teacher=WIDE_TEACHER).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    # Index 0 alone; in company the cosine comes first and the hard labels stand between.
    assert torch.equal(alone["projections.0.2-1.weight"], together["projections.2.2-1.weight"])
    other_pair = alone["projections.0.4-2.weight"]
    other_term = together["projections.0.2-1.weight"]
    other_seed = objective(HIDDEN, teacher=WIDE_TEACHER, seed=1).state_dict()
    for other in (other_pair, other_term, other_seed["projections.0.2-1.weight"]):
        assert not torch.equal(alone["projections.0.2-1.weight"], other)


@pytest.mark.parametrize("term", [HIDDEN, COSINE])
def test_gradients_reach_student_and_projections_past_garbage_in_padding_but_no_teacher(
    term: dict[str, Any],
) -> None:
    made = objective(term, teacher=WIDE_TEACHER)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    student, teacher = _random(STUDENT, seed=1), _random(WIDE_TEACHER, seed=2)
    for features in (student, teacher):
        for tensor in by_layer(features, "hidden_states").values():
            tensor[0, 2] = math.nan
            tensor.requires_grad_()
    made(student, teacher, labels=torch.tensor([0, 1]), attention_mask=mask).total.backward()
    layers = by_layer(student, "hidden_states")
    learning = [layers[1], layers[2], *made.parameters()]
    for tensor in learning:
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
        assert tensor.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in teacher.values())


def test_a_shared_projection_is_one_map_for_all_pairs() -> None:
    made = objective(HIDDEN | {"share_projection": True}, teacher=WIDE_TEACHER)
    names = [name for name, _ in made.named_parameters()]
    assert names == ["projections.0.shared.weight", "projections.0.shared.bias"]


def test_autocast_does_not_reach_the_losses() -> None:
    made = objective(*FOR_ANY_HEADS[:1], HIDDEN, KL, MEAN_SCORES, teacher=WIDE_TEACHER)
    inputs = (_random(STUDENT, seed=1), _random(WIDE_TEACHER, seed=2))
    given = {"labels": torch.tensor([0, 1]), "attention_mask": torch.ones(2, 3)}
    expected = made(*inputs, **given)
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(*inputs, **given)
    assert losses.by_term == expected.by_term
    assert losses.total.dtype == torch.float32


@pytest.mark.parametrize(("projection", "is_rounded"), [("linear", True), ("orthogonal", False)])
def test_projections_multiply_in_the_precision_of_the_models_and_losses_do_not(
    projection: str, is_rounded: bool
) -> None:
    made = objective(HIDDEN | {"projection": projection}, teacher=WIDE_TEACHER)
    inputs = (_random(STUDENT, seed=1), _random(WIDE_TEACHER, seed=2))
    given = {"labels": torch.tensor([0, 1]), "attention_mask": torch.ones(2, 3)}
    [expected] = made(*inputs, **given).by_term
    losses = made(*inputs, **given, precision="bf16")
    [found] = losses.by_term
    assert bool(found.loss != expected.loss) is is_rounded
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2**-8)
    assert found.loss.dtype == torch.float32
    losses.total.backward()
    gradients = [parameter.grad for parameter in made.parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in gradients)


# What does not fit


@pytest.mark.parametrize(
    ("term", "teacher", "expected"),
    [
        (SCORES, WIDE_TEACHER, "terms.attentions.head_map: is `equal`, but the student has 2"),
        (
            HIDDEN | {"projection": "none"},
            WIDE_TEACHER,
            "terms.hidden_states.projection: is `none`, but the student is 8 wide",
        ),
        (HIDDEN | {"matching": {"last_k": 3}}, TEACHER, "`last_k: 3` exceeds"),
        (HIDDEN | {"matching": None}, TEACHER, "terms.hidden_states.matching: is missing"),
        (SCORES | {"matching": {"pairs": [[0, 1]]}}, TEACHER, "layer 0, the embedding"),
        (KL | {"temperature": None}, TEACHER, "terms.soft_logits.temperature: is missing"),
        (
            KL,
            Sizes(num_hidden_layers=4, hidden_size=8, num_attention_heads=2, num_labels=2),
            "compares 3 classes of the student with 2 of the teacher",
        ),
    ],
)
def test_a_term_that_does_not_fit_the_models_is_refused(
    term: dict[str, Any], teacher: Sizes, expected: str
) -> None:
    with pytest.raises(GridError) as caught:
        objective(HARD, term, teacher=teacher)
    assert expected in str(caught.value)


def test_all_misfits_are_named_at_once_under_their_labels() -> None:
    with pytest.raises(GridError) as caught:
        objective(
            SCORES | {"label": "maps"},
            HIDDEN | {"projection": "none"},
            KL | {"temperature": None},
            teacher=WIDE_TEACHER,
        )
    assert {problem.path for problem in caught.value.problems} == {
        "terms.maps.head_map",
        "terms.hidden_states.projection",
        "terms.soft_logits.temperature",
    }


# With models


def distil(
    made: Objective,
    student: BertForSequenceClassification,
    teacher: BertForSequenceClassification,
    batch: dict[str, Tensor],
) -> TermLosses:
    return made(
        read_features(student, **batch, needs=made.student_needs),
        read_features(teacher, **batch, needs=made.teacher_needs),
        labels=torch.tensor([0, 2, 1]),
        attention_mask=batch["attention_mask"],
    )


@pytest.mark.parametrize("term", EVERY_KIND_WITH_EQUAL_HEADS[1:])
def test_a_student_that_is_its_teacher_has_no_loss(
    make_bert: MakeBert, make_batch: MakeBatch, term: dict[str, Any]
) -> None:
    model = make_bert()
    made = objective(term, student=sizes(model), teacher=sizes(model))
    assert distil(made, model, model, make_batch()).total.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", FOR_ANY_HEADS)
def test_every_term_moves_a_student_of_other_size_and_leaves_the_teacher_alone(
    make_bert: MakeBert, make_batch: MakeBatch, term: dict[str, Any]
) -> None:
    student = make_bert(layers=2, width=16, heads=2, seed=1)
    teacher = make_bert()
    made = objective(term, student=sizes(student), teacher=sizes(teacher))
    distil(made, student, teacher, make_batch()).total.backward()
    gradients = [p.grad.abs().sum() for p in student.parameters() if p.grad is not None]
    assert sum(gradients) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("term", FOR_ANY_HEADS)
def test_longer_padding_changes_no_loss(
    make_bert: MakeBert, make_batch: MakeBatch, term: dict[str, Any]
) -> None:
    student = make_bert(layers=2, width=16, heads=2, seed=1)
    teacher = make_bert()
    made = objective(term, student=sizes(student), teacher=sizes(teacher))
    short = distil(made, student, teacher, make_batch([7, 4, 2]))
    long = distil(made, student, teacher, make_batch([7, 4, 2], padded_to=20))
    assert long.total.item() == pytest.approx(short.total.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("term", FOR_ANY_HEADS)
def test_a_step_in_bfloat16_is_finite(
    make_bert: MakeBert, make_batch: MakeBatch, term: dict[str, Any]
) -> None:
    student = make_bert(layers=2, width=16, heads=2, seed=1)
    teacher = make_bert()
    made = objective(term, student=sizes(student), teacher=sizes(teacher))
    with torch.autocast("cpu", torch.bfloat16):
        losses = distil(made, student, teacher, make_batch())
    losses.total.backward()
    assert bool(losses.total.isfinite())
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
