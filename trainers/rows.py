"""Labelled texts: as a source gives them, checked, and with class ids."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..search_spaces.errors import DataError, Problem
from .suggestions import did_you_mean

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts with class ids, in order."""

    texts: tuple[tuple[str, ...], ...]
    """The one or two texts of each row."""
    labels: npt.NDArray[np.int64]
    """The class id of each row."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Rows":
        """The rows at these indices, in this order."""
        texts = tuple(self.texts[index] for index in indices)
        return Rows(texts, self.labels[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True)
class Columns:
    """The columns a source has, and the values of those that were asked for."""

    source: str
    """What the values come from, for messages."""
    names: tuple[str, ...]
    """Every column there is."""
    values: Mapping[str, Sequence[object]]
    """The values of the columns asked for, as far as they exist; None is a missing value."""
    class_names: tuple[str, ...] | None = None
    """The data set's own names, if the labels are ids of classes that it names."""
    is_typed: bool = True
    """Whether a number is a number: in CSV everything is text."""


@dataclass(frozen=True)
class RawRows:
    """Checked texts and labels before the labels are ids."""

    source: str
    """What the rows come from, for messages."""
    texts: tuple[tuple[str, ...], ...]
    """The one or two texts of each row."""
    labels: tuple[str, ...] | tuple[int, ...]
    """Names, numbers, or ids of `class_names`."""
    class_names: tuple[str, ...] | None
    """The data set's own names of the classes."""


def read_rows(columns: Columns, *, place: str, text: Sequence[str], label: str) -> RawRows:
    """Texts and labels out of columns.

    Args:
        columns: The values.
        place: The grid's path that named the source, for messages.
        text: The text columns.
        label: The label column.

    Raises:
        DataError: Every column that is missing or holds what a text or a label cannot be.
    """
    problems = [*_missing(columns, (*text, label), place=place)]
    for name in text:
        if name in columns.values:
            problems += _text_problems(columns, name, place=place)
    labels: tuple[str, ...] | tuple[int, ...] = ()
    if label in columns.values:
        problems += _label_problems(columns, label, place=place)
        if not problems:
            labels = _plain_labels(columns.values[label], is_typed=columns.is_typed)
    if not problems and not labels:
        problems.append(Problem(place, f"{columns.source} has no rows", "Give it labelled rows."))
    if problems:
        raise DataError(problems)
    return RawRows(columns.source, _texts(columns, text), labels, columns.class_names)


def read_texts(columns: Columns, *, place: str, text: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Texts out of columns; other columns, labels among them, are not looked at.

    Args:
        columns: The values.
        place: The grid's path that named the source, for messages.
        text: The text columns.

    Raises:
        DataError: Every column that is missing or holds what a text cannot be.
    """
    problems = [*_missing(columns, text, place=place)]
    for name in text:
        if name in columns.values:
            problems += _text_problems(columns, name, place=place)
    if problems:
        raise DataError(problems)
    return _texts(columns, text)


def _missing(columns: Columns, names: Sequence[str], *, place: str) -> Iterable[Problem]:
    for name in names:
        if name not in columns.values:
            yield Problem(
                place,
                f"{columns.source} has no column `{name}`; it has {_listed(columns.names)}",
                did_you_mean(name, columns.names),
            )


def _texts(columns: Columns, text: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(zip(*(map(str, columns.values[name]) for name in text), strict=True))


def class_order(train: RawRows, known: tuple[str, ...] | None) -> tuple[str, ...]:
    """The classes in the order of their ids.

    The data set's own names come first, then the names known for it, then train's labels, sorted:
    numbers by value, names by code point.
    """
    if train.class_names is not None:
        return train.class_names
    if known is not None:
        return known
    numbers = {label for label in train.labels if isinstance(label, int)}
    if numbers:
        return tuple(str(number) for number in sorted(numbers))
    return tuple(sorted({str(label) for label in train.labels}))


def encode(
    raw: RawRows, classes: tuple[str, ...], *, are_ids: bool, place: str, label: str
) -> Rows:
    """Rows with class ids.

    Args:
        raw: The rows.
        classes: The class names in the order of their ids.
        are_ids: Whether whole numbers are ids into `classes`, and not names of their own.
        place: The grid's path that named the source, for messages.
        label: The label column, for messages.

    Raises:
        DataError: Labels that are no class.
    """
    ids: Mapping[str | int, int] = {
        **{name: number for number, name in enumerate(classes)},
        **(
            {number: number for number in range(len(classes))}
            if are_ids
            else {int(name): number for number, name in enumerate(classes) if _is_int(name)}
        ),
    }
    unknown = sorted({label for label in raw.labels if label not in ids}, key=str)
    if unknown:
        what = f"{raw.source}: column `{label}` holds {_listed(unknown)}, "
        if unknown == [-1] and are_ids:
            raise DataError(
                [Problem(place, what + "which marks rows without a label", _USE_LABELLED)]
            )
        raise DataError(
            [
                Problem(
                    place,
                    what + f"and the classes are {_listed(classes)}",
                    "Correct the labels, or give train rows of these classes.",
                )
            ]
        )
    labels = np.fromiter((ids[label] for label in raw.labels), dtype=np.int64)
    return Rows(raw.texts, labels)


_USE_LABELLED = (
    "Choose a split whose labels are public, or carve one: {from: train, fraction: 0.1}."
)


def digest_texts(texts: Sequence[tuple[str, ...]]) -> str:
    """Hexadecimal SHA-256 of texts in order; no two lists of texts share their bytes."""
    encoded = [text.encode() for row in texts for text in row]
    lengths = np.fromiter((len(text) for text in encoded), dtype="<i8", count=len(encoded))
    shape = np.array([len(texts), len(encoded)], dtype="<i8")
    content = hashlib.sha256(shape.tobytes())
    content.update(lengths.tobytes())
    content.update(b"".join(encoded))
    return content.hexdigest()


def digest_rows(rows: Rows) -> str:
    """Hexadecimal SHA-256 of texts and class ids in order."""
    content = hashlib.sha256(digest_texts(rows.texts).encode())
    content.update(rows.labels.astype("<i8").tobytes())
    return content.hexdigest()


def _text_problems(columns: Columns, name: str, *, place: str) -> Iterable[Problem]:
    values = columns.values[name]
    where = f"{columns.source}: column `{name}`"
    missing = [row for row, value in enumerate(values, start=1) if value is None]
    if missing:
        mend = "Drop the rows, or give them a text."
        if not columns.is_typed:
            mend = 'Drop the rows, or give them a text; an empty one is written `""`.'
        yield Problem(place, f"{where} has no text in {_counted(missing)}", mend)
    others = [row for row, value in enumerate(values, start=1) if not isinstance(value, str | None)]
    if others:
        kind = _kind(values[others[0] - 1])
        yield Problem(
            place,
            f"{where} holds {kind} instead of a text in {_counted(others)}",
            "Name the column that holds the text, or write its values as strings.",
        )
    damaged = [
        row
        for row, value in enumerate(values, start=1)
        if isinstance(value, str) and not _is_unicode(value)
    ]
    if damaged:
        yield Problem(
            place,
            f"{where} holds half a surrogate pair, which is no character, in {_counted(damaged)}",
            "Write the text as valid Unicode.",
        )


def _label_problems(columns: Columns, name: str, *, place: str) -> Iterable[Problem]:
    values = columns.values[name]
    where = f"{columns.source}: column `{name}`"
    missing = [row for row, value in enumerate(values, start=1) if value is None]
    if missing:
        yield Problem(
            place, f"{where} has no label in {_counted(missing)}", "Label the rows or drop them."
        )
    present = [value for value in values if value is not None]
    floats = [value for value in present if isinstance(value, float)]
    if not columns.is_typed and _are_decimals(present):
        floats = [float(str(value)) for value in present]
    if floats:
        yield Problem(
            place,
            f"{where} holds decimals ({floats[0]}): regression is not built yet",
            "Write classes as names or whole numbers (1, not 1.0).",
        )
        return
    kinds = sorted({_kind(value) for value in present})
    if len(kinds) > 1:
        yield Problem(place, f"{where} mixes {' and '.join(kinds)}", "Write all labels in one way.")
    elif kinds and not isinstance(present[0], str | int):
        yield Problem(
            place, f"{where} holds {kinds[0]}", "Write classes as names or whole numbers."
        )


def _plain_labels(values: Sequence[object], *, is_typed: bool) -> tuple[str, ...] | tuple[int, ...]:
    if not is_typed and all(_is_int(str(value)) for value in values):
        return tuple(int(str(value)) for value in values)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return tuple(value for value in values if isinstance(value, int))
    return tuple(str(value).lower() if isinstance(value, bool) else str(value) for value in values)


def _is_int(text: str) -> bool:
    # A code such as 007 is a name: as a number it would not come back as it was.
    try:
        return str(int(text)) == text
    except ValueError:
        return False


def _are_decimals(values: Sequence[object]) -> bool:
    try:
        numbers = [float(str(value)) for value in values]
    except ValueError:
        return False
    return bool(numbers) and any(set(str(value)) & set(".eE") for value in values)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    match value:
        case bool():
            return "a truth value"
        case int():
            return "a whole number"
        case float():
            return "a decimal"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"


def _counted(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def _listed(values: Sequence[object]) -> str:
    shown = ", ".join(f"`{value}`" for value in values[: 4 * _SHOWN])
    more = f" and {len(values) - 4 * _SHOWN:,} more" if len(values) > 4 * _SHOWN else ""
    return shown + more
