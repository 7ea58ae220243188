"""What a person is told of a CSV file that is broken, or of one that is not there."""

from pathlib import Path

import pytest

from kdsweep.search_spaces.errors import DataError
from kdsweep.trainers.local_files import read_columns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text;label\na;x\n", "separates its columns by semicolons\n    Save it with commas"),
        ("text;label\na, b;x\n", "separates its columns by semicolons"),
        ("text\tlabel\na\tx\n", "separates its columns by tabs"),
        ('text,label\n"a\nb",x\n\nc,y,z\n', "line 5: Expected 2 columns, got 3\n    Put a text"),
        ('text,label\na,x\n"b,y\nc,z\n', "line 3: a quote is opened and never closed"),
        ('text,label\na,x\nb,"y\nc,z\n', "line 3: a quote is opened and never closed"),
    ],
)
def test_a_broken_csv_file_is_told_with_its_line_and_mend(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        read_columns(file, place="task.files.train", columns=("text", "label"))
    assert message in str(caught.value)


def test_a_single_quote_within_a_text_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('text,label\n5" pipe,x\n')
    columns = read_columns(file, place="task.files.train", columns=("text", "label"))
    assert columns.values["text"] == ['5" pipe']


def test_a_missing_file_names_its_neighbour_among_many(tmp_path: Path) -> None:
    for name in ("train.csv", *(f"other-{n}.txt" for n in range(40))):
        (tmp_path / name).touch()
    for name, mend in (("trian.csv", "Did you mean `train.csv`?"), ("zzz", "Correct the path.")):
        with pytest.raises(DataError) as caught:
            read_columns(tmp_path / name, place="task.files.train", columns=())
        assert str(caught.value).endswith(f"\n    {mend}")
