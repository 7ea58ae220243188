"""Whether every recipe teaches: its loss falls more than without a student, or without a teacher.

Three arms of each recipe begin with the same student and see the same rows in the same order:

* the trial as it is;
* frozen: nothing of the student moves, so what falls is what learned maps do alone;
* shuffled: each row learns what the teacher says of another row of as many tokens. [CLS] and [SEP]
  then stay where they are, every position that is compared holds a real token of one real text,
  and only the content is wrong: what falls is what a student learns of any text.

Before and after each stage the whole objective is measured, with the true teacher, without
dropout, over all rows of train; an arm's fall is the difference. A later stage begins with what
its arm's earlier one left, and its falls too are told as shares of the trial's loss at its start.
So that before and after, and the arms, are one function of the weights:

* schedules and progressive matchings stand where they end: full weights, all layers;
* matchings that are drawn anew in each epoch are the mean over the draws of all epochs;
* flows are solved anew, but from the layers' weights at the beginning: those that have adapted
  would be another measure in each arm. Attention over layers has no state and is measured as it is.

Hard labels stay true in all arms, and a stage of labels alone has no teacher to be compared.
"""

import json
import math
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from kdsweep.search_spaces import expand, read_grid
from kdsweep.search_spaces.recipes import RECIPES
from kdsweep.search_spaces.resolution import uses_teacher
from kdsweep.search_spaces.trial import Trial
from kdsweep.sweep.planning import Content, ContentFacts
from kdsweep.trainers import Assets, Report, Settings, prepare_teacher
from kdsweep.trainers.assets import LoadedTask, Tokens
from kdsweep.trainers.batches import Batch, collate, length_batches
from kdsweep.trainers.bert import sizes
from kdsweep.trainers.clock import Clock
from kdsweep.trainers.features import Features
from kdsweep.trainers.fit import Fit, Fitted, fit, stage_steps
from kdsweep.trainers.forward import forward
from kdsweep.trainers.frozen import FrozenTeacher, TeacherRecord
from kdsweep.trainers.objective import Objective, build_objective
from kdsweep.trainers.outputs import TeacherOutputs
from kdsweep.trainers.sources import TeacherSource
from kdsweep.trainers.student import build_student
from kdsweep.trainers.surroundings import within
from kdsweep.trainers.teacher import never
from kdsweep.trainers.tokens import cache_folder

Arm = Literal["trial", "frozen", "shuffled"]

SETTINGS = Settings(threads=2)
BATCH_SIZE = 32
"""Of a measurement."""

EPOCHS = {"pkd": 10, "rail_kd": 20}
"""Of a stage, where 4 end on a plateau. Normalised states of lower layers point almost one way, so
a random student first becomes nearly the same for all rows (of rail_kd's second layer the distance
to the best constant fell from 0.045 to 0.0001), and only then learns what tells rows apart."""


def grid(recipe: str) -> dict[str, object]:
    """Heads and width suit every term: 48 relation heads divide 192 and the teacher's 384."""
    return {
        "name": "recipes",
        "task": {
            "name": "tweets",
            "max_length": 32,
            "report": {"from": "train", "fraction": 0.01},
            "limit": {"train": 400, "select": 100},
        },
        "teacher": {
            "model": "minilm-l6-h384",
            "fine_tune": {"epochs": 3, "learning_rate": 1e-4, "batch_size": 16},
        },
        "axes": {"knowledge": [recipe], "shape": [{"layers": 3, "width": 192, "heads": 12}]},
        "training": {
            "epochs": EPOCHS.get(recipe, 4),
            "learning_rate": 1e-3,
            "batch_size": 16,
            "evaluate": {"times": 1},
        },
    }


@dataclass(frozen=True)
class Taught:
    """The task and the teacher that knows it; the same for all recipes."""

    assets: Assets
    loaded: LoadedTask
    tokens: Tokens
    folder: Path

    @property
    def teacher(self) -> FrozenTeacher:
        return self.assets.teacher(self.folder)


def prepare(trial: Trial, content: Content) -> Taught:
    """Fine-tune the teacher, once for this and later calls."""
    assets = Assets(SETTINGS)
    digests = content.of_trial(trial)
    folder = cache_folder() / "benchmarks" / digests.teacher[:16]
    for _ in prepare_teacher(
        trial.teacher, trial.task, into=folder, digests=digests, assets=assets
    ):
        pass
    source = TeacherSource(model=trial.teacher.model, folder=folder, revision=None)
    loaded = assets.task(trial.task)
    tokens = assets.tokens(loaded, source, max_length=trial.task.max_length)
    return Taught(assets, loaded, tokens, folder)


@dataclass(frozen=True)
class Shuffled:
    """What the teacher says of other rows, which are as long."""

    true: TeacherOutputs
    others: Tensor

    def features(self, batch: Batch) -> Features:
        """Of kept outputs, which are found by the rows' numbers alone."""
        return self.true.features(replace(batch, rows=self.others[batch.rows]))


def other_rows(lengths: Tensor) -> Tensor:
    """For each row another of as many tokens, shape [N]; itself where there is none."""
    order = torch.argsort(lengths, stable=True)
    _, counts = lengths[order].unique_consecutive(return_counts=True)
    others = torch.empty_like(order)
    for group in order.split(counts.tolist()):
        # Rows are in the order of their classes: half of the way round there is another class.
        others[group] = group.roll(len(group) // 2)
    return others


@torch.no_grad()
def measure(job: Fit, outputs: TeacherOutputs | None, at: Mapping[str, Tensor]) -> float:
    """The mean objective over train, as it stands at the stage's end but for the state `at`."""
    objective, model = job.objective, job.model.eval()
    total = 0.0
    for rows in length_batches(job.rows.lengths, BATCH_SIZE):
        batch = collate(job.rows, rows, pad_token_id=job.tokens.pad_token_id)
        student = forward(model, batch, objective.student_needs, precision="fp32")
        teacher = outputs.features(batch) if outputs else None
        for epoch in range(job.training.epochs):
            objective.begin_epoch(epoch)
            objective.take_back(at)
            losses = objective(
                student,
                teacher,
                labels=batch.labels,
                attention_mask=batch.attention_mask,
                progress=1.0,
            )
            total += float(losses.total) * len(rows)
    return total / len(job.rows) / job.training.epochs


def fit_arm(trial: Trial, arm: Arm, taught: Taught) -> Iterator[tuple[float, float]]:
    """The objective before and after each stage."""
    classes = taught.loaded.data.classes
    student = build_student(
        trial.shape,
        teacher_config=taught.teacher.model.config,
        num_labels=len(classes),
        class_names=classes,
        dropout=trial.stages[0].training.dropout,
        seed=trial.seed,
    )
    if arm == "frozen":
        student.requires_grad_(requires_grad=False)
    for index, stage in enumerate(trial.stages):
        objective = build_objective(
            stage, student=sizes(student), teacher=taught.teacher.sizes, seed=trial.seed
        )
        job = Fit(
            identity="benchmark",
            stage=index,
            first_step=0,
            first_term=0,
            model=student,
            objective=objective,
            rows=taught.tokens.train,
            tokens=taught.tokens,
            metrics=taught.loaded.data.metrics,
            evaluates=False,
            vocabulary=None,
            training=stage.training,
            precision="fp32",
            seed=trial.seed,
        )
        true = teacher_outputs(objective, taught)
        begun = objective.state_of_a_step()
        before = measure(job, true, begun)
        if arm != "frozen" or any(True for _ in objective.parameters()):
            heard = true
            if arm == "shuffled" and true is not None:
                heard = Shuffled(true, other_rows(job.rows.lengths))
            for _ in within(take_steps(job, heard), SETTINGS):
                pass
        yield before, measure(job, true, begun)


def take_steps(job: Fit, outputs: TeacherOutputs | None) -> Generator[Report, None, Fitted | None]:
    return fit(
        job,
        outputs=outputs,
        settings=SETTINGS,
        clock=Clock(),
        checkpoints=None,
        resumed=None,
        stop=never,
    )


def teacher_outputs(objective: Objective, taught: Taught) -> TeacherOutputs | None:
    if not objective.teacher_needs:
        return None
    return taught.assets.outputs(
        taught.folder,
        taught.tokens.train,
        rows_digest=taught.loaded.digest,
        pad_token_id=taught.tokens.pad_token_id,
        needs=objective.teacher_needs,
        sizes=taught.teacher.sizes,
        precision="fp32",
        stop=never,
    )


@dataclass(frozen=True)
class Compared:
    """What came of one stage in all arms."""

    recipe: str
    stage: int
    steps: int
    has_teacher: bool
    losses: Mapping[Arm, tuple[float, float]]
    """Before and after."""

    @property
    def start(self) -> float:
        """Of the trial as it is."""
        return self.losses["trial"][0]

    def fall(self, arm: Arm) -> float:
        before, after = self.losses[arm]
        return before - after

    @property
    def is_ok(self) -> bool:
        """Whether all losses are finite and, where there is a teacher, the trial's fell most."""
        if not all(math.isfinite(loss) for losses in self.losses.values() for loss in losses):
            return False
        fall = self.fall("trial")
        controls = (self.fall("frozen"), self.fall("shuffled")) if self.has_teacher else ()
        return fall > 0 and all(fall > control for control in controls)

    def line(self) -> str:
        falls = " ".join(f"{self.fall(arm) / self.start:9.2%}" for arm in get_args(Arm))
        verdict = ("ok" if self.is_ok else "NOT OK") + ("" if self.has_teacher else " (no teacher)")
        return f"{self.recipe:10} {self.stage:5} {self.steps:5} {self.start:8.4f} {falls} {verdict}"


def compare(recipe: str, trial: Trial, taught: Taught) -> Iterator[Compared]:
    """The stages of a recipe, in their order."""
    arms: dict[Arm, list[tuple[float, float]]] = {
        arm: list(fit_arm(trial, arm, taught)) for arm in get_args(Arm)
    }
    for index, stage in enumerate(trial.stages):
        yield Compared(
            recipe=recipe,
            stage=index + 1,
            steps=stage_steps(stage.training, num_rows=len(taught.tokens.train)),
            has_teacher=any(uses_teacher(term) for term in stage.terms),
            losses={arm: losses[index] for arm, losses in arms.items()},
        )


def plan(recipe: str, facts: ContentFacts) -> Trial:
    text = json.dumps(grid(recipe))
    [planned] = expand(read_grid(text, file="grid.yaml", base=Path()), facts).trials
    return planned.trial


def print_head(taught: Taught) -> None:
    """What the controls are worth: a teacher that knows, and answers that are wrong."""
    record = TeacherRecord.read(taught.folder).values
    labels, others = taught.tokens.train.labels, other_rows(taught.tokens.train.lengths)
    moved = (others != torch.arange(len(others))).double().mean()
    wrong = (labels != labels[others]).double().mean()
    print(
        f"teacher: {record['select/accuracy']:.1%} of select, of which the largest class has"
        f" {record['select/majority']:.1%}"
    )
    print(f"shuffled: {moved:.1%} of rows hear of another, {wrong:.1%} of another class")
    print(f"{'':10} {'':>5} {'':>5} {'loss at':>8} {'falls, of the loss at start':>29}")
    print(
        f"{'recipe':10} {'stage':>5} {'steps':>5} {'start':>8}"
        f" {'trial':>9} {'frozen':>9} {'shuffled':>9}"
    )


def main(recipes: Sequence[str]) -> int:
    """Print a table and one JSON line; 1 if a recipe does not teach."""
    torch.set_num_threads(SETTINGS.threads)
    content = Content()
    facts = ContentFacts(content)
    trials = {recipe: plan(recipe, facts) for recipe in recipes}
    taught = prepare(trials[recipes[0]], content)
    print_head(taught)
    found = []
    for recipe, trial in trials.items():
        for compared in compare(recipe, trial, taught):
            print(compared.line(), flush=True)
            found.append(compared)
    taught.teacher.check_unchanged()
    print(json.dumps({"bench": "recipes", "rows": [asdict(each) for each in found]}))
    return 0 if all(each.is_ok for each in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or RECIPES))
