"""Layer pairs; expected values are the worked tables of the field's published rules."""

import random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdsweep.search_spaces.matching import (
    FirstK,
    LastK,
    LayerPair,
    Matching,
    MatchingError,
    OneToOneRule,
    Pairs,
    RandomSorted,
    Reverse,
    Rule,
    TopMinus,
    drawn_pairs,
    layer_pairs,
    matching_label,
    possible_pairs,
)

DEPTHS = [(12, 6), (12, 4), (12, 3), (6, 4), (6, 3), (6, 2)]
REFUSED = "-"


def teacher_layers(matching: Matching, teacher: int, student: int) -> list[int]:
    pairs = layer_pairs(matching, num_teacher_layers=teacher, num_student_layers=student)
    assert [pair.student for pair in pairs] == sorted(pair.student for pair in pairs)
    return [pair.teacher for pair in pairs]


def teacher_student(matching: Matching, teacher: int, student: int) -> list[tuple[int, int]]:
    pairs = layer_pairs(matching, num_teacher_layers=teacher, num_student_layers=student)
    return [(pair.teacher, pair.student) for pair in pairs]


def table(text: str) -> list[tuple[str, int, int, str]]:
    """Rows of a rule and one cell for each of `DEPTHS`, told apart by `|`."""
    rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [
        (rule, teacher, student, cell)
        for rule, *cells in rows
        for (teacher, student), cell in zip(DEPTHS, cells, strict=True)
    ]


# Teacher layers of the student layers 1, 2, ...; a dash where the rule is not defined.
ONE_TO_ONE = table("""
    first    | 1 2 3 4 5 6     | 1 2 3 4   | 1 2 3    | 1 2 3 4 | 1 2 3 | 1 2
    last     | 7 8 9 10 11 12  | 9 10 11 12| 10 11 12 | 3 4 5 6 | 4 5 6 | 5 6
    gap      | 2 4 6 8 10 12   | 3 6 9 12  | 4 8 12   | -       | 2 4 6 | 3 6
    uniform  | 2 4 6 8 10 12   | 3 6 9 12  | 4 8 12   | 2 3 5 6 | 2 4 6 | 3 6
    linspace | 1 3 5 8 10 12   | 1 5 8 12  | 1 7 12   | 1 3 4 6 | 1 4 6 | 1 6
    pkd_skip | 2 4 6 8 10      | 3 6 9     | 4 8      | -       | 2 4   | 3
    pkd_last | 7 8 9 10 11     | 9 10 11   | 10 11    | 3 4 5   | 4 5   | 5
""")

# Of each student layer, the first and the last teacher layer that it learns from.
CONSECUTIVE = table("""
    consecutive | 1-2 3-4 5-6 7-8 9-10 11-12 | 1-3 4-6 7-9 10-12 | 1-4 5-8 9-12 |\
 1-2 3-3 4-5 6-6 | 1-2 3-4 5-6 | 1-3 4-6
""")


@pytest.mark.parametrize(
    ("rule", "teacher", "student", "cell"), [row for row in ONE_TO_ONE if row[-1] != REFUSED]
)
def test_rules_pair_the_layers_of_the_published_tables(
    rule: Rule, teacher: int, student: int, cell: str
) -> None:
    expected = [(int(layer), n) for n, layer in enumerate(cell.split(), start=1)]
    assert teacher_student(rule, teacher, student) == expected


@pytest.mark.parametrize(
    ("rule", "teacher", "student", "cell"), [row for row in ONE_TO_ONE if row[-1] == REFUSED]
)
def test_rules_that_need_a_multiple_are_refused_where_the_tables_have_a_dash(
    rule: Rule, teacher: int, student: int, cell: str
) -> None:
    with pytest.raises(MatchingError, match=f"`{rule}` needs the teacher's depth"):
        teacher_student(rule, teacher, student)


@pytest.mark.parametrize(("rule", "teacher", "student", "cell"), CONSECUTIVE)
def test_consecutive_gives_each_student_layer_a_group_of_the_teacher(
    rule: Rule, teacher: int, student: int, cell: str
) -> None:
    groups = [tuple(map(int, group.split("-"))) for group in cell.split()]
    expected = [
        (layer, n)
        for n, (first, last) in enumerate(groups, start=1)
        for layer in range(first, last + 1)
    ]
    assert teacher_student(rule, teacher, student) == expected


@pytest.mark.parametrize(
    ("teacher", "student", "ours", "of_ofa"),
    [
        (12, 6, [(11, 5), (12, 6)], [(11, 6), (12, 5)]),
        (12, 4, [(11, 3), (12, 4)], [(11, 4), (12, 3)]),
        (12, 3, [(11, 2), (12, 3)], [(11, 3), (12, 2)]),
        (6, 4, [(5, 3), (6, 4)], [(5, 4), (6, 3)]),
        (6, 3, [(5, 2), (6, 3)], [(5, 3), (6, 2)]),
        (6, 2, [(5, 1), (6, 2)], [(5, 2), (6, 1)]),
    ],
)
def test_the_last_two_layers_meet_in_order_and_not_crosswise_as_in_ofa_compress(
    teacher: int, student: int, ours: list[tuple[int, int]], of_ofa: list[tuple[int, int]]
) -> None:
    pairs = teacher_student(LastK(last_k=2), teacher, student)
    assert pairs == ours
    assert pairs != of_ofa


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Jiao et al., TinyBERT, 2020: g(0) = 0
        ("tinybert", [(0, 0), (4, 1), (8, 2), (12, 3)]),
        ("top", [(12, 3)]),
        ("embedding", [(0, 0)]),
        (FirstK(first_k=2), [(1, 1), (2, 2)]),
        # Wang et al., MiniLMv2, 2021: below the teacher's top, to the student's last
        (TopMinus(top_minus=1), [(11, 3)]),
        # Muralidharan et al., Minitron, 2024, appendix A.6: (last - 2) to (last - 2)
        (TopMinus(top_minus=2, student="same"), [(10, 1)]),
    ],
)
def test_rules_for_some_layers_pair_these_alone(
    rule: Matching, expected: list[tuple[int, int]]
) -> None:
    assert teacher_student(rule, 12, 3) == expected


def test_linspace_takes_the_blocks_from_which_distilbert_starts() -> None:
    # Sanh et al.'s code: blocks 0, 2, 4, 7, 9, 11, counted from 0.
    assert [layer - 1 for layer in teacher_layers("linspace", 12, 6)] == [0, 2, 4, 7, 9, 11]


def test_linspace_rounds_halves_up_and_not_to_the_even_number() -> None:
    # 1 + 3 / 2 = 2.5 and 1 + 3 * 11 / 6 = 6.5
    assert teacher_layers("linspace", 4, 3) == [1, 3, 4]
    assert teacher_layers("linspace", 12, 7)[3] == 7


def test_linspace_gives_a_single_layer_the_last_of_the_teacher() -> None:
    assert teacher_layers("linspace", 12, 1) == [12]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", [(12, 1), (10, 2), (8, 3), (6, 4), (4, 5), (2, 6)]),
        ("pkd_skip", [(10, 1), (8, 2), (6, 3), (4, 4), (2, 5)]),
        (LastK(last_k=2), [(12, 5), (11, 6)]),
        (FirstK(first_k=3), [(3, 1), (2, 2), (1, 3)]),
        (TopMinus(top_minus=2), [(10, 6)]),
    ],
)
def test_reverse_turns_the_teacher_layers_round(
    rule: OneToOneRule | FirstK | LastK | TopMinus, expected: list[tuple[int, int]]
) -> None:
    assert teacher_student(Reverse(reverse=rule), 12, 6) == expected


def test_explicit_pairs_count_from_the_end_and_name_the_embedding() -> None:
    rule = Pairs(pairs=((6, -1), (0, 0), (-2, 1)))
    pairs = layer_pairs(rule, num_teacher_layers=6, num_student_layers=3)
    assert list(pairs) == [(3, 6), (0, 0), (1, 5)]


@pytest.mark.parametrize(
    ("rule", "teacher", "student", "message"),
    [
        ("gap", 12, 5, "`gap` needs .* multiple .* `uniform` is defined for all depths"),
        ("tinybert", 12, 5, "`tinybert` needs .* multiple"),
        ("pkd_skip", 12, 5, "`pkd_skip` needs .* multiple"),
        ("pkd_skip", 12, 1, "`pkd_skip` leaves out the student's last layer.* no pair is left"),
        ("pkd_last", 12, 1, "`pkd_last` leaves out the student's last layer.* no pair is left"),
        (Reverse(reverse="pkd_last"), 12, 1, "no pair is left"),
        ("first", 3, 6, "explicit `pairs`"),
        ("embedding", 3, 6, "explicit `pairs`"),
        (TopMinus(top_minus=1), 3, 6, "explicit `pairs`"),
        (FirstK(first_k=4), 12, 3, "`first_k: 4` exceeds the student's 3 layers"),
        (LastK(last_k=4), 12, 3, "`last_k: 4` exceeds the student's 3 layers"),
        (TopMinus(top_minus=12), 12, 3, "exceeds the 11 layers below the teacher's last"),
        (TopMinus(top_minus=3, student="same"), 12, 3, "the 2 layers below the student's last"),
        (RandomSorted(random_sorted=2), 12, 3, "draws its pairs anew in each epoch"),
        (Pairs(pairs=((7, 1),)), 6, 3, "outside the teacher"),
        (Pairs(pairs=((1, -5),)), 6, 3, "outside the student"),
    ],
)
def test_impossible_depths_are_refused_with_a_reason(
    rule: Matching, teacher: int, student: int, message: str
) -> None:
    with pytest.raises(MatchingError, match=message):
        layer_pairs(rule, num_teacher_layers=teacher, num_student_layers=student)


@pytest.mark.parametrize(
    "rule",
    ["consecutive", {"random_sorted": 2}, {"pairs": [[1, 1]]}, {"reverse": "uniform"}],
)
def test_what_has_no_fixed_order_of_one_to_one_pairs_cannot_be_reversed(rule: object) -> None:
    with pytest.raises(ValidationError, match="cannot be reversed"):
        Reverse.model_validate({"reverse": rule})


def depths(*, deepest_student: int = 24) -> st.SearchStrategy[tuple[int, int]]:
    """Teacher and student depths, the student no deeper."""
    return st.builds(
        lambda student, more: (student + more, student),
        st.integers(1, deepest_student),
        st.integers(0, 24),
    )


ANY_RULE: st.SearchStrategy[Matching] = st.one_of(
    st.sampled_from(get_args(Rule)),
    st.builds(FirstK, first_k=st.integers(1, 24)),
    st.builds(LastK, last_k=st.integers(1, 24)),
    st.builds(TopMinus, top_minus=st.integers(1, 24), student=st.sampled_from(["last", "same"])),
)


def pairs_or_none(matching: Matching, teacher: int, student: int) -> tuple[LayerPair, ...]:
    """The pairs of a rule, none where it refuses these depths."""
    try:
        return layer_pairs(matching, num_teacher_layers=teacher, num_student_layers=student)
    except MatchingError:
        return ()


@given(rule=ANY_RULE, models=depths())
def test_every_rule_stays_within_both_models_and_keeps_the_order_of_layers(
    rule: Matching, models: tuple[int, int]
) -> None:
    pairs = pairs_or_none(rule, *models)
    assert list(pairs) == sorted(set(pairs))
    assert [pair.teacher for pair in pairs] == sorted({pair.teacher for pair in pairs})
    assert all(0 <= pair.teacher <= models[0] for pair in pairs)
    assert all(0 <= pair.student <= models[1] for pair in pairs)
    assert all((pair.teacher == 0) == (pair.student == 0) for pair in pairs)


@given(rule=st.sampled_from(["uniform", "linspace"]), models=depths())
def test_uniform_and_linspace_spread_over_all_depths_and_end_at_the_last_layer(
    rule: Rule, models: tuple[int, int]
) -> None:
    layers = teacher_layers(rule, *models)
    assert len(layers) == models[1]
    assert layers[-1] == models[0]


@given(models=depths())
def test_consecutive_leaves_out_no_layer_of_either_model(models: tuple[int, int]) -> None:
    teacher, student = models
    pairs = pairs_or_none("consecutive", teacher, student)
    assert [pair.teacher for pair in pairs] == list(range(1, teacher + 1))
    assert {pair.student for pair in pairs} == set(range(1, student + 1))


@given(student=st.integers(1, 12), times=st.integers(1, 4))
def test_gap_and_uniform_agree_where_gap_is_defined(student: int, times: int) -> None:
    models = student * times, student
    assert teacher_layers("gap", *models) == teacher_layers("uniform", *models)


@given(rule=st.sampled_from(get_args(OneToOneRule)), models=depths())
def test_reverse_turned_round_again_is_the_rule_itself(
    rule: OneToOneRule, models: tuple[int, int]
) -> None:
    straight = pairs_or_none(rule, *models)
    turned = pairs_or_none(Reverse(reverse=rule), *models)
    assert [pair.student for pair in turned] == [pair.student for pair in straight]
    assert [pair.teacher for pair in reversed(turned)] == [pair.teacher for pair in straight]


@st.composite
def draws(draw: st.DrawFn) -> tuple[RandomSorted, int, int]:
    """A number of layers to draw, with depths that have as many."""
    k = draw(st.integers(1, 8))
    student = draw(st.integers(k, 12))
    teacher = draw(st.integers(max(student, k + 1), 24))
    return RandomSorted(random_sorted=k), teacher, student


def drawn(rule: RandomSorted, teacher: int, seed: int) -> tuple[LayerPair, ...]:
    order = random.Random(seed)
    return drawn_pairs(
        rule.number(teacher),
        num_teacher_layers=teacher,
        permute=lambda n: order.sample(range(n), n),
    )


@given(draw=draws(), seed=st.integers(0, 2**32 - 1))
def test_random_layers_are_in_order_without_repetition_and_never_the_last(
    draw: tuple[RandomSorted, int, int], seed: int
) -> None:
    rule, teacher, _ = draw
    pairs = drawn(rule, teacher, seed)
    layers = [pair.teacher for pair in pairs]
    assert [pair.student for pair in pairs] == list(range(1, rule.random_sorted + 1))
    assert layers == sorted(set(layers))
    assert set(layers) <= set(range(1, teacher))


@given(draw=draws(), seed=st.integers(0, 2**32 - 1))
def test_a_draw_gives_only_possible_pairs(draw: tuple[RandomSorted, int, int], seed: int) -> None:
    rule, teacher, student = draw
    assert set(drawn(rule, teacher, seed)) <= set(
        possible_pairs(rule, num_teacher_layers=teacher, num_student_layers=student)
    )


def test_possible_pairs_are_those_that_some_draw_gives_and_no_more() -> None:
    rule = RandomSorted(random_sorted=2)
    possible = possible_pairs(rule, num_teacher_layers=5, num_student_layers=3)
    assert possible == ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4))
    assert set(possible) == {pair for seed in range(100) for pair in drawn(rule, 5, seed)}


@given(rule=st.sampled_from(["first", "consecutive", "top", "embedding"]), models=depths())
def test_a_rule_that_draws_nothing_has_its_fixed_pairs_as_possible_ones(
    rule: Rule, models: tuple[int, int]
) -> None:
    teacher, student = models
    pairs = possible_pairs(rule, num_teacher_layers=teacher, num_student_layers=student)
    assert pairs == pairs_or_none(rule, teacher, student)


@pytest.mark.parametrize(
    ("k", "teacher", "student", "message"),
    [
        (4, 12, 3, "`random_sorted: 4` exceeds the student's 3 layers"),
        (3, 3, 3, "`random_sorted: 3` exceeds the 2 layers below the teacher's last"),
        (2, 3, 6, "explicit `pairs`"),
    ],
)
def test_more_layers_than_there_are_cannot_be_drawn(
    k: int, teacher: int, student: int, message: str
) -> None:
    with pytest.raises(MatchingError, match=message):
        possible_pairs(
            RandomSorted(random_sorted=k),
            num_teacher_layers=teacher,
            num_student_layers=student,
        )


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        ("gap", "gap"),
        ("pkd_skip", "pkd_skip"),
        (FirstK(first_k=2), "first_k-2"),
        (LastK(last_k=2), "last_k-2"),
        (TopMinus(top_minus=1), "top_minus-1"),
        (TopMinus(top_minus=1, student="same"), "top_minus-1-same"),
        (RandomSorted(random_sorted=3), "random_sorted-3"),
        (Reverse(reverse="uniform"), "reverse-uniform"),
        (Reverse(reverse=LastK(last_k=3)), "reverse-last_k-3"),
        (Reverse(reverse=TopMinus(top_minus=2, student="same")), "reverse-top_minus-2-same"),
        (Pairs(pairs=((6, -1),)), "pairs-6.-1"),
        (Pairs(pairs=((2, 1), (4, 2))), "pairs-2.1+4.2"),
    ],
)
def test_every_rule_has_a_label_for_tables(rule: Matching, label: str) -> None:
    assert matching_label(rule) == label
