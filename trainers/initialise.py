"""Copy chosen parts of a teacher into a student; what is not copied keeps its random values."""

from collections.abc import Iterator

import torch
from torch import nn

from ..search_spaces.errors import GridError, Problem
from ..search_spaces.initialisation import TeacherLayers, source_layers
from ..search_spaces.matching import MatchingError
from .bert import classifier, layer_norms, linear_maps, parts, sizes


@torch.no_grad()
def initialise(
    student: nn.Module,
    initialisation: TeacherLayers,
    *,
    fine_tuned: nn.Module | None,
    pretrained: nn.Module | None,
) -> None:
    """Overwrite a student's parts with the teacher's, in place, as the initialisation says.

    Args:
        student: From `build_student`; parts that stay `random` keep its values. LayerNorms have
            no random values: theirs are 1 and 0.
        initialisation: Which teacher block each student block copies, and which other parts.
        fine_tuned: The teacher that knows the task, its logits in the student's order of classes;
            needed by `from: fine_tuned`.
        pretrained: The teacher before it learned the task; needed by `from: pretrained`.

    Raises:
        GridError: The student's sizes are not the teacher's, the layers do not fit, or the head
            to be copied does not know the task; all of it at once, and nothing is copied.
    """
    source = fine_tuned if initialisation.from_ == "fine_tuned" else pretrained
    if source is None:
        raise ValueError(f"`from: {initialisation.from_}`, but that teacher was not given")
    if problems := list(_misfits(student, source, initialisation)):
        raise GridError(problems)
    into, out_of = parts(student), parts(source)
    copies: list[tuple[nn.Module, nn.Module]] = []
    norms = [(into.embedding_norm, out_of.embedding_norm)]
    for student_block, teacher_block in _block_pairs(student, source, initialisation):
        copies += zip(linear_maps(student_block), linear_maps(teacher_block), strict=True)
        norms += zip(layer_norms(student_block), layer_norms(teacher_block), strict=True)
    if initialisation.layer_norms == "copy":
        copies += norms
    else:
        for norm, _ in norms:
            norm.reset_parameters()
    if initialisation.embeddings == "copy":
        copies += zip(into.embeddings, out_of.embeddings, strict=True)
    if initialisation.pooler == "copy":
        copies.append((into.pooler, out_of.pooler))
    if initialisation.head == "copy":
        copies.append((into.head, out_of.head))
    for target, original in copies:
        target.load_state_dict(original.state_dict())


def _block_pairs(
    student: nn.Module, source: nn.Module, initialisation: TeacherLayers
) -> list[tuple[nn.Module, nn.Module]]:
    """Each student block with the teacher block that it copies."""
    into, out_of = parts(student).blocks, parts(source).blocks
    layers = source_layers(
        initialisation, num_teacher_layers=len(out_of), num_student_layers=len(into)
    )
    return [(into[pair.student - 1], out_of[pair.teacher - 1]) for pair in layers]


def _misfits(
    student: nn.Module, source: nn.Module, initialisation: TeacherLayers
) -> Iterator[Problem]:
    try:
        _block_pairs(student, source, initialisation)
    except MatchingError as error:
        yield Problem("initialisation.teacher_layers", str(error), "Name other teacher layers.")
    small, large = classifier(student).config, classifier(source).config
    for name, field in _EQUAL.items():
        ours, theirs = getattr(small, field), getattr(large, field)
        if ours != theirs:
            yield Problem(
                path="initialisation",
                what=f"copies teacher layers, but the student's {name} is {ours} and "
                f"the teacher's {theirs}",
                mend=f"Give the student the teacher's {name}, or write `initialisation: [random]`.",
            )
    if initialisation.head == "copy":
        if initialisation.from_ == "pretrained":
            yield Problem(
                path="initialisation.head",
                what="is `copy`, but a pre-trained teacher's head does not know the task",
                mend="Write `from: fine_tuned`, or `head: random`.",
            )
        num_ours, num_theirs = sizes(student).num_labels, sizes(source).num_labels
        if num_ours != num_theirs:
            yield Problem(
                path="initialisation.head",
                what=f"is `copy`, but the task has {num_ours} classes and the teacher's head "
                f"{num_theirs}",
                mend="Use a teacher of this task, or write `head: random`.",
            )


_EQUAL = {
    "width": "hidden_size",
    "number of heads": "num_attention_heads",
    "feed-forward width": "intermediate_size",
}
