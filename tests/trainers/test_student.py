from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from kdsweep.search_spaces.knowledge import HiddenStates
from kdsweep.search_spaces.shape import Shape, embedding_parameters, encoder_parameters
from kdsweep.search_spaces.training import Training
from kdsweep.search_spaces.trial import make_stage
from kdsweep.trainers.bert import sizes
from kdsweep.trainers.features import Sizes
from kdsweep.trainers.objective import build_objective
from kdsweep.trainers.student import build_student, count_parameters

TEACHER_CONFIG = BertConfig(
    vocab_size=60,
    max_position_embeddings=40,
    type_vocab_size=2,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    layer_norm_eps=1e-6,
    hidden_act="relu",
)
SHAPE = Shape(layers=2, width=16, heads=2)


def student(
    shape: Shape = SHAPE, *, num_labels: int = 3, seed: int = 0, dropout: float = 0.1
) -> BertForSequenceClassification:
    return build_student(
        shape,
        teacher_config=TEACHER_CONFIG,
        num_labels=num_labels,
        class_names=[f"class {n}" for n in range(num_labels)],
        dropout=dropout,
        seed=seed,
    )


def equal_weights(first: nn.Module, second: nn.Module) -> bool:
    weights, others = first.state_dict(), second.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name]) for name in weights
    )


@settings(deadline=None, max_examples=15)
@given(
    layers=st.integers(1, 4),
    heads=st.integers(1, 4),
    size=st.integers(1, 8),
    feed_forward=st.none() | st.integers(1, 70),
    num_labels=st.integers(2, 5),
)
def test_the_parameters_are_those_of_the_formula(
    layers: int, heads: int, size: int, feed_forward: int | None, num_labels: int
) -> None:
    width = heads * size
    shape = Shape(layers=layers, width=width, heads=heads, feed_forward=feed_forward)
    encoder = encoder_parameters(shape)
    embeddings = embedding_parameters(width, vocab_size=60, max_positions=40)
    pooler_and_head = width**2 + width + num_labels * (width + 1)
    assert count_parameters(student(shape, num_labels=num_labels)) == {
        "parameters": embeddings + encoder + pooler_and_head,
        "parameters/embeddings": embeddings,
        "parameters/encoder": encoder,
    }


def test_a_student_has_its_shape_and_the_teachers_vocabulary() -> None:
    config = student(Shape(layers=3, width=24, heads=4, feed_forward=50)).config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 24)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 50)
    assert (config.vocab_size, config.max_position_embeddings) == (60, 40)
    assert (config.layer_norm_eps, config.hidden_act) == (1e-6, "relu")


def test_a_student_names_the_tasks_classes() -> None:
    config = student(num_labels=2).config
    assert config.id2label == {0: "class 0", 1: "class 1"}
    assert config.label2id == {"class 0": 0, "class 1": 1}
    assert config.num_labels == 2


def test_names_must_be_as_many_as_classes() -> None:
    with pytest.raises(ValueError, match="1 class names were given for 2 classes"):
        build_student(
            SHAPE,
            teacher_config=TEACHER_CONFIG,
            num_labels=2,
            class_names=["only"],
            dropout=0.1,
            seed=0,
        )


def test_dropout_acts_on_hidden_states_attention_and_head() -> None:
    model = student(dropout=0.25)
    assert model.training
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.25}


def test_a_student_is_float32_on_the_cpu_with_fused_attention() -> None:
    model = student()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.config._attn_implementation == "sdpa"


def _random_weights(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            yield module.weight


def test_maps_and_embeddings_are_normal_with_deviation_one_fiftieth() -> None:
    for weight in _random_weights(student(Shape(layers=1, width=128, heads=2))):
        if weight.numel() > 4000:
            assert abs(weight.std().item() - 0.02) < 0.002
            assert abs(weight.mean().item()) < 0.001


def test_biases_and_the_padding_row_are_zero_and_layer_norms_do_nothing() -> None:
    model = student()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
    assert not model.bert.embeddings.word_embeddings.weight[0].any()
    assert model.bert.embeddings.word_embeddings.weight[1:].all()


def test_no_two_weights_share_a_stream() -> None:
    firsts = [weight.flatten()[-4:] for weight in _random_weights(student())]
    assert not any(torch.equal(a, b) for a, b in combinations(firsts, 2))


def test_one_seed_gives_one_student_whatever_else_has_drawn() -> None:
    first = student()
    torch.manual_seed(1234)
    torch.randn(5)
    assert equal_weights(first, student())


def test_another_seed_gives_another_backbone_and_head() -> None:
    first, second = student(seed=0), student(seed=1)
    for a, b in zip(_random_weights(first), _random_weights(second), strict=True):
        assert not torch.equal(a, b)


def test_the_backbone_does_not_depend_on_the_number_of_classes() -> None:
    assert equal_weights(student(num_labels=2).bert, student(num_labels=7).bert)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_the_backbone_does_not_depend_on_the_knowledge(distance: str) -> None:
    alone = student()
    term = HiddenStates(kind="hidden_states", distance=distance, matching="last")
    teacher = Sizes(num_hidden_layers=4, hidden_size=32, num_attention_heads=4, num_labels=3)
    build_objective(make_stage((term,), Training()), student=sizes(alone), teacher=teacher, seed=0)
    assert equal_weights(alone, student())


def test_a_deeper_student_begins_like_a_shallow_one() -> None:
    shallow, deep = student(), student(Shape(layers=4, width=16, heads=2))
    assert equal_weights(shallow.bert.embeddings, deep.bert.embeddings)
    for layer in range(2):
        assert equal_weights(shallow.bert.encoder.layer[layer], deep.bert.encoder.layer[layer])


def test_building_leaves_the_global_random_stream_and_pytorchs_initialisation_alone() -> None:
    before = torch.get_rng_state()
    student()
    assert torch.equal(torch.get_rng_state(), before)
    assert nn.Linear(3, 3).weight.any()
    assert not torch.equal(torch.get_rng_state(), before)
