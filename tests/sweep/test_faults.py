"""Whatever is killed, raised or hung: nothing completed is lost, and the rest is finished."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import psutil
import pytest
from toy import ENDLESS, KDSWEEP, PROGRAM, is_in_a_trial, wait_for

from kdsweep import results
from kdsweep.search_spaces import expand, load_grid
from kdsweep.sweep.doctor import diagnose
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]

SERIAL = ("--executor", "serial", "--quiet")
METRICS = ("select/", "report/", "teacher/", "train/", "parameters")
KILLED = -signal.SIGKILL


def metrics(folder: Path) -> pd.DataFrame:
    frame = results.load(folder).trials.set_index("trial_id").sort_index()
    return frame[["status", *(name for name in frame.columns if name.startswith(METRICS))]]


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts the command line, and sees to it that none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        *arguments: str | Path, program: Sequence[str] = KDSWEEP, **variables: str
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            cwd=tmp_path,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ids(grid: Path) -> list[str]:
    """Ids of the trials in the order of the plan."""
    content = Content()
    rows = plan_rows(expand(load_grid(grid), ContentFacts(content)), content)
    return [str(row.id) for row in rows if row.what == "trial"]


def test_a_launch_killed_in_the_teacher_in_a_trial_and_in_a_commit_ends_as_if_undisturbed(
    launched: Path, write_grid: WriteGrid, process: Kdsweep, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid, undisturbed = write_grid(), launched
    first, second, *_ = ids(grid)
    teacher = str(results.load(undisturbed).teachers["teacher_id"].iloc[0])
    store = tmp_path / "killed"
    for number, point in enumerate(
        [f"checkpoint=kill:{teacher}", f"checkpoint=kill:{first}", f"commit=kill:{second}"]
    ):
        verb = ("resume", store) if number else ("launch", grid, "--store", store)
        said = process(*verb, *SERIAL, KDSWEEP_FAILPOINT=f"{point}:{tmp_path / str(number)}")
        assert said.returncode == KILLED, said.stderr
        done = metrics(store).query("status == 'completed'")
        kept = metrics(undisturbed).loc[done.index, done.columns]
        pd.testing.assert_frame_equal(done, kept, check_exact=True)
    assert kdsweep("resume", store, *SERIAL).returncode == 0
    pd.testing.assert_frame_equal(metrics(store), metrics(undisturbed), check_exact=True)
    trials = results.load(store).trials.set_index("trial_id")
    assert trials.loc[first, "resumed_from_step"] > 0
    for id in (first, second):
        resumed, whole = (results.load(each).history(id) for each in (store, undisturbed))
        columns = [name for name in whole.columns if not name.startswith("seconds")]
        pd.testing.assert_frame_equal(resumed[columns], whole[columns], check_exact=True)
    assert not list(store.rglob(".*"))
    assert diagnose(store).found == ()


@pytest.mark.slow
def test_each_way_to_fail_is_recorded_with_its_class_and_the_others_finish(
    write_grid: WriteGrid, process: Kdsweep, tmp_path: Path
) -> None:
    axes = {
        "knowledge": ["hard_labels"],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "training.learning_rate": [3e-3, 1e30],
        "seed": [0, 1, 2],
    }
    grid = write_grid(
        axes=axes,
        retries={"error": 1, "signal": 0},
    )
    raises, dies, fine, diverges, *_ = ids(grid)
    points = f"row=raise:{raises} row=kill:{dies}"
    said = process("launch", grid, KDSWEEP_FAILPOINT=points)
    assert said.returncode == 3, said.stderr
    trials = results.load(tmp_path / "runs" / "tiny").trials.set_index("trial_id")
    assert trials.loc[fine, "status"] == "completed"
    classes = trials["failure_class"].to_dict()
    assert classes[raises] == "error"
    assert classes[dies] == "signal"
    assert classes[diverges] == "nan"
    assert f"failpoint row of {raises}" in trials.loc[raises, "error"]
    assert "SIGKILL" in trials.loc[dies, "error"]
    assert "learning_rate" in trials.loc[diverges, "error"]
    assert trials.loc[raises, "attempts"] == 2
    assert trials.loc[diverges, "attempts"] == 1
    # Without the faults the sweep can still be finished, but for what diverges.
    said = process("resume", tmp_path / "runs" / "tiny", "--trial", raises)
    assert said.returncode == 0, said.stderr
    said = process("results", tmp_path / "runs" / "tiny", "failures", "--json")
    assert {row["failure_class"] for row in json.loads(said.stdout)["rows"]} == {"nan", "signal"}


@pytest.mark.slow
def test_a_lane_that_is_killed_is_replaced_and_its_trial_goes_on_from_its_checkpoint(
    write_grid: WriteGrid, process: Kdsweep, tmp_path: Path
) -> None:
    grid = write_grid()
    first, *_ = ids(grid)
    point = f"checkpoint=kill:{first}:{tmp_path / 'once'}"
    said = process("launch", grid, KDSWEEP_FAILPOINT=point)
    assert said.returncode == 0, said.stderr
    trials = results.load(tmp_path / "runs" / "tiny").trials.set_index("trial_id")
    assert set(trials["status"]) == {"completed"}
    assert trials.loc[first, "attempts"] == 2
    assert trials.loc[first, "resumed_from_step"] > 0


def children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def are_gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them does anything any more; nobody may have reaped it yet."""
    return not any(
        each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes
    )


def test_a_second_launch_is_refused_and_ctrl_c_leaves_in_order_losing_nothing(
    write_grid: WriteGrid, process: Kdsweep, start: Start, tmp_path: Path
) -> None:
    grid, store = write_grid(), tmp_path / "runs" / "tiny"
    launch = start("launch", grid, program=PROGRAM, **ENDLESS)
    wait_for(lambda: is_in_a_trial(store))
    second = process("launch", grid)
    assert second.returncode == 73
    assert f"pid {launch.pid}" in second.stderr
    assert json.loads(process("status", store, "--json").stdout)["running"]
    family = children(launch)
    launch.send_signal(signal.SIGINT)
    launch.wait(timeout=120)
    assert launch.returncode == 130
    assert "kdsweep resume" in launch.communicate()[1]
    wait_for(lambda: are_gone(family))
    assert set(results.load(store).trials["status"]) == {"pending"}
    assert not list(store.rglob(".*"))
    assert list(store.glob("work/*/*/checkpoints/step-*"))


@pytest.mark.slow
def test_a_launch_killed_under_ray_leaves_no_lane_and_its_trials_go_on(
    write_grid: WriteGrid, process: Kdsweep, start: Start, tmp_path: Path
) -> None:
    grid = write_grid()
    first, *_ = ids(grid)
    store, held = tmp_path / "runs" / "tiny", tmp_path / "held"
    # The first trial stands still once it has a checkpoint, so that it is in its middle when the
    # launch is killed, however fast the machine is.
    launch = start("launch", grid, KDSWEEP_FAILPOINT=f"checkpoint=hang:{first}:{held}")
    wait_for(held.exists)
    lanes = [each for each in children(launch) if "kdsweep.sweep.lane" in each.cmdline()]
    assert lanes
    os.kill(launch.pid, signal.SIGKILL)
    launch.wait()
    # Two agents of Ray's own notice it after a minute; nobody waits for them.
    wait_for(lambda: are_gone(lanes))
    said = process("resume", store)
    assert said.returncode == 0, said.stderr
    trials = results.load(store).trials.set_index("trial_id")
    assert set(trials["status"]) == {"completed"}
    assert trials.loc[first, "resumed_from_step"] > 0
