"""From planned rows to attempts: their numbers, parents and limits."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from ..results.schema import PlanRow
from ..results.store import Store
from ..search_spaces.grid import Grid
from .planning import request_of
from .work import Pinned, Work

CHECKPOINT_SECONDS = float(os.environ.get("KDSWEEP_CHECKPOINT_SECONDS", "30"))
"""Time between a trial's checkpoints; it changes no number."""


class Dispatch:
    """Turns a planned id into its next attempt."""

    def __init__(
        self,
        sweep: Store,
        grid: Grid,
        planned: Mapping[str, PlanRow],
        pinned: Pinned,
        *,
        epoch: int,
    ) -> None:
        self._sweep = sweep
        self._grid = grid
        self._planned = dict(planned)
        self._pinned = pinned
        self._epoch = epoch
        self._numbers: Counter[str] = Counter()

    def add(self, rows: Iterable[PlanRow]) -> None:
        """Take in work that was planned since."""
        self._planned |= {str(row.id): row for row in rows if row.what != "skipped"}

    def __call__(self, id: str) -> Work:
        """The next attempt; it goes on from the newest checkpoint of an earlier one."""
        row = self._planned[id]
        self._numbers[id] += 1
        keep, stopping = self._grid.keep, self._grid.early_stopping
        request = request_of(row, self._grid.resources)
        return Work(
            store=self._sweep.folder.resolve(),
            what=_what(row),
            id=id,
            group_id=str(row.group_id),
            epoch=self._epoch,
            number=self._numbers[id],
            config_json=str(row.config_json),
            pinned=self._pinned,
            resources=request,
            timeout_seconds=request.timeout_minutes * 60,
            stall_seconds=request.stall_minutes * 60,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            keep_students=keep.students != "none",
            keep_predictions=keep.predictions,
            parent=_newest_checkpointed(self._sweep, id),
            rungs=stopping.rungs if stopping is not None and row.what == "trial" else (),
            begin=next((i for i in row.depends_on if self._planned[i].what == "stage"), None),
        )


def _what(row: PlanRow) -> Literal["teacher", "stage", "trial"]:
    assert row.what != "skipped", "a skipped point is no work"
    return row.what


def _attempts_begun(sweep: Store, id: str) -> list[tuple[int, int]]:
    """Epoch and number of every attempt that has a work folder, oldest first."""
    folder = sweep.work_folder(id, 0, 0).parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(epoch), int(number)) for epoch, number in (n.split("-") for n in names))


def _newest_checkpointed(sweep: Store, id: str) -> tuple[int, int] | None:
    for epoch, number in reversed(_attempts_begun(sweep, id)):
        checkpoints = sweep.work_folder(id, epoch, number) / "checkpoints"
        if checkpoints.is_dir() and any(_visible(checkpoints)):
            return epoch, number
    return None


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
