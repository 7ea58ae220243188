"""A sweep whose hopeless trials are stopped: decided, recorded, obeyed, and taken up again."""

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
from toy import PROGRAM

from kdsweep import results
from kdsweep.results.store import Store
from kdsweep.sweep import launch
from kdsweep.sweep.decisions import read_decisions
from kdsweep.sweep.early_stopping import Decided, Decision, Question
from kdsweep.sweep.executors import Choice

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
KILLED = -signal.SIGKILL
AXES = {
    "knowledge": ["hard_labels"],
    "shape": [{"layers": 1, "width": 16, "heads": 2}],
    # The second learns nothing, and by the second rung the first has learned something.
    "training.learning_rate": [1e-2, 1e-9],
}
TRAINING = {"epochs": 4, "batch_size": 16, "evaluate": {"times": 4}}
"""48 steps, evaluated after 12, 24, 36 and 48: rungs after 12 (0.2) and 36 (0.6)."""
ASHA = {"method": "asha"}


def frame(folder: Path) -> pd.DataFrame:
    return results.load(folder).trials.set_index("trial_id").sort_index()


def metrics(folder: Path) -> pd.DataFrame:
    """What never depends on how often a trial was stopped, killed or resumed."""
    trials = frame(folder)
    names = ("select/", "report/", "train/")
    return trials[["status", *(name for name in trials.columns if name.startswith(names))]]


def decided(folder: Path) -> tuple[Decision, ...]:
    return read_decisions(Store(folder).decisions_folder)


def replayed(recorded: tuple[Decision, ...]) -> tuple[Decision, ...]:
    """What the pure rule decides of the same questions in their order."""
    rule, made = Decided(), []
    for each in recorded:
        question = Question(**each.model_dump(exclude={"number", "goes_on"}))
        made.append(rule.decide(question))
        rule.add(made[-1])
    return tuple(made)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.parents[2].name for path in folder.glob("work/*/*/checkpoints/step-*"))


@pytest.fixture(scope="module")
def home(
    tiny: Path,
    tiny_grid: Mapping[str, Any],
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Two grids that differ in early stopping alone, and the sweeps `stopped` and `whole`."""
    folder = tmp_path_factory.mktemp("stopping")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("KDSWEEP_CACHE_DIR", str(cache))
        for name, stopping in (("stopped", ASHA), ("whole", None)):
            grid = {**tiny_grid, "axes": AXES, "training": TRAINING, "early_stopping": stopping}
            file = folder / f"{name}.yaml"
            file.write_text(json.dumps(grid))
            ended = launch(file, store=folder / name, executor=Choice("serial"), quiet=True)
            assert (ended.failed, ended.left) == ((), 0)
    return folder


@pytest.fixture
def store(home: Path, tmp_path: Path) -> Path:
    """The sweep with a stopped trial, for a test to do with it what it likes."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return tmp_path / "stopped"


def test_what_is_stopped_is_done_has_its_scores_and_is_left_out_of_every_answer(
    store: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    trials = frame(store)
    assert trials.set_index("learning_rate")["status"].to_dict() == {
        1e-2: "completed",
        1e-9: "stopped",
    }
    [id] = trials.index[trials["status"] == "stopped"]
    assert 0 < trials.loc[id, "select/primary"] <= trials.loc[id, "select/primary/best"]
    assert trials.loc[[id], "report/primary"].isna().all()
    assert results.load(store).best().attrs["left_out"] == {"stopped": 1}
    assert results.load(store).agg("accuracy", by="knowledge")["trials"].tolist() == [1]
    assert json.loads(kdsweep("status", store, "--json").stdout)["counts"]["stopped"] == 1
    # Each decision is the pure rule's, and what its trial did.
    recorded = decided(store)
    assert recorded == replayed(recorded)
    last = next(each for each in reversed(recorded) if each.id == id)
    assert (last.goes_on, json.loads(last.bracket)["knowledge"]) == (False, "hard_labels")
    curve = results.load(store).history(id, "select/accuracy")
    assert curve["step"].max() == {0.2: 12, 0.6: 36}[last.rung]
    assert curve["select/accuracy"].iloc[-1] == last.score == trials.loc[id, "select/primary"]
    # Its checkpoint stays, and a launch has nothing left to do.
    assert checkpoints(store) == [id]
    grid = tmp_path / "stopped.yaml"
    planned = json.loads(kdsweep("plan", grid, "--store", store, "--json").stdout)
    assert (planned["to_run"], planned["early_stopping"]["rungs"]) == (0, [0.2, 0.6])
    assert "early stopping: at 0.2, 0.6 of the steps" in kdsweep("plan", grid).stdout
    for words in (("launch", grid, "--store", store), ("resume", store)):
        said = kdsweep(*words, *SERIAL)
        assert said.returncode == 0, said.stderr
        assert "1 of 2 trials completed (0 now), 1 stopped early" in said.stderr
    assert decided(store) == recorded


def test_a_stopped_trial_goes_on_when_the_rule_is_gone_as_if_it_had_never_been_stopped(
    store: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    [id] = frame(store).query("status == 'stopped'").index
    grid, whole = tmp_path / "whole.yaml", tmp_path / "whole"
    assert json.loads(kdsweep("plan", grid, "--store", store, "--json").stdout)["to_run"] == 1
    assert kdsweep("launch", grid, "--store", store, *SERIAL).returncode == 0
    pd.testing.assert_frame_equal(metrics(store), metrics(whole), check_exact=True)
    assert frame(store).loc[id, "resumed_from_step"] in (12, 36)
    mine, theirs = (
        results.load(each).history(id).drop(columns="seconds") for each in (store, whole)
    )
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    assert checkpoints(store) == []


def test_another_rule_asks_again_where_a_trial_was_stopped(
    store: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    [id] = frame(store).query("status == 'stopped'").index
    before = decided(store)
    grid = json.loads((tmp_path / "stopped.yaml").read_text())
    milder = tmp_path / "milder.yaml"
    milder.write_text(json.dumps(grid | {"early_stopping": {**ASHA, "grace": 0.6, "reduction": 2}}))
    said = kdsweep("launch", milder, "--store", store, *SERIAL)
    assert said.returncode == 0, said.stderr
    after = decided(store)
    assert after[: len(before)] == before
    assert after == replayed(after)
    # Of two scores the better one goes on, and what learns nothing is still the worse.
    [again] = after[len(before) :]
    assert (again.id, again.rung, again.reduction, again.goes_on) == (id, 0.6, 2, False)
    assert frame(store).loc[id, ["status", "attempts"]].tolist() == ["stopped", 2]
    assert checkpoints(store) == [id]


def test_serial_sweeps_decide_alike_also_when_one_is_killed_between_a_decision_and_its_act(
    home: Path, store: Path, process: Kdsweep, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    undisturbed = decided(store)
    victim = next(each for each in undisturbed if not each.goes_on)
    point = f"decision=kill:{victim.id}:{tmp_path / 'once'}"
    words = ("launch", tmp_path / "stopped.yaml", "--store", again, *SERIAL)
    assert process(*words, KDSWEEP_FAILPOINT=point).returncode == KILLED
    assert frame(again).loc[victim.id, "status"] == "pending"
    killed_with = decided(again)
    assert killed_with == undisturbed[: len(killed_with)]
    assert kdsweep("resume", again, *SERIAL).returncode == 0
    pd.testing.assert_frame_equal(metrics(again), metrics(store), check_exact=True)
    recorded = decided(again)
    assert recorded[: len(killed_with)] == killed_with
    assert recorded == replayed(recorded)
    answers = {(each.id, each.rung): each.goes_on for each in recorded}
    assert answers == {(each.id, each.rung): each.goes_on for each in undisturbed}


def test_under_ray_lanes_wait_for_decisions_and_obey_them_also_over_a_kill(
    write_grid: WriteGrid, process: Kdsweep, tmp_path: Path
) -> None:
    axes = {**AXES, "seed": list(range(10))}
    grid = write_grid(axes=axes, training=TRAINING, early_stopping=ASHA)
    store = tmp_path / "runs" / "tiny"
    # Whatever trial hears its decision first: its lane dies of it, and another one obeys.
    point = f"decision=kill::{tmp_path / 'once'}"
    said = process("launch", grid, "--quiet", program=PROGRAM, KDSWEEP_FAILPOINT=point)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "once").exists()
    trials, recorded = frame(store), decided(store)
    assert set(trials["status"]) == {"completed", "stopped"}
    assert trials["attempts"].max() == 2
    assert recorded == replayed(recorded)
    assert [each.number for each in recorded] == list(range(1, len(recorded) + 1))
    last = {each.id: each for each in recorded}
    assert set(last) == set(trials.index)
    for id, status in trials["status"].items():
        assert last[str(id)].goes_on == (status == "completed")
