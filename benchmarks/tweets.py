"""What several benchmarks train: students of a teacher that knows the sentiment of tweets.

Everything is told to kdsweep by its command line and read from its results. The teacher is
fine-tuned once, kept in the user's cache and the same for all: a grid names its folder.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from kdsweep import results
from kdsweep.search_spaces import expand, read_grid
from kdsweep.search_spaces.trial import Trial
from kdsweep.sweep.machines import this_machine
from kdsweep.sweep.planning import Content, ContentFacts
from kdsweep.trainers import Assets, Settings, prepare_teacher
from kdsweep.trainers.tasks import TaskData, load_task
from kdsweep.trainers.tokens import cache_folder

Shape = Mapping[str, int]

SHAPES: Mapping[str, Shape] = {
    "2x128": {"layers": 2, "width": 128, "heads": 4},
    "3x192": {"layers": 3, "width": 192, "heads": 6},
    "3x384": {"layers": 3, "width": 384, "heads": 12},
}

KNOWLEDGE: Mapping[str, Sequence[str]] = {
    "none": ["hard_labels"],
    "logits": ["hard_labels", "soft_logits"],
    "logits+hidden+attention": ["hard_labels", "soft_logits", "hidden_states", "attentions"],
}
"""None: labels alone."""

ATTENTIONS = {"kind": "attentions", "of": "probabilities", "distance": "mse", "head_map": "mean"}
"""What Transformers gives, for any number of heads."""

MAX_LENGTH = 32

MEMORY_GB = 2
"""Of a trial."""

TRAINING: Mapping[str, Any] = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "dropout": 0.1,
    "weight_decay": 0.01,
    "warmup": 0.06,
    "gradient_clipping": 1.0,
    "evaluate": {"times": 3},
}

WIDE_RATE = 3e-4
"""Learning rate of students as wide as the teacher."""


@dataclass(frozen=True)
class Setting:
    """How much of everything."""

    train: int
    """Rows."""
    epochs: int
    report: float | None
    """Share of the tweets; None: as the task says, a tenth."""

    @property
    def task(self) -> dict[str, object]:
        """As in a grid."""
        task = {"name": "tweets", "max_length": MAX_LENGTH}
        limit = {"train": self.train, "select": max(self.train // 4, 16)}
        report = (
            {} if self.report is None else {"report": {"from": "train", "fraction": self.report}}
        )
        return {**task, **report, "limit": limit}

    def training(self, shape: Shape) -> dict[str, Any]:
        """As in a grid, every field that acts written out."""
        rate = WIDE_RATE if shape["width"] == 384 else TRAINING["learning_rate"]
        return {**TRAINING, "epochs": self.epochs, "learning_rate": rate}

    @property
    def num_steps(self) -> int:
        """Optimiser steps of a trial."""
        return self.epochs * -(-self.train // TRAINING["batch_size"])


TINY = Setting(train=64, epochs=1, report=0.003)
SMALL = Setting(train=800, epochs=2, report=0.02)
FULL = Setting(train=1600, epochs=2, report=None)
"""As long as the trials of the quickstart."""


@dataclass(frozen=True)
class Prepared:
    """A task and a teacher that knows it."""

    setting: Setting
    teacher: Path
    """A classifier with its tokenizer, as Transformers saves it."""
    data: TaskData
    seconds: float
    """What the preparation took now; nearly nothing where it was done before."""

    def resized(self, train: int) -> "Prepared":
        """The same teacher, beside more or fewer rows."""
        setting = replace(self.setting, train=train)
        return replace(self, setting=setting, data=load_task(planned(setting).task))

    def write_files(self, folder: Path) -> dict[str, str]:
        """The rows as CSV files, for those who read no grid."""
        files = {}
        for split in ("train", "select", "report"):
            rows, file = getattr(self.data, split), folder / f"{split}.csv"
            with file.open("w", newline="") as target:
                writer = csv.writer(target)
                writer.writerow(["text", "label"])
                writer.writerows(
                    (text, int(label))
                    for (text,), label in zip(rows.texts, rows.labels, strict=True)
                )
            files[split] = str(file)
        return files

    def grid(
        self, shapes: Sequence[Shape], knowledge: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> dict[str, object]:
        """All shapes with all knowledge."""
        return {
            "name": "bench",
            "task": self.setting.task,
            "teacher": {"model": str(self.teacher)},
            "axes": [
                {
                    "knowledge": [
                        [ATTENTIONS if k == "attentions" else k for k in terms]
                        for terms in knowledge
                    ],
                    "shape": [shape],
                    "training.learning_rate": [self.setting.training(shape)["learning_rate"]],
                    "seed": list(seeds),
                }
                for shape in shapes
            ],
            "training": self.setting.training(shapes[0]),
            "resources": {"cpus": 1, "memory_gb": MEMORY_GB},
        }


def count_lanes() -> int:
    """Trials of one core that this machine runs at a time."""
    this = this_machine()
    return max(1, min(int(this.cpus), int(this.memory_gb / MEMORY_GB)))


def planned(setting: Setting) -> Trial:
    """A trial of the task with the teacher that is to be prepared."""
    grid = {
        "name": "teacher",
        "task": setting.task,
        "teacher": {
            "model": "minilm-l6-h384",
            "fine_tune": {"epochs": 2, "learning_rate": 1e-4, "batch_size": 16},
        },
        "axes": {"knowledge": ["hard_labels"], "shape": [SHAPES["2x128"]]},
    }
    text = json.dumps(grid)
    plan = expand(read_grid(text, file="grid.yaml", base=Path()), ContentFacts(Content()))
    return plan.trials[0].trial


def prepare(setting: Setting) -> Prepared:
    """Read the rows and fine-tune the teacher, or find it where it was kept."""
    start = time.perf_counter()
    trial = planned(setting)
    digests = Content().of_trial(trial)
    folder = cache_folder() / "benchmarks" / digests.teacher[:16]
    assets = Assets(Settings(threads=int(this_machine().cpus)))
    for _ in prepare_teacher(
        trial.teacher, trial.task, into=folder, digests=digests, assets=assets
    ):
        pass
    data = load_task(trial.task)
    return Prepared(setting, folder, data, seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class Launched:
    """A sweep that was run to its end."""

    seconds: float
    """Of the whole command."""
    trials: pd.DataFrame
    """As `results.load` gives them."""
    store_mb: float
    """What the trials left on the disk; the teacher is not counted."""

    @property
    def started(self) -> pd.Series:
        """When each trial began, in seconds since the epoch."""
        return epoch_seconds(self.trials["started"])

    @property
    def ended(self) -> pd.Series:
        """When each trial ended."""
        return epoch_seconds(self.trials["ended"])


def epoch_seconds(stamps: pd.Series) -> pd.Series:
    """Of moments in UTC."""
    return (stamps - pd.Timestamp(0, tz="UTC")).dt.total_seconds()


def launch(grid: Mapping[str, object], folder: Path, *, lanes: int) -> Launched:
    """Run a sweep as a person would, in a folder that is made for it; it may find nothing kept."""
    folder.mkdir()
    file, store = folder / "grid.yaml", folder / "store"
    file.write_text(json.dumps(grid))
    words = ["launch", str(file), "--store", str(store), "--quiet", "--max-concurrent", str(lanes)]
    start = time.perf_counter()
    run(
        [sys.executable, "-m", "kdsweep.sweep", *words],
        {"KDSWEEP_CACHE_DIR": str(folder / "cache")},
    )
    seconds = time.perf_counter() - start
    trials = results.load(store).trials
    shutil.rmtree(store / "teachers")
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    return Launched(seconds, trials, size / 1e6)


def run(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """What a command says on its standard output.

    Raises:
        RuntimeError: It failed.
    """
    said = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {said.returncode}:\n{said.stderr}")
    return said.stdout
