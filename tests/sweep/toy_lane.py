"""A lane that trains nothing: results are a function of the trial's id, steps are naps.

Everything else is real: the lane, its process, checkpoints, history, commits, failpoints.
`TOY_STEPS` and `TOY_SECONDS` say how many steps a trial has and how long each takes,
`TOY_FAULT=nan:3fa8` what goes wrong with trials whose ids begin so. Teachers and stages have
four steps at most.

Run as a command it is `kdsweep` with this lane in the place of the one that trains.
"""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from kdsweep.results.files import publish_folder
from kdsweep.results.store import Store
from kdsweep.search_spaces.early_stopping import rung_steps
from kdsweep.sweep import cli, executors
from kdsweep.sweep.executors import Choice
from kdsweep.sweep.lane import main
from kdsweep.sweep.work import Keeper, Work
from kdsweep.trainers.errors import DivergedError
from kdsweep.trainers.reports import (
    Finished,
    GoesOn,
    Interrupted,
    Predictions,
    Report,
    Resolved,
    Row,
    Rung,
    Saving,
    SplitPredictions,
    Stopped,
)

FEW = 4
STEPS = int(os.environ.get("TOY_STEPS", FEW))
SECONDS = float(os.environ.get("TOY_SECONDS", "0.02"))


def score(id: str, step: int) -> float:
    """What a trial has learned by a step."""
    return int(id[:8], 16) / 2**32 * step / max(1, STEPS)


class ToyKeeper(Keeper):
    """Trains by looking at ids."""

    def train(
        self, work: Work, store: Store, *, stop: Callable[[], bool], goes_on: GoesOn
    ) -> Generator[Report, None, None]:
        """Do the work, report by report."""
        first = 0
        if work.parent is not None:
            epoch, number = work.parent
            saved = store.work_folder(work.id, epoch, number) / "checkpoints"
            first = max(int(path.name.partition("-")[2]) for path in saved.glob("step-*"))
        yield Resolved({"resumed_from_step": first, "terms": []})
        steps = STEPS if work.what == "trial" else min(STEPS, FEW)
        rungs = rung_steps(work.rungs, num_steps=steps, times=steps)
        for step in range(first + 1, steps + 1):
            last = score(work.id, step - 1)
            share = rungs.get(step - 1)
            if share is not None and not goes_on(Rung(share, step - 1, {"primary": last})):
                values = dict.fromkeys(("select/primary", "select/primary/best"), last)
                yield Stopped(step - 1, {"primary_metric": "accuracy", **values})
                return
            if stop():
                yield Interrupted(step - 1)
                return
            time.sleep(SECONDS)
            if work.what == "trial":
                go_wrong(work.id)
            yield Row(step, {"select/primary": score(work.id, step)})
            yield Saving(step)
            _checkpoint(work.folder / "checkpoints" / f"step-{step:09}")
        if work.what == "teacher":
            publish_folder(store.teacher_folder(work.id), _save)
        last = score(work.id, steps)
        yield Finished(
            step=steps,
            values={
                "primary_metric": "accuracy",
                # Far above any floor.
                "select/accuracy": 1.0,
                "select/majority": 0.0,
                **dict.fromkeys(("select/primary", "select/primary/best", "report/primary"), last),
                "select/primary/best_step": steps,
            },
            predictions=Predictions(select=_said(work.id), report=_said(work.id)),
            save_student=_save,
        )


def go_wrong(id: str) -> None:
    """Do what `TOY_FAULT` asks for, if it means this trial."""
    kind, _, prefix = os.environ.get("TOY_FAULT", "").partition(":")
    if not kind or not id.startswith(prefix):
        return
    match kind:
        case "nan":
            raise DivergedError(loss="loss is nan", step=1, learning_rate=1.0)
        case "raise":
            raise RuntimeError("nothing is what it seems")
        case "gpu_memory":
            import torch

            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        case "host_memory":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20) * 64))
                time.sleep(0.05)
        case "hiccup":
            link, numbers = os.link, iter((errno.EIO, errno.ESTALE))

            def hiccup(source: str, target: str) -> None:
                if (number := next(numbers, None)) is not None:
                    raise OSError(number, os.strerror(number))
                link(source, target)

            os.link = hiccup
        case "grandchild":
            # It leaves the lane's process group, and nothing that can be ignored ends it.
            ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            words = [sys.executable, "-c", f"{ignore}time.sleep(1e6)"]
            subprocess.Popen(words, start_new_session=True)
            time.sleep(10**6)
        case _:
            raise ValueError(kind)


def _checkpoint(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    publish_folder(folder, _save)
    for older in sorted(folder.parent.glob("step-*"))[:-2]:
        shutil.rmtree(older)


def _save(folder: Path) -> None:
    # The doctor looks at weights, wherever a sweep keeps some.
    save_file({"weight": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")


def _said(id: str) -> SplitPredictions:
    logits = np.full((2, 2), score(id, STEPS), dtype=np.float32)
    return SplitPredictions(labels=np.zeros(2, dtype=np.int64), last=logits, best=logits)


def choose(
    name: cli.ExecutorName, address: str, max_concurrent: int | None, insecure_cluster: bool
) -> Choice:
    """What `kdsweep` runs with, and this lane."""
    return Choice(
        name.value,
        address=address,
        max_concurrent=max_concurrent,
        allows_open=insecure_cluster,
        lane="toy_lane",
    )


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        if os.environ.get("TOY_FAULT") == "import":
            raise ImportError("nothing to import")
        main(ToyKeeper())
    cli._choose = choose
    executors.Keeper = ToyKeeper
    cli.main()
