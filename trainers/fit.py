"""One stage of training: steps, evaluations, checkpoints. Students and teachers share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .batches import Batch, collate, epoch_batches, steps_per_epoch
from .checkpoint import Checkpoint, newest, publish
from .dropout import set_dropout
from .errors import BatchMemoryError, DivergedError, is_out_of_memory
from .evaluate import evaluation_steps, predict, score_logits
from .forward import forward
from .language import hide_tokens
from .micro_batches import CachedFeatures, join, split
from .optim import (
    clip_gradients,
    gradient_norms,
    learning_rate,
    make_optimiser,
    set_learning_rate,
)
from .outputs import Kept, Online
from .reports import GoesOn, Interrupted, Report, Row, Rung, Saving
from .seen_tokens import SeenTokens, seeing, seen_ids
from .streams import generator, stream_seed

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from ..search_spaces.training import Training
    from .assets import Tokens
    from .batches import Split
    from .clock import Clock
    from .features import Features
    from .glue import Metric
    from .language import Vocabulary
    from .objective import Objective, TermLosses
    from .outputs import TeacherOutputs
    from .settings import Precision, Settings

ROWS = 100
"""Rows of history, spread evenly over the steps, beside those of the evaluations."""


WRITING_SHARE = 0.05
"""Of the time, about the most that goes into checkpoints."""


@dataclass(frozen=True)
class Fit:
    """What is fitted, to what, and how."""

    identity: str
    """Of the training, so that no other one's checkpoint is taken for its own."""
    stage: int
    first_step: int
    """Optimiser steps of the stages before."""
    first_term: int
    """Terms of the stages before."""
    model: BertForSequenceClassification
    objective: Objective
    rows: Split
    """What is trained on."""
    tokens: Tokens
    """Of the task."""
    metrics: Sequence[Metric]
    """The main one first."""
    evaluates: bool
    """Whether select is read; not where the head means nothing yet."""
    vocabulary: Vocabulary | None
    """Where tokens are hidden; None: nowhere."""
    training: Training
    precision: Precision
    seed: int
    rungs: Mapping[int, float] = field(default_factory=dict)
    """Shares of this stage's steps at which it may end, by the step of the stage."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every row comes once."""
        return steps_per_epoch(len(self.rows), batch_size=self.training.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of this stage."""
        return stage_steps(self.training, num_rows=len(self.rows))


def stage_steps(training: Training, *, num_rows: int) -> int:
    """Optimiser steps of a stage: those it says, else its epochs."""
    if training.total_steps is not None:
        return training.total_steps
    return training.epochs * steps_per_epoch(num_rows, batch_size=training.batch_size)


@dataclass(frozen=True)
class Best:
    """What the main metric on select was best with; the first of equals."""

    step: int
    weights: Mapping[str, Tensor]
    logits: Tensor
    """On select, shape [N, C]."""
    decay: float
    """Of tokens that the stage does not read: see `SeenTokens`."""


@dataclass(frozen=True)
class Fitted:
    """How a stage ended; the last weights are in the model."""

    step: int
    best: Best | None
    """None where select was not read."""
    logits: Tensor | None
    """Of the last weights on select, in training precision, shape [N, C]."""
    values: Mapping[str, float]
    """`select/<metric>` and the losses of the last epoch."""
    resumed_from_step: int
    """Steps that an earlier attempt took; 0 where there was none."""
    micro_batches: int
    """Parts in which a batch ran; 1 unless memory ran out."""
    is_stopped: bool
    """Whether it ended at a rung."""


def always(rung: Rung) -> bool:
    """Every trial goes on."""
    del rung
    return True


def resumable(identity: str, *, resume_from: Path | None) -> Checkpoint | None:
    """The checkpoint from which a training goes on.

    Args:
        identity: Of the training.
        resume_from: Where an earlier attempt's checkpoints are.

    Raises:
        CheckpointError: It is another training's.
    """
    return None if resume_from is None else newest(resume_from, identity=identity)


def fit(
    job: Fit,
    *,
    outputs: TeacherOutputs | None,
    settings: Settings,
    clock: Clock,
    checkpoints: Path | None,
    resumed: Checkpoint | None,
    stop: Callable[[], bool],
    goes_on: GoesOn = always,
    micro_batches: int = 1,
) -> Generator[Report, None, Fitted | None]:
    """Take the steps of a stage; None, after `Interrupted`, if `stop` became true before.

    Args:
        job: What is fitted.
        outputs: The teacher's side; None where no term reads a teacher.
        settings: How this host runs trials.
        clock: Takes the times of its parts.
        checkpoints: A folder for checkpoints; none are written without.
        resumed: Where an earlier attempt left off in this stage.
        stop: Looked at before every step.
        goes_on: Asked at each rung, also when an earlier attempt left off there.
        micro_batches: Parts of a batch that the stage before needed.

    Raises:
        DivergedError: A loss or a logit is no longer finite.
    """
    with seeing(job.model, _ids_seen(job)) as seen:
        run = _Run(
            job,
            outputs,
            seen,
            device=torch.device(settings.device),
            micro_batches=micro_batches,
        )
        return (
            yield from _fit(
                run,
                settings=settings,
                clock=clock,
                checkpoints=checkpoints,
                resumed=resumed,
                stop=stop,
                goes_on=goes_on,
            )
        )


def _ids_seen(job: Fit) -> Tensor:
    """Of all tokens that the stage may read."""
    if job.vocabulary is not None:
        # A hidden token may become any other, and any is predicted.
        return torch.arange(job.model.config.vocab_size)
    splits = (job.rows, job.tokens.select) if job.evaluates else (job.rows,)
    return seen_ids(splits, pad_token_id=job.tokens.pad_token_id)


def _fit(
    run: _Run,
    *,
    settings: Settings,
    clock: Clock,
    checkpoints: Path | None,
    resumed: Checkpoint | None,
    stop: Callable[[], bool],
    goes_on: GoesOn,
) -> Generator[Report, None, Fitted | None]:
    job = run.job
    if resumed is not None:
        run.restore(resumed)
    evaluations = evaluation_steps(job.num_steps, job.training.evaluate.times)
    rows = evaluation_steps(job.num_steps, ROWS) | evaluations | {1}
    from_step = resumed.step if resumed else 0
    started, saved, pause = run.step, clock.elapsed(), settings.checkpoint_seconds
    while run.step < job.num_steps:
        share = job.rungs.get(run.step)
        with clock("wait"):
            is_stopped = share is not None and not goes_on(run.rung(share))
        # Asked afterwards: whoever is told to leave while it waits at a rung is asked again there.
        leaves = is_stopped or stop()
        is_due = clock.elapsed() - saved >= pause
        if checkpoints is not None and (is_due or leaves) and run.step > started:
            run.check_finite()
            yield Saving(job.first_step + run.step)
            before = clock.elapsed()
            with clock("write"):
                publish(run.checkpoint(), checkpoints)
            saved = clock.elapsed()
            pause = _pause(settings.checkpoint_seconds, took=saved - before)
        if is_stopped:
            return run.fitted(resumed_from_step=from_step, is_stopped=True)
        if leaves:
            yield Interrupted(job.first_step + run.step)
            return None
        with clock("data"):
            batch = run.next_batch()
        is_first, is_evaluated = run.step == 0, run.step + 1 in evaluations
        values = run.take_step(batch, clock, measures_gradients=is_first or is_evaluated)
        if is_evaluated:
            with clock("evaluate"):
                values |= run.evaluate() if job.evaluates else {}
        if run.step in rows:
            values |= run.row_losses()
            yield Row(job.first_step + run.step, {**values, "seconds": clock.elapsed()})
    run.check_finite()
    return run.fitted(resumed_from_step=from_step, is_stopped=False)


def _pause(seconds: float, *, took: float) -> float:
    """Until the next checkpoint: longer where a large student meets a slow disk."""
    return max(seconds, min(took / WRITING_SHARE, 10 * seconds))


class _Run:
    """The state of a stage between two steps."""

    def __init__(
        self,
        job: Fit,
        outputs: TeacherOutputs | None,
        seen: SeenTokens,
        *,
        device: torch.device,
        micro_batches: int,
    ) -> None:
        self.job = job
        self.outputs = outputs
        self.seen = seen
        self.device = device
        self.step = 0
        self.micro_batches = micro_batches
        job.model.train()
        # The model was made for its first stage; each says its own.
        self.masks = set_dropout(job.model, job.training.dropout, device=device)
        self.optimiser = make_optimiser([job.model, job.objective], job.training)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        encoder = job.model.base_model.parameters()
        self.backbone = [parameter for parameter in encoder if parameter.requires_grad]
        terms = len(job.objective.terms)
        # Sums of the objective and its terms, since the last row and since the epoch began.
        self.row_sum = torch.zeros(1 + terms, dtype=torch.float64, device=device)
        self.epoch_sum = torch.zeros_like(self.row_sum)
        self.row_steps = self.epoch_steps = 0
        self.bad_step: Tensor | None = None
        self.scores: dict[str, dict[str, float]] = {}
        self.best: Best | None = None
        self.logits: Tensor | None = None
        self._epoch = -1
        self._batches: tuple[Tensor, ...] = ()

    def next_batch(self) -> Batch:
        job = self.job
        epoch, place = divmod(self.step, job.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            job.objective.begin_epoch(epoch)
            self._batches = epoch_batches(
                job.rows.lengths,
                batch_size=job.training.batch_size,
                seed=job.seed,
                epoch=epoch,
            )
        batch = collate(job.rows, self._batches[place], pad_token_id=job.tokens.pad_token_id)
        if job.vocabulary is not None:
            stream = generator(job.seed, "hidden", str(job.stage), str(self.step))
            batch = hide_tokens(batch, job.vocabulary, stream=stream)
        return batch.to(self.device)

    def take_step(
        self, batch: Batch, clock: Clock, *, measures_gradients: bool
    ) -> dict[str, float]:
        """One optimiser step; what of it belongs into the history at once."""
        job = self.job
        if self.step % job.steps_per_epoch == 0:
            self.epoch_sum.zero_()
            self.epoch_steps = 0
        buffers = job.objective.state_of_a_step()
        while (found := self._try(batch, clock, measures_gradients=measures_gradients)) is None:
            # What the failed try decided or added up must not count.
            job.objective.take_back(buffers)
            self.optimiser.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batches *= 2
        losses, values = found
        with clock("student"):
            self._watch(losses)
            job.objective.remember()
            if job.training.gradient_clipping is not None:
                clip_gradients(self.parameters, job.training.gradient_clipping)
            rate = learning_rate(job.training, step=self.step, num_steps=job.num_steps)
            set_learning_rate(self.optimiser, rate)
            self.optimiser.step()
            self.seen.step(learning_rate=rate, weight_decay=job.training.weight_decay)
            self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return values | {"learning_rate": rate}

    def _try(
        self, batch: Batch, clock: Clock, *, measures_gradients: bool
    ) -> tuple[TermLosses, dict[str, float]] | None:
        """Put the gradients of a batch into the parameters; None where more parts may help."""
        try:
            return self._differentiate(batch, clock, measures_gradients=measures_gradients)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if self.micro_batches >= len(batch.rows):
                raise BatchMemoryError(error, micro_batches=self.micro_batches) from error
            return None

    def _differentiate(
        self, batch: Batch, clock: Clock, *, measures_gradients: bool
    ) -> tuple[TermLosses, dict[str, float]]:
        """Losses of a batch, with gradients in the parameters, and what is measured of them."""
        job = self.job
        parts = split(batch, self.micro_batches)
        with clock("teacher"):
            began = clock.elapsed()
            teacher = self._teacher_features(batch, parts)
            if isinstance(self.outputs, Kept):
                clock.spare(self.outputs.spared(batch), took=clock.elapsed() - began)
        with clock("student"):
            cached = CachedFeatures(self._student_features, parts) if len(parts) > 1 else None
            losses = job.objective(
                self._student_features(batch, 0) if cached is None else cached.features,
                teacher,
                labels=batch.labels,
                attention_mask=batch.attention_mask,
                targets=batch.targets,
                progress=self.step / job.num_steps,
                rows=batch.rows,
                step=self.step,
                precision=job.precision,
            )
            values = {}
            if measures_gradients and self.backbone:
                measure = gradient_norms if cached is None else cached.gradient_norms
                norms = measure([each.loss for each in losses.by_term], self.backbone)
                values = self._term_columns("gradient_norm", norms)
                if self.step == 0 and job.objective.equalises:
                    job.objective.equalise(norms)
                    losses = job.objective.weigh(losses.by_term, progress=0.0)
                values |= self._term_columns("weight", losses.weights.tolist())
                values |= {
                    f"train/term/{index}/entropy": float(each.entropy)
                    for index, each in enumerate(losses.by_term, job.first_term)
                    if each.entropy is not None
                }
            losses.total.backward()
            if cached is not None:
                cached.backward()
        return losses, values

    def _student_features(self, part: Batch, number: int) -> Features:
        """Of a part of this step's batch; the same dropout each time."""
        job = self.job
        place = (job.stage, self.step, number)
        self.masks.begin(stream_seed(job.seed, "dropout", *map(str, place)))
        return forward(
            job.model,
            part,
            job.objective.student_needs,
            precision=job.precision,
            language_head=job.objective.language_head,
        )

    def _teacher_features(self, batch: Batch, parts: Sequence[Batch]) -> Features | None:
        match self.outputs:
            case None:
                return None
            case Online() as online if len(parts) > 1:
                return join(online.features(part) for part in parts)
            case outputs:
                return outputs.features(batch)

    def _watch(self, losses: TermLosses) -> None:
        """Add the losses up; on the CPU, where looking is free, refuse bad ones at once."""
        stacked = (
            torch.stack([losses.total, *(each.loss for each in losses.by_term)]).detach().double()
        )
        self.row_sum += stacked
        self.epoch_sum += stacked
        self.row_steps += 1
        self.epoch_steps += 1
        if self.device.type == "cpu":
            self._refuse(float(stacked[0]), self.step + 1)
            return
        # Here looking would wait for the device: remember the first bad step until a row is due.
        this = torch.where(stacked[0].isfinite(), math.inf, float(self.step + 1))
        self.bad_step = this if self.bad_step is None else torch.minimum(self.bad_step, this)

    def check_finite(self) -> None:
        """Refuse to go on if any loss so far was not finite."""
        if self.bad_step is not None and math.isfinite(step := float(self.bad_step)):
            self._refuse(math.nan, int(step))

    def _refuse(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                loss=f"loss is {loss}",
                step=self.job.first_step + step,
                learning_rate=self.job.training.learning_rate,
            )

    def _loss_columns(self, means: Tensor) -> dict[str, float]:
        total, *by_term = means.tolist()
        return {"train/loss": total, **self._term_columns("loss", by_term)}

    def _term_columns(self, what: str, by_term: Sequence[float]) -> dict[str, float]:
        """Of the stage's terms, which are counted on from those of the stages before."""
        first = self.job.first_term
        return {f"train/term/{index}/{what}": value for index, value in enumerate(by_term, first)}

    def row_losses(self) -> dict[str, float]:
        """The mean losses since the last row, by column name."""
        self.check_finite()
        values = self._loss_columns(self.row_sum / self.row_steps)
        self.row_sum.zero_()
        self.row_steps = 0
        return values

    def evaluate(self) -> dict[str, float]:
        """Score select, and keep the weights if they are better than all before."""
        job = self.job
        split = job.tokens.select
        logits = predict(
            job.model,
            split,
            pad_token_id=job.tokens.pad_token_id,
            device=self.device,
            precision=job.precision,
        )
        if not bool(logits.isfinite().all()):
            raise DivergedError(
                loss="a logit on select is not finite",
                step=job.first_step + self.step,
                learning_rate=job.training.learning_rate,
            )
        scores = score_logits(job.metrics, logits, split.labels)
        step = job.first_step + self.step
        for metric, value in scores.items():
            before = self.scores.get(metric)
            best = before if before and before["best"] >= value else {"best": value, "step": step}
            self.scores[metric] = {**best, "last": value}
        if self.scores[job.metrics[0]]["step"] == step:
            self.best = Best(step, self._copy_weights(), logits, self.seen.decay)
        self.logits = logits
        return {f"select/{metric}": value for metric, value in scores.items()}

    def _copy_weights(self) -> dict[str, Tensor]:
        weights = self.job.model.state_dict()
        if self.best is None:
            return {name: tensor.clone() for name, tensor in weights.items()}
        for name, tensor in self.best.weights.items():
            tensor.copy_(weights[name])
        return dict(self.best.weights)

    def rung(self, share: float) -> Rung:
        """Where the stage stands, right after an evaluation."""
        scores = {metric: of["last"] for metric, of in self.scores.items()}
        scores["primary"] = scores[self.job.metrics[0]]
        return Rung(share, self.job.first_step + self.step, scores)

    def fitted(self, *, resumed_from_step: int, is_stopped: bool) -> Fitted:
        values = self._loss_columns(self.epoch_sum / self.epoch_steps)
        if self.job.objective.equalises:
            values |= self._term_columns("scale", self.job.objective.scales.tolist())
        if self.scores:
            values |= self._score_columns()
        best = self.best
        if best is not None:
            best = replace(best, weights=self.seen.widen(best.weights, decay=best.decay))
        return Fitted(
            step=self.job.first_step + self.step,
            best=best,
            logits=self.logits,
            values=values | {"micro_batches": self.micro_batches},
            resumed_from_step=resumed_from_step,
            micro_batches=self.micro_batches,
            is_stopped=is_stopped,
        )

    def _score_columns(self) -> dict[str, float]:
        main = self.job.metrics[0]
        named = [("primary", main), *((metric, metric) for metric in self.job.metrics)]
        return {
            column: value
            for name, metric in named
            for column, value in (
                (f"select/{name}", self.scores[metric]["last"]),
                (f"select/{name}/best", self.scores[metric]["best"]),
                (f"select/{name}/best_step", self.scores[metric]["step"]),
            )
        }

    def checkpoint(self) -> Checkpoint:
        """Everything that decides the steps to come."""
        best = self.best
        return Checkpoint(
            identity=self.job.identity,
            stage=self.job.stage,
            step=self.job.first_step + self.step,
            tensors={
                "model": self.job.model.state_dict(),
                "objective": self.job.objective.state_dict(),
                "optimiser": _flat_state(self.optimiser),
                "losses": {"row": self.row_sum, "epoch": self.epoch_sum},
                "best": {} if best is None else best.weights,
                "logits": {} if best is None else {"best": best.logits},
                "unseen": {"embeddings": self.seen.unseen},
            },
            state={
                "row_steps": self.row_steps,
                "epoch_steps": self.epoch_steps,
                "scores": self.scores,
                "best_step": None if best is None else best.step,
                "best_decay": None if best is None else best.decay,
                "decay": self.seen.decay,
                "micro_batches": self.micro_batches,
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors, checkpoint.state
        self.step = checkpoint.step - self.job.first_step
        self.job.model.load_state_dict(tensors["model"])
        self.seen.unseen.copy_(tensors["unseen"]["embeddings"])
        self.seen.decay = state["decay"]
        self.job.objective.load_state_dict(tensors["objective"])
        _load_flat_state(self.optimiser, tensors["optimiser"])
        self.row_sum.copy_(tensors["losses"]["row"])
        self.epoch_sum.copy_(tensors["losses"]["epoch"])
        self.row_steps, self.epoch_steps = state["row_steps"], state["epoch_steps"]
        self.micro_batches = state["micro_batches"]
        self.scores = {metric: dict(scores) for metric, scores in state["scores"].items()}
        if state["best_step"] is not None:
            weights = {name: t.to(self.device).clone() for name, t in tensors["best"].items()}
            logits = tensors["logits"]["best"]
            self.best = Best(state["best_step"], weights, logits, state["best_decay"])


def _flat_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {f"{n}.{name}": tensor for n, entry in state.items() for name, tensor in entry.items()}


def _load_flat_state(optimiser: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        number, name = key.split(".")
        # The optimiser would keep the file's own tensor, wherever in memory it lies.
        state.setdefault(int(number), {})[name] = tensor.clone()
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
