"""Train one trial: load, build, fit stage by stage, measure."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from transformers import BertConfig

from ..search_spaces.early_stopping import rung_steps
from ..search_spaces.errors import TeacherError
from ..search_spaces.feature_choice import source_keys
from ..search_spaces.knowledge import MaskedLogits, hides_tokens
from ..search_spaces.resolution import trains_head, uses_teacher
from ..search_spaces.shape import forward_flops_per_token
from ..search_spaces.trial import Digests, Trial, stage_id, trial_id
from .assets import Assets, LoadedText
from .begun import StagesRecord, load_begun
from .bert import sizes
from .checkpoint import remove_partial, whole_folder
from .clock import Clock
from .errors import CheckpointError, StoppedError
from .evaluate import predict
from .features import WORDS, Sizes
from .fit import Fit, always, fit, resumable, stage_steps
from .floor import below_floor
from .forward import place
from .frozen import TeacherRecord, teacher_logits, weights_digest
from .initialise import initialise
from .language import make_language_head
from .metrics import score
from .objective import build_objective
from .outputs import Kept, Online
from .reports import (
    Finished,
    GoesOn,
    Interrupted,
    Predictions,
    Report,
    Resolved,
    SplitPredictions,
    Stopped,
    Value,
)
from .saving import copy_folder, save_model, tokenizer_files
from .settings import Settings
from .sources import TeacherSource, folder_of, locate_teacher, teacher_digest
from .student import build_student, count_parameters
from .surroundings import within
from .teacher import check_digest, never, prepare_teacher
from .texts import name_of_rows

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from ..search_spaces.trial import Stage
    from .assets import LoadedTask, Tokens
    from .feature_layout import Type
    from .fit import Fitted
    from .language import Vocabulary
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
    plugins: Path | None = None,
    assets: Assets | None = None,
    settings: Settings | None = None,
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
    begin: Path | None = None,
    into: Path | None = None,
    rungs: tuple[float, ...] = (),
    goes_on: GoesOn = always,
    stop: Callable[[], bool] = never,
) -> Generator[Report, None, None]:
    """Train a trial, yielding `Resolved`, rows of history, and how it ended.

    That is `Finished`, `Stopped` at a rung, or `Interrupted`.

    `Saving` comes before each checkpoint, after every row that the checkpoint covers. Closing the
    generator ends the training at once and leaves no temporary file. PyTorch's global random
    state, threads and deterministic mode are the trial's own while it runs, and the caller's
    between two reports.

    Args:
        trial: What to train.
        digests: What was planned; rows and teacher are checked against them.
        teacher: The folder that `prepare_teacher` made. Without one, a trial that reads a teacher
            prepares it first, in a temporary folder.
        plugins: A folder with the files of the user's losses, each as `<digest>.py`; without one
            they are read where the grid found them. They are executed.
        assets: What the process keeps from trial to trial; changes no number.
        settings: How this host runs trials; those of `assets` unless given.
        checkpoints: A folder for checkpoints; none are written without.
        resume_from: An earlier attempt's folder of checkpoints; the newest whole one is taken.
        begin: A folder that `into` made of the trial's first stages; they are not trained again.
        into: The stages are those with which several trials begin: the student that they leave
            goes into this folder, which is there whole or not at all, and is not reported on. One
            that is there already is reported again.
        rungs: Shares of the last stage's steps, growing; at the first evaluation of select at or
            after each, before the end, the training stands still.
        goes_on: Asked at each rung; if it says no, the trial is stopped there.
        stop: Looked at before every step.

    Raises:
        DataError: The rows cannot be read, or rows or the teacher have changed since they were
            planned.
        PluginError: A loss of the user's has changed since it was planned, or is none.
        TeacherError: The teacher does not fit, or one prepared here knows less than its floor.
        GridError: Terms or initialisation do not fit the models.
        DivergedError: A loss is no longer finite.
        CheckpointError: The checkpoint is another trial's, or `begin` holds other stages.
    """
    settings = settings or (assets.settings if assets else Settings())
    attempt = _Attempt(
        trial=trial,
        digests=digests,
        teacher=teacher,
        plugins=plugins,
        assets=assets or Assets(settings),
        settings=settings,
        checkpoints=checkpoints,
        resume_from=resume_from,
        begin=begin,
        into=into,
        rungs=rungs,
        goes_on=goes_on,
        stop=stop,
    )
    return within(_train(attempt), settings)


@dataclass(frozen=True)
class _Attempt:
    """The arguments of `train`."""

    trial: Trial
    digests: Digests | None
    teacher: Path | None
    plugins: Path | None
    assets: Assets
    settings: Settings
    checkpoints: Path | None
    resume_from: Path | None
    begin: Path | None
    into: Path | None
    rungs: tuple[float, ...]
    goes_on: GoesOn
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
    pretrained: TeacherSource
    """The teacher before its fine-tuning, where a stage reads it."""
    folder: Path | None
    """The prepared teacher; None for a trial that reads none."""
    record: TeacherRecord | None
    digests: Digests
    data: tuple[LoadedText, ...]
    """What each stage trains on, in their order."""

    @property
    def sizes(self) -> Sizes:
        """Of the teacher's features."""
        return Sizes(
            num_hidden_layers=self.config.num_hidden_layers,
            hidden_size=self.config.hidden_size,
            num_attention_heads=self.config.num_attention_heads,
            num_labels=len(self.loaded.data.classes),
            vocab_size=self.config.vocab_size,
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
        if attempt.into is None:
            yield from _train_student(attempt, known, clock)
        else:
            yield from _train_begun(attempt, attempt.into, known, clock)


def _train_student(
    attempt: _Attempt, known: _Knowledge, clock: Clock
) -> Generator[Report, None, None]:
    identity = trial_id(attempt.trial, known.digests)
    made = yield from _fit_stages(attempt, known, clock, identity=identity)
    if made is None:
        return
    student, fitted, values = made.student, made.fitted, dict(made.values)
    if fitted.is_stopped:
        measured = {"peak_memory_mb": _peak_memory_mb(attempt.device), **clock.columns()}
        yield Stopped(fitted.step, values | measured)
        return
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


def _train_begun(
    attempt: _Attempt, into: Path, known: _Knowledge, clock: Clock
) -> Generator[Report, None, None]:
    num_stages = len(attempt.trial.stages)
    identity = stage_id(attempt.trial, known.digests, num_stages=num_stages)
    if into.is_dir():
        record = StagesRecord.read(into, identity=identity)
        yield _begun_again(into, step=record.step, values=record.values)
        return
    remove_partial(into.parent, into.name)
    made = yield from _fit_stages(attempt, known, clock, identity=identity)
    if made is None:
        return
    step = made.fitted.step
    values = {
        **made.values,
        "peak_memory_mb": _peak_memory_mb(attempt.device),
        **clock.columns(),
    }
    with whole_folder(into) as folder:
        save_model(made.student, tokenizer_files(folder_of(known.source)), folder)
        StagesRecord(identity, num_stages, step, weights_digest(folder), values).write(folder)
    yield _begun_again(into, step=step, values=values)


def _begun_again(folder: Path, *, step: int, values: Mapping[str, Value]) -> Finished:
    return Finished(
        step=step,
        values=values,
        predictions=None,
        save_student=lambda target: copy_folder(folder, target),
    )


@dataclass(frozen=True)
class _Made:
    """A student that has been through its stages."""

    student: BertForSequenceClassification
    fitted: Fitted
    values: Mapping[str, Value]


def _fit_stages(
    attempt: _Attempt, known: _Knowledge, clock: Clock, *, identity: str
) -> Generator[Report, None, _Made | None]:
    """Every stage that is still to be trained; None, after `Interrupted`, if asked to leave."""
    trial, settings = attempt.trial, attempt.settings
    with clock("start"):
        student = _student(attempt, known)
        first, micro_batches = _begin(attempt, known, student)
        place(student, attempt.device)
        resumed = resumable(identity, resume_from=attempt.resume_from)
        if resumed is not None:
            first = resumed.stage
        objectives = _objectives(attempt, known, student)
    resumed_from_step = resumed.step if resumed else 0
    yield Resolved(_resolved(attempt, known, student, objectives, resumed_from_step))
    fitted: Fitted | None = None
    for job in _jobs(attempt, known, student, objectives, identity=identity)[first:]:
        try:
            with clock("teacher"):
                began = clock.elapsed()
                outputs = _outputs(attempt, known, job)
                if isinstance(outputs, Kept):
                    clock.spare(0.0, took=clock.elapsed() - began)
        except StoppedError:
            yield Interrupted(resumed_from_step)
            return None
        fitted = yield from fit(
            job,
            outputs=outputs,
            settings=settings,
            clock=clock,
            checkpoints=attempt.checkpoints,
            resumed=resumed if resumed is not None and job.stage == resumed.stage else None,
            micro_batches=fitted.micro_batches if fitted else micro_batches,
            stop=attempt.stop,
            goes_on=attempt.goes_on,
        )
        if fitted is None:
            return None
    assert fitted is not None, "the last stage is never trained before"
    for which in _teachers(known, trial, objectives):
        attempt.assets.check_unchanged(which)
    columns = _resolved_columns(attempt, known, student, objectives, resumed_from_step)
    return _Made(student, fitted, {**columns, **fitted.values})


def _jobs(
    attempt: _Attempt,
    known: _Knowledge,
    student: BertForSequenceClassification,
    objectives: Sequence[Objective],
    *,
    identity: str,
) -> list[Fit]:
    """What is fitted in each stage."""
    stages = attempt.trial.stages
    jobs: list[Fit] = []
    for index, (stage, objective) in enumerate(zip(stages, objectives, strict=True)):
        is_last = attempt.into is None and index == len(stages) - 1
        rows = known.data[index].rows
        job = Fit(
            identity=identity,
            stage=index,
            first_step=sum(each.num_steps for each in jobs),
            first_term=sum(len(each.objective.terms) for each in jobs),
            model=student,
            objective=objective,
            rows=rows,
            tokens=known.tokens,
            metrics=known.loaded.data.metrics,
            # Until something trains the head, what it says of select means nothing.
            evaluates=is_last or any(trains_head(term) for term in stage.terms),
            vocabulary=_vocabulary(attempt, known, stage),
            training=stage.training,
            precision=attempt.settings.resolve(stage.training.precision),
            seed=attempt.trial.seed,
            rungs=rung_steps(
                attempt.rungs if is_last else (),
                num_steps=stage_steps(stage.training, num_rows=len(rows)),
                times=stage.training.evaluate.times,
            ),
        )
        jobs.append(job)
    return jobs


def _objectives(
    attempt: _Attempt, known: _Knowledge, student: BertForSequenceClassification
) -> list[Objective]:
    trial = attempt.trial
    made = []
    for stage, data in zip(trial.stages, known.data, strict=True):
        head = None
        if hides_tokens(stage.terms):
            head = make_language_head(student.config, seed=trial.seed)
        objective = build_objective(
            stage,
            student=sizes(student),
            teacher=known.sizes,
            seed=trial.seed,
            num_rows=len(data.rows),
            language_head=head,
            plugins=attempt.plugins,
        )
        made.append(objective.to(attempt.device))
    return made


def _begin(
    attempt: _Attempt, known: _Knowledge, student: BertForSequenceClassification
) -> tuple[int, int]:
    """Take over what first stages left; returns how many they are, and the parts of a batch."""
    if attempt.begin is None:
        return 0, 1
    for num_stages in range(1, len(attempt.trial.stages)):
        identity = stage_id(attempt.trial, known.digests, num_stages=num_stages)
        if attempt.begin.name == identity:
            record = StagesRecord.read(attempt.begin, identity=identity)
            load_begun(attempt.begin, student)
            return num_stages, int(record.values["micro_batches"] or 1)
    raise CheckpointError(f"{attempt.begin} is not what this trial begins with")


def _vocabulary(attempt: _Attempt, known: _Knowledge, stage: Stage) -> Vocabulary | None:
    return attempt.assets.vocabulary(known.source) if hides_tokens(stage.terms) else None


def _teachers(
    known: _Knowledge, trial: Trial, objectives: Sequence[Objective]
) -> list[Path | TeacherSource]:
    """Whom the stages read."""
    read = [
        _who_teaches(known, stage)
        for stage, objective in zip(trial.stages, objectives, strict=True)
        if _reads_teacher(objective)
    ]
    return list(dict.fromkeys(read))


def _who_teaches(known: _Knowledge, stage: Stage) -> Path | TeacherSource:
    if stage.teacher == "pretrained":
        return known.pretrained
    assert known.folder is not None
    return known.folder


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
    tokens = assets.tokens(loaded, source, max_length=trial.task.max_length)
    data = tuple(
        LoadedText(tokens.train, loaded.digest)
        if stage.data == "task"
        else assets.text(loaded, stage.data, source, max_length=trial.task.max_length)
        for stage in trial.stages
    )
    texts = tuple(
        each.digest for each, stage in zip(data, trial.stages, strict=True) if stage.data != "task"
    )
    if planned is not None:
        for own, of_plan in zip_longest(texts, planned.texts, fillvalue="none"):
            check_digest("a stage's text", found=own, planned=of_plan)
    return _Knowledge(
        loaded=loaded,
        tokens=tokens,
        config=BertConfig.from_pretrained(folder_of(source)),
        source=source,
        pretrained=locate_teacher(trial.teacher) if _reads_pretrained(trial) else source,
        folder=folder,
        record=record,
        digests=Digests(task=loaded.digest, teacher=found, texts=texts),
        data=data,
    )


def _reads_pretrained(trial: Trial) -> bool:
    return any(stage.teacher == "pretrained" for stage in trial.stages)


def _needs_prepared_teacher(trial: Trial) -> bool:
    """Whether a trial reads what the preparation of its teacher makes."""
    reads = any(
        uses_teacher(term)
        for stage in trial.stages
        for term in stage.terms
        if stage.teacher == "fine_tuned" or isinstance(term, MaskedLogits)
    )
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
        initialise(student, start, fine_tuned=None, pretrained=assets.teacher(source).model)
    return student


def _reads_teacher(objective: Objective) -> bool:
    return bool(objective.teacher_needs)


def _outputs(attempt: _Attempt, known: _Knowledge, job: Fit) -> TeacherOutputs | None:
    if not _reads_teacher(job.objective):
        return None
    stage, assets = attempt.trial.stages[job.stage], attempt.assets
    which, needs = _who_teaches(known, stage), job.objective.teacher_needs
    if hides_tokens(stage.terms):
        head = None
        if WORDS in needs:
            assert known.folder is not None
            head = assets.language_head(known.pretrained, known.folder)
        return Online(assets.teacher(which).model, needs, job.precision, head)
    return assets.outputs(
        which,
        job.rows,
        source=_source_keys(attempt, known)[job.stage],
        task=name_of_rows(attempt.trial.task, stage.data),
        pad_token_id=known.tokens.pad_token_id,
        needs=needs,
        sizes=known.sizes,
        precision=job.precision,
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
        stage_steps(stage.training, num_rows=len(data.rows))
        for stage, data in zip(attempt.trial.stages, known.data, strict=True)
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
    stages = zip(
        attempt.trial.stages, known.data, objectives, _source_keys(attempt, known), strict=True
    )
    types: set[Type | None] = set()
    for stage, data, objective, source in stages:
        if not _reads_teacher(objective):
            continue
        needs, keeping = objective.teacher_needs, None
        if not hides_tokens(stage.terms):
            keeping = attempt.assets.keeps(
                source,
                needs,
                sizes=known.sizes,
                rows=data.rows,
                precision=attempt.settings.resolve(stage.training.precision),
            )
        types.add(None if keeping is None else keeping.type_of(needs))
    if not types:
        return "none"
    if None in types:
        return "online"
    return "cached as fp16" if "fp16" in types else "cached as fp32"


def _source_keys(attempt: _Attempt, known: _Knowledge) -> tuple[str, ...]:
    return source_keys(attempt.trial, known.digests, precision=attempt.settings.precision)


def _predictions(
    attempt: _Attempt,
    known: _Knowledge,
    student: BertForSequenceClassification,
    fitted: Fitted,
) -> Predictions:
    """Logits on report in fp32, of the last weights and of the best; these stay in the student."""
    tokens, chosen, logits = known.tokens, fitted.best, fitted.logits
    assert chosen is not None, "the last stage reads select"
    assert logits is not None, "the last stage reads select"

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
    if chosen.step != fitted.step:
        student.load_state_dict(chosen.weights)
        best = report_logits()
    return Predictions(
        select=SplitPredictions(
            labels=tokens.select.labels.numpy(),
            last=logits.numpy(),
            best=chosen.logits.numpy(),
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
    """The median time of one row's forward pass in fp32, by transformers as whoever deploys it."""
    length = min(MEASURED_LENGTH, attempt.trial.task.max_length)
    ids = torch.zeros(1, length, dtype=torch.int64, device=attempt.device)
    student.eval()
    timer = Timer(
        stmt="student(input_ids=ids, attention_mask=ones, token_type_ids=ids)",
        globals={"student": student, "ids": ids, "ones": torch.ones_like(ids)},
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
