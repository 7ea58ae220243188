"""A loss of the user's own, from the file to the frame; and what never happens to the file."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kdsweep import results

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
ALLOW = "--allow-plugins"
EXAMPLE = Path(__file__).parents[2] / "examples" / "my_loss.py"
LOSSES = (
    EXAMPLE.read_text()
    + """
from pathlib import Path

Path("executed").touch()


def broken(student, teacher, token_mask):
    return (student[..., :3] - teacher).abs().mean()


def unreduced(student, teacher, token_mask):
    return (student.mean() - teacher.mean()).abs() + token_mask.sum(1)
"""
)
TERM = {
    "kind": "plugin",
    "loss": "my_loss.pooled_l1",
    "reads": "hidden_states",
    "matching": "last",
    "projection": "linear",
}


def with_terms(*terms: dict[str, Any]) -> dict[str, Any]:
    return {
        "plugins": ["my_loss.py"],
        "axes": {
            "knowledge": [["hard_labels", term] for term in terms],
            "shape": [{"layers": 1, "width": 32, "heads": 2}],
        },
        "training": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 16},
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_loss.py"
    path.write_text(LOSSES)
    return path


def planned_ids(kdsweep: Kdsweep, grid: Path) -> list[str]:
    said = kdsweep("plan", grid, "--json", ALLOW)
    assert said.returncode == 0, said.stderr
    ids: list[str] = json.loads(said.stdout)["ids"]
    return ids


def test_a_plugin_is_trained_from_the_command_line_and_resumed_from_the_store_alone(
    write_grid: WriteGrid, kdsweep: Kdsweep, file: Path, tmp_path: Path
) -> None:
    squared = TERM | {"label": "squared", "settings": {"power": 2}}
    built_in = {"kind": "hidden_states", "of": "mean", "matching": "last"}
    grid = write_grid(**with_terms(TERM, squared, built_in))
    ids = planned_ids(kdsweep, grid)
    assert not (tmp_path / "executed").exists(), "planning executes nothing"
    said = kdsweep("launch", grid, *SERIAL, ALLOW)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "executed").exists()
    store = tmp_path / "runs" / "tiny"
    trials = results.load(store).trials
    assert sorted(trials["trial_id"]) == sorted(ids)
    found = trials.set_index("knowledge")
    assert found.loc["hard_labels+pooled_l1", "train/term/pooled_l1/loss"] > 0
    # Of pooled states the mean square is a built-in loss too.
    assert found.loc["hard_labels+squared", "train/term/squared/loss"] == pytest.approx(
        found.loc["hard_labels+hidden_states", "train/term/hidden_states/loss"], rel=1e-3
    )

    # The store has all that a resume needs, and executes what was planned or nothing.
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (store / "grids" / f"{digest}.py").read_bytes() == file.read_bytes()
    missing = next((store / "attempts").glob(f"{ids[0]}.*"))
    before = trials.set_index("trial_id").loc[ids[0], "select/accuracy"]
    missing.unlink()
    (tmp_path / "executed").unlink()
    said = kdsweep("resume", store, *SERIAL)
    assert said.returncode == 2
    assert "the grid brings code of its own: my_loss.py" in said.stderr
    assert f"add `{ALLOW}`" in said.stderr
    file.write_text(LOSSES + "\n")
    said = kdsweep("resume", store, *SERIAL, ALLOW)
    assert said.returncode == 2
    assert f"{file}: the file has changed since the plan was made\n    Re-plan:" in said.stderr
    assert not (tmp_path / "executed").exists()
    assert not missing.exists()
    file.unlink()
    said = kdsweep("resume", store, *SERIAL, ALLOW)
    assert said.returncode == 0, said.stderr
    again = results.load(store).trials.set_index("trial_id")
    assert again.loc[ids[0], "select/accuracy"] == before


@pytest.mark.parametrize("verb", ["plan", "try", "launch"])
def test_without_leave_nothing_is_written_and_no_file_is_executed(
    write_grid: WriteGrid, kdsweep: Kdsweep, file: Path, tmp_path: Path, verb: str
) -> None:
    grid = write_grid(**with_terms(TERM))
    before = sorted(tmp_path.rglob("*"))
    said = kdsweep(verb, grid)
    assert said.returncode == 2
    assert said.stderr == (
        f"{grid}:{said.stderr.split(':')[1]}:{said.stderr.split(':')[2]}: plugins: the grid "
        "brings code of its own: my_loss.py\n    Training executes this code, with all your "
        f"rights. Read it; if you trust it, add `{ALLOW}` to the command\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_whose_plan_brings_code_is_not_resumed_by_accident_whatever_its_grid_says(
    write_grid: WriteGrid, kdsweep: Kdsweep, file: Path, tmp_path: Path
) -> None:
    grid = write_grid(**with_terms(TERM | {"loss": "my_loss.unreduced"}))
    said = kdsweep("launch", grid, *SERIAL, ALLOW)
    assert said.returncode == 3
    assert f"go on with: kdsweep resume runs/tiny {ALLOW}\n" in said.stderr
    (tmp_path / "executed").unlink()
    plain = write_grid("plain.yaml")
    shutil.copy(plain, tmp_path / "runs" / "tiny" / "grids" / "0002.yaml")
    said = kdsweep("resume", tmp_path / "runs" / "tiny", *SERIAL)
    assert said.returncode == 2
    assert f"the grid brings code of its own: {file}" in said.stderr
    assert not (tmp_path / "executed").exists()


def test_moving_a_file_keeps_ids_and_editing_it_changes_them(
    write_grid: WriteGrid, kdsweep: Kdsweep, file: Path, tmp_path: Path
) -> None:
    [id] = planned_ids(kdsweep, write_grid(**with_terms(TERM)))
    (tmp_path / "below").mkdir()
    file.rename(tmp_path / "below" / "our_loss.py")
    moved = with_terms(TERM | {"loss": "our_loss.pooled_l1"}) | {"plugins": ["below/our_loss.py"]}
    assert planned_ids(kdsweep, write_grid(**moved)) == [id]
    other = with_terms(TERM | {"loss": "our_loss.pooled_l1", "settings": {"power": 2}})
    other |= {"plugins": ["below/our_loss.py"]}
    assert planned_ids(kdsweep, write_grid(**other)) != [id]
    (tmp_path / "below" / "our_loss.py").write_text(LOSSES + "# edited\n")
    assert planned_ids(kdsweep, write_grid(**moved)) != [id]


def test_what_goes_wrong_inside_names_file_and_line_and_what_is_no_loss_names_the_mend(
    write_grid: WriteGrid, kdsweep: Kdsweep, file: Path, tmp_path: Path
) -> None:
    terms = TERM | {"loss": "my_loss.broken"}, TERM | {"loss": "my_loss.unreduced"}
    grid = write_grid(**with_terms(*terms), retries=0)
    assert kdsweep("launch", grid, *SERIAL, ALLOW).returncode == 3
    attempts = results.load(tmp_path / "runs" / "tiny").trials.set_index("knowledge")
    broken = attempts.loc["hard_labels+broken"]
    assert broken["failure_class"] == "error"
    lines = LOSSES.splitlines()
    line = lines.index("    return (student[..., :3] - teacher).abs().mean()") + 1
    other = lines.index("def unreduced(student, teacher, token_mask):") + 1
    assert f'File "{file}", line {line}, in broken' in broken["error"]
    assert f"{file}:{line}: the plugin was given student [16, " in broken["error"].splitlines()[-1]
    unreduced = attempts.loc["hard_labels+unreduced"]
    assert unreduced["failure_class"] == "environment", "trying it again cannot mend it"
    assert (
        f"{file}:{other}: unreduced: gives [16] of torch.float32, not a scalar\n    Reduce"
        in (unreduced["error"])
    )


def test_a_trial_is_tried_with_the_file_beside_the_grid(
    write_grid: WriteGrid, kdsweep: Kdsweep, file: Path, tmp_path: Path
) -> None:
    said = kdsweep("try", write_grid(**with_terms(TERM)), "--steps", "1", ALLOW)
    assert said.returncode == 0, said.stderr
    assert "step 1:" in said.stdout
    assert "train/term/pooled_l1/loss" in said.stdout
    assert not (tmp_path / "__pycache__").exists()
