"""What trials ask for: for all of them, and by rules for some."""

from pathlib import Path

import pytest
from grids import KnownFacts

from kdsweep.search_spaces import GridError, expand, read_grid
from kdsweep.search_spaces.expansion import Plan
from kdsweep.search_spaces.ids import Identifier
from kdsweep.search_spaces.resources import Request
from kdsweep.search_spaces.trial import Digests

GRID = """
name: sizes
task: {{name: tweets}}
teacher: {{model: minilm-l6-h384}}
axes:
  knowledge: [hard_labels, [hard_labels, soft_logits]]
  shape: [{{layers: 2, width: 128, heads: 2}}, {{layers: 6, width: 384, heads: 12}}]
resources: {resources}
"""


def planned(resources: str) -> Plan:
    text = GRID.format(resources=resources)
    return expand(read_grid(text, file="grid.yaml", base=Path()), KnownFacts())


def refused(resources: str) -> str:
    with pytest.raises(GridError) as caught:
        planned(resources)
    return str(caught.value)


def test_a_rule_changes_what_it_names_and_a_later_one_wins() -> None:
    plan = planned("""
  cpus: 2
  gpus: 0.25
  when:
    - {if: {shape.layers: {ge: 6}}, gpus: 0.5, memory_gb: 8}
    - {if: {shape: 6x384x12, knowledge: {has: soft_logits}}, memory_gb: 16, timeout_minutes: 600}
""")
    asked = {(p.axes["knowledge"], p.axes["shape"]): p.resources for p in plan.trials}
    assert asked == {
        ("hard_labels", "2x128x2"): None,
        ("hard_labels+soft_logits", "2x128x2"): None,
        ("hard_labels", "6x384x12"): Request(cpus=2, gpus=0.5, memory_gb=8),
        ("hard_labels+soft_logits", "6x384x12"): Request(
            cpus=2, gpus=0.5, memory_gb=16, timeout_minutes=600
        ),
    }
    assert plan.warnings == ()


def test_resources_are_part_of_no_id() -> None:
    digests = Digests("0" * 64, "1" * 64)
    identify = Identifier().identify
    ids = [
        [identify(p.trial, digests) for p in planned(resources).trials]
        for resources in (
            "{}",
            "{gpus: 1, when: [{if: {shape.layers: 6}, gpus: 0.5}]}",
        )
    ]
    assert ids[0] == ids[1]


def test_a_rule_that_matches_no_point_is_a_warning_with_its_place() -> None:
    [warning] = planned("{when: [{if: {shape: 7x384x12}, memory_gb: 8}]}").warnings
    assert str(warning).startswith("grid.yaml:8:20: resources.when[0]: matches no point")
    assert "`shape` is never `7x384x12`" in warning.mend


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ("{gpus: 9}", "resources.gpus: `9` is not at most 1"),
        ("{when: [{if: {seed: 0}, cpus: 2}]}", "when[0].cpus: cannot differ from trial to trial"),
        ("{when: [{if: {seed: 0}, memory: 2}]}", "Did you mean `memory_gb`?"),
        ("{when: [{if: {seed: 0}, memory_gb: -1}]}", "when[0].memory_gb: `-1` is not greater than"),
        ("{when: [{if: {seed: 0}, memory_gb: null}]}", "when[0].memory_gb: has no value"),
        ("{when: [{if: {seed: 0}}]}", 'when[0]: `{"if": {"seed": 0}}` is not a rule'),
        ("{when: [{memory_gb: 8}]}", "is not a rule of resources"),
        ("{when: {if: {seed: 0}, memory_gb: 8}}", 'resources.when: `{"if": '),
        ("{when: [{if: {shape.layer: 6}, memory_gb: 8}]}", "Did you mean `shape.layers`?"),
        ("{when: [{if: {seed: 0}, gpus: 0.5}]}", "would train on a GPU and the others off it"),
        ("{gpus: 1, when: [{if: {seed: 0}, gpus: 0}]}", "would train off a GPU and the others on"),
    ],
)
def test_what_no_trial_may_ask_for_is_refused(resources: str, message: str) -> None:
    assert message in refused(resources)


def test_wrong_rules_are_told_together_with_whatever_else_is_wrong() -> None:
    told = refused("{gpus: 9, when: [{if: {seed: 0}, cpus: 2}, {if: {sed: 0}, memory_gb: 8}]}")
    assert told.count("grid.yaml:8:") == 3
