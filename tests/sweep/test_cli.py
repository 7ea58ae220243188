"""The command line: what it refuses, what it prints, and how it ends."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kdsweep import results
from kdsweep.search_spaces.explanation import explanations

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")

BAD = """\
name: bad grid
task: {name: tweets, max_length: "64"}
teacher: {model: minilm-l6-h384, fine_tune: {epoch: 3}}
axes:
  knowledge: [hard_label, [soft_logits, {kind: hidden_states, weigth: 2}]]
  matching: [unifrm]
  shape: [{layers: 0, width: 128, heads: 4}]
  training.learning_rat: [1e-4]
search: {method: tpe}
early_stopping: {method: asha, grace: 2}
resources: {cpus: no}
"""


def test_a_wrong_grid_costs_nothing(kdsweep: Kdsweep, tmp_path: Path) -> None:
    grid = tmp_path / "bad.yaml"
    grid.write_text(BAD)
    said = kdsweep("launch", grid)
    assert said.returncode == 2
    assert said.stdout == ""
    messages = [line for line in said.stderr.splitlines() if not line.startswith(" ")]
    mends = [line for line in said.stderr.splitlines() if line.startswith(" ")]
    assert len(messages) == len(mends) == 11
    for line in messages:
        assert line.startswith(f"{grid}:")
    assert list(tmp_path.iterdir()) == [grid]


def test_a_wrong_grid_is_refused_before_torch_ray_or_pandas_are_imported(tmp_path: Path) -> None:
    grid = tmp_path / "bad.yaml"
    grid.write_text(BAD)
    code = (
        "import sys\n"
        f"sys.argv = ['kdsweep', 'launch', {str(grid)!r}]\n"
        "from kdsweep.sweep.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 2\n"
        "heavy = {'torch', 'ray', 'pandas', 'pyarrow', 'transformers', 'datasets', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["plan", "--help"], 0),
        (["no-such-verb"], 2),
        (["launch"], 2),
        (["launch", "absent.yaml"], 2),
        (["resume", "absent"], 2),
        (["status", "absent"], 2),
        (["results", "absent"], 2),
        (["show", "absent", "1234"], 2),
        (["results", "absent", "no-such-question"], 2),
    ],
)
def test_usage_is_refused_with_exit_2_and_no_traceback(
    kdsweep: Kdsweep, words: list[str], code: int
) -> None:
    said = kdsweep(*words)
    assert said.returncode == code, said.stderr
    assert "Traceback" not in said.stderr


def test_the_starter_grid_is_written_once_and_loads(kdsweep: Kdsweep, tmp_path: Path) -> None:
    assert kdsweep("init").returncode == 0
    written = (tmp_path / "grid.yaml").read_text()
    again = kdsweep("init")
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert (tmp_path / "grid.yaml").read_text() == written


def test_the_schema_is_one_json_object(kdsweep: Kdsweep) -> None:
    schema = json.loads(kdsweep("schema").stdout)
    assert {"name", "task", "teacher", "axes"} <= set(schema["properties"])


def test_results_on_the_command_line_are_those_of_python(launched: Path, kdsweep: Kdsweep) -> None:
    r = results.load(launched)
    pivot = json.loads(kdsweep("results", launched, "pivot", "--json").stdout)["rows"]
    frame = r.pivot("knowledge", "matching")
    told = {row["knowledge"]: row for row in pivot}
    for knowledge in frame.index:
        for matching in frame.columns:
            cell = frame.loc[knowledge, matching]
            assert told[knowledge][matching] == (None if cell != cell else cell)
    best = json.loads(kdsweep("results", launched, "best", "--by", "knowledge", "--json").stdout)
    expected = r.best(by="knowledge", over="seeds")
    assert [row["report/primary"] for row in best["rows"]] == list(expected["report/primary"])


def test_an_unknown_metric_is_answered_with_those_there_are(
    launched: Path, kdsweep: Kdsweep
) -> None:
    said = kdsweep("results", launched, "pivot", "--metric", "acuracy")
    assert said.returncode == 2
    assert "Did you mean 'accuracy'" in said.stderr


def test_nothing_to_show_ends_with_exit_4(launched: Path, kdsweep: Kdsweep) -> None:
    assert kdsweep("results", launched, "failures").returncode == 4


def test_csv_and_latex_are_tables_of_the_same_rows(launched: Path, kdsweep: Kdsweep) -> None:
    rows = json.loads(kdsweep("results", launched, "--json").stdout)["rows"]
    csv = kdsweep("results", launched, "--csv").stdout.splitlines()
    assert len(csv) == len(rows) + 1
    assert "tabular" in kdsweep("results", launched, "--latex").stdout


def test_status_counts_what_the_store_holds(launched: Path, kdsweep: Kdsweep) -> None:
    told = json.loads(kdsweep("status", launched, "--json").stdout)
    assert told["counts"]["completed"] == 4
    assert told["running"] == []
    assert "completed" in kdsweep("status", launched).stdout


def test_a_damaged_sweep_is_refused_for_training_and_still_read(
    launched: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(launched, tmp_path / "damaged"))
    (folder / "sweep.json").write_text("{")
    resumed = kdsweep("resume", folder, *SERIAL)
    assert resumed.returncode == 2
    assert "sweep.json is damaged" in resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert len(json.loads(kdsweep("results", folder, "--json").stdout)["rows"]) == 2


def test_show_prints_resolved_terms_pairs_and_projections(launched: Path, kdsweep: Kdsweep) -> None:
    trials = results.load(launched).trials
    id = trials.loc[trials["matching"] == "uniform", "trial_id"].iloc[0]
    said = kdsweep("show", launched, id[:10])
    assert said.returncode == 0, said.stderr
    assert "[[3, 1]]" in said.stdout
    assert "[16, 32]" in said.stdout
    told = json.loads(kdsweep("show", launched, id, "--json").stdout)
    terms = {term["label"]: term for term in told["resolved"]["terms"]}
    assert terms["hidden_states"]["pairs"] == [[3, 1]]
    assert terms["hidden_states"]["projection"] == [16, 32]


def test_try_prints_the_loss_and_gradient_norm_of_each_term_and_stores_nothing(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid = write_grid()
    plan = json.loads(kdsweep("plan", grid, "--json").stdout)
    said = kdsweep("try", grid, "--trial", plan["ids"][2], "--steps", "3")
    assert said.returncode == 0, said.stderr
    assert "train/term/hidden_states/loss" in said.stdout
    assert "train/term/hidden_states/gradient_norm" in said.stdout
    assert not (tmp_path / "runs").exists()


def test_explain_lists_every_word_and_says_each(kdsweep: Kdsweep) -> None:
    listed = kdsweep("explain")
    assert listed.returncode == 0
    for word, told in explanations().items():
        assert f"  {word} " in listed.stdout
        said = kdsweep("explain", word)
        assert said.returncode == 0
        assert told.text in said.stdout


def test_try_does_not_wait_for_a_language_head(write_grid: WriteGrid, kdsweep: Kdsweep) -> None:
    """Of ten million steps it takes one."""
    teacher = {"model": "./teacher", "fine_tune": {}, "language_head": {"steps": 10**7}}
    general = {"name": "general", "terms": ["masked_logits"], "teacher": "pretrained"}
    stages = [general, {"name": "task", "terms": ["hard_labels"]}]
    axes = {
        "knowledge": [{"label": "staged", "stages": stages}],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
    }
    said = kdsweep("try", write_grid(teacher=teacher, axes=axes), "--steps", "1")
    assert said.returncode == 0, said.stderr
