"""Which teacher layer teaches which student layer: pure integers, no model.

Layers are counted from 1; 0 is the embedding output, as in Hugging Face's `hidden_states`.
"""

from typing import Annotated, Literal, NamedTuple, assert_never

from pydantic import Field

from .spec import Count, Int, Spec

Rule = Literal["first", "last", "uniform", "gap"]


class LastK(Spec):
    """The last k layers of both sides, in order: the teacher's last meets the student's last."""

    last_k: Count
    """How many layers are matched; at most as many as the student has."""


class Pairs(Spec):
    """Explicit pairs of layers."""

    pairs: Annotated[tuple[tuple[Int, Int], ...], Field(min_length=1)]
    """Pairs of [teacher, student]; 0 is the embedding output, -1 the last layer."""


class Reverse(Spec):
    """Another rule's teacher layers in descending order: a control that breaks the order."""

    reverse: "Rule | LastK"
    """The rule whose teacher layers are turned round."""


Matching = Rule | LastK | Pairs | Reverse


class LayerPair(NamedTuple):
    """A student layer and the teacher layer it learns from; 1 is the first block."""

    student: int
    teacher: int


class MatchingError(ValueError):
    """This rule pairs no layers for these two depths; the message says why and what would."""


def layer_pairs(
    matching: Matching, *, num_teacher_layers: int, num_student_layers: int
) -> tuple[LayerPair, ...]:
    """The pairs that a rule makes for two depths, in the student's order.

    Args:
        matching: The rule.
        num_teacher_layers: Depth of the teacher, without its embedding.
        num_student_layers: Depth of the student, without its embedding.

    Raises:
        MatchingError: The student is deeper than the teacher, `gap` does not divide, `last_k`
            exceeds the student, or a pair lies outside a model.

    References:
        Lu et al., *Knowledge Distillation of Transformer-based Language Models Revisited*, 2022,
        arXiv:2206.14366. `gap` is TinyBERT's g(i) = i * L_T / L_S (Jiao et al., 2020,
        arXiv:1909.10351, section 3.1); `uniform` is its ceiling, defined for all depths.
    """
    teacher, student = num_teacher_layers, num_student_layers
    if not isinstance(matching, Pairs) and student > teacher:
        raise MatchingError(
            f"the student has {student} layers and the teacher {teacher}: "
            "a rule cannot pair them; write explicit `pairs`"
        )
    match matching:
        case "first":
            return tuple(LayerPair(n, n) for n in range(1, student + 1))
        case "last":
            return tuple(LayerPair(n, n + teacher - student) for n in range(1, student + 1))
        case "uniform":
            return tuple(LayerPair(n, -(-n * teacher // student)) for n in range(1, student + 1))
        case "gap":
            if teacher % student:
                raise MatchingError(
                    f"`gap` needs the teacher's depth ({teacher}) to be a multiple of the "
                    f"student's ({student}); `uniform` is defined for all depths"
                )
            return tuple(LayerPair(n, n * teacher // student) for n in range(1, student + 1))
        case LastK(last_k=k):
            if k > student:
                raise MatchingError(f"`last_k: {k}` exceeds the student's {student} layers")
            return tuple(LayerPair(student - k + n, teacher - k + n) for n in range(1, k + 1))
        case Reverse(reverse=rule):
            pairs = layer_pairs(rule, num_teacher_layers=teacher, num_student_layers=student)
            turned = reversed([pair.teacher for pair in pairs])
            return tuple(
                LayerPair(pair.student, layer) for pair, layer in zip(pairs, turned, strict=True)
            )
        case Pairs(pairs=pairs):
            return tuple(
                LayerPair(_layer(s, student, "student"), _layer(t, teacher, "teacher"))
                for t, s in pairs
            )
        case _:
            assert_never(matching)


def _layer(index: int, depth: int, side: str) -> int:
    layer = depth + 1 + index if index < 0 else index
    if not 0 <= layer <= depth:
        raise MatchingError(
            f"layer {index} lies outside the {side}, which has layers 0 (embedding) to {depth}"
        )
    return layer


def matching_label(matching: Matching) -> str:
    """The name by which a rule stands in tables and predicates.

    Pairs are written teacher.student: `pairs-6.-1`, `pairs-2.1+4.2`.
    """
    match matching:
        case str():
            return matching
        case LastK(last_k=k):
            return f"last_k-{k}"
        case Reverse(reverse=rule):
            return f"reverse-{matching_label(rule)}"
        case Pairs(pairs=pairs):
            return "pairs-" + "+".join(f"{teacher}.{student}" for teacher, student in pairs)
        case _:
            assert_never(matching)
