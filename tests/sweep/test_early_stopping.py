"""The rule of early stopping: pure, and the same for whoever replays it."""

import random
from collections.abc import Sequence
from math import ceil
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from kdsweep.sweep.early_stopping import Decided, Decision, Question, is_among_best

SCORES = st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.floats(0, 1))
"""With ties and with what is not a number."""

REDUCTIONS = st.integers(2, 5)


def question(
    id: str, score: float | None, *, reduction: int = 3, bracket: str = "{}", rung: float = 0.2
) -> Question:
    return Question(
        id=id, bracket=bracket, metric="primary", rung=rung, reduction=reduction, score=score
    )


def decisions(questions: Sequence[Question]) -> list[Decision]:
    decided, made = Decided(), []
    for each in questions:
        made.append(decided.decide(each))
        decided.add(made[-1])
    return made


def go_on(scores: Sequence[float | None], *, reduction: int = 3) -> list[bool]:
    asked = [question(f"{n:08}", score, reduction=reduction) for n, score in enumerate(scores)]
    return [decision.goes_on for decision in decisions(asked)]


def by_sorting(scores: Sequence[float | None], *, reduction: int) -> list[bool]:
    """The same rule written another way: sort whoever has come, and see who is at the top."""
    found = []
    for n in range(1, len(scores) + 1):
        ranked = sorted((s if s is not None else float("-inf") for s in scores[:n]), reverse=True)
        last_of_top = ranked[max(1, n // reduction) - 1]
        own = scores[n - 1]
        found.append(own is not None and own >= last_of_top)
    return found


def test_of_nine_the_best_third_of_those_that_have_come_goes_on() -> None:
    # Of up to five the best so far alone (9 // 3 = 3, 6 // 3 = 2, 5 // 3 = 1).
    scores = [0.50, 0.40, 0.60, 0.55, 0.30, 0.58, 0.59, 0.10, 0.57]
    #         first  no    best  2nd   no    2nd of 6  2nd of 7  no  4th of 9
    assert go_on(scores) == [True, False, True, False, False, True, True, False, False]


def test_a_tie_goes_on_with_whom_it_ties() -> None:
    assert go_on([0.5, 0.5, 0.5, 0.4]) == [True, True, True, False]


def test_what_is_not_a_number_never_goes_on_and_is_worse_than_every_number() -> None:
    assert go_on([None, 0.1, None]) == [False, True, False]
    # It counts among those that have come: with four of them the second best of six goes on.
    assert go_on([None, None, None, None, 0.9, 0.8])[-1]
    assert not go_on([0.9, 0.8])[-1]


@given(st.lists(SCORES, max_size=40), REDUCTIONS)
def test_the_rule_is_that_of_sorting(scores: list[float | None], reduction: int) -> None:
    assert go_on(scores, reduction=reduction) == by_sorting(scores, reduction=reduction)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), REDUCTIONS)
def test_the_best_so_far_goes_on_and_a_better_score_never_fares_worse(
    scores: list[float], reduction: int
) -> None:
    *others, own = scores
    assert is_among_best(max(scores), others, reduction=reduction)
    if is_among_best(own, others, reduction=reduction):
        assert is_among_best(min(1.0, own + 0.1), others, reduction=reduction)


@given(st.lists(st.floats(0, 1), min_size=6, max_size=60, unique=True), st.randoms())
def test_at_least_the_best_of_a_rung_go_on_and_whoever_comes_last_faces_all(
    scores: list[float], shuffled: random.Random
) -> None:
    shuffled.shuffle(scores)
    going = go_on(scores)
    assert going[scores.index(max(scores))]
    rank = sorted(scores, reverse=True).index(scores[-1])
    assert going[-1] == (rank < len(scores) // 3)


def by_ray_tune(scores: Sequence[float], *, reduction: int) -> list[bool]:
    scheduler = AsyncHyperBandScheduler(
        time_attr="step", metric="score", mode="max", max_t=100, reduction_factor=reduction
    )
    found = []
    for n, score in enumerate(scores):
        trial = SimpleNamespace(trial_id=str(n))
        scheduler.on_trial_add(None, trial)
        said = scheduler.on_trial_result(None, trial, {"step": 1, "score": score})
        found.append(said == AsyncHyperBandScheduler.CONTINUE)
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), REDUCTIONS)
def test_it_is_the_rule_of_ray_tune_but_for_two_ranks(scores: list[float], reduction: int) -> None:
    """Ray Tune takes the interpolated quantile of the others, milder by up to two ranks:
    the paper's `len(rung) // reduction` counts the trial itself and rounds down."""
    mine, theirs = go_on(scores, reduction=reduction), by_ray_tune(scores, reduction=reduction)
    for n, (goes_on, there) in enumerate(zip(mine, theirs, strict=True)):
        better = sum(score > scores[n] for score in scores[:n])
        best, milder = max(1, (n + 1) // reduction), ceil((n + 1) / reduction)
        assert goes_on == (better < best)
        assert there >= goes_on
        assert not there or better <= max(1, milder)


def test_brackets_rungs_and_metrics_are_compared_apart() -> None:
    strong = question("a" * 8, 0.9)
    apart = [
        question("b" * 8, 0.1, bracket='{"knowledge":"hard_labels"}'),
        question("c" * 8, 0.1, rung=0.6),
        question("d" * 8, 0.1).model_copy(update={"metric": "accuracy"}),
    ]
    assert [each.goes_on for each in decisions([strong, *apart])] == [True] * 4
    assert not decisions([strong, question("e" * 8, 0.1)])[-1].goes_on


def test_whoever_asks_again_hears_what_was_decided_though_others_have_come() -> None:
    first = question("a" * 8, 0.5)
    better = [question(f"{n:08}", 0.9) for n in range(5)]
    assert [each.goes_on for each in decisions([first, *better, first])][-1]
    late = question("b" * 8, 0.1)
    worse = [question(f"{n:08}", 0.0) for n in range(9)]
    assert not decisions([first, late, *worse, late])[-1].goes_on


def test_under_another_reduction_the_same_trial_is_judged_anew_among_the_same_scores() -> None:
    scores = {"a": 0.5, "b": 0.6, "c": 0.55, "d": 0.7}
    asked = [question(id * 8, score, reduction=4) for id, score in scores.items()]
    again = question("c" * 8, 0.55, reduction=2)
    # Of four the best two go on, and two are better than 0.55.
    assert [each.goes_on for each in decisions([*asked, again])] == [True, True, False, True, False]
    milder = question("b" * 8, 0.6, reduction=2)
    assert decisions([*asked, milder])[-1].goes_on


@given(
    st.lists(
        st.builds(
            question,
            st.sampled_from([letter * 8 for letter in "abcdef"]),
            SCORES,
            reduction=REDUCTIONS,
            bracket=st.sampled_from(["{}", '{"knowledge":"a"}']),
            rung=st.sampled_from([0.2, 0.6]),
        ),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_decisions_replayed_in_their_order_are_the_same_also_over_a_kill(
    asked: list[Question], killed_after: int
) -> None:
    recorded = decisions(asked)
    assert [each.number for each in recorded] == list(range(1, len(asked) + 1))
    decided = Decided(recorded[:killed_after])
    for expected in recorded[killed_after:]:
        made = decided.decide(Question(**expected.model_dump(exclude={"number", "goes_on"})))
        assert made == expected
        decided.add(made)
