"""Features of teachers: planned and pinned, read from files or asked online, listed and pruned."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest

from kdsweep import results
from kdsweep.results.store import Store
from kdsweep.search_spaces.feature_choice import Needs, Source, SourceChoice
from kdsweep.search_spaces.resolution import Feature
from kdsweep.sweep import launch
from kdsweep.sweep.executors import Choice
from kdsweep.sweep.feature_plan import Stages, decide
from kdsweep.sweep.work import Pinned
from kdsweep.trainers.file_lock import try_lock

Kdsweep = Callable[..., CompletedProcess[str]]
WriteGrid = Callable[..., Path]

SERIAL = ("--executor", "serial", "--quiet")
LOGITS, HIDDEN = Feature("logits", 0), Feature("hidden_states", 3)
TRAINING = {
    "epochs": 2,
    "learning_rate": 1e-2,
    "batch_size": 16,
    "precision": "fp32",
    "evaluate": {"times": 2},
}
TEACHER = {
    "model": "./teacher",
    "fine_tune": {"epochs": 1, "learning_rate": 5e-3, "batch_size": 16},
}
AXES = {
    "knowledge": ["hard_labels", "soft_logits", ["hard_labels", "soft_logits", "hidden_states"]],
    "matching": ["last"],
    "shape": [{"layers": 1, "width": 16, "heads": 2}],
}
SECTIONS = {"axes": AXES, "training": TRAINING, "teacher": TEACHER}
NUMBERS = ("select/", "report/", "train/")


@pytest.fixture(scope="module")
def computed(
    tiny: Path, tiny_grid: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with data, a cache of its own, and the completed sweep that has filled it."""
    folder = tmp_path_factory.mktemp("computed")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    (folder / "grid.yaml").write_text(json.dumps({**tiny_grid, **SECTIONS}))
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("KDSWEEP_CACHE_DIR", str(folder / "cache"))
        grid, store = folder / "grid.yaml", folder / "runs" / "tiny"
        ended = launch(grid, store=store, executor=Choice("serial"), quiet=True)
    assert (ended.failed, ended.left) == ((), 0)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def launched(computed: Path, tmp_path: Path, cache: Path) -> Path:
    """That sweep, and its cache, for a test to do with them what it likes."""
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def write(write_grid: WriteGrid) -> WriteGrid:
    def grid(file: str = "grid.yaml", **sections: Any) -> Path:
        return write_grid(file, **{**SECTIONS, **sections})

    return grid


def trials(folder: Path) -> pd.DataFrame:
    return results.load(folder).trials.set_index("trial_id").sort_index()


def numbers(folder: Path) -> pd.DataFrame:
    frame = trials(folder)
    return frame[[name for name in frame.columns if name.startswith(NUMBERS)]]


def pinned(folder: Path) -> Pinned:
    return Pinned.model_validate(Store(folder).read_sweep()["pinned"])


def test_trials_end_with_the_same_numbers_whether_they_read_files_or_a_teacher(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    online = tmp_path / "online"
    assert kdsweep("launch", write(cache_budget_gb=0), "--store", online, *SERIAL).returncode == 0
    assert set(trials(launched)["features"]) == {"none", "cached as fp32"}
    assert set(trials(online)["features"]) == {"none", "online"}
    assert list(trials(launched)["teacher_weights"]) == list(trials(online)["teacher_weights"])
    pd.testing.assert_frame_equal(numbers(launched), numbers(online), rtol=1e-4, atol=1e-4)


def test_status_and_results_say_what_features_spared(launched: Path, kdsweep: Kdsweep) -> None:
    spared = trials(launched).set_index("features", append=True)["seconds_spared"]
    assert set(spared.xs("none", level="features")) == {0.0}
    assert spared.xs("cached as fp32", level="features").notna().all()
    phrase = r"features (spared \d+ % \(\d+:\d\d of teacher\)|took \d+:\d\d more than they spared)$"
    for told in (kdsweep("status", launched).stdout, kdsweep("results", launched).stderr):
        assert re.search(rf"time of lanes.*; {phrase}", told, re.MULTILINE), told
    found = json.loads(kdsweep("status", launched, "--json").stdout)["spared_by_features"]
    assert found["seconds"] == pytest.approx(spared.sum())
    assert found["unknown"] == 0


def test_what_features_of_an_older_version_spare_is_unknown(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep, cache: Path, tmp_path: Path
) -> None:
    for manifest in cache.glob("features/*/*/manifest.json"):
        told = json.loads(manifest.read_text())
        del told["seconds"]
        manifest.write_text(json.dumps(told))
    second = tmp_path / "second"
    assert kdsweep("launch", write(), "--store", second, *SERIAL).returncode == 0
    assert "; what features spared is unknown for 2 attempts" in kdsweep("status", second).stdout


def test_a_second_sweep_reads_what_the_first_has_computed(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, cache: Path
) -> None:
    before = {path: path.stat().st_ino for path in cache.rglob("data")}
    assert len(before) == 2
    kdsweep("launch", write(), "--store", tmp_path / "second", *SERIAL)
    assert {path: path.stat().st_ino for path in cache.rglob("data")} == before
    pd.testing.assert_frame_equal(numbers(launched), numbers(tmp_path / "second"))


def test_a_cache_that_cannot_be_written_changes_no_number(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep, tmp_path: Path, cache: Path
) -> None:
    shutil.rmtree(cache / "features")
    (cache / "features").write_text("no folder")
    memory = tmp_path / "memory"
    assert kdsweep("launch", write(), "--store", memory, *SERIAL).returncode == 0
    pd.testing.assert_frame_equal(numbers(launched), numbers(memory))
    assert set(trials(memory)["features"]) == {"none", "cached as fp32"}
    said = "\n".join(path.read_text() for path in memory.glob("work/*/*/log.txt"))
    assert "this lane keeps features in memory" in said


def test_a_plan_says_what_is_kept_what_it_takes_and_who_stays_online(
    write: WriteGrid, kdsweep: Kdsweep
) -> None:
    whole = json.loads(kdsweep("plan", write(), "--json").stdout)["features"]
    assert [stages["from"] for stages in whole["stages"]] == ["files", "files"]
    assert [stages["stages"] for stages in whole["stages"]] == [1, 1]
    [kept] = whole["kept"]
    sizes = {(each["kind"], each["layer"]): each["bytes"] for each in kept["features"]}
    assert set(sizes) == {LOGITS, HIDDEN}
    # 192 rows of two classes; their tokens in width 32.
    assert sizes[LOGITS] == 192 * 2 * 4
    assert sizes[HIDDEN] % (32 * 4) == 0
    assert whole["bytes"] == sum(sizes.values())
    tight = write(cache_budget_gb=sizes[LOGITS] / 1e9)
    told = json.loads(kdsweep("plan", tight, "--json").stdout)["features"]
    assert {tuple(map(tuple, s["reads"])): s["from"] for s in told["stages"]} == {
        (LOGITS,): "files",
        (HIDDEN, LOGITS): "teacher",
    }
    said = kdsweep("plan", tight).stdout
    assert "kept: logits of" in said
    assert "online: hidden_states 3, logits of" in said
    assert "for 1 stage of trials; in 1 the teacher runs in every step" in said


def test_a_lane_that_has_prepared_no_teacher_finds_what_one_that_has_did_compute(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep, cache: Path
) -> None:
    before = {path: path.stat().st_ino for path in cache.rglob("data")}
    assert kdsweep("launch", write(axes={**AXES, "seed": [1]}), "--yes", *SERIAL).returncode == 0
    assert {path: path.stat().st_ino for path in cache.rglob("data")} == before


def test_a_budget_that_is_changed_later_changes_nothing_that_was_decided(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep
) -> None:
    before = pinned(launched).features
    grown = write(axes={**AXES, "seed": [0, 1]}, cache_budget_gb=0)
    assert kdsweep("launch", grown, *SERIAL).returncode == 0
    assert pinned(launched).features == before
    assert sorted(trials(launched)["features"]) == ["cached as fp32"] * 4 + ["none"] * 2


def test_an_older_sweep_goes_on_by_its_own_rule(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep
) -> None:
    store = Store(launched)
    told = store.read_sweep()
    older = {key: value for key, value in told["pinned"].items() if key != "features"}
    store.write_sweep({**told, "pinned": {**older, "features_gb": 1e-6}})
    assert kdsweep("launch", write(axes={**AXES, "seed": [0, 1]}), *SERIAL).returncode == 0
    assert pinned(launched).features_gb == 1e-6
    by_kind = trials(launched).groupby("features").size()
    assert dict(by_kind) == {"none": 2, "cached as fp32": 2, "online": 2}


SOURCES: Mapping[str, Source] = {"s": Source(flops=1.0, sizes={LOGITS: 10, HIDDEN: 100})}


def decided(
    choices: tuple[SourceChoice, ...], passes: Mapping[Needs, float], budget: float
) -> tuple[SourceChoice, ...]:
    stages = {Stages("s", needs): number for needs, number in passes.items()}
    return decide(choices, stages, dict(SOURCES), ran=(), budget=budget)


def test_what_was_to_run_online_does_so_when_all_of_it_comes_to_be_kept_for_others() -> None:
    both, hidden = frozenset({LOGITS, HIDDEN}), frozenset({HIDDEN})
    first = decided((), {frozenset({LOGITS}): 9, both: 9}, budget=20)
    second = decided(first, {frozenset({LOGITS}): 9, both: 9, hidden: 9}, budget=200)
    [choice] = second
    assert set(choice.kept) == both
    assert choice.keeps(hidden)
    assert choice.keeps(frozenset({LOGITS}))
    assert not choice.keeps(both)
    assert decided(second, {both: 9}, budget=0) == second


def test_the_cache_is_listed_and_pruned_but_for_what_is_in_use(
    launched: Path, kdsweep: Kdsweep, cache: Path
) -> None:
    def listed() -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads(kdsweep("cache", "list", "--json").stdout)[
            "entries"
        ]
        return entries

    entries = listed()
    assert {each["what"] for each in entries} == {
        "tokens",
        "logits-00.fp32",
        "hidden_states-03.fp32",
    }
    [source] = {each["folder"] for each in entries if each["what"] != "tokens"}
    assert {each["task"] for each in entries} == {None, "train.csv"}
    said = kdsweep("cache", "prune", "--older-than", "1h")
    assert said.stdout.startswith("removed 0 items")

    held = try_lock(Path(source) / "in_use", shared=True)
    assert held is not None
    assert {each["is_in_use"] for each in listed()} == {False, True}
    kdsweep("cache", "prune", "--all")
    assert {each["folder"] for each in listed()} == {source}
    held.close()

    old = time.time() - 40 * 86_400
    os.utime(Path(source) / "source.json", (old, old))
    assert kdsweep("cache", "prune").stdout.startswith("removed 2 items")
    assert listed() == []
    assert not list((cache / "features").iterdir())


def test_an_age_that_is_none_is_refused(kdsweep: Kdsweep) -> None:
    said = kdsweep("cache", "prune", "--older-than", "a while")
    assert said.returncode == 2
    assert "--older-than: is `a while`, which is no age" in said.stderr


def test_what_lies_on_the_disk_is_what_the_plan_says(
    launched: Path, write: WriteGrid, kdsweep: Kdsweep, cache: Path
) -> None:
    planned = json.loads(kdsweep("plan", write(), "--json").stdout)["features"]["bytes"]
    assert sum(path.stat().st_size for path in cache.rglob("data")) == planned
