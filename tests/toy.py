"""A sweep of trials that train nothing, to be broken in every way; what must hold after each."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from world import TASK

from kdsweep import results
from kdsweep.results.schema import AttemptKey
from kdsweep.results.store import Store
from kdsweep.sweep.doctor import diagnose
from kdsweep.sweep.machines import this_machine

TESTS = Path(__file__).parent
TOKEN = "KDSWEEP_TEST"
"""Variable that all processes of a sweep under test inherit."""

KDSWEEP = (sys.executable, "-m", "kdsweep.sweep")
"""The command line."""
PROGRAM = (sys.executable, str(TESTS / "sweep" / "toy_lane.py"))
"""The command line, with lanes that train nothing."""
ENDLESS = {"TOY_STEPS": "1000000"}
"""More steps than any machine takes while a test looks on."""

SECONDS = 240.0
"""Longer than anything takes that happens at all."""

GRID: Mapping[str, Any] = {
    "name": "toy",
    "task": TASK,
    "teacher": {"model": "./teacher", "fine_tune": {"epochs": 1, "learning_rate": 1e-3}},
    "axes": {
        "knowledge": ["hard_labels", ["hard_labels", "soft_logits"]],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "training.learning_rate": [1e-4, 2e-4, 3e-4],
        "seed": [0, 1],
    },
    "training": {"epochs": 1, "batch_size": 16},
    "resources": {"memory_gb": 1.0},
}
"""Twelve trials."""

METRICS = ("select/", "report/")

MOST_AT_ONCE = max(2, int(this_machine().cpus))
"""More lanes than this no test has, on this machine or on a cluster that it makes."""


@dataclass
class Toy:
    """A folder with a grid, what it reads, and the sweep that is to be broken."""

    folder: Path
    cache: Path
    store: Path = field(init=False)
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.store = self.folder / "runs" / "toy"

    def write_grid(self, **sections: Any) -> Path:
        """The grid, with whole sections replaced."""
        path = self.folder / "grid.yaml"
        # JSON is YAML.
        path.write_text(json.dumps({**GRID, **sections}, indent=1))
        return path

    def start(
        self, *words: str | Path, before: tuple[str, ...] = (), **variables: str
    ) -> "subprocess.Popen[str]":
        """Start a command; `before` is put in front of it, a `PYTHONPATH` in front of its own."""
        path = os.pathsep.join(
            [
                variables.pop("PYTHONPATH", ""),
                *(str(TESTS / "sweep"), str(TESTS)),
                os.environ.get("PYTHONPATH", ""),
            ]
        )
        environment = {
            "KDSWEEP_CACHE_DIR": str(self.cache),
            "NO_COLOR": "1",
            "PYTHONPATH": path,
            TOKEN: self.token,
        }
        # Its own words go to files: pipes would stay open as long as any process of Ray's lives.
        with (self.folder / "said.txt").open("w") as said:
            return subprocess.Popen(
                [*before, *PROGRAM, *map(str, words)],
                cwd=self.folder,
                env=os.environ | environment | variables,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def run(self, *words: str | Path, before: tuple[str, ...] = (), **variables: str) -> int:
        """Run a command to its end; its exit code."""
        return self.start(*words, before=before, **variables).wait(SECONDS)

    @property
    def said(self) -> str:
        """What the last command said."""
        return (self.folder / "said.txt").read_text()

    def launch(self, **variables: str) -> int:
        """Launch the grid."""
        return self.run("launch", "grid.yaml", "--quiet", **variables)

    def resume(self, *words: str, **variables: str) -> int:
        """Resume the sweep."""
        return self.run("resume", self.store, "--quiet", *words, **variables)

    def frame(self) -> pd.DataFrame:
        """Status and metrics of each trial."""
        frame = results.load(self.store).trials.set_index("trial_id").sort_index()
        return frame[["status", *(name for name in frame.columns if name.startswith(METRICS))]]

    def completed(self) -> Mapping[str, tuple[Any, ...]]:
        """Every completed attempt that anything counts, whole, by trial."""
        found = {}
        for attempt in Store(self.store).read_attempts():
            if attempt.status == "completed":
                found.setdefault(attempt.id, (attempt.epoch, attempt.number, attempt.values))
        return found

    def finish(
        self, reference: pd.DataFrame, before: Mapping[str, tuple[Any, ...]], **variables: str
    ) -> None:
        """Resume what a fault has left, and check what must hold after any fault.

        Args:
            reference: How the sweep ends when nothing happens to it.
            before: What was completed when the fault was over.
            variables: Of the environment.
        """
        assert self.resume(**variables) == 0, self.said
        self.check(reference, before)

    def check(self, reference: pd.DataFrame, before: Mapping[str, tuple[Any, ...]]) -> None:
        """Check what must hold of a finished sweep; exit codes (I7) are each test's own."""
        # Every planned trial counts once (I1), with the numbers of an undisturbed sweep (I4).
        pd.testing.assert_frame_equal(self.frame(), reference, check_exact=True)
        committed = Counter(key.id for key in self._ended("completed"))
        assert {id: committed[id] for id in reference.index} == dict.fromkeys(reference.index, 1)
        # No completed trial has disappeared or changed (I2).
        assert before.items() <= self.completed().items()
        # Nothing was begun again that was completed, and of each launch no more was lost than ran
        # when it ended (I3).
        begun = self._begun()
        last = {key.id: (key.epoch, key.number) for key in self._ended("completed")}
        assert not [key for key in begun if (key.epoch, key.number) > last[key.id]]
        had_a_row = {path.stem for path in self.store.glob("quarantine/attempts/*")}
        lost = Counter(key.epoch for key in begun - self._ended() if str(key) not in had_a_row)
        assert all(number <= MOST_AT_ONCE for number in lost.values()), lost
        # The doctor finds nothing, nothing half-written is left (I5), and no process (I6).
        diagnosis = diagnose(self.store)
        assert not diagnosis.found + diagnosis.strangers, diagnosis
        assert not list(self.store.rglob(".*"))
        wait_for(lambda: not any(map(is_ours, self.processes())), seconds=10)

    def _ended(self, *statuses: str) -> set[AttemptKey]:
        """The attempts that have a row; with `statuses` those that ended so."""
        return {
            AttemptKey(each.id, each.epoch, each.number)
            for each in Store(self.store).read_attempts()
            if not statuses or each.status in statuses
        }

    def _begun(self) -> set[AttemptKey]:
        """The attempts that a lane began with, whatever became of them."""
        found = set()
        for folder in self.store.glob("work/*/*"):
            epoch, _, number = folder.name.partition("-")
            found.add(AttemptKey(folder.parent.name, int(epoch), int(number)))
        return found

    def failures(self) -> list[str]:
        """The class of each attempt that failed."""
        found = Store(self.store).read_attempts()
        return [str(each.failure_class) for each in found if each.status == "failed"]

    def attempts(self, id: str) -> list[str]:
        """How the attempts at a trial ended."""
        return [each.status for each in Store(self.store).read_attempts() if each.id == id]

    def processes(self, *, word: str = "") -> list[psutil.Process]:
        """All living processes of the sweep whose command has a word in it."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(TOKEN) == self.token
                if (
                    is_ours
                    and process.status() != psutil.STATUS_ZOMBIE
                    and word in " ".join(process.cmdline())
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_for_trials(self, count: int) -> None:
        """Wait until so many trials are completed."""
        wait_for(lambda: len(list(self.store.glob("attempts/*.parquet"))) > count)


def is_in_a_trial(store: Path) -> bool:
    """Whether the teacher is prepared, and a trial has a checkpoint."""
    if not store.is_dir():
        return False
    done = {attempt.id for attempt in Store(store).read_attempts()}
    begun = {path.parts[-4] for path in store.glob("work/*/*/checkpoints/step-*")}
    return bool(done) and bool(begun - done)


def is_ours(process: psutil.Process) -> bool:
    """Whether it is a launch, a driver, an actor or a lane, and no daemon of Ray's."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(word in words for word in ("kdsweep", "toy_lane", "ray::LaneTra"))


def wait_for(condition: Callable[[], bool], *, seconds: float = SECONDS) -> None:
    """Wait until something is so; fail if it never is."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what the test waits for did not happen"
        time.sleep(0.05)
