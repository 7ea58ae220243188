"""A task's rows: read, split, and summed up in one digest."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..search_spaces.errors import DataError, Problem
from ..search_spaces.task import Carve, Split, Task
from ..search_spaces.trial import digest
from .data_sources import TENTH, DataSource, each_split, open_source
from .glue import Metric
from .rows import RawRows, Rows, class_order, digest_rows, encode
from .splits import carve, drop_duplicates, drop_texts, limit_rows
from .suggestions import did_you_mean

TASK_DIGEST_VERSION = 1
"""Raised when what a task's digest covers changes; every trial id changes with it."""


@dataclass(frozen=True, eq=False)
class TaskData:
    """Everything of a task that training and evaluation read."""

    name: str
    """What the task is called; part of no id."""
    train: Rows
    """Rows to train on."""
    select: Rows
    """Rows that every choice reads."""
    report: Rows
    """Rows that tables report."""
    classes: tuple[str, ...]
    """The class names in the order of their ids."""
    metric: Metric
    """The main metric."""
    metrics: tuple[Metric, ...]
    """Every metric that is computed, the main one first; accuracy is always among them."""
    dropped: Mapping[str, int]
    """How many rows were dropped before training, by reason."""
    unlimited: tuple[tuple[str, ...], ...]
    """The texts of train before its limit."""
    text: tuple[str, ...]
    """The text columns of the source."""


def load_task(task: Task) -> TaskData:
    """Read a task's rows and split them.

    Duplicates are dropped first (the first of equal rows stays, none of a text that has two
    labels), then splits are carved, then rows of train and select whose text is in report are
    dropped, then `limit` draws. A split of the source's own that is reported stays as it is, so
    that its figures compare with published ones.

    Raises:
        DataError: Whatever is wrong with the source, its columns, labels, splits and limits.
    """
    source = open_source(task)
    choice, problems = _choose(task, source)
    raw = _read(source, choice, problems)
    classes = class_order(raw["train"], source.classes)
    rows = _encode(raw, classes, source=source, choice=choice)
    metrics = _metrics(task, source, classes)
    whole, select, report, dropped = _split(rows, choice, task=task, classes=classes)
    train = limit_rows(whole, task.limit.train, seed=task.limit.seed, role="train")
    _check_classes({"train": train, "select": select, "report": report}, classes)
    return TaskData(
        name=source.name,
        train=train,
        unlimited=whole.texts,
        select=select,
        report=report,
        text=source.text,
        classes=classes,
        metric=metrics[0],
        metrics=metrics,
        dropped={reason: number + source.dropped.get(reason, 0) for reason, number in dropped},
    )


def task_digest(data: TaskData, task: Task) -> str:
    """Hexadecimal SHA-256 of what a task is to training: rows in order, classes, length, metric."""
    return digest(
        {
            "version": TASK_DIGEST_VERSION,
            "type": "classification",
            "train": digest_rows(data.train),
            "select": digest_rows(data.select),
            "report": digest_rows(data.report),
            "classes": data.classes,
            "max_length": task.max_length,
            "metric": data.metric,
        }
    )


@dataclass(frozen=True)
class _Choice:
    """The select and report split: a name of the source's, or a part of train."""

    select: Split
    report: Split

    @property
    def named(self) -> dict[str, str]:
        """The splits to read, each with the grid's path that names it."""
        chosen = {"train": "task"}
        for role, split in (("task.select", self.select), ("task.report", self.report)):
            if isinstance(split, str):
                chosen[split] = role
        return chosen


def _choose(task: Task, source: DataSource) -> tuple[_Choice, list[Problem]]:
    problems: list[Problem] = []
    if "train" not in source.splits:
        problems.append(
            Problem(
                "task.name",
                f"`{source.name}` has no split `train`; it has {', '.join(source.splits)}",
                "Use a data set with a train split.",
            )
        )
    report = task.report or source.report
    if report is None:
        problems.append(
            Problem(
                "task.report",
                "there is no split to report",
                "Name one, or carve it: `report: {from: train, fraction: 0.1}`.",
            )
        )
        report = TENTH
    own_select = source.select if source.select != report else None
    choice = _Choice(task.select or own_select or TENTH, report)
    problems += _split_problems("task.select", choice.select, source)
    problems += _split_problems("task.report", choice.report, source)
    if isinstance(choice.select, str) and choice.select == choice.report:
        problems.append(
            Problem(
                "task.select",
                f"`{choice.select}` is also the report split, which no choice may read",
                "Carve it from train: `select: {from: train, fraction: 0.1}`.",
            )
        )
    return choice, problems


def _split_problems(place: str, split: Split, source: DataSource) -> list[Problem]:
    if isinstance(split, Carve):
        return []
    if split in source.unlabelled:
        return [
            Problem(
                place,
                f"the labels of `{split}` are not public: every one is -1",
                f"Write `{source.report}`.",
            )
        ]
    if split == "train":
        return [
            Problem(
                place,
                "`train` is trained on",
                f"Carve a part of it: `{place.removeprefix('task.')}: "
                "{from: train, fraction: 0.1}`.",
            )
        ]
    if split not in source.splits:
        return [
            Problem(
                place,
                f"`{source.name}` has no split `{split}`",
                did_you_mean(split, [known for known in source.splits if known != "train"])
                or "Carve one: {from: train, fraction: 0.1}.",
            )
        ]
    return []


def _read(source: DataSource, choice: _Choice, problems: list[Problem]) -> Mapping[str, RawRows]:
    """The rows of every split, unless anything is wrong with them or with the choice of splits."""
    wanted = {split: place for split, place in choice.named.items() if split in source.splits}
    try:
        raw = source.read(wanted)
    except DataError as error:
        if problems:
            raise DataError([*problems, *error.problems]) from error
        raise
    if problems:
        raise DataError(problems)
    return raw


def _encode(
    raw: Mapping[str, RawRows], classes: tuple[str, ...], *, source: DataSource, choice: _Choice
) -> dict[str, Rows]:
    are_ids = source.classes is not None or raw["train"].class_names is not None
    return each_split(
        choice.named,
        lambda split, place: encode(
            raw[split], classes, are_ids=are_ids, place=place, label=source.label
        ),
    )


def _metrics(task: Task, source: DataSource, classes: tuple[str, ...]) -> tuple[Metric, ...]:
    main = task.metric or source.metrics[0]
    if main == "f1" and len(classes) != 2:
        raise _error(
            "task.metric",
            f"`f1` is of two classes, and there are {len(classes)}",
            "Write `accuracy` or `matthews`.",
        )
    return tuple(dict.fromkeys((main, *source.metrics, "accuracy")))


def _split(
    rows: Mapping[str, Rows], choice: _Choice, *, task: Task, classes: tuple[str, ...]
) -> tuple[Rows, Rows, Rows, list[tuple[str, int]]]:
    train, duplicates, conflicts = drop_duplicates(rows["train"])
    size = len(train)
    if isinstance(choice.report, Carve):
        report, train = carve(train, choice.report, role="report", classes=classes)
    else:
        report = rows[choice.report]
    if isinstance(choice.select, Carve):
        select, train = carve(train, choice.select, role="select", classes=classes, of=size)
    else:
        select, more_duplicates, more_conflicts = drop_duplicates(rows[choice.select])
        duplicates += more_duplicates
        conflicts += more_conflicts
    kept_train, kept_select = drop_texts(train, report), drop_texts(select, report)
    in_report = len(train) + len(select) - len(kept_train) - len(kept_select)
    limit = task.limit
    return (
        kept_train,
        limit_rows(kept_select, limit.select, seed=limit.seed, role="select"),
        report,
        [
            ("duplicates", duplicates),
            ("conflicting_labels", conflicts),
            ("equal_to_report", in_report),
        ],
    )


def _check_classes(splits: Mapping[str, Rows], classes: tuple[str, ...]) -> None:
    problems = [
        Problem(
            f"task.{split}",
            "no row is left after duplicates and rows of report are dropped",
            "Give more rows.",
        )
        for split, rows in splits.items()
        if not len(rows)
    ]
    known = set(splits["train"].labels.tolist())
    if len(known) == 1:
        name = classes[known.pop()]
        raise _error(
            "task.train", f"every row has the label `{name}`", "Give rows of two classes or more."
        )
    for split in ("select", "report"):
        unseen = [classes[label] for label in np.unique(splits[split].labels) if label not in known]
        if unseen and known:
            problems.append(
                Problem(
                    f"task.{split}",
                    f"rows of the class {', '.join(f'`{name}`' for name in unseen)} are in {split} "
                    "and none is in train",
                    "Give train rows of these classes, or drop them.",
                )
            )
    if problems:
        raise DataError(problems)


def _error(place: str, what: str, mend: str) -> DataError:
    return DataError([Problem(place, what, mend)])
