"""Layer pairs; expected values are the worked tables of the field's published rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces.matching import (
    LastK,
    Matching,
    MatchingError,
    Pairs,
    Reverse,
    layer_pairs,
    matching_label,
)


def teacher_layers(matching: Matching, teacher: int, student: int) -> list[int]:
    pairs = layer_pairs(matching, num_teacher_layers=teacher, num_student_layers=student)
    assert [pair.student for pair in pairs] == sorted(pair.student for pair in pairs)
    return [pair.teacher for pair in pairs]


@pytest.mark.parametrize(
    ("rule", "teacher", "student", "expected"),
    [
        ("first", 12, 6, [1, 2, 3, 4, 5, 6]),
        ("first", 12, 3, [1, 2, 3]),
        ("first", 6, 4, [1, 2, 3, 4]),
        ("last", 12, 6, [7, 8, 9, 10, 11, 12]),
        ("last", 12, 4, [9, 10, 11, 12]),
        ("last", 6, 4, [3, 4, 5, 6]),
        ("last", 6, 2, [5, 6]),
        # Jiao et al., TinyBERT, 2020: g(i) = i * L_T / L_S
        ("gap", 12, 6, [2, 4, 6, 8, 10, 12]),
        ("gap", 12, 4, [3, 6, 9, 12]),
        ("gap", 12, 3, [4, 8, 12]),
        ("gap", 6, 3, [2, 4, 6]),
        ("gap", 6, 2, [3, 6]),
        ("uniform", 12, 6, [2, 4, 6, 8, 10, 12]),
        ("uniform", 12, 4, [3, 6, 9, 12]),
        ("uniform", 12, 3, [4, 8, 12]),
        ("uniform", 6, 4, [2, 3, 5, 6]),
        ("uniform", 6, 3, [2, 4, 6]),
        ("uniform", 6, 2, [3, 6]),
    ],
)
def test_rules_pair_the_layers_of_the_published_tables(
    rule: Matching, teacher: int, student: int, expected: list[int]
) -> None:
    assert teacher_layers(rule, teacher, student) == expected


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [(12, 6, [(5, 11), (6, 12)]), (12, 3, [(2, 11), (3, 12)]), (6, 2, [(1, 5), (2, 6)])],
)
def test_the_last_two_layers_meet_in_order_and_not_crosswise(
    teacher: int, student: int, expected: list[tuple[int, int]]
) -> None:
    rule = LastK(last_k=2)
    pairs = layer_pairs(rule, num_teacher_layers=teacher, num_student_layers=student)
    assert list(pairs) == expected


def test_reverse_turns_the_teacher_layers_round() -> None:
    assert teacher_layers(Reverse(reverse="uniform"), 12, 6) == [12, 10, 8, 6, 4, 2]


def test_explicit_pairs_count_from_the_end_and_name_the_embedding() -> None:
    rule = Pairs(pairs=((6, -1), (0, 0), (-2, 1)))
    pairs = layer_pairs(rule, num_teacher_layers=6, num_student_layers=3)
    assert list(pairs) == [(3, 6), (0, 0), (1, 5)]


@pytest.mark.parametrize(
    ("rule", "teacher", "student", "message"),
    [
        ("gap", 12, 5, "multiple"),
        ("first", 3, 6, "explicit `pairs`"),
        (LastK(last_k=4), 12, 3, "exceeds"),
        (Pairs(pairs=((7, 1),)), 6, 3, "outside the teacher"),
        (Pairs(pairs=((1, -5),)), 6, 3, "outside the student"),
    ],
)
def test_impossible_depths_are_refused_with_a_reason(
    rule: Matching, teacher: int, student: int, message: str
) -> None:
    with pytest.raises(MatchingError, match=message):
        teacher_layers(rule, teacher, student)


@given(student=st.integers(1, 24), more=st.integers(0, 24))
def test_uniform_spreads_over_all_depths_and_ends_at_the_last_layer(
    student: int, more: int
) -> None:
    layers = teacher_layers("uniform", student + more, student)
    assert layers == sorted(set(layers))
    assert layers[-1] == student + more


@given(student=st.integers(1, 12), times=st.integers(1, 4))
def test_gap_and_uniform_agree_where_gap_is_defined(student: int, times: int) -> None:
    depths = student * times, student
    assert teacher_layers("gap", *depths) == teacher_layers("uniform", *depths)


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        ("gap", "gap"),
        (LastK(last_k=2), "last_k-2"),
        (Reverse(reverse="uniform"), "reverse-uniform"),
        (Reverse(reverse=LastK(last_k=3)), "reverse-last_k-3"),
        (Pairs(pairs=((6, -1),)), "pairs-6.-1"),
        (Pairs(pairs=((2, 1), (4, 2))), "pairs-2.1+4.2"),
    ],
)
def test_every_rule_has_a_label_for_tables(rule: Matching, label: str) -> None:
    assert matching_label(rule) == label
