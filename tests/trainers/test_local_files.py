"""Local files: what is read as what, and what is refused with which words."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from kdsweep.search_spaces.errors import DataError
from kdsweep.trainers.local_files import read_columns
from kdsweep.trainers.rows import RawRows, read_rows


def read(path: Path, *text: str, label: str = "label") -> RawRows:
    names = text or ("text",)
    columns = read_columns(path, place="task.files.train", columns=(*names, label))
    return read_rows(columns, place="task.files.train", text=names, label=label)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_that_looks_like_a_number_or_a_missing_value_stays_text(tmp_path: Path) -> None:
    rows = read(written(tmp_path / "a.csv", "text,label\n007,x\nNA,y\n1.50,x\n2020-01-01,y\n"))
    assert rows.texts == (("007",), ("NA",), ("1.50",), ("2020-01-01",))


def test_quotes_may_hold_newlines_commas_quotes_and_nothing(tmp_path: Path) -> None:
    rows = read(written(tmp_path / "a.csv", 'text,label\n"a\nb, ""c""",x\n"",y\n'))
    assert rows.texts == (('a\nb, "c"',), ("",))


def test_a_byte_order_mark_and_windows_newlines_are_no_content(tmp_path: Path) -> None:
    rows = read(written(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\nh\xc3\xa9,1\r\n"))
    assert (rows.texts, rows.labels) == ((("hé",),), (1,))


def test_whole_numbers_in_csv_are_numbers_and_codes_are_names(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.csv", "text,label\na,10\nb,-9\n")).labels == (10, -9)
    assert read(written(tmp_path / "b.csv", "text,label\na,010\nb,9\n")).labels == ("010", "9")


def test_json_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    lines = '{"text": "2020-01-01", "label": true}\n\n{"label": false, "text": "b\\nc"}\n'
    rows = read(written(tmp_path / "a.jsonl", lines))
    assert rows.texts == (("2020-01-01",), ("b\nc",))
    assert rows.labels == ("true", "false")


def test_pairs_of_texts_come_in_the_order_of_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"label": [0], "one": ["a"], "two": ["b"]}), path)
    assert read(path, "two", "one").texts == (("b", "a"),)


def test_dictionary_columns_of_parquet_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    names = pa.array(["x", "y", "x"]).dictionary_encode()
    parquet.write_table(pa.table({"text": ["a", "b", "c"], "label": names}), path)
    assert read(path).labels == ("x", "y", "x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.jsonl", "\n", "has no column `text`"),
        ("a.csv", "Text,label\na,b\n", "no column `text`; it has `Text`, `label`\n.*mean `Text`"),
        ("a.csv", b"text,label\nh\xe9,1\n", "is not UTF-8"),
        ("a.csv", "text,label\nh,1\n".encode("utf-16"), "is not UTF-8"),
        ("a.jsonl", b'{"text": "h\xe9", "label": 1}\n', "is not UTF-8"),
        ("a.csv", "text,label\na,b,c\n", "cannot be read: .*Expected 2 columns, got 3"),
        ("a.csv", "text,text,label\na,b,c\n", "has two columns `text`"),
        ("a.csv", "text,label\n,x\na,\n", "no text in row 1\n(.|\n)*no label in row 2"),
        ("a.csv", "text,label\na,1.0\nb,2\n", r"holds decimals \(1.0\): regression is not built"),
        ("a.jsonl", '{"text": "a", "label": 1.5}\n', "regression is not built"),
        ("a.jsonl", '{"text": 5, "label": 1}\n', "holds a whole number instead of a text in row 1"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', "no text in row 2"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "1"}\n', "mixes a text and"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "holds a list"),
        ("a.jsonl", '{"text": "a"\n[1]\n', "line 1, is not a JSON object(.|\n)*line 2"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "half a surrogate pair"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.xlsx", "text", "is not a CSV, JSON-lines or Parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(written(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", "text,label\n")
    with pytest.raises(DataError, match=r"is not a file\n    Did you mean `train.csv`"):
        read(tmp_path / "trian.csv")


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    lines = [{"one": "a", "label": None}, {"one": 3, "label": 1}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError) as caught:
        read(path, "one", "two")
    assert len(caught.value.problems) == 3


def test_rows_are_counted_and_the_first_five_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\n" + ",x\n" * 8)
    with pytest.raises(DataError, match="in rows 1, 2, 3, 4, 5 and 3 more"):
        read(path)
