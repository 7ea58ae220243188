"""Further seeds for some groups, written into the text of a grid."""

from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest
from grids import KnownFacts

from kdsweep.search_spaces import expand, read_grid
from kdsweep.search_spaces.growth import FurtherSeeds, add_seeds

HEAD = """\
# What I wrote.
name: test
task: {name: tweets}       # mine
teacher: {model: teacher, fine_tune: {epochs: 1}}
axes:
  knowledge: [hard_labels, [soft_logits, hidden_states]]   # two
  matching: [uniform, last]
  training.learning_rate: [1e-4, 3e-4]
  shape: [{layers: 3, width: 384, heads: 12}]
  seed: [0, 1]
"""
LAST = FurtherSeeds(
    {
        "knowledge": "soft_logits+hidden_states",
        "matching": "last",
        "learning_rate": 3e-4,
        "initialisation": None,
    },
    seed=0,
    seeds=[2, 3],
    comment="it was good",
)
RULE = (
    "- {if: {knowledge: soft_logits+hidden_states, matching: last, "
    "training.learning_rate: 0.0003, seed: 0}, axes: {seed: [0, 2, 3]}}"
)
WHENS = {
    "none": "training: {epochs: 2}\n",
    "null": "when:\ntraining: {epochs: 2}\n",
    "empty": "when: []\ntraining: {epochs: 2}\n",
    "brackets": "when: [{if: {matching: last}, set: {training.epochs: 4}}]\n",
    "block": dedent(
        """\
        when:
          # first
          - {if: {matching: last}, set: {training.epochs: 4}}
          - if: {matching: uniform}
            set:
              training.epochs: 5     # more

        # about training
        training: {epochs: 2}
        """
    ),
    "flush": "when:\n- {if: {matching: last}, set: {training.epochs: 4}}\nkeep: {students: all}\n",
    "last": "training: {epochs: 2}\nwhen:\n  - {if: {seed: 1}, set: {training.epochs: 4}}\n",
}


def points(text: str) -> Counter[tuple[object, ...]]:
    trials = expand(read_grid(text, file="grid.yaml", base=Path()), KnownFacts()).trials
    names = ("knowledge", "matching", "learning_rate", "seed")
    return Counter(tuple(planned.axes[name] for name in names) for planned in trials)


@pytest.mark.parametrize("when", WHENS.values(), ids=WHENS)
def test_a_group_gets_its_seeds_and_nothing_else_changes_not_a_line(when: str) -> None:
    text = HEAD + when
    grid = read_grid(text, file="grid.yaml", base=Path())
    grown = add_seeds(text, grid, [LAST], heading="the best")
    new = [("soft_logits+hidden_states", "last", 3e-4, seed) for seed in (2, 3)]
    assert points(grown) - points(text) == Counter(new)
    assert points(text) - points(grown) == Counter()
    lines = grown.split("\n")
    at = next(n for n, line in enumerate(lines) if line.lstrip() == RULE)
    assert [line.strip() for line in lines[at - 2 : at]] == ["# the best", "# it was good"]
    kept = [line for line in text.rstrip("\n").split("\n") if not line.startswith("when: [")]
    remaining = iter(lines)
    assert all(line in remaining for line in kept), "every line, in its order"


def test_a_grid_in_braces_stays_one() -> None:
    text = """{"name": "test", "task": {"name": "tweets"},
    "teacher": {"model": "teacher", "fine_tune": {"epochs": 1}},
    "axes": {"knowledge": ["hard_labels"], "shape": [{"layers": 3, "width": 384, "heads": 12}]}}"""
    grid = read_grid(text, file="grid.yaml", base=Path())
    group = FurtherSeeds({"knowledge": "hard_labels"}, seed=0, seeds=[1], comment="fine")
    grown = add_seeds(text, grid, [group], heading="the best")
    assert grown.startswith('# the best\n# fine\n{\n "name": "test"')
    seeds = [
        p.axes["seed"] for p in expand(read_grid(grown, file="", base=Path()), KnownFacts()).trials
    ]
    assert seeds == [0, 1]


def test_labels_that_yaml_would_take_for_something_else_are_quoted() -> None:
    text = HEAD.replace("hard_labels,", "{label: 'no', terms: [hard_labels]},")
    grid = read_grid(text, file="grid.yaml", base=Path())
    group = FurtherSeeds({"knowledge": "no", "learning_rate": 1e-4}, 1, [5], comment="fine")
    grown = add_seeds(text, grid, [group], heading="the best")
    assert '{if: {knowledge: "no", training.learning_rate: 0.0001, seed: 1}' in grown
    assert points(grown) - points(text) == Counter([("no", None, 1e-4, 5)])
