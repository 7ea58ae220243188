"""One grid that says everything the language has, counted by hand."""

from collections import Counter
from pathlib import Path

import pytest

from kdsweep.search_spaces import ShippedFacts, expand, read_grid
from kdsweep.search_spaces.expansion import Plan

GLUE = Path(__file__).parents[2].parent / "shared" / "glue"

GRID = """
name: revisited-sst2
task:
  name: glue/sst2{path}
  select: {{from: train, fraction: 0.1, seed: 0}}
  report: validation
  max_length: 64
  limit: {{train: 4000, select: 1000}}
teacher:
  model: minilm-l6-h384
  fine_tune: {{epochs: 3, learning_rate: 5e-5, batch_size: 32, seed: 0}}
  floor: {{above_majority: 0.05}}
axes:
  knowledge:
    - hard_labels
    - [hard_labels, soft_logits]
    - [soft_logits, hidden_states]
    - {{label: qkv, terms: [soft_logits, {{kind: relations, of: [q, k, v], heads: 16}}]}}
  matching: [uniform, last, first, {{last_k: 2}}, {{pairs: [[6, -1]]}}, {{reverse: uniform}}]
  shape:
    - {{layers: 3, width: 384, heads: 12}}
    - {{iso: encoder_parameters, target: 4.6e6, tolerance: 0.08, layers: [2, 4, 6], width_multiple: 64, heads: width/64}}
  initialisation: [random, {{teacher_layers: uniform, from: fine_tuned, head: copy}}]
  training.learning_rate: [1e-4, 5e-4]
  terms.relations.heads: [16, 32]
  seed: [0, 1, 2]
zip: []
when:
  - {{if: {{knowledge: {{has: hidden_states}}}}, axes: {{terms.hidden_states.weight: [1, 10]}}}}
  - {{if: {{shape.layers: {{ge: 6}}}}, set: {{training.epochs: 5}}}}
exclude:
  - {{initialisation: random, training.learning_rate: 1e-4}}
training: {{epochs: 3, batch_size: 32, dropout: 0.1, weight_decay: 0.01, warmup: 0.06, precision: auto, evaluate: {{times: 10}}}}
search: {{method: grid}}
early_stopping: {{method: asha, metric: primary, grace: 0.2, reduction: 3, within: [task.name, knowledge]}}
resources: {{cpus: 1, gpus: 0, memory_gb: 4, timeout_minutes: 60, stall_minutes: 15}}
retries: 1
keep: {{students: best_per_group, predictions: last}}
budget: {{hours: null, trials: null}}
"""  # noqa: E501


def planned(path: str = "") -> Plan:
    text = GRID.format(path=path)
    return expand(read_grid(text, file="grid.yaml", base=Path()), ShippedFacts())


def test_a_grid_of_the_whole_language_counts_as_by_hand() -> None:
    made = planned()
    shapes = Counter(each.axes["shape"] for each in (*made.trials, *made.skipped))
    # 12 L H^2 parameters near 4.6e6 in widths of whole 64s: 2x448, 4x320 and 6x256.
    assert list(shapes) == ["3x384x12", "2x448x7", "4x320x5", "6x256x4"]
    # Four values of knowledge, 6 matchings, 4 shapes, 2 starts, 2 rates, 2 numbers of heads, 3
    # seeds; one value of knowledge has its hidden states at two weights.
    assert made.num_points == (3 + 2) * 6 * 4 * 2 * 2 * 2 * 3
    # Of the four pairs of start and rate one is excluded.
    assert made.num_excluded == made.num_points // 4
    # What acts: neither matching nor heads on the first two; matching and weight on hidden states;
    # matching and heads on relations.
    kinds = 1 + 1 + 6 * 2 + 6 * 2
    # A student starts from teacher layers at the teacher's width alone.
    starts = 3 + 3 * 1
    assert len(made.trials) == kinds * starts * 3 == 468
    assert len(made.skipped) == kinds * (3 * 2) * 3
    assert {skipped.rule for skipped in made.skipped} == {"initialisation"}
    distinct = len(made.trials) + len(made.skipped)
    assert len(made.collapsed) == made.num_points - made.num_excluded - distinct
    epochs = {each.axes["shape"]: each.axes["epochs"] for each in made.trials}
    assert epochs == {"3x384x12": 3, "2x448x7": 3, "4x320x5": 3, "6x256x4": 5}


@pytest.mark.skipif(not (GLUE / "sst2").is_dir(), reason="no copy of glue/sst2")
def test_the_same_grid_counts_the_same_on_a_local_copy() -> None:
    made = planned(f"\n  path: {GLUE}")
    assert len(made.trials) == 468
    [task] = {each.trial.task.path for each in made.trials}
    assert task == str(GLUE)
