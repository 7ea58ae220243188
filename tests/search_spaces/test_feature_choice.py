"""What of its teachers' outputs a sweep keeps: pure arithmetic over sources and what reads them."""

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces.feature_choice import Needs, Reading, Source, choose
from kdsweep.search_spaces.resolution import Feature

FEATURES = [Feature("logits", 0), *(Feature("hidden_states", layer) for layer in (1, 2, 3, 4))]
LOGITS, FIRST, SECOND, THIRD, FOURTH = FEATURES

sources = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.builds(
        Source,
        flops=st.integers(1, 1000).map(float),
        sizes=st.fixed_dictionaries({feature: st.integers(1, 50) for feature in FEATURES}),
    ),
    min_size=1,
)
needs = st.frozensets(st.sampled_from(FEATURES), min_size=1)
readings = st.lists(
    st.builds(Reading, st.sampled_from(["a", "b", "c"]), needs, st.integers(0, 9).map(float)),
    max_size=12,
)
budgets = st.integers(0, 600)


def chosen(
    known: Mapping[str, Source],
    read: Sequence[Reading],
    budget: float,
    kept: Mapping[str, Needs] | None = None,
) -> dict[str, Needs]:
    there = [reading for reading in read if reading.source in known]
    return choose(known, there, budget=budget, kept=kept or {})


def size(known: Mapping[str, Source], kept: Mapping[str, Needs]) -> int:
    return sum(known[key].sizes[feature] for key, features in kept.items() for feature in features)


def spared(
    known: Mapping[str, Source], read: Sequence[Reading], kept: Mapping[str, Needs]
) -> float:
    """Operations of teachers that need not run, without those of the passes that are run for it."""
    return sum(
        known[each.source].flops * each.passes
        for each in read
        if each.source in known and each.needs <= kept.get(each.source, frozenset())
    ) - sum(known[key].flops for key in kept)


@given(sources, readings, budgets)
def test_never_more_than_the_budget(
    known: Mapping[str, Source], read: list[Reading], budget: int
) -> None:
    assert size(known, chosen(known, read, budget)) <= budget


@given(sources, readings, budgets, budgets)
def test_a_larger_budget_never_spares_less(
    known: Mapping[str, Source], read: list[Reading], one: int, other: int
) -> None:
    less, more = (spared(known, read, chosen(known, read, each)) for each in sorted((one, other)))
    assert less <= more + 1e-6


@given(sources, readings)
def test_a_budget_of_zero_keeps_nothing(known: Mapping[str, Source], read: list[Reading]) -> None:
    assert chosen(known, read, 0) == {}


@given(sources, readings, budgets)
def test_what_is_kept_pays_for_its_pass_and_is_read_as_a_whole_by_some_stage(
    known: Mapping[str, Source], read: list[Reading], budget: int
) -> None:
    kept = chosen(known, read, budget)
    for key, features in kept.items():
        assert spared(known, read, {key: features}) > 0
        served = [each.needs for each in read if each.source == key and each.needs <= features]
        assert frozenset().union(*served) == features


@given(sources, readings, budgets, budgets)
def test_what_was_kept_before_is_paid_and_counts(
    known: Mapping[str, Source], read: list[Reading], before: int, now: int
) -> None:
    kept = chosen(known, read, before)
    added = chosen(known, read, before + now, kept)
    assert size(known, added) + size(known, kept) <= before + now
    assert all(not features & kept.get(key, frozenset()) for key, features in added.items())


def test_a_set_helps_only_as_a_whole() -> None:
    known = {"a": Source(flops=1.0, sizes={FIRST: 10, SECOND: 10, LOGITS: 1})}
    pair = Reading("a", frozenset({FIRST, SECOND}), passes=100)
    assert chosen(known, [pair], 19) == {}
    assert chosen(known, [pair], 20) == {"a": pair.needs}
    logits = Reading("a", frozenset({LOGITS}), passes=5)
    assert chosen(known, [pair, logits], 19) == {"a": logits.needs}


def test_what_is_read_over_all_rows_only_once_is_not_kept() -> None:
    known = {"a": Source(flops=1.0, sizes={LOGITS: 1, FIRST: 1})}
    once = [Reading("a", frozenset({LOGITS}), passes=1)]
    assert chosen(known, once, 100) == {}
    assert chosen(known, [*once, *once], 100) == {"a": frozenset({LOGITS})}
    both = [Reading("a", frozenset({feature}), passes=1) for feature in (LOGITS, FIRST)]
    assert chosen(known, both, 100) == {"a": frozenset({LOGITS, FIRST})}


def test_a_step_that_does_not_fit_ends_its_own_source_alone() -> None:
    known = {
        "large": Source(flops=1e6, sizes={FIRST: 1000}),
        "small": Source(flops=1.0, sizes={FIRST: 10}),
    }
    read = [Reading(key, frozenset({FIRST}), passes=3) for key in known]
    assert chosen(known, read, 100) == {"small": frozenset({FIRST})}
    assert chosen(known, read, 1000) == {"large": frozenset({FIRST})}


def test_features_that_several_read_are_worth_more() -> None:
    known = {"a": Source(flops=1.0, sizes=dict.fromkeys(FEATURES, 10))}
    read = [
        Reading("a", frozenset({FIRST, SECOND}), passes=6),
        Reading("a", frozenset({FIRST}), passes=6),
        Reading("a", frozenset({THIRD, FOURTH}), passes=10),
    ]
    assert chosen(known, read, 20) == {"a": frozenset({FIRST, SECOND})}
