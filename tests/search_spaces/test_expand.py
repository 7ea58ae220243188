"""From a grid to a plan: order, filling, rules, collapse, reasons."""

import math
from textwrap import dedent

import pytest
from grids import HEAD, MINILM, KnownFacts, grid_of, plan_of
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces import Digests, GridError, Plan, TaskFacts, expand, trial_id
from kdsweep.search_spaces.expansion import PlannedTrial
from kdsweep.search_spaces.knowledge import HiddenStates, SoftLogits, Term, term_label

SHAPE = "shape: [{layers: 3, width: 384, heads: 12}]"
DIGESTS = Digests("a" * 64, "b" * 64)


def axes(*lines: str, rest: str = "") -> str:
    given_paths = [line.split(":")[0] for line in lines]
    defaults = {"knowledge": "[[soft_logits, hidden_states]]", "shape": SHAPE.split(": ", 1)[1]}
    added = [f"{path}: {v}" for path, v in defaults.items() if path not in given_paths]
    return "axes:\n" + "".join(f"  {line}\n" for line in [*added, *lines]) + dedent(rest)


def column(plan: Plan, name: str) -> list[object]:
    return [planned.axes[name] for planned in plan.trials]


def first(planned: PlannedTrial) -> int:
    return planned.priority


def terms_of(plan: Plan, n: int = 0) -> dict[str, Term]:
    return {term_label(term): term for term in plan.trials[n].trial.stages[0].terms}


def test_a_plan_is_the_product_of_its_axes_in_the_files_order_with_seeds_innermost() -> None:
    plan = plan_of(axes("seed: [1, 0]", "matching: [last, first]", "training.epochs: [2, 1]"))
    assert [(p.axes["matching"], p.axes["epochs"], p.axes["seed"]) for p in plan.trials] == [
        (m, e, s) for m in ("last", "first") for e in (2, 1) for s in (1, 0)
    ]
    assert plan.num_points == 8
    assert (plan.skipped, plan.collapsed, plan.warnings) == ((), (), ())


def test_a_trial_is_resolved_nothing_is_left_open() -> None:
    plan = plan_of(axes("temperature: [4]", "matching: [{last_k: 2}]", "training.epochs: [7]"))
    (planned,) = plan.trials
    terms = terms_of(plan)
    assert isinstance(terms["soft_logits"], SoftLogits)
    assert terms["soft_logits"].temperature == 4.0
    assert isinstance(terms["hidden_states"], HiddenStates)
    assert terms["hidden_states"].matching is not None
    assert planned.trial.stages[0].training.epochs == 7
    assert dict(planned.axes) == {
        "knowledge": "soft_logits+hidden_states",
        "matching": "last_k-2",
        "temperature": 4.0,
        "shape": "3x384x12",
        "initialisation": "random",
        "epochs": 7,
        "seed": 0,
    }


def test_a_planned_trial_reads_back_from_its_json_with_the_same_id() -> None:
    plan = plan_of(axes("initialisation: [{teacher_layers: [1, 3, 5]}]", "matching: [last]"))
    trial = plan.trials[0].trial
    again = type(trial).model_validate_json(trial.model_dump_json())
    assert again == trial
    assert trial_id(again, DIGESTS) == trial_id(trial, DIGESTS)


def test_what_does_not_act_is_dropped_and_its_points_collapse_with_the_reason() -> None:
    plan = plan_of(
        axes("knowledge: [hard_labels, [soft_logits]]", "temperature: [1, 2]", "seed: [0]")
    )
    assert [(p.axes["knowledge"], p.axes["temperature"]) for p in plan.trials] == [
        ("hard_labels", None),
        ("soft_logits", 1.0),
        ("soft_logits", 2.0),
    ]
    (collapsed,) = plan.collapsed
    assert collapsed.axes["temperature"] == 2.0
    assert collapsed.into == plan.trials[0].axes
    assert collapsed.reason == "`temperature` does not act on hard_labels"


def test_a_fixed_value_stands_and_the_axis_is_dropped() -> None:
    knowledge = "knowledge: [[{kind: soft_logits, temperature: 9}], [hidden_states, soft_logits]]"
    plan = plan_of(axes(knowledge, "temperature: [1, 2]"))
    assert column(plan, "temperature") == [None, 1.0, 2.0]
    assert len(plan.collapsed) == 1
    assert isinstance(terms_of(plan)["soft_logits"], SoftLogits)
    assert terms_of(plan)["soft_logits"].temperature == 9.0  # type: ignore[union-attr]


def test_a_full_address_overrides_what_a_term_fixes() -> None:
    knowledge = "knowledge: [[{kind: soft_logits, temperature: 9}]]"
    plan = plan_of(axes(knowledge, "terms.soft_logits.temperature: [1, 3]"))
    temperatures = [p.trial.stages[0].terms[0].temperature for p in plan.trials]  # type: ignore[union-attr]
    assert temperatures == [1.0, 3.0]
    assert column(plan, "terms.soft_logits.temperature") == [1.0, 3.0]


def test_weight_zero_removes_a_term_so_that_the_point_equals_the_one_without_it() -> None:
    plan = plan_of(
        axes(
            "knowledge: [[soft_logits], [soft_logits, hidden_states]]",
            "terms.hidden_states.weight: [0, 1]",
        )
    )
    assert [sorted(terms_of(plan, n)) for n in range(2)] == [
        ["soft_logits"],
        ["hidden_states", "soft_logits"],
    ]
    assert len(plan.collapsed) == 2
    reasons = {collapsed.reason for collapsed in plan.collapsed}
    assert "`terms.hidden_states.weight` does not act on soft_logits" in reasons


def test_a_point_whose_every_term_is_removed_is_skipped() -> None:
    plan = plan_of(axes("knowledge: [soft_logits]", "terms.soft_logits.weight: [0, 1]"))
    assert len(plan.trials) == 1
    assert [(s.rule, s.reason) for s in plan.skipped] == [("no term", "every term has weight 0")]


def test_an_axis_that_acts_on_no_point_is_an_error() -> None:
    body = axes(
        "knowledge: [hard_labels, [soft_logits, hidden_states]]",
        "terms.hidden_states.weight: [1, 2]",
        rest="exclude: [{knowledge: {has: hidden_states}}]",
    )
    with pytest.raises(GridError, match=r"axes.terms.hidden_states.weight: acts on no point"):
        plan_of(body)


def test_equal_terms_under_other_labels_and_in_another_order_are_one_trial() -> None:
    knowledge = """knowledge:
      - [hard_labels, soft_logits]
      - {label: turned, terms: [{kind: soft_logits, label: a}, {kind: hard_labels, weight: 1}]}"""
    plan = plan_of(axes(knowledge))
    assert len(plan.trials) == 1
    assert plan.collapsed[0].axes["knowledge"] == "turned"
    assert plan.collapsed[0].reason == "another spelling of the same trial"


def test_shapes_of_one_budget_multiply_like_listed_ones() -> None:
    iso = "{iso: encoder_parameters, target: 10646784, tolerance: 0.01, layers: [6], heads: 12}"
    plan = plan_of(axes(f"shape: [{{layers: 6, width: 384, heads: 12}}, {iso}]"))
    assert column(plan, "shape") == ["6x384x12"]
    assert len(plan.collapsed) == 1


def test_united_mappings_give_the_points_of_each_with_the_same_columns() -> None:
    body = f"""
    axes:
      - {{knowledge: [hard_labels], {SHAPE}, training.epochs: [5, 6]}}
      - {{knowledge: [hard_labels, [soft_logits]], {SHAPE}}}
    training: {{epochs: 5}}
    """
    plan = plan_of(dedent(body))
    assert [(p.axes["knowledge"], p.axes["epochs"]) for p in plan.trials] == [
        ("hard_labels", 5),
        ("hard_labels", 6),
        ("soft_logits", 5),
    ]
    assert len(plan.collapsed) == 1


def test_zipped_axes_walk_together() -> None:
    body = axes(
        "training.learning_rate: [1e-4, 1e-3]",
        "matching: [last, first]",
        "training.epochs: [5, 6]",
        rest="zip: [[training.learning_rate, training.epochs]]",
    )
    plan = plan_of(body)
    assert [(p.axes["learning_rate"], p.axes["epochs"]) for p in plan.trials] == [
        *[(1e-4, 5), (1e-4, 5), (1e-3, 6), (1e-3, 6)]
    ]


def test_when_sets_values_and_a_later_rule_wins() -> None:
    rules = """
    when:
      - {if: {seed: {ge: 1}}, set: {training.epochs: 5, training.dropout: 0.2}}
      - {if: {seed: 2}, set: {training.epochs: 6}}
    """
    plan = plan_of(axes("seed: [0, 1, 2]", rest=rules))
    assert [p.trial.stages[0].training.epochs for p in plan.trials] == [3, 5, 6]
    assert column(plan, "epochs") == [3, 5, 6]
    assert column(plan, "dropout") == [0.1, 0.2, 0.2]


def test_when_multiplies_some_points_by_further_axes() -> None:
    rules = """
    when:
      - {if: {knowledge: {has: hidden_states}}, axes: {terms.hidden_states.weight: [1, 10]}}
    """
    plan = plan_of(axes("knowledge: [hard_labels, [soft_logits, hidden_states]]", rest=rules))
    assert column(plan, "weight") == [None, 1.0, 10.0]
    assert plan.num_points == 3


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("{matching: last}", ["uniform", "last_k-2"]),
        ("{matching: [last, last_k-2]}", ["uniform"]),
        ("{matching: {not: last}}", ["last"]),
        ("{matching: {not: [last, uniform]}}", ["uniform", "last"]),
        ("{matching: last, seed: 1}", ["uniform", "last", "last_k-2"]),
        ("{shape.layers: {lt: 3}}", ["uniform", "last", "last_k-2"]),
        ("{shape.layers: {le: 3}}", []),
        ("{shape.layers: {ge: 2, lt: 3}}", ["uniform", "last", "last_k-2"]),
        ("{shape: 3x384x12}", []),
        ("{shape.feed_forward: 1536}", []),
        ("{knowledge: soft_logits+hidden_states}", []),
        ("{knowledge: {has: soft_logits}}", []),
        ("{knowledge: {has: attentions}}", ["uniform", "last", "last_k-2"]),
        ("{knowledge: {has: [attentions, hidden_states]}}", []),
        ("{training.epochs: 3}", []),
        ("{task.max_length: {gt: 64}}", ["uniform", "last", "last_k-2"]),
        ("{terms.hidden_states.weight: 1}", []),
        ("{terms.soft_logits.temperature: {not: 7}}", ["uniform", "last", "last_k-2"]),
    ],
)
def test_exclude_leaves_out_the_points_of_a_predicate(condition: str, left: list[str]) -> None:
    plan = plan_of(axes("matching: [uniform, last, {last_k: 2}]", rest=f"exclude: [{condition}]"))
    assert column(plan, "matching") == left
    assert plan.num_excluded == 3 - len(left)


def test_an_earlier_condition_of_order_outweighs_all_later_ones_and_no_trial_changes() -> None:
    lines = ["matching: [last, uniform]", "seed: [0, 1]"]
    plan = plan_of(axes(*lines, rest="order: [{seed: 1}, {matching: last}]"))
    assert [(p.axes["seed"], p.axes["matching"]) for p in sorted(plan.trials, key=first)] == [
        (1, "last"),
        (1, "uniform"),
        (0, "last"),
        (0, "uniform"),
    ]
    assert [p.trial for p in plan.trials] == [p.trial for p in plan_of(axes(*lines)).trials]


def test_an_order_that_matches_no_point_is_a_warning() -> None:
    plan = plan_of(axes("seed: [0, 1]", rest="order: [{seed: 7}]"))
    assert [str(w.path) for w in plan.warnings] == ["order[0]"]
    assert [p.priority for p in plan.trials] == [1, 1]


def test_exclude_sees_the_values_that_when_gave() -> None:
    rules = """
    when: [{if: {seed: 1}, set: {training.epochs: 9}}]
    exclude: [{training.epochs: 9}]
    """
    assert column(plan_of(axes("seed: [0, 1]", rest=rules)), "seed") == [0]


def test_an_address_of_a_term_that_is_not_there_matches_nothing() -> None:
    body = axes(
        "knowledge: [hard_labels, [soft_logits, hidden_states]]",
        "terms.hidden_states.weight: [1, 10]",
        rest="exclude: [{terms.hidden_states.weight: [1, 10]}]",
    )
    with pytest.raises(GridError, match="acts on no point"):
        plan_of(body)


def test_a_rule_that_matches_no_point_is_a_warning_with_a_hint() -> None:
    plan = plan_of(axes("matching: [uniform, last]", rest="exclude: [{matching: unifrom}]"))
    (warning,) = plan.warnings
    assert (warning.path, warning.line) == ("exclude[0]", 8)
    assert warning.mend == "`matching` is never `unifrom`; did you mean `uniform`?"
    assert len(plan.trials) == 2


def test_short_names_are_whole_paths_where_they_would_be_ambiguous() -> None:
    plan = plan_of(
        axes(
            "terms.hidden_states.weight: [1]",
            "terms.soft_logits.weight: [1]",
            "terms.hidden_states.distance: [cosine]",
            "teacher.fine_tune.seed: [0]",
            "training.precision: [fp32]",
            "training.evaluate.times: [3]",
        )
    )
    assert set(plan.trials[0].axes) - {"knowledge", "matching", "temperature", "shape"} == {
        "initialisation",
        "terms.hidden_states.weight",
        "terms.soft_logits.weight",
        "distance",
        "teacher.fine_tune.seed",
        "training.precision",
        "times",
        "seed",
    }


SKIPPED = [
    ("knowledge: [hidden_states]", "untrained head", "no term reads the student's logits"),
    (
        "knowledge: [[soft_logits, {kind: hidden_states, projection: none}]]|"
        "shape: [{layers: 3, width: 192, heads: 12}]",
        "width",
        "the student is 192 wide and the teacher 384",
    ),
    (
        "knowledge: [[soft_logits, attentions]]|shape: [{layers: 3, width: 384, heads: 6}]",
        "heads",
        "the student has 6 heads and the teacher 12",
    ),
    ("shape: [{layers: 3, width: 100, heads: 12}]", "heads divide width", "12 heads do not"),
    ("shape: [{layers: 4, width: 384, heads: 12}]|matching: [gap]", "matching", "multiple"),
    ("shape: [{layers: 7, width: 384, heads: 12}]", "matching", "explicit `pairs`"),
    ("matching: [{last_k: 4}]", "matching", "exceeds"),
    ("matching: [{pairs: [[7, 1]]}]", "matching", "outside the teacher"),
    ("matching: [{random_sorted: 6}]", "matching", "exceeds"),
    (
        "knowledge: [[soft_logits, attentions]]|matching: [{pairs: [[0, 0]]}]",
        "matching",
        "the embedding, which has no attention",
    ),
    (
        "knowledge: [[soft_logits, attentions]]|matching: [embedding]",
        "matching",
        "the embedding, which has no attention",
    ),
    (
        "shape: [{layers: 3, width: 192, heads: 12}]|initialisation: [{teacher_layers: first}]",
        "initialisation",
        "width 192 and 384",
    ),
    (
        "shape: [{layers: 3, width: 384, heads: 12, feed_forward: 1000}]|"
        "initialisation: [{teacher_layers: first}]",
        "initialisation",
        "feed-forward width 1000 and 1536",
    ),
    (
        "initialisation: [{teacher_layers: [1, 2]}]",
        "initialisation",
        "2 teacher layers are listed",
    ),
    (
        "initialisation: [{teacher_layers: first, from: pretrained, head: copy}]",
        "initialisation",
        "`head: copy` needs `from: fine_tuned`",
    ),
    (
        "knowledge: [[soft_logits, rkd]]|training.batch_size: [2]",
        "rows",
        "`training.batch_size` 2 leaves fewer than 3",
    ),
    (
        "knowledge: [[soft_logits, {kind: relations, heads: 5}]]",
        "heads",
        "is 5, which does not divide the student's width 384",
    ),
    (
        "knowledge: [[soft_logits, relations]]|shape: [{layers: 3, width: 384, heads: 6}]",
        "heads",
        "the student has 6 heads and the teacher 12",
    ),
    (
        "knowledge: [[soft_logits, {kind: attentions, head_map: grouped}]]|"
        "shape: [{layers: 3, width: 320, heads: 5}]",
        "heads",
        "12 heads do not fall into 5 equal groups",
    ),
    (
        "knowledge: [[soft_logits, {kind: attentions, of: probabilities, head_map: sum}]]",
        "heads",
        "a sum of probabilities is no distribution",
    ),
    ("knowledge: [[soft_logits, attentions]]|matching: [combine]", "matching", "alone"),
    (
        "knowledge: [[soft_logits, layer_relations]]|matching: [top]",
        "matching",
        "gives 1 pair of layers, and pairs need 2",
    ),
    (
        "knowledge: [{kind: soft_logits, schedule: {ratio_to: attentions}}]",
        "schedule",
        "follows `attentions`, and beside it the stage has 0 terms",
    ),
    (
        "knowledge: [[soft_logits, {kind: hidden_states, projection: orthogonal}]]|"
        "shape: [{layers: 3, width: 768, heads: 12}]",
        "width",
        "768 columns cannot be orthonormal in 384 dimensions",
    ),
    ("task.max_length: [513]", "length", "exceeds the teacher's 512 positions"),
]


@pytest.mark.parametrize(("lines", "rule", "reason"), SKIPPED)
def test_an_impossible_point_is_skipped_with_its_reason(lines: str, rule: str, reason: str) -> None:
    plan = plan_of(axes(*lines.split("|")))
    assert plan.trials == ()
    assert [skipped.rule for skipped in plan.skipped] == [rule]
    assert reason in plan.skipped[0].reason


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        (
            "knowledge: [{kind: soft_logits, temperature_squared: false}]",
            "its weight falls with the temperature",
        ),
        (
            "knowledge: [[soft_logits, hidden_states]]|matching: [first]|"
            "initialisation: [{teacher_layers: first}]",
            "its loss begins at 0",
        ),
        (
            "knowledge: [[soft_logits, hidden_states]]|matching: [embedding]|"
            "initialisation: [{teacher_layers: first}]",
            "the student copies them",
        ),
        (
            "knowledge: [[soft_logits, {kind: soft_logits, label: more, weight: 2}]]",
            "they are one term",
        ),
        (
            "knowledge: [[soft_logits, {kind: hidden_states, weight: 10}]]|matching: [last]",
            "holds the student's last layer to the teacher's",
        ),
        (
            "knowledge: [{kind: soft_logits, distance: {dkd: {}}}]",
            "`others` does not act",
        ),
    ],
)
def test_what_means_less_than_it_seems_is_allowed_with_a_word(lines: str, warning: str) -> None:
    plan = plan_of(axes(*lines.split("|")))
    assert len(plan.trials) == 1
    assert [each for each in plan.warnings if warning in each.what]


@pytest.mark.parametrize(
    "lines",
    [
        "knowledge: [[soft_logits, {kind: hidden_states, weight: 9}]]|matching: [last]",
        "knowledge: [[soft_logits, {kind: hidden_states, weight: 100}]]|matching: [pkd_last]",
        "knowledge: [{kind: soft_logits, distance: {dkd: {}}}]",
    ],
)
def test_what_acts_as_it_is_written_needs_no_word(lines: str) -> None:
    three_classes = KnownFacts(task=TaskFacts(3))
    assert plan_of(axes(*lines.split("|")), facts=three_classes).warnings == ()


def test_skipped_points_are_told_from_collapsed_ones() -> None:
    body = axes(
        "knowledge: [hard_labels, [soft_logits, attentions]]",
        "matching: [uniform, last]",
        "shape: [{layers: 3, width: 384, heads: 12}, {layers: 3, width: 384, heads: 6}]",
    )
    plan = plan_of(body)
    assert (len(plan.trials), len(plan.skipped), len(plan.collapsed)) == (4, 2, 2)
    assert {skipped.axes["shape"] for skipped in plan.skipped} == {"3x384x6"}
    assert {collapsed.axes["knowledge"] for collapsed in plan.collapsed} == {"hard_labels"}
    assert plan.num_points == 8


@pytest.mark.parametrize("knowledge", ["hard_labels", "soft_logits"])
def test_one_class_allows_no_softmax(knowledge: str) -> None:
    plan = plan_of(axes(f"knowledge: [{knowledge}]"), facts=KnownFacts(task=TaskFacts(1)))
    assert [skipped.rule for skipped in plan.skipped] == ["classes"]


def test_weights_before_fine_tuning_need_a_teacher_that_is_fine_tuned_here() -> None:
    head = HEAD.replace(", fine_tune: {epochs: 1}", "")
    body = axes("initialisation: [{teacher_layers: first, from: pretrained}]")
    plan = plan_of(body, head=head)
    assert "comes fine-tuned" in plan.skipped[0].reason


def test_comparing_mean_heads_is_a_warning_once() -> None:
    body = axes(
        "knowledge: [[soft_logits, {kind: attentions, head_map: mean}]]",
        "shape: [{layers: 3, width: 384, heads: 6}, {layers: 3, width: 384, heads: 4}]",
    )
    plan = plan_of(body)
    assert len(plan.trials) == 2
    assert len(plan.warnings) == 1


def test_rules_on_unknown_facts_are_not_checked_and_said_once() -> None:
    body = axes(
        "knowledge: [[soft_logits, {kind: hidden_states, projection: none}]]",
        "matching: [gap, last]",
    )
    plan = plan_of(body, facts=KnownFacts(None, None))
    assert len(plan.trials) == 2
    assert [warning.path for warning in plan.warnings] == ["teacher.model", "task"]


lists = st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)


@given(seeds=lists, epochs=lists, rates=lists, excluded=st.integers(0, 4))
def test_trials_are_the_product_minus_what_is_excluded(
    seeds: list[int], epochs: list[int], rates: list[int], excluded: int
) -> None:
    body = axes(
        f"seed: {seeds}",
        f"training.epochs: {[n + 1 for n in epochs]}",
        f"training.dropout: {[n / 10 for n in rates]}",
        rest=f"exclude: [{{seed: {excluded}, training.epochs: {{gt: 2}}}}]",
    )
    plan = plan_of(body)
    left_out = sum(n + 1 > 2 for n in epochs) * len(rates) if excluded in seeds else 0
    assert plan.num_points == math.prod(map(len, (seeds, epochs, rates)))
    assert plan.num_excluded == left_out
    assert len(plan.trials) == plan.num_points - left_out
    ids = {trial_id(planned.trial, DIGESTS) for planned in plan.trials}
    assert len(ids) == len(plan.trials)


def test_growing_an_axis_keeps_the_ids_of_what_was_there() -> None:
    small = plan_of(axes("matching: [last]", "seed: [0, 1]"))
    grown = plan_of(axes("seed: [2, 1, 0]", "matching: [first, last]", "temperature: [2, 4]"))
    before = {trial_id(planned.trial, DIGESTS) for planned in small.trials}
    after = {trial_id(planned.trial, DIGESTS) for planned in grown.trials}
    assert before < after


def test_a_hundred_thousand_points_fit_into_memory_by_sharing_their_parts() -> None:
    seeds = list(range(500))
    body = axes(f"seed: {seeds}", "temperature: [1, 2, 3, 4, 5]", "matching: [last, first]")
    plan = expand(grid_of(body), KnownFacts(MINILM))
    trials = [planned.trial for planned in plan.trials]
    assert len(trials) == 5_000
    assert len({id(trial.stages[0]) for trial in trials}) == 10
    assert len({id(trial.task) for trial in trials}) == 1
    assert len({id(trial.shape) for trial in trials}) == 1
