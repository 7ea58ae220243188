"""Which teacher blocks a student copies."""

import pytest

from kdsweep.search_spaces.initialisation import TeacherLayers, initialisation_label, source_layers
from kdsweep.search_spaces.matching import MatchingError


def test_a_rule_gives_each_student_block_its_teacher_block() -> None:
    start = TeacherLayers(teacher_layers="first")
    chosen = source_layers(start, num_teacher_layers=12, num_student_layers=3)
    assert list(chosen) == [(1, 1), (2, 2), (3, 3)]


def test_a_list_says_each_block() -> None:
    # DistilBERT's blocks 0, 2, 4, 7, 9, 11, counted from 1.
    start = TeacherLayers(teacher_layers=(1, 3, 5, 8, 10, 12))
    chosen = source_layers(start, num_teacher_layers=12, num_student_layers=6)
    assert [pair.teacher for pair in chosen] == [1, 3, 5, 8, 10, 12]


def test_linspace_copies_the_blocks_of_distilbert() -> None:
    start = TeacherLayers(teacher_layers="linspace")
    chosen = source_layers(start, num_teacher_layers=12, num_student_layers=6)
    assert [pair.teacher for pair in chosen] == [1, 3, 5, 8, 10, 12]


@pytest.mark.parametrize(
    "rule",
    ["consecutive", "pkd_skip", "pkd_last", "tinybert", "top", "embedding"],
)
def test_a_rule_that_leaves_blocks_open_or_shares_them_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=f"`{rule}` does not give each student block exactly one"):
        TeacherLayers.model_validate({"teacher_layers": rule})


@pytest.mark.parametrize("layers", [(1, 2), (1, 2, 9)])
def test_a_list_of_the_wrong_length_or_beyond_the_teacher_is_refused(
    layers: tuple[int, ...],
) -> None:
    start = TeacherLayers(teacher_layers=layers)
    with pytest.raises(MatchingError):
        source_layers(start, num_teacher_layers=6, num_student_layers=3)


def test_a_label_says_what_differs_from_the_defaults() -> None:
    assert initialisation_label("random") == "random"
    assert initialisation_label(TeacherLayers(teacher_layers="uniform")) == "teacher-uniform"
    changed = TeacherLayers(teacher_layers=(1, 3, 5), from_="pretrained", pooler="random")
    assert initialisation_label(changed) == "teacher-1.3.5+from-pretrained+pooler-random"
