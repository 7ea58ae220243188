"""Which teacher layer teaches which student layer: pure integers, no model.

Layers are counted from 1; 0 is the embedding output, as in Hugging Face's `hidden_states`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, assert_never, get_args

from pydantic import BeforeValidator, Field

from .spec import Count, Int, Spec

BlockRule = Literal["first", "last", "uniform", "gap", "linspace"]
"""Rules that give each student block exactly one teacher block."""
OneToOneRule = Literal[BlockRule, "pkd_skip", "pkd_last", "tinybert", "top", "embedding"]
"""Rules that use no layer of either model twice."""
Rule = Literal[OneToOneRule, "consecutive"]
"""Rules without settings; `RULES` says what each pairs."""

SoftRule = Literal["attention", "combine"]
"""Rules that give a student layer something of every teacher layer."""

RULES: Mapping[Rule | SoftRule, str] = {
    "first": "(i, i). Lu et al., 2022, arXiv:2206.14366.",
    "last": "(L_T - L_S + i, i). Lu et al., 2022, arXiv:2206.14366.",
    "uniform": "(ceil(i L_T / L_S), i), for all depths; `gap` where that is defined.",
    "gap": "(i L_T / L_S, i), where L_S divides L_T. Jiao et al., TinyBERT, 2020, "
    "arXiv:1909.10351.",
    "linspace": "(floor(1 + (i - 1) (L_T - 1) / (L_S - 1) + 1/2), i), from the first layer to the "
    "last; a student of one layer has the teacher's last. The blocks that the code of Sanh et al., "
    "DistilBERT, 2019, arXiv:1910.01108, copies.",
    "pkd_skip": "`gap` without the student's last layer. Sun et al., PKD, 2019, arXiv:1908.09355.",
    "pkd_last": "`last` without the student's last layer. Sun et al., PKD, 2019, arXiv:1908.09355.",
    "tinybert": "The embedding pair (0, 0), then `gap`; for attention the blocks alone. Jiao et "
    "al., TinyBERT, 2020, arXiv:1909.10351.",
    "top": "(L_T, L_S). Wang et al., MiniLM, 2020, arXiv:2002.10957.",
    "embedding": "(0, 0), the outputs of the embeddings.",
    "consecutive": "All of ceil((i - 1) L_T / L_S) + 1 to ceil(i L_T / L_S) teach i. Udagawa et "
    "al., 2023, arXiv:2310.08797, whose groups overlap by one layer; these do not.",
    "attention": "Every block teaches every block: the target of a student block is the sum of all "
    "teacher blocks, weighted by the softmax over them of their products with the student's "
    "(projected) state. For hidden states alone. Passban et al., ALP-KD, 2021, arXiv:2012.14022.",
    "combine": "All blocks of both sides, each side's states side by side as one long vector. For "
    "hidden states alone. Wang et al., 2023, arXiv:2305.15032.",
}
"""What each rule pairs, written (teacher, student) for L_T teacher and L_S student layers."""


class FirstK(Spec):
    """The first k layers of both sides, in order: (i, i) for i up to k."""

    first_k: Count
    """How many layers are matched; at most as many as the student has."""


class LastK(Spec):
    """The last k layers of both sides, in order: the teacher's last meets the student's last.

    Formula: (L_T - k + i, L_S - k + i) for i up to k.
    """

    last_k: Count
    """How many layers are matched; at most as many as the student has."""


class TopMinus(Spec):
    """One teacher layer some way below its last.

    Formula: (L_T - j, L_S), or with `student: same` (L_T - j, L_S - j).
    Paper: Wang et al., MiniLMv2, 2021, arXiv:2012.15828; with `student: same` Muralidharan et al.,
    2024, arXiv:2407.14679, appendix A.6.
    """

    top_minus: Count
    """How far below; 1 is the teacher's last layer but one."""
    student: Literal["last", "same"] = "last"
    """Who learns from it: the student's `last` layer, or the one that is the `same` way below."""


class RandomSorted(Spec):
    """Teacher layers drawn anew in each epoch, in order, for the first k student layers.

    Formula: k of the layers 1 to L_T - 1, sorted, teach the student's layers 1 to k.
    Paper: Haidar et al., RAIL-KD, 2022, arXiv:2109.10164; there k is L_S - 1.
    """

    random_sorted: Count | Literal["below_last"]
    """How many layers are drawn, never the teacher's last; at most as many as the student has.
    `below_last`: one fewer than the student has."""

    def number(self, num_student_layers: int) -> int:
        """How many layers are drawn for a student of this depth."""
        if self.random_sorted == "below_last":
            return num_student_layers - 1
        return self.random_sorted


class Emd(Spec):
    """Every block teaches every block, as much as the cheapest transport between them moves.

    Formula: sum of F[s, t] D[s, t] over blocks; D are the pairs' losses, F the flow of least cost
    between the weights of the student's blocks and of the teacher's, without a gradient.
    Paper: Li et al., BERT-EMD, 2020, arXiv:2010.06133.
    """

    emd: Literal["adaptive", "uniform"]
    """Weights of blocks: always equal, or `adaptive`: after each step a block's weight is divided
    by what its share of the flow costs, as the paper's code does it."""


class Progressive(Spec):
    """A rule's pairs one after the other, from the lowest up, in equal shares of a stage.

    Paper: Aguilar et al., 2020, arXiv:1910.03723 (stacked and progressive internal distillation);
    Sun et al., MobileBERT, 2020, arXiv:2004.02984.
    """

    progressive: OneToOneRule
    """The rule."""
    keep: Literal["all", "newest"] = "all"
    """Whether earlier pairs stay (stacked), or the newest is trained alone."""


class Pairs(Spec):
    """Explicit pairs of layers."""

    pairs: Annotated[tuple[tuple[Int, Int], ...], Field(min_length=1)]
    """Pairs of [teacher, student]; 0 is the embedding output, -1 the last layer."""


def _can_turn(value: object) -> object:
    match value:
        case "consecutive" | "attention" | "combine":
            pass
        case {"random_sorted": _} | {"pairs": _} | {"reverse": _} | {"emd": _} | {"progressive": _}:
            pass
        case _:
            return value
    raise ValueError(
        f"`{value}` cannot be reversed: that takes a rule with fixed pairs, one to one; write one "
        f"of {', '.join(get_args(OneToOneRule))}, first_k, last_k, top_minus"
    )


class Reverse(Spec):
    """Another rule's teacher layers in descending order: a control that breaks the order.

    Paper: Revisiting Intermediate-Layer Matching in Knowledge Distillation, 2025, arXiv:2502.04499.
    """

    reverse: Annotated[
        OneToOneRule | FirstK | LastK | TopMinus,
        BeforeValidator(_can_turn),
    ]
    """The rule whose teacher layers are turned round; it has to pair one to one."""


Matching = (
    Rule | SoftRule | FirstK | LastK | TopMinus | RandomSorted | Emd | Progressive | Pairs | Reverse
)


class LayerPair(NamedTuple):
    """A student layer and the teacher layer it learns from; 1 is the first block."""

    student: int
    teacher: int


class MatchingError(ValueError):
    """This rule pairs no layers for these two depths; the message says why and what would."""


def layer_pairs(
    matching: Matching, *, num_teacher_layers: int, num_student_layers: int
) -> tuple[LayerPair, ...]:
    """The fixed pairs that a rule makes for two depths.

    `RULES` and the classes of the others say which.

    Args:
        matching: The rule.
        num_teacher_layers: Depth of the teacher, without its embedding.
        num_student_layers: Depth of the student, without its embedding.

    Returns:
        Pairs in the student's order; explicit pairs in their own.

    Raises:
        MatchingError: The student is deeper than the teacher, L_S does not divide L_T where it has
            to, a number exceeds a model, no pair is left, a pair lies outside a model, or the rule
            draws its pairs anew in each epoch.
    """
    teacher, student = num_teacher_layers, num_student_layers
    if not isinstance(matching, Pairs):
        _refuse_deeper_student(teacher=teacher, student=student)
    match matching:
        case "attention" | "combine" | Emd():
            raise MatchingError("gives every layer to every layer and has no fixed pairs")
        case Progressive(progressive=rule):
            return tuple(_rule_pairs(rule, teacher=teacher, student=student))
        case str():
            return tuple(_rule_pairs(matching, teacher=teacher, student=student))
        case FirstK(first_k=k):
            _refuse_more("first_k", k, depth=student, side="student")
            return tuple(LayerPair(n, n) for n in range(1, k + 1))
        case LastK(last_k=k):
            _refuse_more("last_k", k, depth=student, side="student")
            return tuple(LayerPair(student - k + n, teacher - k + n) for n in range(1, k + 1))
        case TopMinus(top_minus=below, student=learner):
            _refuse_more_below_last("top_minus", below, depth=teacher, side="teacher")
            if learner == "last":
                return (LayerPair(student, teacher - below),)
            _refuse_more_below_last("top_minus", below, depth=student, side="student")
            return (LayerPair(student - below, teacher - below),)
        case RandomSorted():
            raise MatchingError("draws its pairs anew in each epoch and has no fixed ones")
        case Reverse(reverse=rule):
            pairs = layer_pairs(rule, num_teacher_layers=teacher, num_student_layers=student)
            return _reversed(pairs)
        case Pairs(pairs=pairs):
            return tuple(
                LayerPair(_layer(s, student, "student"), _layer(t, teacher, "teacher"))
                for t, s in pairs
            )
        case _:
            assert_never(matching)


def possible_pairs(
    matching: Matching, *, num_teacher_layers: int, num_student_layers: int
) -> tuple[LayerPair, ...]:
    """Every pair that some epoch may compare; the fixed pairs of a rule that draws none.

    With `random_sorted: k`, n - 1 layers lie below the n-th of those drawn and k - n above it, so
    that student layer n may meet the teacher's layers n to L_T - 1 - k + n.

    Args:
        matching: The rule.
        num_teacher_layers: Depth of the teacher, without its embedding.
        num_student_layers: Depth of the student, without its embedding.

    Raises:
        MatchingError: As of `layer_pairs`, or more layers are drawn than a model has.
    """
    teacher, student = num_teacher_layers, num_student_layers
    if isinstance(matching, Emd) or matching in get_args(SoftRule):
        blocks = range(1, student + 1), range(1, teacher + 1)
        return tuple(LayerPair(s, t) for s, t in itertools.product(*blocks))
    if not isinstance(matching, RandomSorted):
        return layer_pairs(matching, num_teacher_layers=teacher, num_student_layers=student)
    k = matching.number(student)
    if not k:
        raise MatchingError("`random_sorted: below_last` leaves no layer of a student of one")
    _refuse_deeper_student(teacher=teacher, student=student)
    _refuse_more("random_sorted", k, depth=student, side="student")
    _refuse_more_below_last("random_sorted", k, depth=teacher, side="teacher")
    return tuple(
        LayerPair(n, layer) for n in range(1, k + 1) for layer in range(n, teacher - k + n)
    )


def drawn_pairs(
    k: int, *, num_teacher_layers: int, permute: Callable[[int], Sequence[int]]
) -> tuple[LayerPair, ...]:
    """The pairs of one epoch.

    k of the teacher's layers 1 to L_T - 1, in ascending order, teach the student's layers 1 to k.

    Args:
        k: How many layers are drawn.
        num_teacher_layers: L_T.
        permute: Gives the numbers from 0 to n - 1 in random order.

    References:
        Haidar et al., *RAIL-KD: RAndom Intermediate Layer Mapping for Knowledge Distillation*,
        2022, arXiv:2109.10164; there k is L_S - 1.
    """
    below_last = permute(num_teacher_layers - 1)
    drawn = sorted(layer + 1 for layer in below_last[:k])
    return tuple(LayerPair(n, layer) for n, layer in enumerate(drawn, start=1))


def _rule_pairs(rule: Rule, *, teacher: int, student: int) -> Iterator[LayerPair]:
    blocks = range(1, student + 1)
    match rule:
        case "first":
            yield from (LayerPair(n, n) for n in blocks)
        case "last":
            yield from (LayerPair(n, n + teacher - student) for n in blocks)
        case "uniform":
            yield from (LayerPair(n, _uniform(n, teacher, student)) for n in blocks)
        case "gap":
            yield from _gap_pairs(rule, teacher=teacher, student=student)
        case "linspace":
            yield from (LayerPair(n, _linspace(n, teacher, student)) for n in blocks)
        case "consecutive":
            for n in blocks:
                group = range(_uniform(n - 1, teacher, student), _uniform(n, teacher, student))
                yield from (LayerPair(n, layer + 1) for layer in group)
        case "pkd_skip":
            _refuse_single_layer(rule, student)
            yield from _gap_pairs(rule, teacher=teacher, student=student)[:-1]
        case "pkd_last":
            _refuse_single_layer(rule, student)
            yield from (LayerPair(n, n + teacher - student) for n in blocks[:-1])
        case "tinybert":
            yield LayerPair(0, 0)
            yield from _gap_pairs(rule, teacher=teacher, student=student)
        case "top":
            yield LayerPair(student, teacher)
        case "embedding":
            yield LayerPair(0, 0)
        case _:
            assert_never(rule)


def _uniform(n: int, teacher: int, student: int) -> int:
    return -(-n * teacher // student)


def _linspace(n: int, teacher: int, student: int) -> int:
    """The formula of `linspace` over its common denominator: Python's `round` goes to even."""
    if student == 1:
        return teacher
    return 1 + (2 * (n - 1) * (teacher - 1) + student - 1) // (2 * (student - 1))


def _gap_pairs(rule: Rule, *, teacher: int, student: int) -> tuple[LayerPair, ...]:
    if teacher % student:
        raise MatchingError(
            f"`{rule}` needs the teacher's depth ({teacher}) to be a multiple of the "
            f"student's ({student}); `uniform` is defined for all depths"
        )
    return tuple(LayerPair(n, n * teacher // student) for n in range(1, student + 1))


def _reversed(pairs: tuple[LayerPair, ...]) -> tuple[LayerPair, ...]:
    return tuple(
        LayerPair(pair.student, opposite.teacher)
        for pair, opposite in zip(pairs, reversed(pairs), strict=True)
    )


def _layer(index: int, depth: int, side: str) -> int:
    layer = depth + 1 + index if index < 0 else index
    if not 0 <= layer <= depth:
        raise MatchingError(
            f"layer {index} lies outside the {side}, which has layers 0 (embedding) to {depth}"
        )
    return layer


def _refuse_deeper_student(*, teacher: int, student: int) -> None:
    if student > teacher:
        raise MatchingError(
            f"the student has {student} layers and the teacher {teacher}: "
            "a rule cannot pair them; write explicit `pairs`"
        )


def _refuse_more(key: str, number: int, *, depth: int, side: str) -> None:
    if number > depth:
        raise MatchingError(f"`{key}: {number}` exceeds the {side}'s {depth} layers")


def _refuse_more_below_last(key: str, number: int, *, depth: int, side: str) -> None:
    if number > depth - 1:
        raise MatchingError(
            f"`{key}: {number}` exceeds the {depth - 1} layers below the {side}'s last"
        )


def _refuse_single_layer(rule: Rule, student: int) -> None:
    if student == 1:
        raise MatchingError(
            f"`{rule}` leaves out the student's last layer, and it has only one: no pair is left; "
            "`top` pairs the last layers"
        )


def matching_label(matching: Matching) -> str:
    """The name by which a rule stands in tables and predicates.

    Pairs are written teacher.student: `pairs-6.-1`, `pairs-2.1+4.2`.
    """
    match matching:
        case str():
            return matching
        case FirstK(first_k=k):
            return f"first_k-{k}"
        case LastK(last_k=k):
            return f"last_k-{k}"
        case TopMinus(top_minus=below, student="last"):
            return f"top_minus-{below}"
        case TopMinus(top_minus=below, student=learner):
            return f"top_minus-{below}-{learner}"
        case RandomSorted(random_sorted=k):
            return f"random_sorted-{k}"
        case Emd(emd=weights):
            return f"emd-{weights}"
        case Progressive(progressive=rule, keep=keep):
            return f"progressive-{rule}" + ("-newest" if keep == "newest" else "")
        case Reverse(reverse=rule):
            return f"reverse-{matching_label(rule)}"
        case Pairs(pairs=pairs):
            return "pairs-" + "+".join(f"{teacher}.{student}" for teacher, student in pairs)
        case _:
            assert_never(matching)
