"""What several trials begin with is planned work of its own: trained once, resumed, asked for."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest

from kdsweep import results
from kdsweep.results.schema import PlanRow
from kdsweep.results.store import Store
from kdsweep.search_spaces import expand, load_grid
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")


def stage(name: str, *terms: Any, **keys: Any) -> dict[str, Any]:
    return {"name": name, "terms": list(terms), "training": {"epochs": 1}, **keys}


def staged(label: str, *stages: dict[str, Any]) -> dict[str, Any]:
    return {"label": label, "stages": list(stages)}


GENERAL = stage("general", "masked_labels", data={"text": "corpus.txt"})
INNER = stage("inner", "hidden_states")
HARD, SOFT = stage("task", "hard_labels"), stage("task", "soft_logits")

DEEP = staged("deep", GENERAL, INNER, HARD)
"""Begins with two stages that `soft` has too, and with one that `short` has too."""
SHORT = staged("short", GENERAL, HARD)
KNOWLEDGE = [DEEP, staged("soft", GENERAL, INNER, SOFT), SHORT, "hard_labels"]


@pytest.fixture
def write(write_grid: WriteGrid, tmp_path: Path) -> WriteGrid:
    """Writes a grid of some knowledge, beside its text."""
    lines = [f"w{n} w{n + 1} w{n + 2} w{n}" for n in range(32)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))

    def of(*knowledge: Any, file: str = "grid.yaml", **sections: Any) -> Path:
        axes = {"knowledge": list(knowledge), "shape": [{"layers": 1, "width": 16, "heads": 2}]}
        return write_grid(file, axes=axes, **sections)

    return of


def rows(grid: Path) -> dict[str, PlanRow]:
    """The plan by what stands in tables: the knowledge of a trial, or what a stage begins."""
    content = Content()
    found = plan_rows(expand(load_grid(grid), ContentFacts(content)), content)
    named = {"teacher": "teacher", "stage": "stage", "trial": "knowledge"}
    return {str(row.axes[named[row.what]]): row for row in found}


def numbers(folder: Path) -> pd.DataFrame:
    trials = results.load(folder).trials
    frame = trials.set_index(trials["knowledge"].astype(str)).sort_index()
    measured = ("select/", "report/", "teacher/", "train/", "parameters")
    return frame[["trial_id", *(name for name in frame if name.startswith(measured))]]


def test_shared_beginnings_are_planned_once_and_the_longest_is_gone_on_from(
    write: WriteGrid,
) -> None:
    planned = rows(write(*KNOWLEDGE))
    stages = [name for name, row in planned.items() if row.what == "stage"]
    assert stages == ["deep stage 1", "deep stage 1-2"]
    first, second = (planned[name] for name in stages)
    teacher = planned.pop("./teacher", None) or next(
        row for row in planned.values() if row.what == "teacher"
    )
    assert first.depends_on == (teacher.id,)
    assert second.depends_on == (teacher.id, first.id)
    awaited = {name: row.depends_on[1:] for name, row in planned.items() if row.what == "trial"}
    assert awaited == {
        "deep": (second.id,),
        "soft": (second.id,),
        "short": (first.id,),
        "hard_labels": (),
    }


def test_what_trials_wait_for_is_as_urgent_as_the_most_urgent_of_them(write: WriteGrid) -> None:
    planned = rows(write(*KNOWLEDGE, order=[{"knowledge": "short"}]))
    assert {name: row.priority for name, row in planned.items() if row.what != "teacher"} == {
        "deep stage 1": 0,
        "deep stage 1-2": 1,
        "deep": 1,
        "soft": 1,
        "short": 0,
        "hard_labels": 1,
    }
    assert [row.priority for row in planned.values() if row.what == "teacher"] == [0]


def test_a_beginning_that_one_trial_has_is_no_work_of_its_own(write: WriteGrid) -> None:
    planned = rows(write(DEEP, "hard_labels"))
    assert not [row for row in planned.values() if row.what == "stage"]


def test_trials_that_share_a_beginning_end_with_the_numbers_of_trials_that_do_not(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    # What a sweep keeps of its teacher depends on all of its trials.
    online = {"cache_budget_gb": 0}
    grid = write(*KNOWLEDGE, **online)
    said = kdsweep("launch", grid, "--store", tmp_path / "shared", *SERIAL)
    assert said.returncode == 0, said.stderr
    assert "4 of 4 trials completed (4 now)" in said.stderr
    alone = []
    for number, knowledge in enumerate((DEEP, SHORT)):
        store = tmp_path / f"alone-{number}"
        grid = write(knowledge, **online)
        assert kdsweep("launch", grid, "--store", store, *SERIAL).returncode == 0
        assert results.load(store).stages.empty
        alone.append(numbers(store))
    together = pd.concat(alone).sort_index()
    shared = numbers(tmp_path / "shared").loc[together.index].dropna(axis=1, how="all")
    pd.testing.assert_frame_equal(shared, together[shared.columns], check_exact=True)
    # Each stage is trained once.
    attempts = Store(tmp_path / "shared").read_attempts()
    assert sorted(attempt.what for attempt in attempts) == [
        *["stage"] * 2,
        "teacher",
        *["trial"] * 4,
    ]


def test_a_sweep_tells_of_its_shared_stages(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid, store = write(*KNOWLEDGE), tmp_path / "runs" / "tiny"
    planned = json.loads(kdsweep("plan", grid, "--json").stdout)
    assert planned["shared_stages"] == 2
    assert (
        "2 stages that several trials begin with are trained once" in kdsweep("plan", grid).stdout
    )
    assert kdsweep("launch", grid, *SERIAL).returncode == 0
    found = results.load(store)
    assert list(found.stages["status"]) == ["completed"] * 2
    assert len(found.trials) == 4
    assert "shared stages" in kdsweep("status", store).stdout
    [_, second] = found.stages["stage_id"]
    told = json.loads(kdsweep("show", store, second, "--json").stdout)
    assert [term["stage"] for term in told["resolved"]["terms"]] == [0, 1]
    # Steps go on from those of the stages before, whoever trained them.
    trial = found.trials.set_index("knowledge").loc["deep", "trial_id"]
    first, last = found.stages["stage_id"].tolist(), trial
    steps = [found.history(id)["step"] for id in (*first, last)]
    assert [int(each.min()) for each in steps] == [1, 3, 15]
    # Nothing more is done, and growing goes on from what is there.
    assert "(0 now)" in kdsweep("launch", grid, *SERIAL).stderr
    grown = write(
        *KNOWLEDGE, staged("more", GENERAL, INNER, stage("task", "hard_labels", SOFT_TERM))
    )
    assert "5 of 5 trials completed (1 now)" in kdsweep("launch", grown, *SERIAL).stderr
    assert len([a for a in Store(store).read_attempts() if a.what == "stage"]) == 2


SOFT_TERM = {"kind": "soft_logits", "weight": 2}


def test_two_files_of_equal_content_are_one_trial_that_shares_with_none(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    other = stage("general", "masked_labels", data={"text": "copy.txt"})
    grid = write(SHORT, staged("copy", other, HARD))
    (tmp_path / "copy.txt").write_bytes((tmp_path / "corpus.txt").read_bytes())
    planned = json.loads(kdsweep("plan", grid, "--json").stdout)
    assert planned["ids"] == [planned["ids"][0]] * 2
    assert (planned["to_run"], planned["shared_stages"]) == (1, 0)
    assert [row.what for row in rows(grid).values()] == ["teacher", "trial"]


def test_a_stage_whose_folder_is_gone_is_trained_again_for_whoever_needs_it(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    store, grid = tmp_path / "runs" / "tiny", write(DEEP, SHORT)
    assert kdsweep("launch", grid, *SERIAL).returncode == 0
    shutil.rmtree(store / "stages")
    assert kdsweep("launch", grid, *SERIAL).returncode == 0
    assert not (store / "stages").exists(), "nobody needs it"
    said = kdsweep("launch", write(DEEP, SHORT, staged("soft", GENERAL, SOFT)), *SERIAL)
    assert said.returncode == 0, said.stderr
    assert "3 of 3 trials completed (1 now)" in said.stderr


@pytest.mark.slow
def test_a_stage_that_is_killed_goes_on_and_its_trials_end_as_if_undisturbed(
    write: WriteGrid, kdsweep: Kdsweep, process: Kdsweep, tmp_path: Path
) -> None:
    grid = write(DEEP, SHORT)
    undisturbed, store = tmp_path / "undisturbed", tmp_path / "killed"
    assert kdsweep("launch", grid, "--store", undisturbed, *SERIAL).returncode == 0
    [stage] = results.load(undisturbed).stages["stage_id"]
    for number, place in enumerate(("checkpoint", "commit")):
        verb = ("resume", store) if number else ("launch", grid, "--store", store)
        point = f"{place}=kill:{stage}:{tmp_path / str(number)}"
        said = process(*verb, *SERIAL, KDSWEEP_FAILPOINT=point)
        assert said.returncode == -signal.SIGKILL, said.stderr
    assert kdsweep("resume", store, *SERIAL).returncode == 0
    pd.testing.assert_frame_equal(numbers(store), numbers(undisturbed), check_exact=True)
    # The second attempt went on from the first one's checkpoint; the third found the whole stage.
    assert [a.number for a in Store(store).read_attempts() if a.what == "stage"] == [1]
    assert not list(store.rglob(".*"))


@pytest.mark.usefixtures("checkpointing")
def test_a_trial_that_failed_alone_goes_on_with_a_beginning_that_is_shared_since(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, store = tmp_path / "undisturbed", tmp_path / "failed"
    grid = write(DEEP, SHORT)
    assert kdsweep("launch", grid, "--store", undisturbed, *SERIAL).returncode == 0
    alone = write(DEEP, file="alone.yaml", retries=0)
    [deep] = [str(row.id) for row in rows(alone).values() if row.what == "trial"]
    monkeypatch.setenv("KDSWEEP_FAILPOINT", f"checkpoint=raise:{deep}")
    assert kdsweep("launch", alone, "--store", store, *SERIAL).returncode == 3
    assert list((store / "work" / deep).glob("*/checkpoints/step-00-*"))
    monkeypatch.delenv("KDSWEEP_FAILPOINT")
    assert kdsweep("launch", grid, "--store", store, *SERIAL).returncode == 0
    pd.testing.assert_frame_equal(numbers(store), numbers(undisturbed), check_exact=True)


def test_one_trial_that_is_asked_for_brings_the_stages_that_it_begins_with(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, store = write(*KNOWLEDGE, retries=0), tmp_path / "runs" / "tiny"
    planned = rows(grid)
    short = planned["short"]
    monkeypatch.setenv("KDSWEEP_FAILPOINT", f"row=raise:{short.depends_on[0]}")
    assert kdsweep("launch", grid, *SERIAL).returncode == 3
    monkeypatch.delenv("KDSWEEP_FAILPOINT")
    assert kdsweep("resume", store, "--trial", short.id, *SERIAL).returncode == 0
    attempts = Store(store).read_attempts()
    done = {attempt.id for attempt in attempts if attempt.status == "completed"}
    assert done == {*short.depends_on, short.id}


def test_a_stage_that_fails_blocks_the_trials_that_begin_with_it_and_no_other(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, store = write(*KNOWLEDGE, retries=0), tmp_path / "runs" / "tiny"
    first = next(row.id for row in rows(grid).values() if row.what == "stage")
    monkeypatch.setenv("KDSWEEP_FAILPOINT", f"row=raise:{first}")
    assert kdsweep("launch", grid, *SERIAL).returncode == 3
    found = results.load(store)
    status = found.trials.set_index("knowledge")["status"].astype(str).to_dict()
    blocked = dict.fromkeys(("deep", "soft", "short"), "blocked")
    assert status == {**blocked, "hard_labels": "completed"}
    assert list(found.failures()["what"]) == ["stage"]
    # A resume gives the stage its retries anew.
    monkeypatch.delenv("KDSWEEP_FAILPOINT")
    assert kdsweep("resume", store, *SERIAL).returncode == 0


def test_a_text_that_changed_since_the_plan_stops_a_resume(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    store = tmp_path / "runs" / "tiny"
    assert kdsweep("launch", write(DEEP), *SERIAL).returncode == 0
    with (tmp_path / "corpus.txt").open("a") as text:
        text.write("\nw1 another line\n")
    said = kdsweep("resume", store, *SERIAL)
    assert said.returncode == 2
    assert "a stage's text has changed since the plan was made" in said.stderr
    assert "corpus.txt" in said.stderr


def test_a_missing_text_is_refused_before_anything_is_written(
    write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    grid = write(DEEP)
    (tmp_path / "corpus.txt").unlink()
    for command in ("plan", "launch"):
        said = kdsweep(command, grid)
        assert said.returncode == 2
        assert "corpus.txt cannot be read" in said.stderr
    assert not (tmp_path / "runs").exists()
