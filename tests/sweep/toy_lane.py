"""A lane that trains nothing: results are a function of the trial's id, steps are naps.

Everything else is real: the lane, its process, checkpoints, history, commits, failpoints.
`TOY_STEPS` and `TOY_SECONDS` say how many steps a trial has and how long each takes.

Run as a command it is `kdsweep` with this lane in the place of the one that trains.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from kdsweep.results.files import publish_folder
from kdsweep.results.store import Store
from kdsweep.sweep import cli
from kdsweep.sweep.executors import Choice
from kdsweep.sweep.lane import main
from kdsweep.sweep.work import Keeper, Work
from kdsweep.trainers.reports import (
    Finished,
    Interrupted,
    Predictions,
    Report,
    Resolved,
    Row,
    Saving,
    SplitPredictions,
)

STEPS = int(os.environ.get("TOY_STEPS", "4"))
SECONDS = float(os.environ.get("TOY_SECONDS", "0.02"))


def score(id: str, step: int) -> float:
    """What a trial has learned by a step."""
    return int(id[:8], 16) / 2**32 * step / max(1, STEPS)


class ToyKeeper(Keeper):
    """Trains by looking at ids."""

    def train(
        self, work: Work, store: Store, *, stop: Callable[[], bool]
    ) -> Generator[Report, None, None]:
        """Do the work, report by report."""
        first = 0
        if work.parent is not None:
            epoch, number = work.parent
            saved = store.work_folder(work.id, epoch, number) / "checkpoints"
            first = max(int(path.name.partition("-")[2]) for path in saved.glob("step-*"))
        yield Resolved({"resumed_from_step": first, "terms": []})
        for step in range(first + 1, STEPS + 1):
            if stop():
                yield Interrupted(step - 1)
                return
            time.sleep(SECONDS)
            yield Row(step, {"select/primary": score(work.id, step)})
            yield Saving(step)
            _checkpoint(work.folder / "checkpoints" / f"step-{step}")
        if work.what == "teacher":
            store.teacher_folder(work.id).mkdir(exist_ok=True)
        last = score(work.id, STEPS)
        yield Finished(
            step=STEPS,
            values={
                "primary_metric": "accuracy",
                # Far above any floor.
                "select/accuracy": 1.0,
                "select/majority": 0.0,
                **dict.fromkeys(("select/primary", "select/primary/best", "report/primary"), last),
                "select/primary/best_step": STEPS,
            },
            predictions=Predictions(select=_said(work.id), report=_said(work.id)),
            save_student=_save,
        )


def _checkpoint(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    publish_folder(folder, _save)


def _save(folder: Path) -> None:
    (folder / "toy.json").write_text(json.dumps({}))


def _said(id: str) -> SplitPredictions:
    logits = np.full((2, 2), score(id, STEPS), dtype=np.float32)
    return SplitPredictions(labels=np.zeros(2, dtype=np.int64), last=logits, best=logits)


def choose(name: cli.ExecutorName, address: str, max_concurrent: int | None) -> Choice:
    """What `kdsweep` runs with, and this lane."""
    return Choice(name.value, address=address, max_concurrent=max_concurrent, lane="toy_lane")


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        main(ToyKeeper())
    cli._choose = choose
    cli.main()
