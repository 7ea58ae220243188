"""A sweep small enough to be killed many times: a tiny BERT, a tiny task, real files."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy import KDSWEEP
from world import TASK, write_model, write_rows

from kdsweep.results.store import Store
from kdsweep.search_spaces import expand, load_grid
from kdsweep.sweep import cli, dispatch, launch
from kdsweep.sweep.dispatch import Dispatch
from kdsweep.sweep.executors import Choice
from kdsweep.sweep.lock import take
from kdsweep.sweep.pinned import new_sweep, pinned_for
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows
from kdsweep.sweep.work import Work


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher/`, `train.csv` and `report.csv`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "teacher")
    write_rows(folder / "train.csv", num_rows=240, seed=1)
    write_rows(folder / "report.csv", num_rows=60, seed=2)
    return folder


GRID: Mapping[str, Any] = {
    "name": "tiny",
    "task": TASK,
    "teacher": {
        "model": "./teacher",
        "fine_tune": {"epochs": 4, "learning_rate": 5e-3, "batch_size": 16},
    },
    "axes": {
        "knowledge": ["hard_labels", ["hard_labels", "soft_logits", "hidden_states"]],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "seed": [0, 1],
    },
    "training": {
        "epochs": 4,
        "learning_rate": 1e-2,
        "batch_size": 16,
        "evaluate": {"times": 4},
    },
    "resources": {"memory_gb": 1},
}

WriteGrid = Callable[..., Path]
Kdsweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny_grid() -> Mapping[str, Any]:
    """The tiny grid, for fixtures that change it."""
    return GRID


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of the tiny task, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def write_grid(tiny: Path, tmp_path: Path) -> WriteGrid:
    """Writes the tiny grid, with whole sections replaced, beside its data."""

    def write(file: str = "grid.yaml", **sections: Any) -> Path:
        if not (tmp_path / "teacher").exists():
            shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
        path = tmp_path / file
        # JSON is YAML.
        path.write_text(json.dumps({**GRID, **sections}, indent=1))
        return path

    return write


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    """Of a command that is a process of its own: a checkpoint after every row."""
    # Where toy lanes are.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "KDSWEEP_CACHE_DIR": str(cache),
        "KDSWEEP_CHECKPOINT_SECONDS": "0",
        "NO_COLOR": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


@pytest.fixture
def process(tmp_path: Path, environment: dict[str, str]) -> Kdsweep:
    """Runs the command line in the folder of the grid, as a process of its own."""

    def run(
        *arguments: str | Path, program: Sequence[str] = KDSWEEP, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *map(str, arguments)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def kdsweep(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Kdsweep:
    """Runs the command line in the folder of the grid, in this process.

    It spares the seconds that importing torch takes; `process` is for what is killed, or runs Ray.
    """
    monkeypatch.setenv("KDSWEEP_CACHE_DIR", str(cache))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        words = ["kdsweep", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            cli.run()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ending.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has launches in this process, too, write a checkpoint after every row."""
    monkeypatch.setattr(dispatch, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="session")
def completed(tiny: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny grid, its data and, in `runs/tiny`, its completed sweep."""
    folder = tmp_path_factory.mktemp("completed")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    (folder / "grid.yaml").write_text(json.dumps(GRID, indent=1))
    with pytest.MonkeyPatch.context() as here:
        here.setenv("KDSWEEP_CACHE_DIR", str(cache))
        here.setattr(dispatch, "CHECKPOINT_SECONDS", 0.0)
        grid, store = folder / "grid.yaml", folder / "runs" / "tiny"
        ended = launch(grid, store=store, executor=Choice("serial"), quiet=True)
    assert ended.completed == 4
    return folder


@pytest.fixture
def launched(completed: Path, tmp_path: Path) -> Path:
    """The completed sweep, copied for a test to do with it what it likes."""
    shutil.copytree(completed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "tiny"


Prepare = Callable[..., Work]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Makes a store for a grid, `tmp_path / "store"` or another, and gives its teacher's work."""
    monkeypatch.setenv("KDSWEEP_CACHE_DIR", str(tmp_path / "cache"))

    def make(grid_file: Path, folder: Path = tmp_path / "store") -> Work:
        grid = load_grid(grid_file)
        content = Content()
        rows = plan_rows(expand(grid, ContentFacts(content)), content)
        store = Store(folder)
        store.create(new_sweep(grid))
        lock = take(store.locks_folder)
        planned = {str(row.id): row for row in rows}
        teacher = next(row for row in rows if row.what == "teacher")
        dispatch = Dispatch(store, grid, planned, pinned_for(store, grid), epoch=lock.epoch)
        return dispatch(str(teacher.id))

    return make


@pytest.fixture
def work(write_grid: WriteGrid, prepare: Prepare) -> Work:
    """The preparation of the tiny grid's teacher."""
    return prepare(write_grid())
