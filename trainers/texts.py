"""Text without labels: what a stage trains on beside, or in place of, the task's rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import assert_never

from ..search_spaces.errors import DataError, Problem
from ..search_spaces.stages import StageData
from ..search_spaces.task import Task
from ..search_spaces.texts import Text, Unlabelled
from .local_files import read_columns
from .rows import read_texts
from .tasks import TaskData

Texts = tuple[tuple[str, ...], ...]
"""The one or two texts of each row."""

_LINES = ".txt"


def name_of_rows(task: Task, data: StageData) -> str:
    """What people call the rows that a stage trains on."""
    if isinstance(data, Text):
        return Path(data.text).name
    named = task.name or (Path(task.files.train).name if task.files is not None else "rows")
    return named if data == "task" else f"{named} ({data})"


def unlabelled_texts(data: TaskData, wanted: Unlabelled, *, place: str = "stages.data") -> Texts:
    """The texts that a stage names, each once, without those of select and report.

    White space tells no two texts apart there, and a passage that is one text of a pair goes too.

    Args:
        data: The task.
        wanted: Which.
        place: The grid's path that named it, for messages.

    Raises:
        DataError: The file is missing, damaged, without the task's text columns, or without a
            text that is not in select or report.
    """
    match wanted:
        case "unlabelled":
            found: Iterable[tuple[str, ...]] = data.unlimited
            name = "train"
        case Text(text=path):
            place, name = f"{place}.text", path
            found = _read(Path(path), place=place, columns=data.text)
        case _:
            assert_never(wanted)
    unwanted = _forms([*data.select.texts, *data.report.texts])
    kept = tuple(text for text in dict.fromkeys(found) if _form(text) not in unwanted)
    if not kept:
        what = f"{name} has no text that is not in select or report"
        raise DataError([Problem(place, what, "Give other text.")])
    return kept


def _forms(rows: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Of rows, and of each text of a pair by itself: a passage may be one of the two."""
    return {form for row in rows for form in (_form(row), *((text,) for text in _form(row)))}


def _form(row: tuple[str, ...]) -> tuple[str, ...]:
    """A row without what no tokenizer of BERT's sees: white space more than one space."""
    return tuple(" ".join(text.split()) for text in row)


def _read(path: Path, *, place: str, columns: Sequence[str]) -> Iterable[tuple[str, ...]]:
    if path.suffix.lower() != _LINES:
        found = read_columns(path, place=place, columns=columns)
        return read_texts(found, place=place, text=columns)
    try:
        # Lines end at "\n" alone: `splitlines` would cut passages at rarer characters too.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror or error}"
        raise DataError([Problem(place, what, "Correct the path.")]) from error
    except UnicodeDecodeError as error:
        mend = "Write it as UTF-8, for example with `iconv -f latin1 -t utf-8`."
        raise DataError([Problem(place, f"{path} is not UTF-8: {error}", mend)]) from error
    return ((line.strip(),) for line in lines if line.strip())
