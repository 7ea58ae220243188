"""Train one trial: load, build, fit stage by stage, measure."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from transformers import BertConfig

from ..search_spaces.errors import TeacherError
from ..search_spaces.resolution import uses_teacher
from ..search_spaces.shape import forward_flops_per_token
from ..search_spaces.trial import Digests, Trial, trial_id
from .assets import Assets
from .batches import Batch, num_steps
from .bert import sizes
from .clock import Clock
from .errors import StoppedError
from .evaluate import predict
from .features import LOGITS, Sizes
from .fit import Fit, fit, resumable
from .floor import below_floor
from .forward import forward, place
from .frozen import TeacherRecord, teacher_logits
from .initialise import initialise
from .metrics import score
from .objective import build_objective
from .reports import (
    Finished,
    Interrupted,
    Predictions,
    Report,
    Resolved,
    SplitPredictions,
    Value,
)
from .saving import save_model, tokenizer_files
from .settings import Precision, Settings
from .sources import TeacherSource, folder_of, locate_teacher, teacher_digest
from .student import build_student, count_parameters
from .surroundings import within
from .teacher import check_digest, never, prepare_teacher

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from .assets import LoadedTask, Tokens
    from .fit import Fitted
    from .objective import Objective
    from .outputs import TeacherOutputs

MEASURED_LENGTH = 128
"""Tokens of a row for latency and operations; fewer where the task's rows are shorter."""

LATENCY_SECONDS = 0.1
"""How long the latency is measured."""


def train(
    trial: Trial,
    *,
    digests: Digests | None = None,
    teacher: Path | None = None,
    assets: Assets | None = None,
    settings: Settings | None = None,
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
    stop: Callable[[], bool] = never,
) -> Generator[Report, None, None]:
    """Train a trial, yielding `Resolved`, rows of history, and `Finished` or `Interrupted`.

    `Saving` comes before each checkpoint, after every row that the checkpoint covers. Closing the
    generator ends the training at once and leaves no temporary file. PyTorch's global random
    state, threads and deterministic mode are the trial's own while it runs, and the caller's
    between two reports.

    Args:
        trial: What to train.
        digests: What was planned; rows and teacher are checked against them.
        teacher: The folder that `prepare_teacher` made. Without one, a trial that reads a teacher
            prepares it first, in a temporary folder.
        assets: What the process keeps from trial to trial; changes no number.
        settings: How this host runs trials; those of `assets` unless given.
        checkpoints: A folder for checkpoints; none are written without.
        resume_from: An earlier attempt's folder of checkpoints; the newest whole one is taken.
        stop: Looked at before every step.

    Raises:
        DataError: The rows cannot be read, or rows or the teacher have changed since they were
            planned.
        TeacherError: The teacher does not fit, or one prepared here knows less than its floor.
        GridError: Terms or initialisation do not fit the models.
        DivergedError: A loss is no longer finite.
        CheckpointError: The checkpoint is another trial's.
    """
    settings = settings or (assets.settings if assets else Settings())
    attempt = _Attempt(
        trial=trial,
        digests=digests,
        teacher=teacher,
        assets=assets or Assets(settings),
        settings=settings,
        checkpoints=checkpoints,
        resume_from=resume_from,
        stop=stop,
    )
    return within(_train(attempt), settings)


@dataclass(frozen=True)
class _Attempt:
    """The arguments of `train`."""

    trial: Trial
    digests: Digests | None
    teacher: Path | None
    assets: Assets
    settings: Settings
    checkpoints: Path | None
    resume_from: Path | None
    stop: Callable[[], bool]

    @property
    def device(self) -> torch.device:
        return torch.device(self.settings.device)


@dataclass(frozen=True)
class _Knowledge:
    """What a trial knows of its task and teacher before its student is built."""

    loaded: LoadedTask
    tokens: Tokens
    config: BertConfig
    """The teacher's."""
    source: TeacherSource
    """Whose tokenizer is used."""
    folder: Path | None
    """The prepared teacher; None for a trial that reads none."""
    record: TeacherRecord | None
    digests: Digests

    @property
    def sizes(self) -> Sizes:
        """Of the teacher's features."""
        return Sizes(
            num_hidden_layers=self.config.num_hidden_layers,
            hidden_size=self.config.hidden_size,
            num_attention_heads=self.config.num_attention_heads,
            num_labels=len(self.loaded.data.classes),
        )


def _train(attempt: _Attempt) -> Generator[Report, None, None]:
    clock = Clock()
    with ExitStack() as temporary:
        if attempt.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(attempt.device)
        with clock("start"):
            try:
                known = _know(attempt, temporary)
            except StoppedError:
                known = None
        if known is None:
            yield Interrupted(step=0)
            return
        yield from _train_student(attempt, known, clock)


def _train_student(
    attempt: _Attempt, known: _Knowledge, clock: Clock
) -> Generator[Report, None, None]:
    trial, settings = attempt.trial, attempt.settings
    with clock("start"):
        student = _student(attempt, known)
        place(student, attempt.device)
        identity = trial_id(trial, known.digests)
        resumed = resumable(identity, resume_from=attempt.resume_from)
        objectives = [
            build_objective(stage, student=sizes(student), teacher=known.sizes, seed=trial.seed).to(
                attempt.device
            )
            for stage in trial.stages
        ]
    resumed_from_step = resumed.step if resumed else 0
    yield Resolved(_resolved(attempt, known, student, objectives, resumed_from_step))
    fitted: Fitted | None = None
    first_step = first_term = 0
    for index, (stage, objective) in enumerate(zip(trial.stages, objectives, strict=True)):
        precision = settings.resolve(stage.training.precision)
        try:
            with clock("teacher"):
                outputs = _outputs(attempt, known, objective, precision)
        except StoppedError:
            yield Interrupted(resumed_from_step)
            return
        job = Fit(
            identity=identity,
            stage=index,
            first_step=first_step,
            first_term=first_term,
            model=student,
            objective=objective,
            outputs=outputs,
            tokens=known.tokens,
            metrics=known.loaded.data.metrics,
            training=stage.training,
            precision=precision,
            seed=trial.seed,
            micro_batches=fitted.micro_batches if fitted else 1,
        )
        first_step += job.num_steps
        first_term += len(objective.terms)
        if resumed is not None and index < resumed.stage:
            continue
        fitted = yield from fit(
            job,
            settings=settings,
            clock=clock,
            checkpoints=attempt.checkpoints,
            resumed=resumed if resumed is not None and index == resumed.stage else None,
            stop=attempt.stop,
        )
        if fitted is None:
            return
    assert fitted is not None, "a trial has a stage"
    if known.folder is not None and any(_reads_teacher(objective) for objective in objectives):
        attempt.assets.teacher(known.folder).check_unchanged()
    values = {
        **_resolved_columns(attempt, known, student, objectives, resumed_from_step),
        **fitted.values,
    }
    with clock("evaluate"):
        predictions = _predictions(attempt, known, student, fitted)
        values |= _report_columns(known, predictions)
        values |= {"latency_ms": _latency_ms(attempt, student)}
    values |= {"peak_memory_mb": _peak_memory_mb(attempt.device), **clock.columns()}
    tokenizer = tokenizer_files(folder_of(known.source))
    yield Finished(
        step=fitted.step,
        values=values,
        predictions=predictions,
        save_student=lambda folder: save_model(student, tokenizer, folder),
    )


def _know(attempt: _Attempt, temporary: ExitStack) -> _Knowledge:
    """Load the task, find or prepare the teacher, and check both against what was planned.

    Raises:
        StoppedError: `stop` became true while the teacher was prepared.
    """
    trial, assets, planned = attempt.trial, attempt.assets, attempt.digests
    loaded = assets.task(trial.task)
    if planned is not None:
        check_digest("task", found=loaded.digest, planned=planned.task)
    folder = attempt.teacher
    if folder is None and _needs_prepared_teacher(trial):
        folder = Path(temporary.enter_context(tempfile.TemporaryDirectory())) / "teacher"
        _prepare(attempt, folder)
    if folder is None:
        record = None
        source = locate_teacher(trial.teacher)
        found = teacher_digest(trial.teacher, source, loaded.data, trial.task)
    else:
        record = TeacherRecord.read(folder)
        source = TeacherSource(model=trial.teacher.model, folder=folder, revision=None)
        found = record.digest
    if planned is not None:
        check_digest("teacher", found=found, planned=planned.teacher)
    return _Knowledge(
        loaded=loaded,
        tokens=assets.tokens(loaded, source, max_length=trial.task.max_length),
        config=BertConfig.from_pretrained(folder_of(source)),
        source=source,
        folder=folder,
        record=record,
        digests=Digests(task=loaded.digest, teacher=found),
    )


def _needs_prepared_teacher(trial: Trial) -> bool:
    """Whether a trial reads the teacher that knows the task."""
    reads = any(uses_teacher(term) for stage in trial.stages for term in stage.terms)
    start = trial.initialisation
    return reads or (not isinstance(start, str) and start.from_ == "fine_tuned")


def _prepare(attempt: _Attempt, folder: Path) -> None:
    trial = attempt.trial
    reports = prepare_teacher(
        trial.teacher,
        trial.task,
        into=folder,
        digests=attempt.digests,
        assets=attempt.assets,
        settings=attempt.settings,
        stop=attempt.stop,
    )
    *_, last = reports
    if not isinstance(last, Finished):
        raise StoppedError
    if (problem := below_floor(trial.teacher, last.values)) is not None:
        raise TeacherError([problem])


def _student(attempt: _Attempt, known: _Knowledge) -> BertForSequenceClassification:
    trial, assets = attempt.trial, attempt.assets
    classes = known.loaded.data.classes
    student = build_student(
        trial.shape,
        teacher_config=known.config,
        num_labels=len(classes),
        class_names=classes,
        dropout=trial.stages[0].training.dropout,
        seed=trial.seed,
    )
    start = trial.initialisation
    if isinstance(start, str):
        return student
    if start.from_ == "fine_tuned":
        assert known.folder is not None
        initialise(student, start, fine_tuned=assets.teacher(known.folder).model, pretrained=None)
    else:
        source = locate_teacher(trial.teacher)
        initialise(student, start, fine_tuned=None, pretrained=assets.pretrained(source))
    return student


def _reads_teacher(objective: Objective) -> bool:
    return bool(objective.teacher_needs)


def _outputs(
    attempt: _Attempt, known: _Knowledge, objective: Objective, precision: Precision
) -> TeacherOutputs | None:
    if not _reads_teacher(objective):
        return None
    assert known.folder is not None
    return attempt.assets.outputs(
        known.folder,
        known.loaded.digest,
        known.tokens,
        needs=objective.teacher_needs,
        sizes=known.sizes,
        precision=precision,
        stop=attempt.stop,
    )


def _resolved(
    attempt: _Attempt,
    known: _Knowledge,
    student: BertForSequenceClassification,
    objectives: Sequence[Objective],
    resumed_from_step: int,
) -> dict[str, Any]:
    """What a trial turned out to be, as JSON."""
    described = (
        {"stage": stage, **term}
        for stage, objective in enumerate(objectives)
        for term in objective.describe()
    )
    terms = [{**term, "index": index} for index, term in enumerate(described)]
    steps = sum(
        num_steps(
            len(known.tokens.train),
            batch_size=stage.training.batch_size,
            epochs=stage.training.epochs,
        )
        for stage in attempt.trial.stages
    )
    columns = _resolved_columns(attempt, known, student, objectives, resumed_from_step)
    return {"terms": terms, "steps": steps, **columns}


def _resolved_columns(
    attempt: _Attempt,
    known: _Knowledge,
    student: BertForSequenceClassification,
    objectives: Sequence[Objective],
    resumed_from_step: int,
) -> dict[str, Value]:
    """What is known of a trial before its first step, by column name."""
    trial, settings = attempt.trial, attempt.settings
    length = min(MEASURED_LENGTH, trial.task.max_length)
    record = known.record
    teacher = {} if record is None else record.values
    return {
        **count_parameters(student),
        "flops_per_token": forward_flops_per_token(trial.shape, sequence_length=length),
        "primary_metric": known.loaded.data.metric,
        "teacher_weights": None if record is None else record.weights,
        **{
            f"teacher/{split}/{metric}": teacher.get(f"{split}/{metric}")
            for split in ("select", "report")
            for metric in ("primary", *known.loaded.data.metrics)
        },
        "features": _feature_source(attempt, known, objectives),
        "precision": settings.resolve(trial.stages[-1].training.precision),
        "device": settings.device,
        "threads": settings.threads,
        "resumed_from_step": resumed_from_step,
    }


def _feature_source(attempt: _Attempt, known: _Knowledge, objectives: Sequence[Objective]) -> str:
    needs = [objective.teacher_needs for objective in objectives if _reads_teacher(objective)]
    lengths = known.tokens.train.lengths
    if not needs:
        return "none"
    if all(attempt.assets.keeps(need, sizes=known.sizes, lengths=lengths) for need in needs):
        return "cached as fp32"
    return "online"


def _predictions(
    attempt: _Attempt,
    known: _Knowledge,
    student: BertForSequenceClassification,
    fitted: Fitted,
) -> Predictions:
    """Logits on report in fp32, of the last weights and of the best; these stay in the student."""
    tokens = known.tokens

    def report_logits() -> Tensor:
        return predict(
            student,
            tokens.report,
            pad_token_id=tokens.pad_token_id,
            device=attempt.device,
            precision="fp32",
        )

    last = report_logits()
    best = last
    if fitted.best.step != fitted.step:
        student.load_state_dict(fitted.best.weights)
        best = report_logits()
    return Predictions(
        select=SplitPredictions(
            labels=tokens.select.labels.numpy(),
            last=fitted.logits.numpy(),
            best=fitted.best.logits.numpy(),
        ),
        report=SplitPredictions(
            labels=tokens.report.labels.numpy(), last=last.numpy(), best=best.numpy()
        ),
    )


def _report_columns(known: _Knowledge, predictions: Predictions) -> dict[str, Value]:
    data, report = known.loaded.data, predictions.report
    values: dict[str, Value] = {}
    for logits, suffix in ((report.last, ""), (report.best, "/at_best")):
        scores = score(data.metrics, logits.argmax(axis=1), report.labels)
        values |= {f"report/{metric}{suffix}": value for metric, value in scores.items()}
        values |= {f"report/primary{suffix}": scores[data.metric]}
    if known.folder is not None:
        teacher = teacher_logits(known.folder)["report"].numpy().argmax(axis=1)
        agreement = float((report.last.argmax(axis=1) == teacher).mean())
        values |= {"report/teacher_agreement": agreement}
    return values


@torch.no_grad()
def _latency_ms(attempt: _Attempt, student: BertForSequenceClassification) -> float:
    """The median time of one row's forward pass in fp32."""
    length = min(MEASURED_LENGTH, attempt.trial.task.max_length)
    ids = torch.zeros(1, length, dtype=torch.int64, device=attempt.device)
    row = Batch(
        rows=torch.zeros(1, dtype=torch.int64),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=ids,
        labels=ids[:, 0],
    )
    student.eval()
    timer = Timer(
        stmt="forward(student, row, needs, precision='fp32')",
        globals={
            "forward": forward,
            "student": student,
            "row": row,
            "needs": frozenset({LOGITS}),
        },
        num_threads=attempt.settings.threads,
    )
    return float(timer.blocked_autorange(min_run_time=LATENCY_SECONDS).median * 1000)


def _peak_memory_mb(device: torch.device) -> float:
    """Of the device in this trial; on the CPU, of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
