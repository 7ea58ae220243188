"""Knowledge in stages, and the published recipes, which are written in the same language."""

from pathlib import Path

import pytest

from kdsweep.search_spaces import GridError, ShippedFacts, expand, read_grid
from kdsweep.search_spaces.expansion import Plan
from kdsweep.search_spaces.recipes import RECIPES, _recipes, recipe_about
from kdsweep.search_spaces.resolution import trains_head
from kdsweep.search_spaces.trial import Digests, trial_id

DIGESTS = Digests(task="t", teacher="s")


def plan(
    *knowledge: str,
    rest: str = "",
    teacher: str = "{model: minilm-l6-h384, fine_tune: {epochs: 1}}",
    training: str = "training: {epochs: 3, learning_rate: 1e-4}\n",
) -> Plan:
    text = (
        "name: test\n"
        "task: {name: tweets, max_length: 64}\n"
        f"teacher: {teacher}\n"
        f"{training}"
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


# Steps


def stages(*written: str, label: str = "x") -> str:
    return f"{{label: {label}, stages: [{', '.join(written)}]}}"


INNER = "{{name: inner, terms: [hidden_states]{keys}}}"
OUTER = "{{name: outer, terms: [hard_labels]{keys}}}"


def steps(inner: str, outer: str, *, total: int | None = 100) -> list[int | None]:
    """The steps of two stages, whose keys are given."""
    training = f"training: {{total_steps: {total}}}\n" if total else ""
    knowledge = stages(INNER.format(keys=inner), OUTER.format(keys=outer))
    made = plan(knowledge, rest=training, training="")
    assert [skipped.reason for skipped in made.skipped] == []
    [planned] = made.trials
    return [stage.training.total_steps for stage in planned.trial.stages]


def test_shares_divide_the_total_steps_and_what_is_left_is_divided_equally() -> None:
    assert steps(", share: 0.7", ", share: 0.3") == [70, 30]
    assert steps(", share: 0.7", "") == [70, 30]
    assert steps("", "") == [50, 50]
    assert steps(", share: 0.335", "", total=10) == [3, 7]


def test_a_stage_that_says_its_own_length_takes_none_of_the_total() -> None:
    assert steps(", training: {epochs: 2}", "") == [None, 100]
    assert steps(", training: {total_steps: 7}", "") == [7, 100]
    assert steps(", training: {total_steps: 7}", "", total=None) == [7, None]


def test_epochs_do_not_act_beside_total_steps() -> None:
    rest = "  training.epochs: [2, 3]\ntraining: {total_steps: 9}\n"
    made = plan("hard_labels", rest=rest, training="")
    assert len(made.trials) == 1
    assert len(made.collapsed) == 1


@pytest.mark.parametrize(
    ("inner", "outer", "total", "reason"),
    [
        (", share: 0.5", "", None, "stage `inner` has a `share`, and `training.total_steps`"),
        (", share: 0.01", "", 10, "stage `inner` has none of the 10 `total_steps`"),
    ],
)
def test_a_share_of_nothing_is_skipped_with_its_reason(
    inner: str, outer: str, total: int | None, reason: str
) -> None:
    training = f"training: {{total_steps: {total}}}\n" if total else ""
    knowledge = stages(INNER.format(keys=inner), OUTER.format(keys=outer))
    [skipped] = plan(knowledge, rest=training, training="").skipped
    assert skipped.rule == "length"
    assert reason in skipped.reason


def test_an_axis_cannot_take_more_than_the_total_steps() -> None:
    rest = "  stages.inner.share: [0.5, 0.9]\ntraining: {total_steps: 100}\n"
    knowledge = stages(INNER.format(keys=""), OUTER.format(keys=", share: 0.5"))
    made = plan(knowledge, rest=rest, training="")
    assert len(made.trials) == 1
    [skipped] = made.skipped
    assert skipped.reason == "the stages' shares add up to 1.4, which is more than 1"


# Data and teachers


@pytest.mark.parametrize(
    ("first", "rule", "reason"),
    [
        ("terms: [hard_labels], data: unlabelled", "labels", "data `unlabelled` has none"),
        (
            "terms: [{kind: soft_logits, distance: {dkd: {}}}], data: {text: a.txt}",
            "labels",
            "data `text` has none",
        ),
        ("terms: [soft_logits], teacher: pretrained", "teacher", "which mean nothing before"),
        ("terms: [{kind: rkd, of: logits}], teacher: pretrained", "teacher", "mean nothing"),
        ("terms: [masked_logits]", "language head", "write `teacher: pretrained` in its stage"),
        (
            "terms: [masked_logits], teacher: pretrained",
            "language head",
            "train one with `language_head: {}` under `teacher`",
        ),
    ],
)
def test_a_stage_without_what_its_terms_read_is_skipped(first: str, rule: str, reason: str) -> None:
    made = plan(stages(f"{{name: first, {first}}}", OUTER.format(keys="")))
    [skipped] = made.skipped
    assert skipped.rule == rule
    assert reason in skipped.reason


def test_a_teacher_that_comes_fine_tuned_has_no_earlier_state() -> None:
    inner = INNER.format(keys=", teacher: pretrained")
    made = plan(stages(inner, OUTER.format(keys="")), teacher="{model: minilm-l6-h384}")
    assert [skipped.rule for skipped in made.skipped] == ["teacher"]


def test_a_language_head_makes_masked_logits_possible() -> None:
    first = "{name: first, terms: [masked_logits], teacher: pretrained, data: unlabelled}"
    teacher = "{model: minilm-l6-h384, fine_tune: {epochs: 1}, language_head: {steps: 50}}"
    made = plan(stages(first, OUTER.format(keys="")), teacher=teacher)
    assert made.skipped == ()
    [planned] = made.trials
    assert planned.trial.teacher.language_head is not None
    assert planned.trial.stages[0].terms[0].temperature == 2


def test_a_language_head_that_no_term_reads_is_refused() -> None:
    teacher = "{model: minilm-l6-h384, fine_tune: {epochs: 1}, language_head: {steps: 50}}"
    with pytest.raises(GridError, match=r"teacher\.language_head: acts on no point"):
        plan(stages(INNER.format(keys=""), OUTER.format(keys="")), teacher=teacher)


def test_what_a_stage_trains_on_and_who_teaches_is_in_the_id_and_a_place_is_not() -> None:
    def ids(*keys: str, texts: tuple[str, ...] = ()) -> set[str]:
        return {
            trial_id(planned.trial, DIGESTS._replace(texts=texts))
            for key in keys
            for planned in plan(stages(INNER.format(keys=key), OUTER.format(keys=""))).trials
        }

    assert len(ids("", ", data: unlabelled", ", teacher: pretrained", ", data: {text: a}")) == 4
    assert len(ids(", data: {text: a}", ", data: {text: b}", texts=("1",))) == 1
    one, other = (ids(", data: {text: a}", texts=(text,)) for text in ("1", "2"))
    assert one != other


def test_two_texts_are_two_trials() -> None:
    made = plan(
        *(
            stages(
                INNER.format(keys=f", data: {{text: {name}}}"), OUTER.format(keys=""), label=name
            )
            for name in ("a", "b")
        )
    )
    assert len(made.trials) == 2


# Addresses


def test_fields_of_a_stage_are_axes_by_its_name() -> None:
    rest = "  stages.inner.training.learning_rate: [1e-3, 2e-3]\n  stages.outer.data: [task]\n"
    made = plan(TWO.replace("learning_rate: 5e-4", "batch_size: 8"), "hard_labels", rest=rest)
    rates = [planned.trial.stages[0].training.learning_rate for planned in made.trials]
    assert rates == [1e-3, 2e-3, 1e-4]
    assert [planned.axes["learning_rate"] for planned in made.trials] == [1e-3, 2e-3, None]
    assert [planned.trial.stages[0].training.batch_size for planned in made.trials] == [8, 8, 32]
    [collapsed] = made.collapsed
    assert collapsed.reason == "`stages.inner.training.learning_rate` does not act on hard_labels"


def test_shares_and_teachers_of_a_stage_are_axes_too() -> None:
    rest = (
        "  stages.inner.share: [0.2, 0.6]\n"
        "  stages.inner.teacher: [fine_tuned, pretrained]\n"
        "training: {total_steps: 10}\n"
    )
    knowledge = stages(INNER.format(keys=""), OUTER.format(keys=""))
    made = plan(knowledge, rest=rest, training="")
    found = [
        (planned.trial.stages[0].training.total_steps, planned.trial.stages[0].teacher)
        for planned in made.trials
    ]
    assert found == [(2, "fine_tuned"), (2, "pretrained"), (6, "fine_tuned"), (6, "pretrained")]


RATES = "  stages.inner.training.learning_rate: [1e-3, 2e-3]\n  seed: [0, 1]\n"


def test_rules_and_exclusions_ask_for_fields_of_stages() -> None:
    written = (
        f"{RATES}when:\n"
        "  - {if: {stages.inner.training.epochs: 1, stages.inner.training.learning_rate: 1e-3},"
        " set: {stages.outer.training.learning_rate: 3e-3}}\n"
        "exclude:\n"
        "  - {stages.inner.training.learning_rate: 2e-3, seed: 1}\n"
        "  - {stages.inner.training.batch_size: 32}\n"
    )
    made = plan(TWO, "hard_labels", rest=written)
    found = [[stage.training.learning_rate for stage in each.trial.stages] for each in made.trials]
    # Another knowledge has no such stage, and an unsaid key of a stage equals nothing.
    assert found == [[1e-3, 3e-3]] * 2 + [[2e-3, 1e-4]] + [[1e-4]] * 2
    assert made.num_excluded == 1


@pytest.mark.parametrize(
    ("knowledge", "rest", "message"),
    [
        (
            TWO,
            "  stages.iner.training.epochs: [1]\n",
            "Did you mean `stages.inner.training.epochs`",
        ),
        (TWO, "  stages.inner.training.epochs: [0]\n", "stages.inner.training.epochs[0]: `0`"),
        (TWO, "  stages.inner.terms: [x]\n", "is not a path that may be an axis"),
        (
            stages(INNER.format(keys=", share: 0.7"), OUTER.format(keys=", share: 0.7")),
            "",
            "the stages' shares add up to 1.4",
        ),
        (
            stages(INNER.format(keys=", share: 0.2"), OUTER.format(keys=", share: 0.2")),
            "",
            "the stages' shares add up to 0.4",
        ),
        (
            stages(INNER.format(keys="").replace("inner", "in.ner"), OUTER.format(keys="")),
            "",
            "stages[0].name: `in.ner` has a `.`",
        ),
        (
            stages(INNER.format(keys=", training: {epochs: 1, total_steps: 9}")),
            "",
            "training.epochs: does not act beside `total_steps`",
        ),
        (
            stages(INNER.format(keys=", share: 0.5, training: {epochs: 1}"), OUTER.format(keys="")),
            "",
            "stages[0].share: does not act beside the stage's own `training.epochs`",
        ),
        (stages(INNER.format(keys=", data: corpus")), "", "stages[0].data: `corpus`"),
        (stages(INNER.format(keys=", teacher: best")), "", "stages[0].teacher: `best`"),
        (stages(INNER.format(keys=", data: {file: a}")), "", "stages[0].data.file: is not a known"),
    ],
)
def test_a_wrong_address_or_key_of_a_stage_is_refused_with_its_place(
    knowledge: str, rest: str, message: str
) -> None:
    with pytest.raises(GridError) as caught:
        plan(knowledge, rest=rest)
    assert message in str(caught.value)


def test_epochs_and_total_steps_in_one_section_are_refused() -> None:
    with pytest.raises(GridError, match="does not act beside `total_steps`"):
        plan("hard_labels", training="training: {epochs: 2, total_steps: 10}\n")
