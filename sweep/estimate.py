"""From a plan, and from what a store holds of it, to what the rest would take."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ..results.reader import read_attempts
from ..results.schema import PlanRow
from ..results.store import Store
from ..search_spaces.expansion import Plan, PlannedTrial
from ..search_spaces.facts import Facts, ModelFacts
from ..search_spaces.grid import Grid, Resources
from ..search_spaces.shape import (
    Shape,
    embedding_parameters,
    encoder_parameters,
    forward_flops_per_token,
)
from ..search_spaces.trial import Stage, Trial
from .cost import FP32, Between, Disk, Measured, Piece, checkpoint_bytes, reckon
from .decisions import read_decisions
from .early_stopping import Decided
from .errors import NoRoomError
from .planning import Begun
from .referee import Brackets, standing
from .words import size

BACKWARD = 3
"""A training step costs about three forward passes."""

HOUR = 3600.0

ROWS = ("attempts", "history", "predictions", "compact")
"""Folders of a store that grow with each attempt."""


@dataclass(frozen=True)
class Cost:
    """What the work that is still to do would take; None is unknown."""

    student_flops: float | None
    """Floating-point operations of the students' training, every sequence at its full length; a
    stage that several trials begin with counts once."""
    lane_hours: Between | None
    """Hours of one lane, from what of this plan is completed; None until a trial is."""
    num_unknown: int
    """Pieces of work that are not in the hours."""
    lanes: int
    """That this machine bears at once."""
    disk: Disk

    @property
    def wall_hours(self) -> Between | None:
        """Hours with all lanes of this machine at work."""
        return self.lane_hours and self.lane_hours.times(1 / self.lanes)


@dataclass(frozen=True)
class Done:
    """What a store says of work that is done."""

    completed: frozenset[str]
    stopped: frozenset[str]
    """Trials that this grid's early stopping would stop again."""
    seconds: Mapping[str, float]
    """That completed attempts took which went on from no other, by id."""
    row_bytes: float | None
    """Of attempts, history and predictions for each trial; None before the first."""

    @property
    def ended(self) -> frozenset[str]:
        """What a launch would not train."""
        return self.completed | self.stopped


NOTHING_DONE = Done(frozenset(), frozenset(), {}, None)


def read_done(sweep: Store, grid: Grid, trials: Mapping[str, PlannedTrial]) -> Done:
    """Read the columns that tell it; nothing is done where there is no sweep.

    Args:
        sweep: Whose store.
        grid: Which is to be launched.
        trials: Its trials, by id.
    """
    if not sweep.exists():
        return NOTHING_DONE
    names = ["id", "what", "status", "started", "ended", "resumed_from_epoch"]
    columns = read_attempts(sweep.source).table.select(names).columns
    completed, seconds, done_trials = set(), {}, set()
    latest: dict[str, str] = {}
    for id, what, status, started, ended, parent in zip(
        *(column.to_pylist() for column in columns), strict=True
    ):
        # By epoch and number: the last one counts.
        latest[id] = status
        if status != "completed":
            continue
        completed.add(id)
        if what == "trial":
            done_trials.add(id)
        if parent is None:
            seconds[id] = (ended - started).total_seconds()
    size = sum(
        file.stat().st_size for name in ROWS for file in (sweep.folder / name).glob("*.parquet")
    )
    stopped = standing(
        {id for id, status in latest.items() if status == "stopped"} & trials.keys() - completed,
        trials.__getitem__,
        Decided(read_decisions(sweep.decisions_folder)),
        grid.early_stopping,
        Brackets(grid),
    )
    per_trial = size / len(done_trials) if done_trials else None
    return Done(frozenset(completed), frozenset(stopped), seconds, per_trial)


@dataclass(frozen=True)
class PlannedWork:
    """A piece of work, done or not, beside what becomes of it."""

    id: str | None
    piece: Piece
    parameters: int
    trial: Trial | None = None
    """None: it is no trial, and what it makes is kept."""


def estimate(sweep: Store, grid: Grid, work: Sequence[PlannedWork], *, done: Done) -> Cost:
    """What the rest of a plan would take.

    Args:
        sweep: Whose store.
        grid: What the plan was made from.
        work: All of the plan.
        done: What the store holds.
    """
    todo = [each for each in work if each.id not in done.ended]
    measured = [
        Measured(each.piece, done.seconds[each.id])
        for each in work
        if each.id is not None and each.id in done.seconds
    ]
    seconds, num_unknown = reckon([each.piece for each in todo], measured)
    students = [each.piece.flops for each in todo if each.piece.like[0] == "student"]
    known = [flops for flops in students if flops is not None]
    is_measured = seconds.high > 0 or not todo
    trials = [each for each in todo if each.trial is not None]
    return Cost(
        student_flops=sum(known) if len(known) == len(students) else None,
        lane_hours=seconds.times(1 / HOUR) if is_measured else None,
        num_unknown=num_unknown,
        lanes=lanes_here(grid.resources),
        disk=Disk(
            kept=FP32 * (_kept_students(grid, work, done) + _others(todo)),
            rows=None if done.row_bytes is None else done.row_bytes * len(trials),
            checkpoints=tuple(
                sorted((checkpoint_bytes(each.parameters) for each in todo), reverse=True)
            ),
            free=shutil.disk_usage(_nearest_folder(sweep.folder)).free,
        ),
    )


def with_flops(rows: Iterable[PlanRow], work: Iterable[PlannedWork]) -> tuple[PlanRow, ...]:
    """Rows of a plan with the operations of their work, by which `status` tells what is left."""
    flops = {each.id: each.piece.flops for each in work}
    return tuple([replace(row, flops=flops.get(row.id)) for row in rows])


def check_room(cost: Cost, folder: Path, *, lanes: int) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        NoRoomError: Less is free than the work needs.
    """
    needed = cost.disk.needed(lanes)
    if cost.disk.free < needed:
        raise NoRoomError(
            f"{folder}: the sweep needs about {size(needed)}, and {size(cost.disk.free)} are free"
        )


def lanes_here(resources: Resources) -> int:
    """How many trials this machine bears at once, one at the least."""
    memory = psutil.virtual_memory().available / 2**30
    bounds = [(psutil.cpu_count() or 1) / resources.cpus, memory / resources.memory_gb]
    if resources.gpus:
        # Importing torch to count them would take seconds.
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        bounds.append(gpus / resources.gpus)
    return max(1, int(min(bounds)))


def planned_work(plan: Plan, begun: Begun | None, facts: Facts) -> list[PlannedWork]:
    """All work of a plan.

    Args:
        plan: All points of a grid.
        begun: Ids of its trials, and how they begin; None where no id is known: then there are
            trials alone, each with all of its stages.
        facts: What is known of models and tasks.
    """
    return list(_work(plan, begun, facts))


def _work(plan: Plan, begun: Begun | None, facts: Facts) -> Iterator[PlannedWork]:
    sizes = _Sizes(facts)
    if begun is None:
        for planned in plan.trials:
            yield sizes.of_trial(None, planned, slice(None))
        return
    trials = list(begun.trials())
    teachers = {each.digests.teacher: each.planned.trial for each in trials}
    for digest, trial in teachers.items():
        if trial.teacher.fine_tune is not None:
            yield sizes.of_teacher(digest[:16], trial)
    for each in begun.shared():
        yield sizes.of_stage(each.id, each.planned, each.stages)
    for each in trials:
        yield sizes.of_trial(each.id, each.planned, each.stages)


class _Sizes:
    """Operations and parameters, each reckoned once for all trials that share their parts."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._flops: dict[tuple[int | None, ...], float | None] = {}
        self._parameters: dict[tuple[int, int], int] = {}

    def of_trial(self, id: str | None, planned: PlannedTrial, stages: slice) -> PlannedWork:
        piece = self._student(planned.trial, stages)
        return PlannedWork(id, piece, self._students_parameters(planned.trial), planned.trial)

    def of_stage(self, id: str, planned: PlannedTrial, stages: slice) -> PlannedWork:
        piece = self._student(planned.trial, stages)
        return PlannedWork(id, piece, self._students_parameters(planned.trial))

    def of_teacher(self, id: str, trial: Trial) -> PlannedWork:
        model = self._facts.model(trial.teacher)
        flops = model and self._teacher_flops(trial, model)
        return PlannedWork(id, Piece(("teacher", id), flops), _teacher_parameters(model))

    def _student(self, trial: Trial, stages: slice) -> Piece:
        # Equal parts of a plan's trials are one object.
        key = (id(trial.task), id(trial.stages), id(trial.shape), stages.start, stages.stop)
        if key not in self._flops:
            self._flops[key] = self._student_flops(trial, trial.stages[stages])
        like = id(trial.task), id(trial.teacher), id(trial.shape)
        return Piece(("student", like), self._flops[key])

    def _student_flops(self, trial: Trial, stages: tuple[Stage, ...]) -> float | None:
        known = self._facts.task(trial.task)
        if known is None or known.train_rows is None:
            return None
        rows = [_rows_seen(stage, known.train_rows) for stage in stages]
        if None in rows:
            return None
        seen = sum(each for each in rows if each is not None)
        return _training_flops(trial.shape, length=trial.task.max_length, rows=seen)

    def _teacher_flops(self, trial: Trial, model: ModelFacts) -> float | None:
        known, recipe = self._facts.task(trial.task), trial.teacher.fine_tune
        if known is None or known.train_rows is None or recipe is None:
            return None
        if trial.teacher.language_head is not None:
            # It has a pace of its own.
            return None
        rows = known.train_rows * recipe.epochs
        return _training_flops(_shape_of(model), length=trial.task.max_length, rows=rows)

    def _students_parameters(self, trial: Trial) -> int:
        key = id(trial.teacher), id(trial.shape)
        if key not in self._parameters:
            model = self._facts.model(trial.teacher)
            embeddings = _embeddings(model, trial.shape.width) if model else 0
            self._parameters[key] = embeddings + encoder_parameters(trial.shape)
        return self._parameters[key]


def _training_flops(shape: Shape, *, length: int, rows: int) -> float:
    """Upper bound: every sequence at its full length."""
    per_token = forward_flops_per_token(shape, sequence_length=length)
    return float(BACKWARD * per_token * length * rows)


def _rows_seen(stage: Stage, train_rows: int) -> int | None:
    """Rows that the steps of a stage see, with repetition; None where its text is not counted."""
    if stage.training.total_steps is not None:
        return stage.training.total_steps * stage.training.batch_size
    return train_rows * stage.training.epochs if stage.data == "task" else None


def _embeddings(model: ModelFacts, width: int) -> int:
    return embedding_parameters(
        width,
        vocab_size=model.vocab_size,
        max_positions=model.max_position_embeddings,
        type_vocab_size=model.type_vocab_size,
    )


def _teacher_parameters(model: ModelFacts | None) -> int:
    if model is None:
        return 0
    return _embeddings(model, model.hidden_size) + encoder_parameters(_shape_of(model))


def _shape_of(model: ModelFacts) -> Shape:
    return Shape(
        layers=model.num_hidden_layers,
        width=model.hidden_size,
        heads=model.num_attention_heads,
        feed_forward=model.intermediate_size,
    )


def _kept_students(grid: Grid, work: Sequence[PlannedWork], done: Done) -> int:
    """Parameters of the students that come to be kept beside those that are there."""
    trials = [(each, each.trial) for each in work if each.trial is not None]
    match grid.keep.students:
        case "none":
            return 0
        case "all":
            return sum(each.parameters for each, _ in trials if each.id not in done.completed)
        case "best_per_group":
            groups = {_group(trial): each.parameters for each, trial in trials}
            with_student = {_group(t) for each, t in trials if each.id in done.completed}
            return sum(size for group, size in groups.items() if group not in with_student)


def _group(trial: Trial) -> tuple[int, ...]:
    parts = (trial.task, trial.teacher, trial.shape, trial.initialisation, trial.stages)
    return tuple(map(id, parts))


def _others(todo: Sequence[PlannedWork]) -> int:
    return sum(each.parameters for each in todo if each.trial is None)


def _nearest_folder(path: Path) -> Path:
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.is_dir())
