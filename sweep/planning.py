"""A grid becomes planned work: points, the content they read, ids, and what depends on what."""

from collections.abc import Iterable
from pathlib import Path

from ..results.schema import PlanRow
from ..search_spaces.errors import DataError, Problem
from ..search_spaces.expansion import Plan, PlannedTrial, Skipped
from ..search_spaces.facts import ModelFacts, ShippedFacts, TaskFacts
from ..search_spaces.ids import Identifier, TrialIds
from ..search_spaces.knowledge import term_label
from ..search_spaces.resolution import Feature, resolve_term
from ..search_spaces.sizes import trial_sizes
from ..search_spaces.task import Task, Teacher
from ..search_spaces.trial import Digests, Trial
from ..trainers.sources import check_classes, locate_teacher, teacher_digest
from ..trainers.tasks import TaskData, load_task, task_digest
from .words import LISTED, count
from .work import Config


class Content:
    """Rows and weights that a grid names, each read and digested once, without torch."""

    def __init__(self, *, fetch: bool = True) -> None:
        """Read nothing yet.

        Args:
            fetch: Whether a hub's teacher is downloaded where its id says all that is asked.
        """
        self._fetch = fetch
        self._tasks: dict[Task, tuple[TaskData, str]] = {}
        self._digests: dict[tuple[Task, Teacher], Digests] = {}

    def task(self, task: Task) -> tuple[TaskData, str]:
        """A task's rows and their digest.

        Raises:
            DataError: The rows are missing or wrong.
        """
        if task not in self._tasks:
            _check_files(task)
            data = load_task(task)
            self._tasks[task] = data, task_digest(data, task)
        return self._tasks[task]

    def digests(self, task: Task, teacher: Teacher) -> Digests:
        """What a trial on this task with this teacher reads.

        Raises:
            DataError: The rows are missing or wrong.
            TeacherError: The teacher is unknown or does not fit.
        """
        key = task, teacher
        if key not in self._digests:
            data, of_task = self.task(task)
            source = locate_teacher(teacher, download=self._fetch or teacher.fine_tune is None)
            if teacher.fine_tune is None:
                check_classes(source, data, teacher)
            self._digests[key] = Digests(of_task, teacher_digest(teacher, source, data, task))
        return self._digests[key]


def _check_files(task: Task) -> None:
    """Refuse one file for two splits: its rows would be dropped from one as known to the other."""
    places: dict[Path, str] = {}
    problems = []
    for split, path in (task.files.model_dump() if task.files is not None else {}).items():
        if path is None:
            continue
        file = Path(path).resolve()
        if file in places:
            what = f"{path} is the same file as task.files.{places[file]}"
            mend = f"Give another file, or carve it: `{split}: {{from: train, fraction: 0.1}}`."
            problems.append(Problem(f"task.files.{split}", what, mend))
        places.setdefault(file, split)
    if problems:
        raise DataError(problems)


class ContentFacts:
    """Facts from the rows at hand, and from shipped tables for the rest."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._shipped = ShippedFacts()

    def model(self, teacher: Teacher) -> ModelFacts | None:
        """What is known of a teacher without loading it."""
        return self._shipped.model(teacher)

    def task(self, task: Task) -> TaskFacts | None:
        """Classes and rows as they are."""
        data, _ = self._content.task(task)
        return TaskFacts(
            num_classes=len(data.classes), regression=False, train_rows=len(data.train.labels)
        )


def plan_rows(plan: Plan, content: Content) -> tuple[PlanRow, ...]:
    """Everything planned: teachers, then trials with one teacher side by side, then skipped points.

    A lane that trains them in this order rarely changes its teacher or task.
    """
    teachers: dict[str, PlanRow] = {}
    trials: dict[str, PlanRow] = {}
    identify = Identifier().identify
    for planned in plan.trials:
        trial = planned.trial
        digests = content.digests(trial.task, trial.teacher)
        teachers.setdefault(digests.teacher, _teacher_row(trial, digests))
        ids = identify(trial, digests)
        if ids.trial not in trials:
            trials[ids.trial] = _trial_row(planned, digests, ids)
    place = {row.id: n for n, row in enumerate(teachers.values())}
    ordered = sorted(trials.values(), key=lambda row: place[row.depends_on[0]])
    return (*teachers.values(), *ordered, *map(_skipped_row, plan.skipped))


def nothing_to_train(grid_file: Path, plan: Plan) -> Problem:
    """What is said of a grid that comes to no trial at all."""
    reasons = dict.fromkeys(f"{skipped.rule}: {skipped.reason}" for skipped in plan.skipped)
    told = [f"skipped: {reason}" for reason in reasons]
    if len(told) > LISTED:
        told = [*told[:LISTED], f"and {len(told) - LISTED} more reasons; `kdsweep plan` tells all"]
    return Problem(
        "axes",
        f"nothing to train: of {count(plan.num_points, 'point')} {plan.num_excluded} "
        f"{'is' if plan.num_excluded == 1 else 'are'} excluded and {len(plan.skipped)} skipped",
        "\n    ".join([*told, "Change the axes or `exclude` so that a point is left."]),
        file=str(grid_file),
    )


def labels_of(trial: Trial) -> tuple[str, ...]:
    """What the terms of a trial are called, by their canonical index."""
    return tuple(term_label(term) for stage in trial.stages for term in stage.terms)


def reads(trials: Iterable[Trial], model: ModelFacts) -> tuple[Feature, ...]:
    """Which outputs of one teacher these trials read, so that one pass captures them all."""
    found: set[Feature] = set()
    for trial in trials:
        student, teacher = trial_sizes(trial.shape, model, num_labels=None)
        for stage in trial.stages:
            for term in stage.terms:
                found |= resolve_term(term, student=student, teacher=teacher).reads("teacher")
    return tuple(sorted(found))


def config_of(row: PlanRow) -> Config:
    """The configuration of a planned teacher or trial."""
    return Config.model_validate_json(str(row.config_json))


def _teacher_row(trial: Trial, digests: Digests) -> PlanRow:
    config = Config(
        task=trial.task,
        teacher=trial.teacher,
        trial=None,
        task_digest=digests.task,
        teacher_digest=digests.teacher,
    )
    return PlanRow(
        what="teacher",
        id=digests.teacher[:16],
        group_id=digests.teacher[:16],
        axes={"teacher": trial.teacher.model},
        config_json=config.model_dump_json(),
        labels=(),
        depends_on=(),
        reason=None,
    )


def _trial_row(planned: PlannedTrial, digests: Digests, ids: TrialIds) -> PlanRow:
    trial = planned.trial
    config = Config(
        task=trial.task,
        teacher=trial.teacher,
        trial=trial,
        task_digest=digests.task,
        teacher_digest=digests.teacher,
    )
    return PlanRow(
        what="trial",
        id=ids.trial,
        group_id=ids.group,
        axes=planned.axes,
        config_json=config.model_dump_json(),
        labels=labels_of(trial),
        depends_on=(digests.teacher[:16],),
        reason=None,
    )


def _skipped_row(skipped: Skipped) -> PlanRow:
    return PlanRow(
        what="skipped",
        id=None,
        group_id=None,
        axes=skipped.axes,
        config_json=None,
        labels=(),
        depends_on=(),
        reason=f"{skipped.rule}: {skipped.reason}",
    )
