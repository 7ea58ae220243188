"""Local CSV, JSON-lines and Parquet files as columns of values."""

import csv
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..search_spaces.errors import DataError, Problem
from .rows import Columns
from .suggestions import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa


def read_columns(
    path: Path, *, place: str, columns: Sequence[str], encoding: str = "utf-8"
) -> Columns:
    """The wanted columns of a file, as far as it has them.

    Args:
        path: A file that ends in `.csv`, `.jsonl` or `.parquet`.
        place: The grid's path that named it, for messages.
        columns: The columns wanted.
        encoding: Of the text in a CSV file; the other formats are always UTF-8.

    Raises:
        DataError: The file is missing, empty, of another kind, damaged, or of another encoding.
    """
    if not path.is_file():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        # Of a folder of many files only a near one is named.
        near = did_you_mean(
            path.name,
            beside if len(beside) <= _LISTED else get_close_matches(path.name, beside, cutoff=0.6),
        )
        raise _unreadable(place, f"{path} is not a file", near or "Correct the path.")
    try:
        if path.stat().st_size == 0:
            raise _unreadable(place, f"{path} is empty", "Give it labelled rows.")
        match path.suffix.lower():
            case ".csv":
                return _read_csv(path, place, columns, encoding)
            case ".jsonl":
                return _read_jsonl(path, place, columns)
            case ".parquet":
                return _read_parquet(path, place, columns)
            case _:
                raise _unreadable(
                    place,
                    f"{path} is not a CSV, JSON-lines or Parquet file",
                    "Give a file that ends in .csv, .jsonl or .parquet.",
                )
    except OSError as error:
        raise _unreadable(place, f"{path} cannot be read: {error}", "Make it readable.") from error


_LISTED = 20

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

_UTF8 = "Write it as UTF-8, for example with `iconv -f latin1 -t utf-8`."


def _read_csv(path: Path, place: str, columns: Sequence[str], encoding: str) -> Columns:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    try:
        with path.open(encoding=encoding, newline="") as lines:
            header = lines.readline()
            has_rows, num_quotes = False, header.count('"')
            # Arrow would take a column of another encoding for bytes, without a word.
            for block in iter(lambda: lines.read(1 << 20), ""):
                has_rows = True
                num_quotes += block.count('"')
    except UnicodeDecodeError as error:
        raise _not_unicode(path, place, error) from error
    if not has_rows:
        raise _unreadable(place, f"{path} has no rows", "Give it labelled rows.")
    _check_separator(path, place, header)
    if num_quotes % 2 and (broken := _broken_line(path, encoding)):
        # Arrow closes a quote that is left open at the end of the file, whatever it has swallowed.
        raise _unreadable(place, *broken)
    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    reading = arrow_csv.ReadOptions(encoding=encoding)
    try:
        with arrow_csv.open_csv(path, read_options=reading, parse_options=parsing) as stream:
            names = tuple(stream.schema.names)
        wanted = _unique(columns, names, path=path, place=place)
        table = arrow_csv.read_csv(
            path,
            read_options=reading,
            parse_options=parsing,
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: pa.string() for name in wanted},
                # Only nothing at all is a missing value: `NA` and `null` are words.
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if broken := _broken_line(path, encoding):
            raise _unreadable(place, *broken) from error
        raise _damaged(path, place, error) from error
    return _columns(path, names, wanted, table, is_typed=False)


def _check_separator(path: Path, place: str, header: str) -> None:
    [names] = csv.reader([header])
    found = [name for separator, name in _SEPARATORS.items() if separator in header]
    if len(names) == 1 and found:
        raise _unreadable(
            place, f"{path} separates its columns by {found[0]}", "Save it with commas."
        )


def _broken_line(path: Path, encoding: str) -> tuple[str, str] | None:
    """What is wrong with the first line that does not fit the header, and how to mend it.

    Arrow knows rows and not lines, so Python's slower reader looks for it.
    """
    with path.open(encoding=encoding, newline="") as lines:
        rows = csv.reader(lines, strict=True)
        start = 1
        try:
            header = next(rows)
            start = rows.line_num + 1
            for row in rows:
                if row and len(row) != len(header):
                    return (
                        f"{path} cannot be read: line {start}: Expected {len(header)} columns, "
                        f"got {len(row)}",
                        'Put a text that holds a comma in quotes: "one, two".',
                    )
                start = rows.line_num + 1
        except csv.Error as error:
            if "unexpected end" in str(error) or "field limit" in str(error):
                return (
                    f"{path} cannot be read: line {start}: a quote is opened and never closed",
                    'Close it, or write a quote within a quoted text twice: "a ""word"" here".',
                )
    return None


def _read_jsonl(path: Path, place: str, columns: Sequence[str]) -> Columns:
    names: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    try:
        # Arrow's own reader turns texts that look like dates into dates.
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if not line.strip():
                continue
            row, wrong = _json_object(line)
            if wrong:
                problems.append(
                    Problem(
                        place,
                        f"{path}, line {number}, is not a JSON object: {wrong}",
                        "Write one JSON object a line.",
                    )
                )
            names.update(dict.fromkeys(row))
            rows.append(row)
    except UnicodeDecodeError as error:
        raise _not_unicode(path, place, error) from error
    if problems:
        raise DataError(problems[:_LISTED])
    values = {name: [row.get(name) for row in rows] for name in columns if name in names}
    return Columns(str(path), tuple(names), values)


def _json_object(line: str) -> tuple[dict[str, Any], str]:
    try:
        value = json.loads(line)
    except ValueError as error:
        return {}, str(error)
    return (value, "") if isinstance(value, dict) else ({}, f"it is `{line.strip()[:40]}`")


def _read_parquet(path: Path, place: str, columns: Sequence[str]) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            wanted = _unique(columns, names, path=path, place=place)
            table = file.read(columns=wanted)
        return _columns(path, names, wanted, table, is_typed=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        raise _damaged(path, place, error) from error


def _columns(
    path: Path, names: tuple[str, ...], wanted: Sequence[str], table: "pa.Table", *, is_typed: bool
) -> Columns:
    values = {name: table.column(name).to_pylist() for name in wanted}
    return Columns(str(path), names, values, is_typed=is_typed)


def _unique(columns: Sequence[str], names: tuple[str, ...], *, path: Path, place: str) -> list[str]:
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise _unreadable(
            place, f"{path} has two columns `{twice[0]}`", "Give each column a name of its own."
        )
    return [name for name in dict.fromkeys(columns) if name in names]


def _not_unicode(path: Path, place: str, error: UnicodeDecodeError) -> DataError:
    return _unreadable(place, f"{path} is not {error.encoding.upper()}: {error.reason}", _UTF8)


def _damaged(path: Path, place: str, error: Exception) -> DataError:
    return _unreadable(place, f"{path} cannot be read: {error}", "Mend the file.")


def _unreadable(place: str, what: str, mend: str) -> DataError:
    return DataError([Problem(place, what, mend)])
