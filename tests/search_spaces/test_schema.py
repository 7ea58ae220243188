"""The JSON Schema says of good and bad grids what the reader says."""

from pathlib import Path

import jsonschema
import pytest
from grids import KnownFacts
from ruamel.yaml import YAML

from kdsweep.search_spaces import expand, grid_schema, read_grid, starter_grid

EVERYTHING = """
name: revisited-sst2
task:
  name: glue/sst2
  select: {from: train, fraction: 0.1, seed: 0}
  report: validation
  max_length: 64
  limit: {train: 4000, select: 1000}
teacher:
  model: minilm-l6-h384
  fine_tune: {epochs: 3, learning_rate: 5e-5, batch_size: 32, seed: 0}
  floor: {above_majority: 0.05}
axes:
  knowledge:
    - hard_labels
    - [hard_labels, soft_logits]
    - {label: both, terms: [soft_logits, {kind: hidden_states, distance: cosine}]}
    - {kind: soft_logits, distance: mse}
    - tinybert
    - {label: two, stages: [{name: a, terms: [hidden_states], training: {epochs: 1}},
       {name: b, terms: [hard_labels, {kind: relations, of: [v], schedule: {linear_up: 0.5}}]}]}
  matching: [uniform, last, first, {last_k: 2}, {pairs: [[6, -1]]}, {reverse: uniform},
    {label: cross, pairs: [[6, 1], [1, 3]]}, linspace, consecutive, pkd_skip, pkd_last, tinybert,
    top, embedding, {first_k: 1}, {label: below, top_minus: 1, student: same},
    {reverse: {top_minus: 1}}]
  temperature: [1, 2.5]
  shape:
    - {layers: 3, width: 384, heads: 12}
    - {iso: encoder_parameters, target: 4.6e6, tolerance: 0.08, layers: [2, 4, 6],
       width_multiple: 64, heads: width/64}
  initialisation: [random, {teacher_layers: uniform, from: fine_tuned, head: copy}]
  training.learning_rate: [1e-4, 5e-4]
  terms.hidden_states.weight: [1, 10]
  task.text: [{label: one, value: [sentence]}]
  seed: [0, 1, 2]
zip: []
when:
  - {if: {knowledge: {has: hidden_states}}, axes: {terms.hidden_states.projection: [linear, none]}}
  - {if: {shape.layers: {ge: 6}}, set: {training.epochs: 5}}
exclude:
  - {initialisation: random, training.learning_rate: 1e-4}
order:
  - {seed: 0}
  - {knowledge: hard_labels, shape.layers: {le: 3}}
training: {epochs: 3, batch_size: 32, dropout: 0.1, weight_decay: 0.01, warmup: 0.06,
  precision: auto, evaluate: {times: 10}}
search: {method: grid}
early_stopping: {method: asha, metric: primary, grace: 0.2, reduction: 3,
  within: [task.name, knowledge]}
resources: {cpus: 1, gpus: 0, memory_gb: 4, timeout_minutes: 60,
  when: [{if: {shape.layers: {ge: 3}}, memory_gb: 8, timeout_minutes: 90}]}
retries: 1
keep: {students: best_per_group, predictions: last}
budget: {hours: null, trials: null}
"""


SEARCHES = """
name: search
task: {name: tweets}
teacher: {model: minilm-l6-h384, fine_tune: {epochs: 1}}
axes:
  knowledge: [hard_labels, [soft_logits, hidden_states]]
  shape: [{layers: 3, width: 384, heads: 12}]
  temperature: {uniform: [1, 8]}
  training.learning_rate: {log: [1e-5, 1e-3]}
  training.epochs: {integers: [1, 5]}
when:
  - {if: {knowledge: {has: hidden_states}}, axes: {terms.hidden_states.weight: {log: [0.1, 10]}}}
search: {method: nsga2, trials: 40, per: [knowledge], over_seeds: mean, seed: 1, population: 8,
  objective: {metrics: [primary, latency_ms]}}
"""


def complaints(text: str) -> list[str]:
    validator = jsonschema.Draft7Validator(grid_schema())
    return [
        error.message for error in validator.iter_errors(YAML(typ="safe", pure=True).load(text))
    ]


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(grid_schema())


@pytest.mark.parametrize(
    "text", [EVERYTHING, SEARCHES, starter_grid()], ids=["everything", "search", "starter"]
)
def test_good_grids_pass_schema_and_reader(text: str) -> None:
    assert complaints(text) == []
    plan = expand(read_grid(text, file="grid.yaml", base=Path()), KnownFacts())
    assert plan.trials


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("max_length: 64", "max_lenght: 64"),
        ("fraction: 0.1", "fraction: 2"),
        ("    - hard_labels", "    - hard_label"),
        ("distance: cosine", "distance: cosinus"),
        ("{last_k: 2}", "{last_k: 0}"),
        ("student: same", "student: first"),
        ("{reverse: uniform}", "{reverse: consecutive}"),
        ("{teacher_layers: uniform,", "{teacher_layers: pkd_skip,"),
        ("[[6, -1]]", "[[6, -1, 2]]"),
        ("width/64", "width-64"),
        ("training.learning_rate: [", "training.learning_rat: ["),
        ("{ge: 6}", "{gee: 6}"),
        ("retries: 1", "retries: -1"),
        ("memory_gb: 8", "memory: 8"),
        ("memory_gb: 8, timeout_minutes: 90", "cpus: 8"),
        (", memory_gb: 8, timeout_minutes: 90", ""),
        ("predictions: last", "predictions: some"),
        ("method: grid", "method: tpe"),
        ("hours: null", "hours: 0"),
        ("trials: null", "trials: 1.5"),
        ("- {seed: 0}", "- [seed, 0]"),
        ("metric: primary", "metric: train/loss"),
        ("reduction: 3", "reduction: 1"),
        ("seed: [0, 1, 2]", "seed: 0"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(right: str, wrong: str) -> None:
    assert EVERYTHING.count(right) >= 1
    assert complaints(EVERYTHING.replace(right, wrong)) != []


def test_every_field_is_described_for_the_editor() -> None:
    schema = grid_schema()
    undescribed = [
        f"{name}.{field}"
        for name, definition in schema["definitions"].items()
        for field, said in definition.get("properties", {}).items()
        if "description" not in said and field not in ("kind", "value")
    ]
    assert undescribed == []


def test_a_description_is_the_docstring_of_its_field() -> None:
    schema = grid_schema()
    assert schema["properties"]["keep"]["description"] == "What stays in the store."
    carve = schema["definitions"]["Carve"]["properties"]
    assert carve["from"]["description"] == "The split that gives the rows away."


def test_the_starter_is_on_embedded_data_and_explains_itself() -> None:
    grid = read_grid(starter_grid(), file="starter.yaml", base=Path())
    assert (grid.task.name, grid.teacher.model) == ("tweets", "minilm-l6-h384")
    assert starter_grid().count("#") > 20
