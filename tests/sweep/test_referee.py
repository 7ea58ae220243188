"""Which trials are compared with each other."""

from collections import Counter
from pathlib import Path

from kdsweep.search_spaces import ShippedFacts, expand, read_grid
from kdsweep.sweep.referee import Brackets

GRID = """
name: brackets
task: {{name: glue/sst2}}
teacher: {{model: minilm-l6-h384, fine_tune: {{epochs: 1}}}}
axes:
  knowledge: [hard_labels, [hard_labels, soft_logits]]
  temperature: [1, 4]
  shape: [{{layers: 2, width: 128, heads: 2}}, {{layers: 3, width: 128, heads: 2}}]
  training.learning_rate: [1e-4, 1e-3]
training: {{batch_size: 16}}
early_stopping: {{method: asha, within: {within}}}
"""


def brackets(within: str) -> Counter[str]:
    grid = read_grid(GRID.format(within=within), file="grid.yaml", base=Path())
    of = Brackets(grid).of
    return Counter(of(planned) for planned in expand(grid, ShippedFacts()).trials)


def test_trials_of_equal_task_and_knowledge_are_compared_by_default() -> None:
    # Two shapes and two rates; temperature acts on soft logits alone.
    assert brackets("[task.name, knowledge]") == {
        '{"knowledge":"hard_labels","task.name":"glue/sst2"}': 4,
        '{"knowledge":"hard_labels+soft_logits","task.name":"glue/sst2"}': 8,
    }


def test_an_axis_and_what_only_a_section_says_tell_trials_apart() -> None:
    assert brackets("[training.learning_rate, training.batch_size]") == {
        '{"training.batch_size":16,"training.learning_rate":0.0001}': 6,
        '{"training.batch_size":16,"training.learning_rate":0.001}': 6,
    }


def test_an_axis_that_does_not_act_on_a_trial_has_no_value_there() -> None:
    assert brackets("[temperature]") == {
        '{"temperature":null}': 4,
        '{"temperature":1.0}': 4,
        '{"temperature":4.0}': 4,
    }


def test_within_nothing_all_trials_are_compared() -> None:
    assert brackets("[]") == {"{}": 12}
