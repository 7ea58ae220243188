"""Knowledge in stages, and the published recipes, which are written in the same language."""

from pathlib import Path

import pytest

from kdsweep.search_spaces import GridError, ShippedFacts, expand, read_grid
from kdsweep.search_spaces.expansion import Plan
from kdsweep.search_spaces.recipes import RECIPES, _recipes, recipe_about
from kdsweep.search_spaces.resolution import trains_head
from kdsweep.search_spaces.trial import Digests, trial_id

DIGESTS = Digests(task="t", teacher="s")


def plan(*knowledge: str, rest: str = "") -> Plan:
    text = (
        "name: test\n"
        "task: {name: tweets, max_length: 64}\n"
        "teacher: {model: minilm-l6-h384, fine_tune: {epochs: 1}}\n"
        "training: {epochs: 3, learning_rate: 1e-4}\n"
        "axes:\n"
        f"  knowledge: [{', '.join(knowledge)}]\n"
        "  shape: [{layers: 3, width: 192, heads: 12}]\n" + rest
    )
    return expand(read_grid(text, file="grid.yaml", base=Path()), ShippedFacts())


TWO = (
    "{label: two, stages: ["
    "{name: inner, terms: [hidden_states], training: {epochs: 1, learning_rate: 5e-4}}, "
    "{name: outer, terms: [hard_labels, soft_logits]}]}"
)


def test_a_stage_is_optimised_as_the_grid_says_and_over_it_as_it_says_itself() -> None:
    [planned] = plan(TWO).trials
    inner, outer = planned.trial.stages
    assert [term.kind for term in inner.terms] == ["hidden_states"]
    assert (inner.training.epochs, inner.training.learning_rate) == (1, 5e-4)
    assert (outer.training.epochs, outer.training.learning_rate) == (3, 1e-4)
    assert planned.axes["knowledge"] == "two"


def test_axes_fill_and_address_the_terms_of_every_stage() -> None:
    rest = "  matching: [last]\n  terms.soft_logits.temperature: [8]\n"
    [planned] = plan(TWO, rest=rest).trials
    inner, outer = planned.trial.stages
    assert inner.terms[0].matching == "last"
    assert {term.kind: term for term in outer.terms}["soft_logits"].temperature == 8


def test_names_are_no_part_of_an_id_and_the_order_of_stages_is() -> None:
    [one] = plan(TWO).trials
    [renamed] = plan(TWO.replace("inner", "first").replace("label: two", "label: zwei")).trials
    turned = (
        "{label: turned, stages: [{name: outer, terms: [hard_labels, soft_logits]}, "
        "{name: inner, terms: [hidden_states], training: {epochs: 1, learning_rate: 5e-4}}]}"
    )
    [other] = plan(turned).trials
    assert trial_id(one.trial, DIGESTS) == trial_id(renamed.trial, DIGESTS)
    assert trial_id(one.trial, DIGESTS) != trial_id(other.trial, DIGESTS)


def test_one_stage_written_as_such_is_the_same_trial_as_its_terms() -> None:
    [plain] = plan("[hard_labels, soft_logits]").trials
    [staged] = plan("{label: x, stages: [{name: a, terms: [hard_labels, soft_logits]}]}").trials
    assert trial_id(plain.trial, DIGESTS) == trial_id(staged.trial, DIGESTS)


def test_a_stage_whose_terms_all_have_weight_0_is_left_out() -> None:
    [planned] = plan(TWO, rest="  terms.hidden_states.weight: [0]\n").trials
    assert len(planned.trial.stages) == 1


def test_stages_of_which_none_trains_the_head_are_skipped() -> None:
    only = "{label: x, stages: [{name: a, terms: [hidden_states]}]}"
    assert [skipped.rule for skipped in plan(only).skipped] == ["untrained head"]


@pytest.mark.parametrize(
    ("knowledge", "message"),
    [
        ("{stages: [{name: a, terms: [hard_labels]}, {name: b, terms: [hard_labels]}]}", "label"),
        ("{label: x, stages: []}", "is not a list of stages"),
        ("{label: x, stages: [hard_labels]}", "is not a stage"),
        ("{label: x, stages: [{terms: [hard_labels]}]}", "stages[0].name: is missing"),
        ("{label: x, stages: [{name: a, term: [hard_labels]}]}", "Did you mean `terms`"),
        (
            "{label: x, stages: [{name: a, terms: [hard_labels], training: {epoch: 1}}]}",
            "stages[0].training.epoch: is not a known key",
        ),
        (
            "{label: x, stages: [{name: a, terms: [hard_labels]}, "
            "{name: a, terms: [hard_labels]}]}",
            "a second stage is called `a`",
        ),
        ("{label: x, terms: [hard_labels], stages: []}", "has terms and stages"),
        ("[tinybert, hard_labels]", "recipe `tinybert` stands among terms"),
        ("tinybrt", "Did you mean `tinybert`"),
    ],
)
def test_a_wrong_stage_is_refused_with_its_place(knowledge: str, message: str) -> None:
    with pytest.raises(GridError) as caught:
        plan(knowledge)
    assert message in str(caught.value)


# Recipes


def test_every_recipe_that_has_a_name_is_written_and_no_other() -> None:
    assert tuple(_recipes()) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_paper_and_where_it_departs_from_it(name: str) -> None:
    about = recipe_about(name)
    assert "Paper: " in about
    assert "arXiv:" in about
    assert "Departs: " in about


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans_under_its_name_and_ends_in_a_stage_that_trains_the_head(name: str) -> None:
    made = plan(name)
    assert made.skipped == ()
    [planned] = made.trials
    assert planned.axes["knowledge"] == name
    assert any(trains_head(term) for term in planned.trial.stages[-1].terms)


def test_what_a_recipe_fixes_stands_and_an_axis_of_it_is_dropped() -> None:
    rest = "  matching: [first, last]\n  temperature: [1, 2]\n"
    made = plan("tinybert", "[soft_logits, hidden_states]", rest=rest)
    assert [planned.axes["knowledge"] for planned in made.trials].count("tinybert") == 1
    assert [each.into["knowledge"] for each in made.collapsed] == ["tinybert"] * 3


def test_tinybert_is_its_papers_two_stages() -> None:
    [planned] = plan("tinybert").trials
    inner, prediction = planned.trial.stages
    assert [term.kind for term in inner.terms] == ["attentions", "hidden_states"]
    [answers] = prediction.terms
    assert (answers.kind, answers.distance, answers.temperature) == (
        "soft_logits",
        "cross_entropy",
        1,
    )


def test_an_axis_that_a_stage_overrules_makes_no_second_trial() -> None:
    fixed = "{label: x, stages: [{name: a, terms: [hard_labels], training: {epochs: 1}}]}"
    made = plan(fixed, rest="  training.epochs: [2, 3]\n")
    assert len(made.trials) == 1
    assert len(made.collapsed) == 1


def test_rows_are_related_only_in_batches_large_enough_in_that_stage() -> None:
    small = "{label: x, stages: [{name: a, terms: [hard_labels, rkd], training: {batch_size: 2}}]}"
    assert [skipped.rule for skipped in plan(small).skipped] == ["rows"]
