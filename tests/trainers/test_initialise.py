import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from kdsweep.search_spaces.errors import GridError
from kdsweep.search_spaces.initialisation import TeacherLayers
from kdsweep.search_spaces.shape import Shape
from kdsweep.trainers.initialise import initialise
from kdsweep.trainers.student import build_student

MakeBert = Callable[..., BertForSequenceClassification]
Weights = dict[str, Tensor]

SHAPE = Shape(layers=2, width=32, heads=4, feed_forward=64)
BLOCKS_ALONE = {"embeddings": "random", "layer_norms": "random", "pooler": "random"}


@pytest.fixture
def fine_tuned(make_bert: MakeBert) -> BertForSequenceClassification:
    return _with_lively_vectors(make_bert(seed=1), seed=1)


@pytest.fixture
def pretrained(make_bert: MakeBert) -> BertForSequenceClassification:
    return _with_lively_vectors(make_bert(seed=2), seed=2)


@torch.no_grad()
def _with_lively_vectors(
    model: BertForSequenceClassification, *, seed: int
) -> BertForSequenceClassification:
    """Biases and LayerNorms of a new model are all alike: no copy could be told by them."""
    stream = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.normal_(generator=stream)
    return model


@pytest.fixture
def new_student(
    fine_tuned: BertForSequenceClassification,
) -> Callable[..., BertForSequenceClassification]:
    def make(shape: Shape = SHAPE, *, num_labels: int = 3) -> BertForSequenceClassification:
        return build_student(
            shape,
            teacher_config=fine_tuned.config,
            num_labels=num_labels,
            class_names=[str(n) for n in range(num_labels)],
            dropout=0.1,
            seed=0,
        )

    return make


def teacher_layers(**fields: Any) -> TeacherLayers:
    return TeacherLayers.model_validate({"teacher_layers": "last"} | fields)


def part(name: str) -> str:
    """The part of an initialisation to which a parameter belongs, by Hugging Face's names."""
    if "LayerNorm" in name:
        return "layer_norms"
    return {"bert.embeddings": "embeddings", "bert.encoder": "blocks", "bert.pooler": "pooler"}.get(
        ".".join(name.split(".")[:2]), "head"
    )


def in_teacher(name: str, layers: list[int]) -> str:
    """The teacher's name of the parameter that a student's parameter copies."""
    return re.sub(r"layer\.(\d+)", lambda found: f"layer.{layers[int(found[1])] - 1}", name)


def copied_parts(
    student: Weights, teacher: Weights, random: Weights, layers: list[int]
) -> set[str]:
    """The parts whose every parameter is the teacher's; all others must be as they were."""
    copied = {}
    for name, weight in student.items():
        is_copy = torch.equal(weight, teacher[in_teacher(name, layers)])
        assert is_copy != torch.equal(weight, random[name]), name
        assert copied.setdefault(part(name), is_copy) == is_copy, name
    return {name for name, is_copy in copied.items() if is_copy}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"blocks", "embeddings", "layer_norms", "pooler"}),
        (BLOCKS_ALONE, {"blocks"}),
        (BLOCKS_ALONE | {"embeddings": "copy"}, {"blocks", "embeddings"}),
        (BLOCKS_ALONE | {"layer_norms": "copy"}, {"blocks", "layer_norms"}),
        (BLOCKS_ALONE | {"pooler": "copy"}, {"blocks", "pooler"}),
        (BLOCKS_ALONE | {"head": "copy"}, {"blocks", "head"}),
        ({"head": "copy"}, {"blocks", "embeddings", "layer_norms", "pooler", "head"}),
    ],
)
def test_each_field_copies_its_part_and_nothing_else(
    fine_tuned: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
    fields: dict[str, str],
    expected: set[str],
) -> None:
    student = new_student()
    initialise(student, teacher_layers(**fields), fine_tuned=fine_tuned, pretrained=None)
    found = copied_parts(
        student.state_dict(), fine_tuned.state_dict(), new_student().state_dict(), [3, 4]
    )
    assert found == expected


@pytest.mark.parametrize(
    ("rule", "layers"),
    [
        ("first", [1, 2]),
        ("last", [3, 4]),
        ("uniform", [2, 4]),
        ("gap", [2, 4]),
        ([4, 1], [4, 1]),
        ([3, 3], [3, 3]),
    ],
)
def test_each_block_copies_the_teacher_block_that_the_rule_names(
    fine_tuned: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
    rule: str | list[int],
    layers: list[int],
) -> None:
    student = new_student()
    spec = teacher_layers(teacher_layers=tuple(rule) if isinstance(rule, list) else rule)
    initialise(student, spec, fine_tuned=fine_tuned, pretrained=None)
    found = copied_parts(
        student.state_dict(), fine_tuned.state_dict(), new_student().state_dict(), layers
    )
    assert "blocks" in found


def test_from_chooses_the_teacher_before_or_after_its_fine_tuning(
    fine_tuned: BertForSequenceClassification,
    pretrained: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
) -> None:
    for source, teacher in (("fine_tuned", fine_tuned), ("pretrained", pretrained)):
        student = new_student()
        initialise(
            student,
            teacher_layers(**{"from": source}),
            fine_tuned=fine_tuned,
            pretrained=pretrained,
        )
        word_embeddings = student.bert.embeddings.word_embeddings.weight
        assert torch.equal(word_embeddings, teacher.bert.embeddings.word_embeddings.weight)


def test_random_layer_norms_are_reset_to_one_and_zero(
    fine_tuned: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
) -> None:
    student = _with_lively_vectors(new_student(), seed=3)
    initialise(
        student, teacher_layers(layer_norms="random"), fine_tuned=fine_tuned, pretrained=None
    )
    for name, weight in student.state_dict().items():
        if "LayerNorm" in name:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight"))))


def test_a_copied_student_of_the_teachers_depth_gives_the_teachers_logits(
    fine_tuned: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
    make_batch: Callable[..., dict[str, Tensor]],
) -> None:
    student = new_student(Shape(layers=4, width=32, heads=4, feed_forward=64)).eval()
    initialise(
        student,
        teacher_layers(teacher_layers="first", head="copy"),
        fine_tuned=fine_tuned,
        pretrained=None,
    )
    batch = make_batch()
    assert torch.equal(student(**batch).logits, fine_tuned(**batch).logits)


def test_a_copy_shares_no_memory_with_the_teacher(
    fine_tuned: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
) -> None:
    student = new_student()
    initialise(student, teacher_layers(head="copy"), fine_tuned=fine_tuned, pretrained=None)
    theirs = {parameter.data_ptr() for parameter in fine_tuned.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in student.parameters()}
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    ("shape", "fields", "expected"),
    [
        (
            Shape(layers=2, width=16, heads=4, feed_forward=64),
            {},
            "the student's width is 16 and the teacher's 32",
        ),
        (
            Shape(layers=2, width=32, heads=2, feed_forward=64),
            {},
            "the student's number of heads is 2 and the teacher's 4",
        ),
        (
            Shape(layers=2, width=32, heads=4),
            {},
            "the student's feed-forward width is 128 and the teacher's 64",
        ),
        (SHAPE, {"teacher_layers": (1, 2, 3)}, "3 teacher layers are listed"),
        (SHAPE, {"teacher_layers": (1, 5)}, "layer 5 lies outside"),
        (SHAPE, {"head": "copy", "from": "pretrained"}, "does not know the task"),
    ],
)
def test_what_cannot_be_copied_is_refused_and_nothing_is_copied(
    fine_tuned: BertForSequenceClassification,
    pretrained: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
    shape: Shape,
    fields: dict[str, Any],
    expected: str,
) -> None:
    student = new_student(shape)
    with pytest.raises(GridError) as caught:
        initialise(student, teacher_layers(**fields), fine_tuned=fine_tuned, pretrained=pretrained)
    assert expected in str(caught.value)
    untouched = new_student(shape).state_dict()
    assert all(torch.equal(w, untouched[name]) for name, w in student.state_dict().items())


def test_a_head_for_other_classes_is_refused(
    fine_tuned: BertForSequenceClassification,
    new_student: Callable[..., BertForSequenceClassification],
) -> None:
    with pytest.raises(GridError, match="the task has 2 classes and the teacher's head 3"):
        initialise(
            new_student(num_labels=2),
            teacher_layers(head="copy"),
            fine_tuned=fine_tuned,
            pretrained=None,
        )
