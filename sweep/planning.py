"""A grid becomes planned work: points, the content they read, ids, and what depends on what."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from ..results.schema import PlanRow
from ..search_spaces.errors import DataError, Problem
from ..search_spaces.expansion import Plan, PlannedTrial, Skipped
from ..search_spaces.facts import ModelFacts, ShippedFacts, TaskFacts
from ..search_spaces.grid import Resources
from ..search_spaces.ids import Identifier, TrialIds
from ..search_spaces.knowledge import term_label
from ..search_spaces.resources import Request
from ..search_spaces.task import Task, Teacher
from ..search_spaces.texts import Unlabelled
from ..search_spaces.tree import Scalar
from ..search_spaces.trial import Digests, Trial, first_stages, stage_id
from ..trainers.rows import digest_texts
from ..trainers.sources import TeacherSource, check_classes, locate_teacher, teacher_digest
from ..trainers.tasks import TaskData, load_task, task_digest
from ..trainers.texts import unlabelled_texts
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
        self._texts: dict[tuple[Task, Unlabelled], str] = {}

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

    def teacher(self, teacher: Teacher) -> TeacherSource:
        """A teacher's files; of a hub's, perhaps only where they would be.

        Raises:
            TeacherError: There is no such teacher.
        """
        return locate_teacher(teacher, download=self._fetch or teacher.fine_tune is None)

    def digests(self, task: Task, teacher: Teacher) -> Digests:
        """What a trial on this task with this teacher reads.

        Raises:
            DataError: The rows are missing or wrong.
            TeacherError: The teacher is unknown or does not fit.
        """
        key = task, teacher
        if key not in self._digests:
            data, of_task = self.task(task)
            source = self.teacher(teacher)
            if teacher.fine_tune is None:
                check_classes(source, data, teacher)
            self._digests[key] = Digests(of_task, teacher_digest(teacher, source, data, task))
        return self._digests[key]

    def of_trial(self, trial: Trial) -> Digests:
        """What a trial reads: its task, its teacher, and the texts of its stages.

        Raises:
            DataError: Rows or texts are missing or wrong.
            TeacherError: The teacher is unknown or does not fit.
        """
        digests = self.digests(trial.task, trial.teacher)
        texts = self.texts(trial)
        return digests._replace(texts=texts) if texts else digests

    def texts(self, trial: Trial) -> tuple[str, ...]:
        """The digest of what each stage trains on that has text of its own, in their order.

        Raises:
            DataError: The text is missing or wrong.
        """
        return tuple(
            [self._text(trial.task, stage.data) for stage in trial.stages if stage.data != "task"]
        )

    def _text(self, task: Task, wanted: Unlabelled) -> str:
        key = task, wanted
        if key not in self._texts:
            data, _ = self.task(task)
            self._texts[key] = digest_texts(unlabelled_texts(data, wanted))
        return self._texts[key]


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
            num_classes=len(data.classes),
            regression=False,
            train_rows=len(data.train.labels),
            metrics=data.metrics,
        )


def plan_rows(plan: Plan, content: Content) -> tuple[PlanRow, ...]:
    """Everything planned: teachers, stages that several trials begin with, trials, skipped points.

    A lane that does it in this order rarely changes its teacher or task, and an actor is rarely
    replaced because the next trial asks for other resources. What others wait for is as urgent as
    the most urgent of them.
    """
    teachers: dict[str, PlanRow] = {}
    trials: dict[str, PlanRow] = {}
    asked: dict[str, Request | None] = {}
    begun = Begun()
    identify = Identifier().identify
    for planned in plan.trials:
        digests = content.of_trial(planned.trial)
        teachers.setdefault(digests.teacher, _teacher_row(planned.trial, digests))
        ids = identify(planned.trial, digests)
        if ids.trial not in trials:
            trials[ids.trial] = _work_row("trial", planned, digests, ids=ids)
            asked[ids.trial] = planned.resources
            begun.add(ids.trial, planned, digests)
    place = {row.id: n for n, row in enumerate(teachers.values())}
    request = {each: n for n, each in enumerate(dict.fromkeys(asked.values()))}
    ordered = sorted(
        (_after(row, begun.before(str(row.id))) for row in trials.values()),
        key=lambda row: (place[row.depends_on[0]], request[asked[str(row.id)]]),
    )
    work = _urgent_as_dependents((*teachers.values(), *begun.rows(), *ordered))
    return (*work, *map(_skipped_row, plan.skipped))


def _urgent_as_dependents(rows: Sequence[PlanRow]) -> list[PlanRow]:
    """Rows in an order in which each stands behind what it depends on, with that one's priority."""
    priority = {row.id: row.priority for row in rows if row.what == "trial"}
    for row in reversed(rows):
        for needed in row.depends_on:
            priority[needed] = min(priority[row.id], priority.get(needed, priority[row.id]))
    return [
        row if row.priority == priority[row.id] else replace(row, priority=priority[row.id])
        for row in rows
    ]


class Trained(NamedTuple):
    """What a piece of work trains itself, of what may have begun elsewhere."""

    id: str
    planned: PlannedTrial
    digests: Digests
    stages: slice


class Begun:
    """The first stages of a plan's trials, and which of them several trials share."""

    def __init__(self) -> None:
        self._trials: dict[str, tuple[PlannedTrial, Digests]] = {}
        self._first: dict[str, tuple[PlannedTrial, Digests]] = {}
        """By a stage's id: the first trial that begins so."""
        self._begins: dict[str, tuple[str, ...]] = {}
        """By the id of a trial or stage: of what it is after one stage, after two, ..."""
        self._uses: Counter[str] = Counter()

    def add(self, id: str, planned: PlannedTrial, digests: Digests) -> None:
        """Count the stages with which a trial begins; a trial counts once."""
        if id in self._begins:
            return
        self._trials[id] = planned, digests
        trial = planned.trial
        numbers = range(1, len(trial.stages))
        stages = tuple([stage_id(trial, digests, num_stages=number) for number in numbers])
        self._begins[id] = stages
        for number, stage in enumerate(stages):
            self._first.setdefault(stage, (planned, digests))
            self._begins[stage] = stages[:number]
        self._uses.update(stages)

    def before(self, id: str) -> str | None:
        """The longest beginning that a trial shares with another; None where there is none."""
        return next((each for each in reversed(self._begins[id]) if self._uses[each] > 1), None)

    def rows(self) -> Iterator[PlanRow]:
        """A row for each beginning with which some trial goes on, shorter ones first.

        One that only leads to a longer one is no row of its own: nobody else goes on from it.
        """
        for id, planned, digests, stages in self.shared():
            row = _stage_row(id, planned, digests, num_stages=stages.stop)
            shorter = self._begins[id][stages.start - 1] if stages.start else None
            yield _after(row, shorter)

    def shared(self) -> list[Trained]:
        """What several trials begin with and is trained once, shorter beginnings first."""
        ids = dict.fromkeys(before for id in self._trials if (before := self.before(id)))
        found = []
        for id in sorted(ids, key=lambda id: len(self._begins[id])):
            shorter = [n for n, each in enumerate(self._begins[id], start=1) if each in ids]
            stages = slice(shorter[-1] if shorter else 0, len(self._begins[id]) + 1)
            found.append(Trained(id, *self._first[id], stages))
        return found

    def trials(self) -> Iterator[Trained]:
        """Every trial, with the stages that no shared beginning has."""
        for id, (planned, digests) in self._trials.items():
            before = self.before(id)
            begin = self._begins[id].index(before) + 1 if before else 0
            yield Trained(id, planned, digests, slice(begin, len(planned.trial.stages)))


def identify_trials(plan: Plan, content: Content, begun: Begun) -> tuple[str, ...]:
    """The id of every trial of a plan; `begun` learns how they begin.

    Raises:
        DataError: The rows are wrong, or out of reach.
        TeacherError: The teacher is unknown or does not fit.
    """
    identify = Identifier().identify
    found = []
    for planned in plan.trials:
        digests = content.of_trial(planned.trial)
        found.append(identify(planned.trial, digests).trial)
        begun.add(found[-1], planned, digests)
    return tuple(found)


def _after(row: PlanRow, stage: str | None) -> PlanRow:
    return row if stage is None else replace(row, depends_on=(*row.depends_on, stage))


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


def config_of(row: PlanRow) -> Config:
    """The configuration of a planned teacher or trial."""
    return Config.model_validate_json(str(row.config_json))


def request_of(row: PlanRow, resources: Resources) -> Request:
    """What a piece of work asks of its host."""
    return config_of(row).resources or resources.common


def requests_of(rows: Iterable[PlanRow], resources: Resources) -> frozenset[Request]:
    """Every request that a plan makes."""
    planned = [row for row in rows if row.what != "skipped"]
    # Most rows say nothing of their own, and reading ten thousand of them takes a second.
    own = [row for row in planned if '"resources":null' not in str(row.config_json)]
    common = {resources.common} if len(own) < len(planned) else set()
    return frozenset(common | {request_of(row, resources) for row in own})


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


def _stage_row(id: str, planned: PlannedTrial, digests: Digests, *, num_stages: int) -> PlanRow:
    trial = first_stages(planned.trial, num_stages)
    texts = digests.texts[: sum(stage.data != "task" for stage in trial.stages)]
    stages = f"stage 1-{num_stages}" if num_stages > 1 else "stage 1"
    axes: dict[str, Scalar | None] = {
        "stage": f"{planned.axes['knowledge']} {stages}",
        "shape": planned.axes["shape"],
        "seed": trial.seed,
    }
    ids = TrialIds(trial=id, group=id)
    first = PlannedTrial(trial, axes, planned.resources)
    return _work_row("stage", first, digests._replace(texts=texts), ids=ids)


def _work_row(
    what: Literal["stage", "trial"], planned: PlannedTrial, digests: Digests, *, ids: TrialIds
) -> PlanRow:
    trial = planned.trial
    config = Config(
        task=trial.task,
        teacher=trial.teacher,
        trial=trial,
        task_digest=digests.task,
        teacher_digest=digests.teacher,
        text_digests=digests.texts,
        resources=planned.resources,
    )
    return PlanRow(
        what=what,
        id=ids.trial,
        group_id=ids.group,
        axes=planned.axes,
        config_json=config.model_dump_json(),
        labels=labels_of(trial),
        depends_on=(digests.teacher[:16],),
        reason=None,
        priority=planned.priority,
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
