"""What of YAML a grid may use, and what the reader says about the rest."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces import GridError, load_grid, read_grid
from kdsweep.search_spaces.source import read_tree
from kdsweep.search_spaces.tree import Place, find_place, plain


def read(text: str) -> object:
    root, flaws = read_tree(text)
    assert flaws == []
    return plain(root)


def test_numbers_are_read_as_yaml_1_2_has_them() -> None:
    text = "[1e-4, 5E3, 0x1F, 0o17, 017, 1_000, -3, .5, 1., +2.5e+1]"
    assert read(text) == [1e-4, 5000.0, 31, 15, 17, 1000, -3, 0.5, 1.0, 25.0]
    assert [type(value) for value in read("[1, 1.0, 1e0]")] == [int, float, float]  # type: ignore[attr-defined]


def test_words_stay_words() -> None:
    assert read("[1.2.3, 1e, 12:30:00, 2001-01-01, '3', n, y]") == [
        *["1.2.3", "1e", "12:30:00", "2001-01-01", "3", "n", "y"]
    ]
    assert read("[true, False, null, ~]") == [True, False, None, None]


def test_every_key_and_value_knows_its_place() -> None:
    root, _ = read_tree("a:\n  - b: 1\n  - {c: [x, y]}\n")
    assert find_place(root, ("a", 1, "c", 1)) == Place(3, 13)
    assert find_place(root, ("a", 1, "c"), of_key=True) == Place(3, 6)
    assert find_place(root, ("a", 0, "missing")) == Place(2, 5)


def test_an_absent_value_lies_at_its_key() -> None:
    root, _ = read_tree("a:\nb: 1\n")
    assert find_place(root, ("a",)) == Place(1, 1)


def test_an_alias_is_a_copy() -> None:
    assert read("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("name: a\nname: b\n", "2:1", "name: is written twice; first in line 1"),
        ("name: a\n\ttask: b\n", "2:1", "a tab indents this line"),
        ("name: a\n---\nname: b\n", "2:1", "a second document starts here"),
        ("%YAML 1.1\n---\nname: a\n", "2:1", "has a `%` directive"),
        ("name: !!python/name:os.system x\n", "1:7", "has the tag"),
        ("name: !custom x\n", "1:7", "has the tag `!custom`"),
        ("name: &x [*x]\n", "1:11", "`*x` contains itself"),
        ("name: *x\n", "1:7", "`*x` has no anchor"),
        (BOMB, "6:5", "has more than 50000 values"),
        ("name: " + "[" * 5000, "1:47", "is nested deeper than 40"),
        ("<<: {name: a}\n", "1:1", "`<<` merges"),
        ("name: .nan\n", "1:7", "`.nan` is not a finite number"),
        ("name: -.inf\n", "1:7", "`-.inf` is not a finite number"),
        ("name: 1e999\n", "1:7", "`1e999` is too large for a number"),
        ("name: off\n", "1:7", "`off` may be a word or a boolean"),
        ("Yes: 1\n", "1:1", "the key `Yes` may be a boolean"),
        ('name: "open\n', "2:1", "is not YAML"),
        ("[1, 2]: 3\n", "1:1", "a key is not a word"),
        ("- a\n", "1:1", '`["a"]` is not a mapping'),
        ("", "1:1", "is empty"),
        ("name: \x00\n", "1:1", "is not YAML"),
    ],
)
def test_what_a_grid_may_not_be_is_refused_with_its_place(
    text: str, place: str, message: str
) -> None:
    with pytest.raises(GridError) as caught:
        read_grid(text, file="grid.yaml", base=Path())
    assert f"grid.yaml:{place}: " in str(caught.value)
    assert message in str(caught.value)
    assert all(problem.mend for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff\n", "1:7: is not UTF-8: byte 0xff"),
        (b"a\n" * 600_000, "1:1: has 1200000 bytes; a grid has at most 1000000"),
    ],
)
def test_files_that_are_not_text_or_too_long_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes(content)
    with pytest.raises(GridError, match=message):
        load_grid(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"nope\.yaml: cannot be read: No such file"):
        load_grid(tmp_path / "nope.yaml")


@given(st.text(max_size=200))
def test_no_text_makes_the_reader_fail_in_any_other_way(text: str) -> None:
    with pytest.raises(GridError):
        read_grid(text, file="grid.yaml", base=Path())


YAML_WORDS = [
    *["a", "task", "axes", "knowledge", "kind", "shape", "when", "if", "zip", "hard_labels"],
    *["[", "]", "{", "}", ":", "-", ",", "&x", "*x", "!t", "'", "1", "1e9", "null", "\n", "  "],
]


@given(st.lists(st.sampled_from(YAML_WORDS), max_size=40))
def test_no_jumble_of_the_language_makes_the_reader_fail_in_any_other_way(
    words: list[str],
) -> None:
    with pytest.raises(GridError):
        read_grid(" ".join(words), file="grid.yaml", base=Path())
