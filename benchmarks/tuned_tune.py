"""The same user as in `naive_tune.py` on a good day: what can be kept by hand is kept.

    python benchmarks/tuned_tune.py WORK

Student, terms, optimiser, schedule and what is told are the naive ones. What differs:

* actors are reused, so that imports, tokens and teacher stay from trial to trial;
* whatever the terms read of the teacher is computed once an actor and kept in memory: logits, the
  hidden states of matched layers, and their maps of attention, already averaged over heads;
* batches are padded to their longest row; evaluation goes in the order of lengths;
* threads are pinned, the optimiser is fused, Tune's loggers are off;
* bf16 where the processor multiplies it.

Not here, because it is no matter of a few lines: tensors shared between actors, batches of like
lengths, resuming, a store.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Their files are written for every trial, and nobody reads them here.
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import ray
import torch
from by_hand import Ended, Point, Work, read_work, told
from datasets import Dataset, load_dataset
from naive_tune import (
    EVALUATION_BATCH,
    Terms,
    evaluation_steps,
    new_optimizer,
    new_schedule,
    new_student,
    parameters_of,
)
from ray import tune
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerBase,
)


def main() -> None:
    """One Tune trial a point, in as many actors as lanes."""
    work = read_work(sys.argv[1])
    ray.init(address="local", num_cpus=work["lanes"], include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            DistillationTrial,
            param_space={"work": work, "point": tune.grid_search(list(range(len(work["points"]))))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        for result in tuner.fit():
            told(Ended(result.metrics["point"], result.metrics["ended"], result.metrics["report"]))


@dataclass(frozen=True)
class Rows:
    """A tokenised split in memory, padded to the task's length."""

    tokens: dict[str, Tensor]
    labels: Tensor
    lengths: Tensor

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Padded to the longest of these rows."""
        length = int(self.lengths[rows].max())
        return {name: values[rows, :length] for name, values in self.tokens.items()}

    def by_length(self) -> Iterator[Tensor]:
        """All rows, in batches with little padding."""
        return iter(self.lengths.argsort().split(EVALUATION_BATCH))


@dataclass(frozen=True)
class TeacherOutput:
    """What terms read of a model's output; the names are those of Transformers."""

    logits: Tensor
    hidden_states: dict[int, Tensor]
    attentions: dict[int, Tensor]

    def of(self, rows: Tensor, length: int) -> "TeacherOutput":
        """For a batch."""
        return TeacherOutput(
            self.logits[rows],
            {n: values[rows, :length] for n, values in self.hidden_states.items()},
            {n: values[rows, :, :length, :length] for n, values in self.attentions.items()},
        )


class DistillationTrial(tune.Trainable):
    """An actor that trains one trial after another; a trial is one step of Tune's."""

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.config = config
        work: Work = config["work"]
        tokenizer = AutoTokenizer.from_pretrained(work["teacher"])
        data = load_dataset("csv", data_files=work["files"])
        self.rows = {name: tokenized(data[name], tokenizer, work["max_length"]) for name in data}
        self.teacher_config = BertConfig.from_pretrained(work["teacher"])
        self.kept: dict[Any, TeacherOutput] = {}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        work: Work = self.config["work"]
        point, training = work["points"][self.config["point"]], work["training"]
        torch.manual_seed(point["seed"])
        kernels = {"attn_implementation": "eager"} if "attentions" in point["knowledge"] else {}
        student = new_student(work, point, **kernels)
        terms = Terms(point, student.config, self.teacher_config)
        outputs = self.teacher_outputs(work, point, terms)
        optimizer = new_optimizer([student, terms], training, fused=True)
        train, batch_size = self.rows["train"], training["batch_size"]
        num_steps = training["epochs"] * -(-len(train.labels) // batch_size)
        schedule = new_schedule(optimizer, training, num_steps)
        evaluations = evaluation_steps(num_steps, training["evaluate"]["times"])
        student.train()
        step = 0
        for _ in range(training["epochs"]):
            for rows in torch.randperm(len(train.labels)).split(batch_size):
                batch = train.batch(rows)
                length = batch["input_ids"].shape[1]
                theirs = outputs and outputs.of(rows, length)
                with autocast():
                    ours = student(**batch, **terms.asks)
                    loss = terms(ours, theirs, train.labels[rows], batch["attention_mask"])
                loss.backward()
                nn.utils.clip_grad_norm_(parameters_of(optimizer), training["gradient_clipping"])
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                step += 1
                if step in evaluations:
                    accuracy(student, self.rows["select"])
        report = accuracy(student, self.rows["report"])
        point_number = self.config["point"]
        return {"point": point_number, "ended": time.time(), "report": report, "done": True}

    def teacher_outputs(self, work: Work, point: Point, terms: Terms) -> TeacherOutput | None:
        """Over train; computed by the first trial of this actor that reads them."""
        if point["knowledge"] == ["hard_labels"]:
            return None
        key = (tuple(point["knowledge"]), tuple(terms.pairs))
        if key not in self.kept:
            self.kept[key] = run_teacher(work, self.rows["train"], terms)
        return self.kept[key]


def tokenized(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
    """All rows of a split at once."""
    tokens = tokenizer(
        list(rows["text"]),
        truncation=True,
        padding="max_length",
        max_length=max_length,
        return_tensors="pt",
    )
    return Rows(dict(tokens), torch.tensor(rows["label"]), tokens["attention_mask"].sum(1))


@torch.no_grad()
def run_teacher(work: Work, rows: Rows, terms: Terms) -> TeacherOutput:
    """What the terms read of the teacher, for all rows."""
    maps = terms.asks["output_attentions"]
    kernels = {"attn_implementation": "eager"} if maps else {}
    teacher = AutoModelForSequenceClassification.from_pretrained(work["teacher"], **kernels).eval()
    config, (count, length) = teacher.config, rows.tokens["input_ids"].shape
    layers = {layer for _, layer in terms.pairs}
    hidden = layers if terms.asks["output_hidden_states"] else set()
    kept = TeacherOutput(
        logits=torch.zeros(count, config.num_labels),
        hidden_states={n: torch.zeros(count, length, config.hidden_size) for n in hidden},
        attentions={n - 1: torch.zeros(count, 1, length, length) for n in layers if maps},
    )
    for some in rows.by_length():
        batch = rows.batch(some)
        width = batch["input_ids"].shape[1]
        with autocast():
            output = teacher(**batch, **terms.asks)
        kept.logits[some] = output.logits.float()
        for n, values in kept.hidden_states.items():
            values[some, :width] = output.hidden_states[n].float()
        for n, values in kept.attentions.items():
            # Terms compare the mean over heads: one map is kept in place of all.
            values[some, :, :width, :width] = output.attentions[n].float().mean(1, keepdim=True)
    return kept


def autocast() -> torch.autocast:
    """bf16 where the processor multiplies it."""
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=is_fast)


@torch.no_grad()
def accuracy(student: nn.Module, rows: Rows) -> float:
    """Of a split."""
    student.eval()
    right = 0
    for some in rows.by_length():
        with autocast():
            logits = student(**rows.batch(some)).logits
        right += int((logits.argmax(-1) == rows.labels[some]).sum())
    student.train()
    return right / len(rows.labels)


if __name__ == "__main__":
    main()
