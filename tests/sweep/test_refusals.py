"""What the command line refuses, asked in this process: nothing here trains or starts anything."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from rich.console import Console

from kdsweep import results
from kdsweep.results.compaction import Compaction
from kdsweep.sweep.address import check_reachable
from kdsweep.sweep.drain import Drain
from kdsweep.sweep.errors import ClusterUnreachableError
from kdsweep.sweep.showing import Form, print_frame

WriteGrid = Callable[..., Path]
Kdsweep = Callable[..., CompletedProcess[str]]

SERIAL = ("--executor", "serial", "--quiet")
SHAPE = [{"layers": 1, "width": 16, "heads": 2}]


def test_an_address_that_is_none_is_refused_before_anything_is_written(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid = write_grid()
    for address in ("foo", "http://host:80", "host:", ":1", "host:99999", "ray://10.0.0.1:10001"):
        said = kdsweep("launch", grid, "--address", address)
        assert said.returncode == 2
        assert "`local`" in said.stderr
        assert "HOST:PORT" in said.stderr
    assert not (tmp_path / "runs").exists()


def test_an_address_where_nothing_listens_ends_with_75_and_writes_nothing(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        said = kdsweep("launch", write_grid(), "--address", address)
        assert said.returncode == 75
        assert f"no Ray cluster answers at {address}" in said.stderr
        assert not (tmp_path / "runs").exists()
        free.listen()
        check_reachable(address)


@pytest.mark.parametrize("who", ["canonicalize_bootstrap_address_or_die", "ray.init"])
def test_no_cluster_to_join_is_no_full_disk(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("kdsweep.sweep.driver")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    # Other tests may run a cluster meanwhile: it is neither found nor asked.
    monkeypatch.setattr(driver, "canonicalize_bootstrap_address_or_die", str)
    monkeypatch.setattr(driver, "check_reachable", lambda _: None)
    monkeypatch.setattr(f"{driver.__name__}.{who}", fail)
    with pytest.raises(ClusterUnreachableError, match="answers at auto: Could not find"):
        driver._ray("auto").__enter__()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "acuracy"], "--metric: does not act on `table`"),
        (["--by", "knowlege"], "--by: does not act on `table`\n    It acts on `best`"),
        (["failures", "--index", "seed"], "--index: does not act on `failures`"),
        (["pivot", "-n", "3"], "-n: does not act on `pivot`"),
        (["pivot", "--csv", "--json"], "`--json` and `--csv` contradict each other"),
        (["best", "--by", "knowlege"], "Did you mean 'knowledge'"),
        (["best", "--by", "seed"], "contradict each other"),
        (["best", "--metric", "report/accuracy"], "choices read select"),
        (["pivot", "--metric", "host"], "'host' holds no numbers"),
        (["pivot", "--columns", "knowledge"], "rows and columns are both 'knowledge'"),
    ],
)
def test_an_option_that_would_not_act_is_refused(
    launched: Path, kdsweep: Kdsweep, words: list[str], message: str
) -> None:
    said = kdsweep("results", launched, *words)
    assert (said.returncode, said.stdout) == (2, "")
    assert message in said.stderr


def test_where_nothing_failed_that_is_what_is_said(launched: Path, kdsweep: Kdsweep) -> None:
    said = kdsweep("results", launched, "failures")
    assert (said.returncode, said.stdout, said.stderr) == (4, "", "no failures\n")
    assert json.loads(kdsweep("results", launched, "failures", "--json").stdout)["rows"] == []


def test_a_number_that_is_missing_is_an_empty_cell_of_latex(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pandas as pd

    frame = pd.DataFrame({"sd": [0.5, float("nan")]})
    print_frame(frame, form=Form.LATEX, console=Console(), with_index=False)
    assert "NaN" not in capsys.readouterr().out


def test_show_and_logs_know_teachers_groups_and_beginnings(
    launched: Path, kdsweep: Kdsweep
) -> None:
    r = results.load(launched)
    [teacher] = r.teachers["teacher_id"]
    said = kdsweep("show", launched, teacher)
    assert said.returncode == 0
    assert f"teacher {teacher}" in said.stdout
    assert re.search(r"^  task +train$", said.stdout, re.MULTILINE)
    assert json.loads(kdsweep("show", launched, teacher, "--json").stdout)["teacher_id"] == teacher
    assert f"== {teacher}, attempt 1-1" in kdsweep("logs", launched, teacher).stdout

    group = json.loads(kdsweep("results", launched, "--json").stdout)["rows"][0]["group_id"]
    members = set(r.trials.loc[r.trials["group_id"] == group, "trial_id"])
    said = kdsweep("show", launched, group[:10])
    assert said.returncode == 0
    assert all(
        f"{id}     {seed}  completed" in said.stdout
        for seed, id in enumerate(sorted(members, key=list(r.trials["trial_id"]).index))
    )
    told = json.loads(kdsweep("show", launched, group, "--json").stdout)
    assert {row["trial_id"] for row in told["trials"]} == members
    assert kdsweep("logs", launched, group).stdout.count("== ") == len(members) == 2

    for words in (("show", launched, "zz"), ("resume", launched, "--trial", "zz")):
        said = kdsweep(*words)
        assert said.returncode == 2
        assert f"`kdsweep results {launched}` tells those of groups" in said.stderr


def test_a_grid_that_comes_to_nothing_is_refused_with_its_reasons(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    # No student can take both of its layers from a teacher that is as wide as something else.
    grid = write_grid(
        axes={
            "knowledge": ["hard_labels"],
            "shape": SHAPE,
            "initialisation": [{"teacher_layers": "first"}],
        }
    )
    for verb in ("plan", "launch", "try"):
        said = kdsweep(verb, grid)
        assert said.returncode == 2, verb
        assert "nothing to train: of 1 point 0 are excluded and 1 skipped" in said.stderr
        assert "\n    skipped: " in said.stderr
        assert "disk" not in said.stdout
        if verb == "plan":
            assert "0 trials of 1 point (0 excluded, 1 skipped" in said.stdout
    assert not (tmp_path / "runs").exists()


def test_resuming_failures_where_none_failed_says_what_is_left(
    launched: Path, kdsweep: Kdsweep
) -> None:
    said = kdsweep("resume", launched, "--failed-only")
    assert (said.returncode, said.stdout, said.stderr) == (4, "", "no trial has failed\n")
    id = results.load(launched).trials["trial_id"].iloc[-1]
    for attempt in (launched / "attempts").glob(f"{id}.*"):
        attempt.unlink()
    said = kdsweep("resume", launched, "--failed-only")
    told = f"no trial has failed; 1 is pending: `kdsweep resume {launched}` runs it\n"
    assert (said.returncode, said.stdout, said.stderr) == (4, "", told)


@pytest.mark.parametrize("content", [b"garbage", None])
def test_without_its_newest_plan_a_sweep_is_launched_not_resumed(
    launched: Path, kdsweep: Kdsweep, content: bytes | None
) -> None:
    [part] = launched.glob("plan/*.parquet")
    if content is None:
        part.unlink()
        told = f"{launched / 'plan'}: holds no whole plan"
    else:
        part.write_bytes(content)
        told = f"{part}: is damaged: "
    said = kdsweep("resume", launched, *SERIAL)
    assert said.returncode == 2
    assert told in said.stderr
    assert "\n    Plan anew: `kdsweep launch` with the grid" in said.stderr
    grid = launched.parents[1] / "grid.yaml"
    for words in (("launch", grid), ("resume", launched)):
        assert kdsweep(*words, *SERIAL).returncode == 0
    assert set(results.load(launched).trials["attempts"]) == {1}


def test_a_sweep_is_made_neither_in_a_file_nor_among_a_persons_files(
    write_grid: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid = write_grid()
    before = sorted(tmp_path.iterdir())
    for store, message in (
        ("train.csv", "train.csv is a file"),
        ("train.csv/below", "train.csv is a file"),
        (".", "is no sweep and not empty: it holds grid.yaml, report.csv, teacher and 1 more"),
    ):
        for verb in ("plan", "launch"):
            said = kdsweep(verb, grid, "--store", store)
            assert said.returncode == 2
            assert message in said.stderr
    assert sorted(tmp_path.iterdir()) == before
    # What a launch leaves that was killed while it made the folder.
    (tmp_path / "begun" / "grids").mkdir(parents=True)
    assert kdsweep("plan", grid, "--store", "begun").returncode == 0


def test_a_starter_grid_needs_a_folder(kdsweep: Kdsweep, tmp_path: Path) -> None:
    said = kdsweep("init", tmp_path / "nowhere" / "grid.yaml")
    assert said.returncode == 2
    assert said.stderr.startswith(f"there is no folder {tmp_path / 'nowhere'}\n")


def test_one_file_for_two_splits_is_named_as_such(write_grid: WriteGrid, kdsweep: Kdsweep) -> None:
    task: dict[str, Any] = {"text": ["text"], "max_length": 16}
    files = {"train": "train.csv", "report": "./train.csv"}
    said = kdsweep("plan", write_grid(task=task | {"files": files}))
    assert said.returncode == 2
    assert "is the same file as task.files.train" in said.stderr


def test_the_version_and_the_end_of_a_status_line(launched: Path, kdsweep: Kdsweep) -> None:
    assert re.fullmatch(r"kdsweep \d+\.\d+\.\d+\n", kdsweep("--version").stdout)
    said = kdsweep("status", launched).stdout
    assert said.endswith("\n")
    assert [line for line in said.splitlines() if line != line.rstrip()] == []
    assert re.search(r"trials an hour +[\d,]+$", said, re.MULTILINE)


def test_a_request_to_leave_promises_only_what_there_is() -> None:
    class Holder:
        """Stands for a lock and for an agenda."""

        locks = Path("/nowhere")
        epoch = 1

        def drain(self) -> None:
            """Start nothing more."""

    told: list[str] = []
    holder: Any = Holder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "touch", lambda *_, **__: None)
        Drain(holder, holder, told.append).ask("SIGINT")
    assert told[0].startswith("SIGINT: nothing new is started, and what runs stops and keeps what")


def test_a_launch_on_a_damaged_file_of_many_attempts_is_refused_until_it_is_repaired(
    launched: Path, kdsweep: Kdsweep
) -> None:
    compaction = Compaction(launched, epoch=1, grace_seconds=0)
    compaction.merge()
    compaction.collect()
    [file] = launched.glob("compact/attempts.*")
    content = file.read_bytes()
    trial = results.load(launched).trials["trial_id"].iloc[0]
    file.write_bytes(content.replace(trial.encode(), b"f" * len(trial)))
    before = sorted(path for path in launched.rglob("*"))
    said = kdsweep("resume", launched, *SERIAL)
    assert said.returncode == 2
    assert f"{file}: is damaged" in said.stderr
    assert f"`kdsweep doctor {launched} --repair` rescues the rest." in said.stderr
    assert sorted(path for path in launched.rglob("*")) == before
    # What it cannot rescue it tells: predictions that no attempt stands for.
    assert kdsweep("doctor", launched, "--repair").returncode == 3
    status = results.load(launched).trials.set_index("trial_id")["status"]
    assert {id for id in status.index if status[id] == "completed"} == {*status.index} - {trial}


def test_resuming_asks_for_room_on_the_disk_before_it_writes(
    launched: Path, kdsweep: Kdsweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(launched)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert kdsweep("resume", launched, *SERIAL).returncode == 0, "there is nothing to do"
    trial = results.load(launched).trials["trial_id"].iloc[0]
    next(launched.glob(f"attempts/{trial}.*")).unlink()
    before = sorted(path for path in launched.rglob("*"))
    said = kdsweep("resume", launched, *SERIAL)
    assert said.returncode == 74
    assert "and 0 MB are free" in said.stderr, said.stderr
    assert sorted(path for path in launched.rglob("*")) == before
