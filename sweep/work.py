"""One piece of planned work, told to a lane, and what came of it. Trainer and store meet here."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, assert_never

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..results.files import publish_folder
from ..results.history import HistoryWriter
from ..results.schema import Attempt, AttemptStatus
from ..results.store import Store
from ..search_spaces.feature_choice import SourceChoice
from ..search_spaces.resources import Request
from ..search_spaces.task import Task, Teacher
from ..search_spaces.trial import Digests, Trial
from .decisions import wait_for_decision
from .errors import StaleEpochError
from .failpoints import failpoint
from .failures import Evidence, Failure, FailureClass, failure_of, is_unwritable
from .lock import check_epoch
from .redaction import RedactingFormatter, redact

if TYPE_CHECKING:
    from ..trainers.assets import Assets
    from ..trainers.reports import Finished, GoesOn, Report, Resolved, Rung
    from ..trainers.settings import Settings

log = logging.getLogger("kdsweep")

Scalar = str | int | float | bool | None


class Frozen(BaseModel):
    """What crosses a process boundary as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pinned(Frozen):
    """What every attempt of a sweep shares, fixed at its first launch; part of no id."""

    precision: Literal["fp32", "bf16"]
    threads: int
    """Of a trial."""
    teacher_threads: int
    """Of a teacher's preparation, for which everything else waits."""
    device: Literal["cpu", "cuda"]
    features: tuple[SourceChoice, ...] | None = None
    """What is kept of its teachers' outputs; None: `features_gb` decides for each stage alone."""
    features_gb: float | None = None
    """Of sweeps that an older kdsweep began."""


class Config(Frozen):
    """The exact configuration of a piece of work, as kept in plan and attempt rows.

    Of a stage that several trials begin with, `trial` is one of them as far as that stage.
    """

    task: Task
    teacher: Teacher
    trial: Trial | None
    task_digest: str
    teacher_digest: str
    text_digests: tuple[str, ...] = ()
    resources: Request | None = None
    """What a rule of the grid gives this trial; None: what the grid says of all."""

    @property
    def digests(self) -> Digests:
        """Of all that the work reads."""
        return Digests(self.task_digest, self.teacher_digest, self.text_digests)


class Work(Frozen):
    """One attempt to train a trial, to train what several begin with, or to prepare a teacher."""

    store: Path
    what: Literal["teacher", "stage", "trial"]
    id: str
    group_id: str
    epoch: int
    number: int
    config_json: str
    pinned: Pinned
    resources: Request
    timeout_seconds: float
    stall_seconds: float
    checkpoint_seconds: float
    keep_students: bool
    keep_predictions: Literal["last", "best", "none"]
    parent: tuple[int, int] | None = None
    """Epoch and number of the attempt whose checkpoints this one may go on from."""
    begin: str | None = None
    """Id of the stage that was trained for this trial and others."""
    rungs: tuple[float, ...] = ()
    """Shares of a trial's last stage at which it waits for a decision."""

    @property
    def threads(self) -> int:
        """How many threads this work computes with."""
        return self.pinned.teacher_threads if self.what == "teacher" else self.pinned.threads

    @property
    def folder(self) -> Path:
        """Where this attempt keeps its log and checkpoints."""
        return Store(self.store).work_folder(self.id, self.epoch, self.number)


class Outcome(Frozen):
    """What came of an attempt; its row is in the store, but for the last two statuses."""

    status: Literal["completed", "stopped", "failed", "interrupted", "overtaken", "unwritable"]
    """`unwritable`: something could not be stored, so the attempt has no row; `error` says what."""
    step: int = 0
    failure_class: str | None = None
    error: str | None = None
    values: dict[str, Scalar] = {}


@dataclass
class Attempted:
    """What is known of an attempt so far."""

    started: datetime
    step: int = 0
    resumed_from: tuple[int, int] | None = None
    resumed_from_step: int = 0
    values: dict[str, Scalar] = field(default_factory=dict)
    resolved_json: str | None = None
    ended_as: Literal["completed", "stopped", "interrupted"] = "completed"


class Keeper:
    """Trains, and keeps what serves the next piece of work too: a lane's memory."""

    def __init__(self) -> None:
        self._assets: Assets | None = None

    def assets(self, work: Work) -> "Assets":
        """The kept teachers, tokens and outputs; torch is first imported here."""
        from transformers.utils.logging import disable_progress_bar

        from ..trainers.assets import Assets
        from ..trainers.gpu_share import keep_to_share
        from ..trainers.settings import check_host
        from ..trainers.tokens import cache_folder

        if self._assets is None:
            settings = settings_of(work)
            check_host(settings)
            keep_to_share(settings)
            # Bars of libraries would be drawn into the display, or into a log.
            disable_progress_bar()
            self._assets = Assets(settings, cache_folder())
        return self._assets

    def train(
        self, work: Work, store: Store, *, stop: Callable[[], bool], goes_on: "GoesOn"
    ) -> "Generator[Report]":
        """Do the work, report by report."""
        from ..trainers import prepare_teacher, train

        config = Config.model_validate_json(work.config_json)
        resume_from = None
        if work.parent is not None:
            epoch, number = work.parent
            resume_from = store.work_folder(work.id, epoch, number) / "checkpoints"
        common: dict[str, Any] = {
            "digests": config.digests,
            "assets": self.assets(work),
            "settings": settings_of(work),
            "checkpoints": work.folder / "checkpoints",
            "resume_from": resume_from,
            "stop": stop,
        }
        folder = store.teacher_folder(config.teacher_digest)
        if config.trial is None:
            return prepare_teacher(config.teacher, config.task, into=folder, **common)
        return train(
            config.trial,
            teacher=folder,
            plugins=store.plugins_folder,
            begin=store.stage_folder(work.begin) if work.begin else None,
            into=store.stage_folder(work.id) if work.what == "stage" else None,
            rungs=work.rungs,
            goes_on=goes_on,
            **common,
        )


def settings_of(work: Work) -> "Settings":
    """How the trainer is to run a piece of work."""
    from ..trainers.settings import Settings

    return Settings(
        threads=work.threads,
        device=work.pinned.device,
        gpu_share=work.resources.gpus or 1.0,
        precision=work.pinned.precision,
        features=work.pinned.features,
        features_gb=work.pinned.features_gb or 0.0,
        memory_gb=work.resources.memory_gb,
        checkpoint_seconds=work.checkpoint_seconds,
    )


def nobody_asks() -> Failure | None:
    """No attempt has to leave before its launch does."""
    return None


def run(
    work: Work,
    *,
    keeper: Keeper,
    stop: Callable[[], bool],
    beat: Callable[[int], None],
    tell: Callable[[Mapping[str, Any]], None],
    leaves: Callable[[], Failure | None] = nobody_asks,
) -> Outcome:
    """Train a trial or prepare a teacher, and commit the attempt. Never raises for its failures.

    Args:
        work: What to do.
        keeper: What this process keeps from one piece of work to the next.
        stop: Looked at before every step: whether to checkpoint and leave.
        beat: Told the step that was reached: the work is alive.
        tell: Says something to the launch, as JSON; what it has to say to it comes by the store.
        leaves: Why it is this attempt that has to end, rather than the launch; None if it is not.
    """
    attempted = Attempted(datetime.now(UTC))
    try:
        work.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _log_to(work.folder / "log.txt"):
            return _attempt(
                work,
                attempted,
                keeper=keeper,
                stop=stop,
                beat=beat,
                tell=tell,
                leaves=leaves,
            )
    except StaleEpochError as error:
        log.warning("%s: nothing is committed", error)
        return Outcome(status="overtaken", step=attempted.step)
    except Exception as error:
        if not is_unwritable(error):
            raise
        return _unwritable(work, error, step=attempted.step)


def _attempt(
    work: Work,
    attempted: Attempted,
    *,
    keeper: Keeper,
    stop: Callable[[], bool],
    beat: Callable[[int], None],
    tell: Callable[[Mapping[str, Any]], None],
    leaves: Callable[[], Failure | None],
) -> Outcome:
    store = Store(work.store)
    try:
        _consume(work, store, attempted, keeper=keeper, stop=stop, beat=beat, tell=tell)
        if attempted.ended_as == "interrupted" and (why := leaves()) is not None:
            return fail(
                work,
                why.failure_class,
                f"{why.error}; it did, after step {attempted.step}",
                attempted=attempted,
                evidence=why.evidence,
            )
        commit(work, attempted, status=attempted.ended_as)
    except StaleEpochError:
        raise
    except Exception as error:
        log.exception("%s %s failed at step %d", work.what, work.id, attempted.step)
        if is_unwritable(error):
            raise
        failure = failure_of(error)
        return fail(
            work,
            failure.failure_class,
            failure.error,
            attempted=attempted,
            evidence=failure.evidence,
        )
    match attempted.ended_as:
        case "completed":
            remove_checkpoints(store, work.id)
        case "stopped":
            remove_old_checkpoints(store, work.id)
        case "interrupted":
            pass
    return Outcome(status=attempted.ended_as, step=attempted.step, values=attempted.values)


def _consume(
    work: Work,
    store: Store,
    attempted: Attempted,
    *,
    keeper: Keeper,
    stop: Callable[[], bool],
    beat: Callable[[int], None],
    tell: Callable[[Mapping[str, Any]], None],
) -> None:
    from ..trainers.reports import Finished, Interrupted, Resolved, Row, Saving, Stopped

    def goes_on(rung: "Rung") -> bool:
        decision = wait_for_decision(
            store.decisions_folder,
            work.id,
            epoch=work.epoch,
            rung=rung.share,
            ask=lambda: tell({"rung": rung.share, "step": rung.step, "scores": {**rung.scores}}),
            stop=stop,
            beat=lambda: beat(rung.step),
        )
        failpoint("decision", work.id)
        # Whoever is asked to leave before there is a decision will be asked again.
        return decision is None or decision.goes_on

    with ExitStack() as stack:
        begun = keeper.train(work, store, stop=stop, goes_on=goes_on)
        reports = stack.enter_context(closing(begun))
        history: HistoryWriter | None = None
        is_saved = False
        for report in reports:
            if is_saved:
                failpoint("checkpoint", work.id)
            match report:
                case Resolved():
                    writer = _open_history(work, store, attempted, report)
                    history = stack.enter_context(closing(writer))
                case Row(step=step, values=values):
                    attempted.step = step
                    if history is not None:
                        history.append(step, values)
                    beat(step)
                    failpoint("row", work.id)
                case Saving(step=step):
                    attempted.step = step
                    if history is not None:
                        history.flush()
                    is_saved = True
                case Interrupted(step=step):
                    attempted.step = step
                    attempted.ended_as = "interrupted"
                case Stopped(step=step, values=values):
                    attempted.step = step
                    attempted.values |= values
                    attempted.ended_as = "stopped"
                case Finished(step=step, values=values):
                    attempted.step = step
                    attempted.values |= values
                    if work.what == "trial":
                        _keep(work, store, report)
                case _:
                    assert_never(report)


def _open_history(
    work: Work, store: Store, attempted: Attempted, resolved: "Resolved"
) -> HistoryWriter:
    attempted.resolved_json = json.dumps(resolved.values)
    if step := resolved.values["resumed_from_step"]:
        attempted.resumed_from, attempted.resumed_from_step = work.parent, step
    return store.open_history(
        work.id,
        work.epoch,
        work.number,
        resumed_from=attempted.resumed_from,
        resumed_from_step=attempted.resumed_from_step,
    )


def _keep(work: Work, store: Store, finished: "Finished") -> None:
    # What is published below replaces files: an overtaken lane must not touch the newer launch's.
    check_epoch(store.locks_folder, work.epoch)
    if work.keep_students:
        folder = store.student_folder(work.id)
        # An attempt that was killed before its row leaves a student that belongs to nobody.
        shutil.rmtree(folder, ignore_errors=True)
        publish_folder(folder, finished.save_student)
    if work.keep_predictions == "none":
        return
    predictions = finished.predictions
    assert predictions is not None, "a trial ends with predictions"
    for split, said in (("select", predictions.select), ("report", predictions.report)):
        store.write_predictions(
            work.id,
            work.epoch,
            work.number,
            split=split,
            rows=np.arange(len(said.labels)),
            labels=said.labels,
            logits=said.last if work.keep_predictions == "last" else said.best,
        )


def commit(
    work: Work,
    attempted: Attempted,
    *,
    status: AttemptStatus,
    failure_class: str | None = None,
    error: str | None = None,
) -> None:
    """Write the attempt's row, the last thing an attempt does.

    Raises:
        StaleEpochError: Another launch has taken the sweep over.
    """
    store = Store(work.store)
    row = Attempt(
        id=work.id,
        what=work.what,
        group_id=work.group_id,
        epoch=work.epoch,
        number=work.number,
        status=status,
        failure_class=failure_class,
        error=error,
        started=attempted.started,
        ended=datetime.now(UTC),
        config_json=work.config_json,
        resumed_from=attempted.resumed_from,
        resumed_from_step=attempted.resumed_from_step,
        values={**attempted.values, **provenance(work)},
        resolved_json=attempted.resolved_json,
    )

    def fence() -> None:
        failpoint("commit", work.id)
        check_epoch(store.locks_folder, work.epoch)

    store.commit_attempt(row, fence=fence)


def fail(
    work: Work,
    failure_class: FailureClass,
    error: str,
    *,
    attempted: Attempted | None = None,
    evidence: Evidence = MappingProxyType({}),
) -> Outcome:
    """Commit a failure, from the lane itself or for a lane that can no longer speak."""
    error = redact(error)
    attempted = attempted or Attempted(datetime.now(UTC))
    attempted.values |= {"failure/step": attempted.step, **evidence}
    try:
        commit(work, attempted, status="failed", failure_class=failure_class, error=error)
    except StaleEpochError:
        return Outcome(status="overtaken", step=attempted.step)
    except FileExistsError:
        # The lane had committed before it was lost; its row is the truth.
        return _committed(work)
    except OSError as refused:
        if not is_unwritable(refused):
            raise
        return _unwritable(work, refused, step=attempted.step)
    return Outcome(status="failed", step=attempted.step, failure_class=failure_class, error=error)


def _unwritable(work: Work, error: Exception, *, step: int) -> Outcome:
    """The end of an attempt of which nothing can be stored."""
    told = f"{error} (on host {socket.gethostname()}, for {work.what} {work.id})"
    return Outcome(status="unwritable", step=step, error=told)


def _committed(work: Work) -> Outcome:
    key = (work.id, work.epoch, work.number)
    for row in Store(work.store).read_attempts():
        if (row.id, row.epoch, row.number) == key:
            return Outcome(
                status=row.status,
                failure_class=row.failure_class,
                error=row.error,
                values=dict(row.values),
            )
    raise FileNotFoundError(f"attempt {key} is committed and cannot be read")


def provenance(work: Work) -> Mapping[str, Scalar]:
    """Where an attempt ran and with what; versions decide whether its numbers can be repeated."""
    return {
        "host": socket.gethostname(),
        "device": work.pinned.device,
        "precision": work.pinned.precision,
        "threads": work.threads,
        "versions": _versions(),
    }


@cache
def _versions() -> str:
    """Looked up once a process: it takes longer than all else that a row needs."""
    return json.dumps({name: version(name) for name in ("kdsweep", "torch", "transformers", "ray")})


def remove_checkpoints(store: Store, id: str) -> None:
    """Remove what the attempts of a completed trial or teacher could have gone on from."""
    for checkpoints in store.work_folder(id, 0, 0).parent.glob("*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)


def remove_old_checkpoints(store: Store, id: str) -> None:
    """Of a stopped trial keep the checkpoint from which its next attempt would go on."""

    def age(checkpoint: Path) -> tuple[int, int, str]:
        epoch, number = checkpoint.parent.parent.name.split("-")
        return int(epoch), int(number), checkpoint.name

    found = store.work_folder(id, 0, 0).parent.glob("*/checkpoints/step-*")
    for old in sorted(found, key=age)[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftover_checkpoints(store: Store, done: Set[str]) -> None:
    """The same for all of these, of which hardly any has one left: one look at each, no more."""
    for id in done & _names(store.folder / "work"):
        folder = store.work_folder(id, 0, 0).parent
        if any((folder / attempt / "checkpoints").is_dir() for attempt in _names(folder)):
            remove_checkpoints(store, id)


def _names(folder: Path) -> set[str]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name for entry in entries}
    return set()


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
