"""What a person may write for a trial."""

import pytest

from kdsweep.search_spaces.errors import InputError
from kdsweep.sweep.words import clock, count, named, size

GROUPS = {"1a": "f1", "1b": "f1", "2c": "f2", "77": "77"}


def name(word: str) -> tuple[str, ...]:
    return named(word, GROUPS, place="--trial", mend="Look there.")


@pytest.mark.parametrize(
    ("word", "ids"),
    [("1a", ("1a",)), ("2", ("2c",)), ("f1", ("1a", "1b")), ("f2", ("2c",)), ("7", ("77",))],
)
def test_a_trial_a_group_or_a_teacher_is_named_by_as_much_as_tells_it_apart(
    word: str, ids: tuple[str, ...]
) -> None:
    assert name(word) == ids


def test_what_names_nothing_or_several_things_is_refused() -> None:
    with pytest.raises(InputError, match="`9` names no trial, group or teacher\n    Look there"):
        name("9")
    with pytest.raises(InputError, match=r"`1` begins 2 ids (.|\n)*Write more digits: 1a, 1b"):
        name("1")
    with pytest.raises(InputError, match=r"`` begins 6 ids (.|\n)* and 1 more"):
        name("")


def test_counts_and_times_read_as_they_are_said() -> None:
    assert [count(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
    assert [clock(seconds) for seconds in (5, 125, 3725)] == ["0:05", "2:05", "1:02:05"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 MB"),
        (2_345_678, "2.3 MB"),
        (99e6, "99 MB"),
        (453e6, "0.45 GB"),
        (99.4e9, "99 GB"),
        (116e12, "116 TB"),
        (2500e12, "2,500 TB"),
    ],
)
def test_sizes_read_in_the_unit_that_a_person_would_take(number: float, said: str) -> None:
    assert size(number) == said
