"""Prepare a teacher once for a task: fine-tune or only map its classes, measure, write down."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..search_spaces.errors import DataError, Problem, TeacherError
from ..search_spaces.knowledge import HardLabels, MaskedLabels
from ..search_spaces.training import Evaluate, FineTune, Training
from ..search_spaces.trial import Digests, make_stage
from .assets import Assets
from .bert import parts, sizes
from .checkpoint import Checkpoint, remove_partial, whole_folder
from .clock import Clock
from .evaluate import majority_share, predict, score_logits
from .fit import Fit, fit, resumable
from .forward import place
from .frozen import (
    LOGITS,
    TeacherRecord,
    load_classifier,
    load_teacher,
    teacher_logits,
    weights_digest,
)
from .language import make_language_head, save_language_head
from .objective import build_objective
from .reports import (
    Finished,
    Predictions,
    Report,
    Resolved,
    SplitPredictions,
    Value,
)
from .saving import copy_folder, save_model, tokenizer_files
from .settings import Settings
from .sources import (
    TeacherSource,
    check_classes,
    folder_of,
    locate_teacher,
    teacher_digest,
)
from .streams import generator
from .student import INITIAL_STD, count_parameters
from .surroundings import within

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from ..search_spaces.task import Task, Teacher
    from .assets import LoadedTask, Tokens
    from .fit import Fitted

__all__ = ["check_digest", "load_teacher", "never", "prepare_teacher"]


_HEAD = "classifier"
_POOLER = "bert.pooler"


def never() -> bool:
    """Do not stop."""
    return False


def prepare_teacher(
    teacher: Teacher,
    task: Task,
    *,
    into: Path,
    digests: Digests | None = None,
    assets: Assets | None = None,
    settings: Settings | None = None,
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
    stop: Callable[[], bool] = never,
) -> Generator[Report, None, None]:
    """Make a teacher ready for a task's trials, yielding reports like a trial's.

    A teacher with `fine_tune` gets a new head and learns the task's hard labels; its last weights
    stay. One without has its logits put into the order of the task's classes. With `language_head`
    a head for masked language modelling is trained before, on the encoder as it is then. The folder
    `into` then holds the model, its tokenizer, its logits on select and report, that head and
    `teacher.json`; it is there whole or not at all. One that is there already is reported again.

    Args:
        teacher: What the grid says.
        task: What it is to know.
        into: The folder to be made.
        digests: What was planned; the rows and the teacher's files are checked against them.
        assets: What the process keeps; its own unless given.
        settings: How this host runs trials; those of `assets` unless given.
        checkpoints: A folder for checkpoints; none are written without.
        resume_from: An earlier attempt's folder of checkpoints.
        stop: Looked at before every step.

    Raises:
        DataError: The rows cannot be read, or rows or the teacher's files have changed since they
            were planned.
        TeacherError: The teacher cannot be read, or does not fit.
        DivergedError: A loss is no longer finite.
        CheckpointError: The checkpoint is of another teacher.
    """
    settings = settings or (assets.settings if assets else Settings())
    asked = _Preparation(
        teacher=teacher,
        task=task,
        into=into,
        digests=digests,
        assets=assets or Assets(settings),
        settings=settings,
        checkpoints=checkpoints,
        resume_from=resume_from,
        stop=stop,
    )
    return within(_prepare(asked), settings)


def check_digest(what: str, *, found: str, planned: str) -> None:
    """Refuse rows or files that changed since they were planned.

    Raises:
        DataError: The digests differ.
    """
    if found != planned:
        raise DataError(
            [
                Problem(
                    what,
                    f"has changed since it was planned (digest {found[:12]}, not {planned[:12]})",
                    "Re-plan: launch the grid again.",
                )
            ]
        )


@dataclass(frozen=True)
class _Preparation:
    """The arguments of `prepare_teacher`."""

    teacher: Teacher
    task: Task
    into: Path
    digests: Digests | None
    assets: Assets
    settings: Settings
    checkpoints: Path | None
    resume_from: Path | None
    stop: Callable[[], bool]

    @property
    def device(self) -> torch.device:
        return torch.device(self.settings.device)


@dataclass(frozen=True)
class _Known:
    """What is there before anything is prepared."""

    loaded: LoadedTask
    source: TeacherSource
    digest: str
    tokens: Tokens

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the task."""
        return self.loaded.data.classes


def _prepare(asked: _Preparation) -> Generator[Report, None, None]:
    clock = Clock()
    with clock("start"):
        known = _know(asked)
    if asked.into.is_dir():
        yield _again(asked.into, known)
        return
    remove_partial(asked.into.parent, asked.into.name)
    with clock("start"):
        order = check_classes(known.source, known.loaded.data, asked.teacher)
        model = _model(asked.teacher, known, order)
        place(model, asked.device)
        head = _head_job(asked, known)
        tuning = _fine_tuning(asked, known, model, after=head)
        jobs = [job for job in (head, tuning) if job is not None]
        resumed = {job.stage: _resumed(asked, job) for job in jobs}
        waiting = _head_folder(asked, known)
        steps = [each.step for each in resumed.values() if each is not None]
        if head is not None and waiting.is_dir():
            steps.append(head.num_steps)
    values: dict[str, Value] = {**count_parameters(model)}
    from_step = max(steps, default=0)
    yield Resolved(
        {
            "class_order": list(order),
            **values,
            "terms": [{**term, "index": n} for n, term in enumerate(_described(jobs))],
            "steps": sum(job.num_steps for job in jobs),
            "resumed_from_step": from_step,
        }
    )
    fitted: Fitted | None = None
    for job in jobs:
        if job is head and waiting.is_dir():
            continue
        fitted = yield from fit(
            job,
            outputs=None,
            settings=asked.settings,
            clock=clock,
            checkpoints=asked.checkpoints and asked.checkpoints / _PARTS[job.stage],
            resumed=resumed[job.stage],
            stop=asked.stop,
        )
        if fitted is None:
            return
        if job is head:
            _keep_head(job, waiting)
        else:
            values |= fitted.values
    with clock("evaluate"):
        logits = _logits(asked, known, model)
    values |= {
        **_measured(logits, known),
        "resumed_from_step": from_step,
        "primary_metric": known.loaded.data.metric,
        "precision": asked.settings.precision,
        "device": asked.settings.device,
        "threads": asked.settings.threads,
    }
    step = fitted.step if fitted else 0
    with clock("write"), whole_folder(asked.into) as folder:
        weights = _write(model, known.source, logits, folder)
        if head is not None:
            copy_folder(waiting, folder)
        values |= {"teacher_weights": weights, **clock.columns()}
        TeacherRecord(
            digest=known.digest,
            model=asked.teacher.model,
            classes=known.classes,
            weights=weights,
            step=step,
            values=values,
        ).write(folder)
    shutil.rmtree(waiting, ignore_errors=True)
    yield _finished(step, values, logits, known=known, folder=asked.into)


def _know(asked: _Preparation) -> _Known:
    """Find rows and teacher, and check both against what was planned."""
    loaded = asked.assets.task(asked.task)
    source = locate_teacher(asked.teacher)
    digest = teacher_digest(asked.teacher, source, loaded.data, asked.task)
    if asked.digests is not None:
        check_digest("task", found=loaded.digest, planned=asked.digests.task)
        check_digest("teacher", found=digest, planned=asked.digests.teacher)
    tokens = asked.assets.tokens(loaded, source, max_length=asked.task.max_length)
    return _Known(loaded=loaded, source=source, digest=digest, tokens=tokens)


_PARTS = ("", "language_head")
"""Where the checkpoints of each stage of a preparation lie, below the folder of them all."""


def _resumed(asked: _Preparation, job: Fit) -> Checkpoint | None:
    before = asked.resume_from
    return resumable(job.identity, resume_from=before and before / _PARTS[job.stage])


def _described(jobs: Sequence[Fit]) -> Iterator[dict[str, object]]:
    return (term for job in jobs for term in job.objective.describe())


def _again(into: Path, known: _Known) -> Finished:
    """The last report of a teacher that was prepared before."""
    record = TeacherRecord.read(into)
    if record.digest != known.digest:
        raise TeacherError(
            [
                Problem(
                    str(into),
                    f"holds another teacher (digest {record.digest[:12]}, not {known.digest[:12]})",
                    "Name a folder that does not exist.",
                )
            ]
        )
    return _finished(record.step, record.values, teacher_logits(into), known=known, folder=into)


def _fine_tuning(
    asked: _Preparation, known: _Known, model: BertForSequenceClassification, *, after: Fit | None
) -> Fit | None:
    fine_tune = asked.teacher.fine_tune
    if fine_tune is None:
        return None
    training = Training(
        learning_rate=fine_tune.learning_rate,
        epochs=fine_tune.epochs,
        batch_size=fine_tune.batch_size,
        dropout=fine_tune.dropout,
        weight_decay=fine_tune.weight_decay,
        warmup=fine_tune.warmup,
        evaluate=Evaluate(times=fine_tune.epochs),
    )
    stage = make_stage((HardLabels(kind="hard_labels"),), training)
    own = sizes(model)
    return Fit(
        identity=f"teacher-{known.digest}",
        stage=0,
        first_step=after.num_steps if after else 0,
        first_term=len(after.objective.terms) if after else 0,
        model=model,
        objective=build_objective(stage, student=own, teacher=own, seed=fine_tune.seed),
        rows=known.tokens.train,
        tokens=known.tokens,
        metrics=known.loaded.data.metrics,
        evaluates=True,
        vocabulary=None,
        training=training,
        precision=asked.settings.precision,
        seed=fine_tune.seed,
    )


def _head_job(asked: _Preparation, known: _Known) -> Fit | None:
    """Train a head for masked language modelling on the pre-trained encoder, which stays."""
    wanted, assets = asked.teacher.language_head, asked.assets
    if wanted is None:
        return None
    training = Training(
        learning_rate=wanted.learning_rate,
        total_steps=wanted.steps,
        batch_size=wanted.batch_size,
        dropout=0,
        evaluate=Evaluate(times=1),
    )
    stage = make_stage((MaskedLabels(kind="masked_labels"),), training)
    encoder, _ = load_classifier(folder_of(known.source), may_lack=(_HEAD, _POOLER))
    place(encoder.requires_grad_(requires_grad=False), asked.device)
    own = sizes(encoder)
    objective = build_objective(
        stage,
        student=own,
        teacher=own,
        seed=wanted.seed,
        language_head=make_language_head(encoder.config, seed=wanted.seed),
    )
    text = assets.text(known.loaded, wanted.data, known.source, max_length=asked.task.max_length)
    return Fit(
        identity=f"language-head-{known.digest}",
        stage=1,
        first_step=0,
        first_term=0,
        model=encoder,
        objective=objective.to(asked.device),
        rows=text.rows,
        tokens=known.tokens,
        metrics=known.loaded.data.metrics,
        evaluates=False,
        vocabulary=assets.vocabulary(known.source),
        training=training,
        precision=asked.settings.precision,
        seed=wanted.seed,
    )


def _head_folder(asked: _Preparation, known: _Known) -> Path:
    """Where a trained head waits until its teacher is prepared."""
    return asked.into.with_name(f"{known.digest[:16]}-language-head")


def _keep_head(job: Fit, waiting: Path) -> None:
    assert job.objective.language_head is not None
    with whole_folder(waiting) as folder:
        save_language_head(job.objective.language_head, folder)


def _model(
    teacher: Teacher, known: _Known, order: tuple[int, ...]
) -> BertForSequenceClassification:
    folder = folder_of(known.source)
    if teacher.fine_tune is None:
        return _with_classes(folder, known.classes, order)
    return _with_new_head(folder, known.classes, teacher.fine_tune)


def _with_new_head(
    folder: Path, classes: tuple[str, ...], fine_tune: FineTune
) -> BertForSequenceClassification:
    """The checkpoint with a head for the task, and with its pooler, new where it has none."""
    model, lacking = load_classifier(
        folder,
        may_lack=(_HEAD, _POOLER),
        config={
            **_named(classes),
            "hidden_dropout_prob": fine_tune.dropout,
            "attention_probs_dropout_prob": fine_tune.dropout,
            "classifier_dropout": fine_tune.dropout,
        },
    )
    _draw(parts(model).head, seed=fine_tune.seed, role="head")
    if any(name.startswith(_POOLER) for name in lacking):
        _draw(parts(model).pooler, seed=fine_tune.seed, role="pooler")
    return model


def _with_classes(
    folder: Path, classes: tuple[str, ...], order: tuple[int, ...]
) -> BertForSequenceClassification:
    """The checkpoint with its logits in the order of the task's classes."""
    model, _ = load_classifier(folder, config=_named(classes))
    head = parts(model).head
    head.weight.data = head.weight.data[list(order)]
    head.bias.data = head.bias.data[list(order)]
    return model


def _named(classes: tuple[str, ...]) -> dict[str, dict[int, str] | dict[str, int]]:
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: index for index, name in enumerate(classes)},
    }


def _draw(part: nn.Module, *, seed: int, role: str) -> None:
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear):
            stream = generator(seed, role, f"{name}.weight")
            nn.init.normal_(module.weight, std=INITIAL_STD, generator=stream)
            nn.init.zeros_(module.bias)


def _logits(
    asked: _Preparation, known: _Known, model: BertForSequenceClassification
) -> dict[str, Tensor]:
    """On select and report, in fp32."""
    tokens = known.tokens
    return {
        name: predict(
            model, split, pad_token_id=tokens.pad_token_id, device=asked.device, precision="fp32"
        )
        for name, split in (("select", tokens.select), ("report", tokens.report))
    }


def _measured(logits: Mapping[str, Tensor], known: _Known) -> dict[str, Value]:
    data, tokens = known.loaded.data, known.tokens
    values: dict[str, Value] = {}
    for name, split in (("select", tokens.select), ("report", tokens.report)):
        scores = score_logits(data.metrics, logits[name], split.labels)
        values |= {f"{name}/{metric}": value for metric, value in scores.items()}
        values |= {f"{name}/primary": scores[data.metric]}
        values |= {f"{name}/majority": majority_share(split.labels)}
    return values


def _write(
    model: BertForSequenceClassification,
    source: TeacherSource,
    logits: Mapping[str, Tensor],
    folder: Path,
) -> str:
    """Everything but `teacher.json`; returns the SHA-256 of the weights' file."""
    save_model(model, tokenizer_files(folder_of(source)), folder)
    save_file(dict(logits), folder / LOGITS)
    return weights_digest(folder)


def _finished(
    step: int,
    values: Mapping[str, Value],
    logits: Mapping[str, Tensor],
    *,
    known: _Known,
    folder: Path,
) -> Finished:
    data = known.loaded.data
    select, report = (
        SplitPredictions(labels=rows.labels, last=logits[name].numpy(), best=logits[name].numpy())
        for name, rows in (("select", data.select), ("report", data.report))
    )
    return Finished(
        step=step,
        values=values,
        predictions=Predictions(select=select, report=report),
        save_student=lambda target: copy_folder(folder, target),
    )
