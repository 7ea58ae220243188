"""Reading a grid: every problem at once, each with its place and its mend."""

from pathlib import Path
from textwrap import dedent

import pytest
from grids import HEAD, grid_of

from kdsweep.search_spaces import Grid, GridError, load_grid, read_grid

AXES = """
axes:
  knowledge: [[soft_logits, hidden_states]]
  shape: [{layers: 3, width: 384, heads: 12}]
"""

TEN_MISTAKES = """\
name: ten
task: {name: tweets, max_lenght: 64}
teacher:
  model: minilm-l6-h384
  fine_tune: {epochs: "3"}
axes:
  knowledge:
    - hard_labels
    - [soft_logits, {kind: hidden_states, distance: cosinus}]
    - crdd
  matching: [unifrom, last]
  shape: [{layers: 3, widht: 384, heads: 12}]
  trainig.learning_rate: [1e-4]
  seed: [0, 0]
exclude:
  - {initialisation: random, training.batch_sise: 32}
training: {epochs: 3, epochs: 4, dropout: 1.5}
search: {method: tpee, trials: 40}
"""

TEN_MESSAGES = """\
grid.yaml:2:22: task.max_lenght: is not a known key
    Did you mean `max_length`?
grid.yaml:5:23: teacher.fine_tune.epochs: `"3"` is text, not a whole number
    Write 3 without quotes
grid.yaml:9:53: axes.knowledge[1][1].distance: `cosinus` is not one of mse, cosine
    Did you mean `cosine`?
grid.yaml:10:7: axes.knowledge[2]: `crdd` is not a kind
    Did you mean `crd`?
grid.yaml:11:14: axes.matching[0]: `unifrom` does not fit here
    Did you mean `uniform`?
grid.yaml:12:23: axes.shape[0].widht: is not a known key
    Did you mean `width`? It is required
grid.yaml:13:3: axes.trainig.learning_rate: is not a path that may be an axis
    Did you mean `training.learning_rate`?
grid.yaml:14:13: axes.seed[1]: `0` stands twice
    Remove it
grid.yaml:16:30: exclude[0].training.batch_sise: is not a path of this grid
    Did you mean `training.batch_size`?
grid.yaml:17:23: training.epochs: is written twice; first in line 17
    Keep one of the two
grid.yaml:17:43: training.dropout: `1.5` is not at most 1
    Write a number at most 1
grid.yaml:18:18: search.method: `tpee` is not one of grid, random, tpe, nsga2
    Did you mean `tpe`?
"""


def test_a_dozen_mistakes_give_a_dozen_messages_with_line_and_mend() -> None:
    with pytest.raises(GridError) as caught:
        read_grid(TEN_MISTAKES, file="grid.yaml", base=Path())
    assert str(caught.value) + "\n" == TEN_MESSAGES


def refusals(body: str, head: str = HEAD) -> list[str]:
    with pytest.raises(GridError) as caught:
        grid_of(body, head)
    return [f"{p.path}: {p.what}" for p in caught.value.problems]


def with_knowledge(value: str) -> str:
    return AXES.replace("[[soft_logits, hidden_states]]", f"[{value}]")


def with_axis(line: str) -> str:
    return f"{AXES}  {line}\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            with_knowledge("{kind: hidden_states, matching: {search: {}}}"),
            "axes.knowledge[0].matching: matching `search` is not built yet",
        ),
        (
            with_axis("matching: [search]"),
            "axes.matching[0]: matching `search` is not built yet",
        ),
        (
            with_axis("initialisation: [{checkpoint: folder}]"),
            "axes.initialisation[0]: initialisation `checkpoint` is not built yet",
        ),
        (
            with_axis("task.name: [glue/stsb]"),
            "axes.task.name[0]: regression (`glue/stsb`) is not built yet",
        ),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name(body: str, expected: str) -> None:
    assert refusals(body) == [expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (with_knowledge("[]"), "axes.knowledge[0]: has no terms"),
        (with_knowledge("3"), "axes.knowledge[0]: `3` is not a term"),
        (
            with_knowledge("[soft_logits, soft_logits]"),
            "axes.knowledge[0][1]: a second term is called `soft_logits`",
        ),
        (
            with_knowledge("soft_logits, {kind: soft_logits, temperature: 4}"),
            "axes.knowledge[1]: `soft_logits` stands twice",
        ),
        (
            with_knowledge("{kind: soft_logits, temperature: '4'}"),
            'axes.knowledge[0].temperature: `"4"` is text, not a number',
        ),
        (
            with_knowledge("{kind: soft_logits, label: a b}"),
            "axes.knowledge[0].label: `a b` does not fit",
        ),
        (with_axis("seed: 3"), "axes.seed: `3` is not a list of values"),
        (with_axis("seed: []"), "axes.seed: has no values"),
        (with_axis("seed: [true]"), "axes.seed[0]: `true` is a boolean, not a whole number"),
        (with_axis("seed: [-1]"), "axes.seed[0]: `-1` is not at least 0"),
        (with_axis("seed: [0, 0.0]"), "axes.seed[1]: `0` stands twice"),
        (with_axis("temperature: [0]"), "axes.temperature[0]: `0` is not greater than 0"),
        (
            with_axis("matching: [{pairs: [[1, 2, 3]]}]"),
            "axes.matching[0].pairs[0]: has 3 entries",
        ),
        (
            with_axis("matching: [{top_minus: 0}]"),
            "axes.matching[0].top_minus: `0` is not at least 1",
        ),
        (
            with_axis("matching: [{reverse: consecutive}]"),
            "axes.matching[0].reverse: `consecutive` cannot be reversed: "
            "that takes a rule with fixed pairs, one to one",
        ),
        (
            with_axis("matching: [{reverse: {random_sorted: 2}}]"),
            "axes.matching[0].reverse: `{'random_sorted': 2}` cannot be reversed: "
            "that takes a rule with fixed pairs, one to one",
        ),
        (
            with_axis("initialisation: [{teacher_layers: pkd_skip}]"),
            "axes.initialisation[0].teacher_layers: `pkd_skip` does not give each student block "
            "exactly one teacher block",
        ),
        (
            with_axis("initialisation: [{teacher_layers: uniform, form: pretrained}]"),
            "axes.initialisation[0].form: is not a known key",
        ),
        (
            with_axis("terms.hidden_states.wieght: [1]"),
            "axes.terms.hidden_states.wieght: is not a path that may be an axis",
        ),
        (
            with_axis("terms.attentions.weight: [1]"),
            "axes.terms.attentions.weight: is not a path that may be an axis",
        ),
        (
            with_axis("terms.hidden_states.kind: [attentions]"),
            "axes.terms.hidden_states.kind: is not a path that may be an axis",
        ),
        (
            with_axis("terms.hidden_states.distance: [mse, kl]"),
            "axes.terms.hidden_states.distance[1]: `kl` is not one of mse, cosine",
        ),
        (with_axis("shape.layers: [3]"), "axes.shape.layers: is a part of an axis"),
        (with_axis("training: [{}]"), "axes.training: is a whole section"),
        (
            with_axis("resources.cpus: [1]"),
            "axes.resources.cpus: is not a path that may be an axis",
        ),
        (
            with_axis("teacher.floor.accuracy: [0.6]"),
            "axes.teacher.floor.accuracy: is not a path that may be an axis",
        ),
        (
            with_axis("training.epochs: [1, 2.5]"),
            "axes.training.epochs[1]: `2.5` is not a whole number",
        ),
        (
            with_axis("task.text: [[a, b]]"),
            'axes.task.text[0]: `["a", "b"]` needs a label to be told apart in tables',
        ),
        (AXES + "seed: [0]\n", "seed: is an axis"),
        (AXES + "trainning: {}\n", "trainning: is not a known key"),
        (AXES + "training: 3\n", "training: `3` is not a mapping"),
        (AXES + "retries: -1\n", "retries: `-1` is not at least 0"),
        (AXES + "retries: {nann: 1}\n", "retries.nann: is not a known key"),
        (AXES + "zip: [[seed]]\n", 'zip[0]: `["seed"]` is not a group of axes'),
        (
            AXES + "  seed: [0, 1]\n  training.epochs: [1]\nzip: [[seed, training.epochs]]\n",
            "zip[0]: the axes differ in length: seed has 2, training.epochs has 1",
        ),
        (
            AXES + "zip: [[knowledge, training.epochs]]\n",
            "zip[0][1]: `training.epochs` is not an axis",
        ),
        (AXES + "when: [{if: {seed: 0}}]\n", 'when[0]: `{"if": {"seed": 0}}` is not a rule'),
        (
            AXES + "when: [{if: {seed: 0}, set: {training.epoch: 3}}]\n",
            "when[0].set.training.epoch: is not a path that may be an axis",
        ),
        (
            AXES + "when: [{if: {seed: 0}, set: {training.epochs: 0}}]\n",
            "when[0].set.training.epochs: `0` is not at least 1",
        ),
        (AXES + "exclude: [{}]\n", "exclude[0]: is empty and would hold for every point"),
        (
            AXES + "exclude: [{seed: {less: 3}}]\n",
            "exclude[0].seed.less: is not an operator",
        ),
        (AXES + "exclude: [{seed: '3'}]\n", 'exclude[0].seed: `"3"` is text'),
        (
            AXES + "exclude: [{matching: {last_k: 2}}]\n",
            "exclude[0].matching.last_k: is not an operator",
        ),
        (AXES + "exclude: [{shape: {has: x}}]\n", "exclude[0].shape.has: `shape` has no terms"),
        (
            "axes: {knowledge: [hard_labels]}\n",
            "axes.shape: is missing",
        ),
        (
            AXES.replace("{layers: 3, width: 384, heads: 12}", "3x384x12"),
            "axes.shape[0]: `3x384x12` does not fit here",
        ),
        (
            AXES.replace(
                "{layers: 3, width: 384, heads: 12}",
                "{iso: encoder_parameters, target: 10, layers: [2]}",
            ),
            "axes.shape[0]: no shape has 10 parameters within 0.05 of it",
        ),
        (
            with_knowledge("hard_labels") + "  matching: [last]\n",
            "axes.matching: acts on no point: no term leaves its matching open",
        ),
        (
            with_knowledge("{kind: soft_logits, distance: mse}") + "  temperature: [1, 2]\n",
            "axes.temperature: acts on no point: no term leaves its temperature open",
        ),
    ],
)
def test_a_wrong_value_is_one_problem(body: str, expected: str) -> None:
    assert refusals(body) == [expected]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (HEAD.replace("name: test", "name: two words"), ["name: `two words` does not fit"]),
        (HEAD.replace("name: test", "name: 2024"), ["name: `2024` is not text"]),
        (HEAD.replace("name: test\n", ""), ["name: is missing"]),
        (
            HEAD.replace("model: teacher", "modell: teacher"),
            ["teacher.modell: is not a known key"],
        ),
        (
            HEAD.replace("fine_tune: {epochs: 1}", "floor: {acuracy: 0.7}"),
            ["teacher.floor.acuracy: is not a known key"],
        ),
        (
            HEAD.replace("max_length: 64", "select: {from: train, fraction: 1}"),
            ["task.select.fraction: `1` is not less than 1"],
        ),
        (
            HEAD.replace("name: tweets", "files: {train: a.csv}, text: [a]").replace(
                "max_length: 64", "name: tweets"
            ),
            ["task: give either `name` or `files`"],
        ),
    ],
)
def test_a_wrong_head_is_one_problem(head: str, expected: list[str]) -> None:
    assert refusals(AXES, head) == expected


def test_one_wrong_term_does_not_make_its_addresses_wrong_too() -> None:
    body = with_knowledge("[soft_logits, {kind: hidden_states, distance: cos}]") + dedent(
        """\
          matching: [last, uniform]
          terms.hidden_states.weight: [1, 10]
        exclude: [{terms.hidden_states.weight: 10}]
        """
    )
    assert refusals(body) == ["axes.knowledge[0][1].distance: `cos` is not one of mse, cosine"]


def test_paths_are_relative_to_the_grid_file(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    text = """\
    name: local
    task: {files: {train: data/train.csv, report: /data/dev.csv}, text: [sentence]}
    teacher: {model: teacher}
    """
    path = tmp_path / "grid.yaml"
    path.write_text(dedent(text) + AXES + "  teacher.model: [teacher, ./other, org/hub]\n")
    grid = load_grid(path)
    assert grid.task.files
    assert grid.task.files.train == str(tmp_path / "data/train.csv")
    assert grid.task.files.report == "/data/dev.csv"
    assert grid.teacher.model == str(tmp_path / "teacher")
    models = grid.axes[0].axes["teacher.model"].values
    assert [value.data for value in models] == [
        *[str(tmp_path / "teacher"), str(tmp_path / "other"), "org/hub"]
    ]
    assert [value.label for value in models] == ["teacher", "./other", "org/hub"]


def test_what_is_left_out_has_its_documented_default() -> None:
    grid = grid_of(AXES)
    axes = grid.axes[0].axes
    defaults = {path: [v.label for v in axis.values] for path, axis in axes.items()}
    assert defaults["matching"] == ["uniform"]
    assert defaults["temperature"] == [2.0]
    assert defaults["initialisation"] == ["random"]
    assert defaults["seed"] == [0]
    assert grid.training.epochs == 3
    assert grid.resources.cpus == 1
    assert (grid.keep.students, grid.keep.predictions) == ("best_per_group", "last")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", {"error": 1, "nan": 0, "signal": 2, "worker_lost": 10, "out_of_memory": 3}),
        ("", {"stalled": 1, "preempted": 100, "environment": 0, "cancelled": 0}),
        ("retries: 0", {"error": 0, "timeout": 0, "signal": 0, "worker_lost": 10, "nan": 0}),
        ("retries: 0", {"stalled": 0, "preempted": 100}),
        ("retries: 5", {"error": 5, "timeout": 5, "signal": 5, "nan": 0, "environment": 0}),
        ("retries: {nan: 1}", {"error": 1, "nan": 1, "signal": 2}),
    ],
)
def test_retries_are_a_number_or_a_mapping_over_defaults(
    written: str, expected: dict[str, int]
) -> None:
    retries = grid_of(AXES + written).retries
    assert {name: retries.allowed(name) for name in expected} == expected


def test_an_axis_may_give_what_its_section_needs() -> None:
    grid = read_grid(
        "name: a\ntask: {max_length: 64}\nteacher: {model: t}\n"
        + AXES
        + "  task.name: [glue/sst2, glue/rte]\n",
        file="grid.yaml",
        base=Path(),
    )
    assert isinstance(grid, Grid)


def test_united_axes_must_all_give_what_their_section_needs() -> None:
    text = """\
    name: a
    task: {max_length: 64}
    teacher: {model: t}
    axes:
      - {knowledge: [hard_labels], shape: [{layers: 1, width: 64, heads: 1}], task.name: [tweets]}
      - {knowledge: [soft_logits], shape: [{layers: 1, width: 64, heads: 1}]}
    """
    with pytest.raises(GridError, match=r"axes\[1\]: gives no `task.name`, which only axes say"):
        read_grid(dedent(text), file="grid.yaml", base=Path())
