"""The store of one sweep on a file system: where everything lies, and how it is written."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .compact import CompactName
from .files import is_temporary, publish, remove_temporaries, replace, sync
from .history import HistoryWriter, Origin, read_logged
from .parts import every
from .predictions import prediction_file, prediction_table, read_predicted
from .proposals import first_of_each, read_proposals, read_studies
from .reader import is_attempt, read_attempts, read_plans, read_sweep
from .rows import attempt_table, attempts, plan_rows, plan_table
from .schema import SCHEMA_VERSION, Attempt, Damaged, PlanRow, attempt_key, check_counts, check_id
from .source import LocalSource
from .tables import write_table

FOLDERS = (
    "grids",
    "plan",
    "proposals",
    "teachers",
    "stages",
    "attempts",
    "history",
    "predictions",
    "students",
    "compact",
    "quarantine",
    "work",
    "locks",
    "decisions",
)
_ROWS_OF_A_PLAN_PART = 20_000


class Store:
    """The files of a sweep; they are the truth.

    Any number of processes may write at once: each writes only files of its own name, whole or not
    at all, and never over another's.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.source = LocalSource(self.folder)

    def exists(self) -> bool:
        """Whether a sweep was created here."""
        return (self.folder / "sweep.json").is_file()

    def strangers(self) -> list[str]:
        """What lies in the folder and was not put there by a sweep, by name."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(
            name
            for name in names
            if name not in (*FOLDERS, "sweep.json") and not is_temporary(name)
        )

    def create(self, sweep: Mapping[str, Any]) -> None:
        """Make the folders, readable by their owner alone, and `sweep.json` last.

        Raises:
            FileExistsError: There is a sweep here.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FOLDERS:
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        text = _sweep_text(sweep)
        publish(self.folder / "sweep.json", lambda path: _write_text(path, text))
        sync(self.folder.parent)

    def read_sweep(self) -> dict[str, Any]:
        """What was given to `create`, or since to `write_sweep`."""
        return read_sweep(self.source)

    def write_sweep(self, sweep: Mapping[str, Any]) -> None:
        """Replace what `sweep.json` says."""
        text = _sweep_text(sweep)
        replace(self.folder / "sweep.json", lambda path: _write_text(path, text))

    def add_grid(self, text: str) -> int:
        """Keep a grid verbatim, unless it is the newest one already; gives its number from 1."""
        numbers = [int(path.stem) for path in (self.folder / "grids").glob("[0-9]*.yaml")]
        newest = max(numbers, default=0)
        if newest and self.grid_file(newest).read_bytes() == text.encode():
            return newest
        publish(self.grid_file(newest + 1), lambda path: _write_text(path, text))
        return newest + 1

    def newest_grid(self) -> str:
        """The grid that was launched last, verbatim.

        Raises:
            FileNotFoundError: None was.
        """
        grids = sorted((self.folder / "grids").glob("[0-9]*.yaml"))
        if not grids:
            raise FileNotFoundError(f"{self.folder / 'grids'} is empty")
        return grids[-1].read_text(encoding="utf-8")

    def grid_file(self, number: int) -> Path:
        """Where a grid lies."""
        return self.folder / "grids" / f"{number:04d}.yaml"

    def add_plugin(self, digest: str, source: bytes) -> None:
        """Keep a file of a user's losses, unless it is kept already."""
        path = self.plugins_folder / f"{digest}.py"
        check_id(digest)
        if not path.exists():
            with suppress(FileExistsError):
                publish(path, lambda temporary: _write_bytes(temporary, source))

    @property
    def plugins_folder(self) -> Path:
        """Where the code that grids bring lies, by its digest: beside the grids."""
        return self.folder / "grids"

    def teacher_folder(self, digest: str) -> Path:
        """Where a prepared teacher lies."""
        check_id(digest)
        return self.folder / "teachers" / digest

    def stage_folder(self, id: str) -> Path:
        """Where lies what several trials begin with."""
        check_id(id)
        return self.folder / "stages" / id

    def student_folder(self, id: str) -> Path:
        """Where a kept student lies."""
        check_id(id)
        return self.folder / "students" / id

    def work_folder(self, id: str, epoch: int, number: int) -> Path:
        """Where an attempt keeps its checkpoints and its log."""
        key = attempt_key(id, epoch, number)
        return self.folder / "work" / key.id / f"{key.epoch}-{key.number}"

    @property
    def locks_folder(self) -> Path:
        """Where launches lock the sweep and say what they are doing."""
        return self.folder / "locks"

    @property
    def decisions_folder(self) -> Path:
        """Where launches write which trials go on from a rung of early stopping."""
        return self.folder / "decisions"

    def write_plan(self, rows: Sequence[PlanRow], *, epoch: int) -> None:
        """Make these rows the current plan; nothing is written where they already are.

        A newer plan that is damaged is outdone all the same.

        Raises:
            FileExistsError: This epoch has planned something else.
        """
        check_counts(epoch)
        table = plan_table(rows)
        plans = read_plans(self.source)
        if table.equals(plans.current) and not plans.lost:
            return
        starts = range(0, max(1, table.num_rows), _ROWS_OF_A_PLAN_PART)
        for number, start in enumerate(starts, start=1):
            # A plan counts once as many parts are there as each part says there are.
            stamps = {"part": str(number), "parts": str(len(starts))}
            part = table.slice(start, _ROWS_OF_A_PLAN_PART)
            publish(
                self.folder / "plan" / f"{epoch}-{number}.parquet",
                partial(write_table, part, kind="plan", metadata=stamps),
            )

    def read_plan(self) -> tuple[PlanRow, ...]:
        """The current plan: the newest that was written to its end, and what a search added."""
        studies = {study.id for study in read_studies(self.read_sweep())}
        proposed = read_proposals(self.source).of(studies).tables
        return plan_rows(first_of_each([read_plans(self.source).current, *proposed]))

    def lost_plan(self) -> tuple[Damaged, ...]:
        """What cannot be read of a plan that is newer than the current one."""
        return read_plans(self.source).lost

    def commit_attempt(self, attempt: Attempt, *, fence: Callable[[], None]) -> None:
        """Publish the row that says how an attempt ended.

        Args:
            attempt: The row.
            fence: Called right before the row appears; whatever it raises forbids the row.

        Raises:
            FileExistsError: This attempt is committed already; its row is untouched.
        """
        key = attempt_key(attempt.id, attempt.epoch, attempt.number)
        table = attempt_table(attempt)
        publish(
            self.folder / "attempts" / f"{key}.parquet",
            partial(write_table, table, kind="attempts"),
            fence=fence,
        )

    def read_attempts(self) -> tuple[Attempt, ...]:
        """All committed attempts, by epoch, number and id; damaged ones are left out."""
        return attempts(read_attempts(self.source).table)

    def has_attempts(self) -> bool:
        """Whether an attempt was ever committed, by the names of the files alone."""
        names = self.source.names("attempts"), self.source.names("compact")
        return any(map(is_attempt, names[0])) or any(
            told is not None and told.kind == "attempts"
            for told in map(CompactName.parse, names[1])
        )

    def open_history(
        self,
        id: str,
        epoch: int,
        number: int,
        *,
        resumed_from: tuple[int, int] | None = None,
        resumed_from_step: int = 0,
    ) -> HistoryWriter:
        """A writer for what an attempt logs.

        Args:
            id: Of the trial or teacher.
            epoch: Of the attempt.
            number: Of the attempt.
            resumed_from: Epoch and number of the attempt whose checkpoint it starts from; kept
                with the rows, since an attempt that is killed commits nothing.
            resumed_from_step: The step of that checkpoint.
        """
        key = attempt_key(id, epoch, number)
        origin = resumed_from and Origin(attempt_key(id, *resumed_from), resumed_from_step)
        return HistoryWriter(self.folder / "history", key, origin=origin)

    def write_predictions(
        self,
        id: str,
        epoch: int,
        number: int,
        split: str,
        rows: npt.NDArray[np.integer[Any]],
        labels: npt.NDArray[np.integer[Any]],
        logits: npt.NDArray[np.floating[Any]],
    ) -> None:
        """Keep a student's logits on a split.

        Args:
            id: Of the trial or teacher.
            epoch: Of the attempt.
            number: Of the attempt.
            split: Its name.
            rows: Index of each row within the split, shape [rows].
            labels: The true classes, shape [rows].
            logits: Shape [rows, classes]; kept as float32.
        """
        key = attempt_key(id, epoch, number)
        table = prediction_table(rows, labels, logits)
        publish(
            self.folder / "predictions" / prediction_file(key, split),
            partial(write_table, table, kind="predictions"),
        )

    def damaged(self) -> tuple[tuple[Path, str], ...]:
        """Every part that cannot be read, with the reason; the rest of the store is unharmed."""
        found = [
            *read_plans(self.source).damaged,
            *read_proposals(self.source).damaged,
            *read_attempts(self.source).damaged,
            *read_logged(self.source, wanted=every).parts.damaged,
            *read_predicted(self.source).damaged,
        ]
        return tuple((self.folder / part.path, part.reason) for part in found)

    def remove_temporaries(self) -> None:
        """Remove what killed writers left; for the holder of the sweep's lock alone."""
        for name in ("", *FOLDERS):
            remove_temporaries(self.folder / name)


def _sweep_text(sweep: Mapping[str, Any]) -> str:
    return json.dumps({**sweep, "schema_version": SCHEMA_VERSION}, indent=2) + "\n"


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
