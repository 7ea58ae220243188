"""The points of a sweep as a competent user writes them with Ray Tune and Hugging Face models.

    python benchmarks/naive_tune.py WORK

WORK is a JSON file (`by_hand.py`) that names the rows, the fine-tuned teacher and the points. Each
trial that has ended is told as a line of JSON.

Nothing here is made slow on purpose. What a library does unless it is told otherwise is left as it
is, and a comment says so; what the papers and the examples of Hugging Face agree on is done as they
do it: a frozen teacher in eval mode under `no_grad`, masked losses, no decay of biases, a linear
schedule, clipped gradients.
"""

import sys
import tempfile
import time
from typing import Any, Protocol

import ray
import torch
import torch.nn.functional as F
from by_hand import Ended, Point, Work, read_work, told
from datasets import Dataset, load_dataset
from ray import tune
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    get_linear_schedule_with_warmup,
)

TEMPERATURE = 2.0
EVALUATION_BATCH = 64


def main() -> None:
    """One Tune trial a point."""
    work = read_work(sys.argv[1])
    # Without an address Ray would join any cluster that it finds on this machine.
    ray.init(address="local", num_cpus=work["lanes"], include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            # Default: one CPU a trial, for which Ray sets OMP_NUM_THREADS=1.
            train,
            # Default: `reuse_actors=False`, so each trial is a process of its own; and trials are
            # written down as CSV, JSON and TensorBoard events.
            param_space={"work": work, "point": tune.grid_search(list(range(len(work["points"]))))},
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        )
        for result in tuner.fit():
            told(Ended(result.metrics["point"], result.metrics["ended"], result.metrics["report"]))


def train(config: dict[str, Any]) -> None:
    """One trial, from the files to its score on report."""
    work: Work = config["work"]
    point, training = work["points"][config["point"]], work["training"]
    torch.manual_seed(point["seed"])
    tokenizer = AutoTokenizer.from_pretrained(work["teacher"])

    def tokenize(rows: dict[str, list[str]]) -> BatchEncoding:
        # As in the examples of Hugging Face: every row is padded to the longest that may come.
        return tokenizer(
            rows["text"], truncation=True, padding="max_length", max_length=work["max_length"]
        )

    # Default: rows and tokens are kept on the disk by their fingerprint, so that only the first
    # trial makes them.
    data = load_dataset("csv", data_files=work["files"]).map(tokenize, batched=True)
    data.set_format("torch", columns=["input_ids", "token_type_ids", "attention_mask", "label"])
    # Default: no worker processes, collated from a list of rows, the last partial batch kept.
    batches = DataLoader(data["train"], batch_size=training["batch_size"], shuffle=True)

    # Maps of attention are only there without the fused kernels.
    kernels = {"attn_implementation": "eager"} if "attentions" in point["knowledge"] else {}
    # Default: fp32, for both.
    teacher = None
    if point["knowledge"] != ["hard_labels"]:
        teacher = AutoModelForSequenceClassification.from_pretrained(work["teacher"], **kernels)
        teacher.eval()
    student = new_student(work, point, **kernels)
    terms = Terms(point, student.config, BertConfig.from_pretrained(work["teacher"]))
    # Default: one parameter after the other, not fused.
    optimizer = new_optimizer([student, terms], training)
    num_steps = training["epochs"] * len(batches)
    schedule = new_schedule(optimizer, training, num_steps)

    evaluations = evaluation_steps(num_steps, training["evaluate"]["times"])
    student.train()
    step = 0
    for _ in range(training["epochs"]):
        for batch in batches:
            labels = batch.pop("label")
            theirs = None
            if teacher is not None:
                with torch.no_grad():
                    theirs = teacher(**batch, **terms.asks)
            ours = student(**batch, **terms.asks)
            loss = terms(ours, theirs, labels, batch["attention_mask"])
            loss.backward()
            nn.utils.clip_grad_norm_(parameters_of(optimizer), training["gradient_clipping"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step in evaluations:
                tune.report({"step": step, "select": accuracy(student, data["select"])})
    report = accuracy(student, data["report"])
    tune.report({"point": config["point"], "ended": time.time(), "report": report})


def new_student(work: Work, point: Point, **more: Any) -> BertForSequenceClassification:
    """A student of the point's shape, with random weights and the teacher's vocabulary."""
    teacher = BertConfig.from_pretrained(work["teacher"])
    shape, dropout = point["shape"], work["training"]["dropout"]
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=teacher.vocab_size,
            num_labels=teacher.num_labels,
            num_hidden_layers=shape["layers"],
            hidden_size=shape["width"],
            num_attention_heads=shape["heads"],
            intermediate_size=4 * shape["width"],
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **more,
        )
    )


class Output(Protocol):
    """What terms read of a model's output."""

    logits: Tensor
    hidden_states: Any
    attentions: Any


class Terms(nn.Module):
    """What the student learns: labels, the teacher's logits, its hidden states and attentions."""

    def __init__(self, point: Point, student: BertConfig, teacher: BertConfig) -> None:
        super().__init__()
        self.knowledge = point["knowledge"]
        self.asks = {
            "output_hidden_states": "hidden_states" in self.knowledge,
            "output_attentions": "attentions" in self.knowledge,
        }
        own, layers = student.num_hidden_layers, teacher.num_hidden_layers
        # Student layer n learns from every (layers / own)-th layer of the teacher; the last from
        # the last. Layers are counted from 1.
        self.pairs = [(n, -(-n * layers // own)) for n in range(1, own + 1)]
        pairs = self.pairs if "hidden_states" in self.knowledge else []
        self.projections = nn.ModuleList(
            nn.Linear(student.hidden_size, teacher.hidden_size) for _ in pairs
        )
        # As BERT's own maps, and as TinyBERT's published code. With PyTorch's larger weights most
        # students still name the largest class alone after 100 steps.
        for projection in self.projections:
            nn.init.normal_(projection.weight, std=student.initializer_range)
            nn.init.zeros_(projection.bias)

    def forward(self, ours: Output, theirs: Output | None, labels: Tensor, mask: Tensor) -> Tensor:
        """The sum of all terms, each a mean over what is not padding."""
        loss = F.cross_entropy(ours.logits, labels)
        if "soft_logits" in self.knowledge:
            loss = loss + F.kl_div(
                F.log_softmax(ours.logits / TEMPERATURE, dim=-1),
                F.softmax(theirs.logits / TEMPERATURE, dim=-1),
                reduction="batchmean",
            ) * (TEMPERATURE**2)
        if "hidden_states" in self.knowledge:
            distances = [
                masked_mean(
                    (project(ours.hidden_states[n]) - theirs.hidden_states[m]).square().mean(-1),
                    mask,
                )
                for project, (n, m) in zip(self.projections, self.pairs, strict=True)
            ]
            loss = loss + torch.stack(distances).mean()
        if "attentions" in self.knowledge:
            both = mask[:, :, None] * mask[:, None, :]
            distances = [
                masked_mean(
                    (ours.attentions[n - 1].mean(1) - theirs.attentions[m - 1].mean(1)).square(),
                    both,
                )
                for n, m in self.pairs
            ]
            loss = loss + torch.stack(distances).mean()
        return loss


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean where the mask is 1."""
    return (values * mask).sum() / mask.sum()


def new_optimizer(
    modules: list[nn.Module], training: dict[str, Any], **more: Any
) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorms do not decay, as in the Trainer of Hugging Face."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training["weight_decay"]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training["learning_rate"], **more)


def new_schedule(
    optimizer: torch.optim.Optimizer, training: dict[str, Any], num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear rise, then a linear fall."""
    return get_linear_schedule_with_warmup(
        optimizer, round(training["warmup"] * num_steps), num_steps
    )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def evaluation_steps(num_steps: int, times: int) -> set[int]:
    """Spread evenly; the last step is one."""
    return {-(-num_steps * n // times) for n in range(1, times + 1)}


@torch.no_grad()
def accuracy(student: nn.Module, rows: Dataset) -> float:
    """Of a split."""
    student.eval()
    right = 0
    for batch in DataLoader(rows, batch_size=EVALUATION_BATCH):
        labels = batch.pop("label")
        right += int((student(**batch).logits.argmax(-1) == labels).sum())
    student.train()
    return right / len(rows)


if __name__ == "__main__":
    main()
