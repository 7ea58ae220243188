"""A search in the grid language, and the space that it chooses from."""

import math
from collections.abc import Callable, Iterator
from random import Random

import pytest
from grids import HEAD, KnownFacts, grid_of
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces import Grid, GridError, PlannedTrial, expand
from kdsweep.search_spaces.search import GridSearch, Nsga2Search, TpeSearch, metrics_of
from kdsweep.search_spaces.space import (
    Choice,
    Impossible,
    Parameter,
    Points,
    Space,
    UnknownChoiceError,
    arms,
    at_random,
    recorded,
    survey,
)

AXES = """
axes:
  knowledge: [[soft_logits, hidden_states]]
  shape: [{layers: 3, width: 384, heads: 12}]
"""
TPE = "search: {method: tpe, trials: 5}\n"

WHOLE = """
axes:
  - knowledge: [hard_labels, [soft_logits, hidden_states]]
    matching: [first, last]
    shape: [{layers: 3, width: 384, heads: 12}, {layers: 2, width: 128, heads: 3}]
    training.learning_rate: [1e-4, 1e-3]
    training.epochs: [1, 2]
    seed: [0, 1]
  - knowledge: [hard_labels]
    shape: [{layers: 1, width: 64, heads: 2}]
    initialisation: [random]
zip: [[training.learning_rate, training.epochs]]
when:
  - {if: {knowledge: {has: hidden_states}}, axes: {terms.hidden_states.weight: [1, 10]}}
  - {if: {shape.layers: 1}, set: {training.dropout: 0.0}}
exclude:
  - {matching: last, training.epochs: 2, seed: 1}
search: {method: random, trials: 5}
"""


def refusals(body: str) -> list[str]:
    with pytest.raises(GridError) as caught:
        grid_of(body)
    return [str(p).split(": ", 1)[1] for p in caught.value.problems]


def with_axis(line: str, search: str = TPE) -> str:
    return f"{AXES}  {line}\n{search}"


def test_without_a_word_every_point_is_trained() -> None:
    assert grid_of(AXES).search == GridSearch(method="grid")


def test_a_search_says_what_it_improves() -> None:
    tpe, nsga2 = (
        grid_of(f"{AXES}search: {{method: {method}, trials: 3}}\n").search
        for method in ("tpe", "nsga2")
    )
    assert isinstance(tpe, TpeSearch)
    assert isinstance(nsga2, Nsga2Search)
    assert metrics_of(tpe) == ("primary",)
    assert metrics_of(nsga2) == ("primary", "parameters")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            AXES + "search: {method: tep, trials: 5}\n",
            "search.method: `tep` is not one of grid, random, tpe, nsga2\n"
            "    Known: grid, nsga2, random, tpe",
        ),
        (
            AXES + "search: {trials: 5}\n",
            "search: has no method\n    Add `method:`, such as `{method: tpe, trials: 40}`",
        ),
        (
            AXES + "search: tpe\n",
            "search: `tpe` is not a mapping\n    Write one such as `{method: tpe, trials: 40}`",
        ),
        (AXES + "search: {method: tpe}\n", "search.trials: is missing\n    Add `trials:`"),
        (
            AXES + "search: {method: tpe, trails: 5}\n",
            "search.trails: is not a known key\n    Did you mean `trials`? It is required",
        ),
        (
            AXES + "search: {method: grid, trials: 5}\n",
            "search.trials: is not a known key\n    Known: method",
        ),
        (
            AXES + "search: {method: tpe, trials: 5, objective: {metric: report}}\n",
            "search.objective.metric: `report` is not one of primary, parameters, "
            "parameters/encoder, flops_per_token, latency_ms\n"
            "    Write one of primary, parameters, parameters/encoder, flops_per_token, latency_ms",
        ),
        (
            AXES + "search: {method: nsga2, trials: 5, objective: {metrics: [primary]}}\n",
            "search.objective.metrics: has 1 entries\n    Write at least 2",
        ),
        (
            AXES + "search: {method: tpe, trials: 5, per: [matchin, seed]}\n",
            "search.per[0]: `matchin` is not an axis\n    Did you mean `matching`?",
        ),
        (
            with_axis("training.learning_rate: {log: [1e-5, 1e-3]}", search=""),
            "axes.training.learning_rate: is a range, and `search: grid` trains every value\n"
            "    Write `search: {method: tpe, trials: 40}`, or list the values: `[...]`",
        ),
        (
            with_axis("training.epochs: {uniform: [1, 5]}"),
            "axes.training.epochs.uniform: takes whole numbers\n    Write `{integers: [1, 5]}`",
        ),
        (
            with_axis("seed: {integers: [0, 9]}"),
            "axes.seed.integers: cannot be a range\n"
            "    A search repeats seeds and never chooses them: list them, `[0, 1]`",
        ),
        (
            with_axis("training.learning_rate: {log: [0, 1]}"),
            "axes.training.learning_rate.log: `0` has no logarithm\n"
            "    Begin above 0, or write `uniform`",
        ),
        (
            with_axis("training.dropout: {uniform: [0.5, 0.1]}"),
            "axes.training.dropout.uniform: `[0.5, 0.1]` is empty\n"
            "    Write `{uniform: [from, to]}`, the lower end first",
        ),
        (
            with_axis("training.dropout: {uniform: [0.5, 2]}"),
            "axes.training.dropout.uniform[1]: `2` is not at most 1\n    Write a number at most 1",
        ),
        (
            with_axis("training.epochs: {integers: [1, 2.5]}"),
            "axes.training.epochs.integers: `[1, 2.5]` are not whole numbers\n"
            "    Write whole numbers, or `uniform`",
        ),
        (
            with_axis("training.dropout: {uniform: [0, 1], log: [1, 2]}"),
            "axes.training.dropout.uniform: has more keys than `uniform`\n"
            "    Write `{uniform: [from, to]}`",
        ),
    ],
)
def test_a_wrong_search_is_refused_with_its_place_and_its_mend(body: str, expected: str) -> None:
    assert refusals(body)[0] == expected


def test_a_range_walks_alone_and_has_no_arm_of_its_own() -> None:
    body = (
        with_axis("training.learning_rate: {log: [1e-5, 1e-3]}", search="")
        + "  training.epochs: [1, 2]\n  seed: [0]\n"
        + "zip: [[training.learning_rate, training.epochs], [shape, seed]]\n"
        + "search: {method: tpe, trials: 5, per: [training.learning_rate]}\n"
    )
    assert [line.split("\n")[0] for line in refusals(body)] == [
        "zip: `seed` walks together with shape",
        "zip[0]: a range cannot walk together with another axis",
        "search.per[0]: `training.learning_rate` is a range, which has no end of values",
    ]


class _AskedError(LookupError):
    """A parameter that was asked for, and that nothing was chosen for."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter


def choose_from(made: dict[str, Choice]) -> Callable[[Parameter], Choice]:
    def choose(parameter: Parameter) -> Choice:
        if parameter.name not in made:
            raise _AskedError(parameter)
        return made[parameter.name]

    return choose


def choices_of(space: Space) -> Iterator[dict[str, Choice]]:
    """Every way to walk a space without ranges, by what is asked on the way."""
    waiting: list[dict[str, Choice]] = [{}]
    while waiting:
        made = waiting.pop()
        try:
            space.points(choose_from(made))
        except _AskedError as asked:
            assert isinstance(asked.parameter.domain, tuple)
            waiting += [{**made, asked.parameter.name: each} for each in asked.parameter.domain]
        else:
            yield made


def trials_at(grid: Grid, choices: dict[str, Choice]) -> tuple[PlannedTrial, ...]:
    found = Points(grid, KnownFacts()).resolve(Space(grid, {}).points(recorded(choices)))
    return () if isinstance(found, Impossible) else found


def test_the_walks_of_a_space_come_to_exactly_the_trials_of_its_grid() -> None:
    grid = grid_of(WHOLE)
    walked = {
        planned.trial
        for choices in choices_of(Space(grid, {}))
        for planned in trials_at(grid, choices)
    }
    assert walked == {planned.trial for planned in expand(grid, KnownFacts()).trials}


def test_a_parameter_of_some_points_is_asked_for_at_these_alone() -> None:
    grid = grid_of(WHOLE)
    space = Space(grid, {})
    weight = "when[0].terms.hidden_states.weight"
    assert [parameter.name for parameter in space.parameters] == [
        "axes",
        "axes[0].knowledge",
        "axes[0].matching",
        "axes[0].shape",
        "axes[0].training.learning_rate,training.epochs",
        weight,
    ]
    for choices in choices_of(space):
        assert (weight in choices) == (
            choices.get("axes[0].knowledge") == "soft_logits+hidden_states"
        )
    # 2 knowledge x 2 matchings x 2 shapes x 2 pairs of rate and epochs, and the second mapping.
    assert space.num_points == 16 + 1


def test_seeds_repeat_a_point_and_rules_may_leave_some_out() -> None:
    choices: dict[str, Choice] = {
        "axes": "0",
        "axes[0].knowledge": "hard_labels",
        "axes[0].matching": "last",
        "axes[0].shape": "3x384x12",
        "axes[0].training.learning_rate,training.epochs": "0.0001, 1",
    }
    grid = grid_of(WHOLE)
    assert [planned.trial.seed for planned in trials_at(grid, choices)] == [0, 1]
    choices["axes[0].training.learning_rate,training.epochs"] = "0.001, 2"
    assert [planned.trial.seed for planned in trials_at(grid, choices)] == [0]


def test_an_impossible_point_says_why() -> None:
    grid = grid_of(WHOLE)
    choices: dict[str, Choice] = {
        "axes": "0",
        "axes[0].knowledge": "hard_labels",
        "axes[0].matching": "first",
        "axes[0].shape": "2x128x3",
        "axes[0].training.learning_rate,training.epochs": "0.0001, 1",
    }
    found = Points(grid, KnownFacts()).resolve(Space(grid, {}).points(recorded(choices)))
    assert isinstance(found, Impossible)
    assert found.reason == "heads divide width: 3 heads do not divide the width 128"


RANGES = """
axes:
  knowledge: [hard_labels, soft_logits, [soft_logits, hidden_states]]
  shape: [{layers: 3, width: 384, heads: 12}]
  matching: [first, last]
  temperature: {uniform: [1, 8]}
  training.learning_rate: {log: [1e-5, 1e-2]}
  training.epochs: {integers: [1, 9]}
when:
  - {if: {knowledge: {has: hidden_states}}, axes: {terms.hidden_states.weight: {log: [0.1, 10]}}}
search: {method: tpe, trials: 5}
"""
SPANNED = grid_of(RANGES)
POINTS = Points(SPANNED, KnownFacts())


@given(st.integers(0, 2**32))
def test_every_draw_is_a_point_of_the_grid_and_reads_back_from_its_choices(seed: int) -> None:
    space = Space(SPANNED, {})
    made: dict[str, Choice] = {}
    draw = at_random(Random(seed))

    def choose(parameter: Parameter) -> Choice:
        made[parameter.name] = draw(parameter)
        return made[parameter.name]

    drawn = POINTS.resolve(space.points(choose))
    again = POINTS.resolve(space.points(recorded(made)))
    assert drawn == again
    assert not isinstance(drawn, Impossible)
    [planned] = drawn
    [stage] = planned.trial.stages
    assert 1e-5 <= stage.training.learning_rate <= 1e-2
    assert stage.training.epochs in range(1, 10)
    for term in stage.terms:
        if term.kind == "soft_logits":
            assert term.temperature is not None
            assert 1 <= term.temperature <= 8
        if term.kind == "hidden_states":
            assert 0.1 <= term.weight <= 10


@given(st.floats(1, 8), st.sampled_from(["first", "last"]))
def test_what_does_not_act_makes_no_other_trial(temperature: float, matching: str) -> None:
    choices: dict[str, Choice] = {
        "knowledge": "hard_labels",
        "training.learning_rate": 1e-3,
        "training.epochs": 3,
        "matching": matching,
        "temperature": temperature,
    }
    [planned] = trials_at(SPANNED, choices)
    [plain] = trials_at(SPANNED, choices | {"matching": "first", "temperature": 2.0})
    assert planned == plain


@given(st.integers(0, 2**32))
def test_a_logarithmic_range_is_drawn_evenly_in_its_logarithm(seed: int) -> None:
    parameter = next(p for p in Space(SPANNED, {}).parameters if p.name == "training.learning_rate")
    value = float(at_random(Random(seed))(parameter))
    # `Random.uniform` is the independent number: the same draw over the logarithms.
    assert math.log(value) == pytest.approx(Random(seed).uniform(math.log(1e-5), math.log(1e-2)))


def test_a_choice_that_a_grid_does_not_have_is_said_to_be_unknown() -> None:
    with pytest.raises(UnknownChoiceError, match="knowledge"):
        trials_at(SPANNED, {"knowledge": "dkd"})
    with pytest.raises(UnknownChoiceError, match="temperature"):
        trials_at(SPANNED, {"knowledge": "hard_labels", "matching": "first", "temperature": 9.0})


def test_an_arm_fixes_its_axis_and_leaves_out_mappings_that_lack_its_value() -> None:
    grid = grid_of(WHOLE.replace("trials: 5", "trials: 5, per: [knowledge]"))
    assert not isinstance(grid.search, GridSearch)
    found = arms(grid, grid.search)
    assert found == ({"knowledge": "hard_labels"}, {"knowledge": "soft_logits+hidden_states"})
    hard, both = (Space(grid, arm) for arm in found)
    assert (hard.num_points, both.num_points) == (8 + 1, 8)
    assert "axes" not in [parameter.name for parameter in both.parameters]
    assert all("knowledge" not in parameter.name for parameter in both.parameters)


def test_a_survey_looks_at_both_ends_of_ranges() -> None:
    plan = survey(SPANNED, KnownFacts())
    rates = {planned.axes["learning_rate"] for planned in plan.trials}
    assert rates == {1e-5, 1e-2}
    weights = {planned.axes["weight"] for planned in plan.trials}
    assert weights == {None, 0.1, 10.0}


def test_a_space_too_large_to_look_at_whole_is_drawn_from() -> None:
    wide = "".join(f"  training.{name}: {values}\n" for name, values in WIDE.items())
    grid = grid_of(f"{AXES}{wide}search: {{method: tpe, trials: 5}}\n", HEAD)
    assert Space(grid, {}).num_points == 40**3
    assert len(survey(grid, KnownFacts()).trials) == pytest.approx(2000, abs=100)


WIDE = {
    "learning_rate": [n * 1e-5 for n in range(1, 41)],
    "epochs": list(range(1, 41)),
    "batch_size": list(range(1, 41)),
}
