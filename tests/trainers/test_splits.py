"""Design rule: drop duplicates, split, drop what is in report, limit; the same rows for ever."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces.errors import DataError
from kdsweep.search_spaces.task import Carve
from kdsweep.trainers.rows import Rows
from kdsweep.trainers.splits import (
    carve,
    drop_duplicates,
    drop_texts,
    largest_remainders,
    limit_rows,
)

CLASSES = ("a", "b", "c")


def rows_of(*pairs: tuple[str, int]) -> Rows:
    return Rows(
        tuple((text,) for text, _ in pairs), np.array([label for _, label in pairs], np.int64)
    )


def numbered(*sizes: int) -> Rows:
    return rows_of(
        *(
            (f"{label}-{number}", label)
            for label, size in enumerate(sizes)
            for number in range(size)
        )
    )


def tenth(seed: int = 0) -> Carve:
    return Carve(from_="train", fraction=0.1, seed=seed)


def test_the_first_of_equal_rows_stays() -> None:
    result = drop_duplicates(rows_of(("x", 0), ("y", 1), ("x", 0), ("x", 0)))
    assert result.rows.texts == (("x",), ("y",))
    assert (result.duplicates, result.conflicts) == (2, 0)


def test_no_row_of_a_text_with_two_labels_stays() -> None:
    result = drop_duplicates(rows_of(("x", 0), ("x", 0), ("y", 1), ("x", 1)))
    assert result.rows.texts == (("y",),)
    assert (result.duplicates, result.conflicts) == (0, 3)


def test_pairs_are_equal_only_if_both_texts_are() -> None:
    rows = Rows((("x", "y"), ("y", "x"), ("x", "z")), np.zeros(3, np.int64))
    assert len(drop_duplicates(rows).rows) == 3


def test_rows_are_dropped_by_their_text_whatever_their_label() -> None:
    assert drop_texts(rows_of(("x", 0), ("y", 1)), rows_of(("x", 1))).texts == (("y",),)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8).filter(any), st.data())
def test_quotas_add_up_and_lie_within_one_of_their_share(
    sizes: list[int], data: st.DataObject
) -> None:
    total = sum(sizes)
    size = data.draw(st.integers(0, total))
    quotas = largest_remainders(size, sizes, least=[0] * len(sizes), most=sizes)
    assert sum(quotas) == size
    assert all(
        abs(quota * total - size * number) < total
        for quota, number in zip(quotas, sizes, strict=True)
    )


def test_quotas_follow_the_largest_remainders() -> None:
    # Shares 4.7, 3.3, 2.0 of 10 seats (by hand): whole parts 4, 3, 2; the last seat goes to .7.
    assert largest_remainders(10, [47, 33, 20], least=[0] * 3, most=[47, 33, 20]) == [5, 3, 2]


def test_quotas_keep_their_bounds() -> None:
    assert largest_remainders(10, [97, 2, 1], least=[1, 1, 1], most=[97, 2, 1]) == [8, 1, 1]


@given(st.lists(st.integers(2, 40), min_size=2, max_size=3), st.integers(0, 5))
def test_a_part_and_the_rest_are_the_whole_in_its_order(sizes: list[int], seed: int) -> None:
    rows = numbered(*sizes)
    rule = Carve(from_="train", fraction=0.5, seed=seed)
    part, rest = carve(rows, rule, role="select", classes=CLASSES)
    place = {text: index for index, text in enumerate(rows.texts)}
    assert sorted([*part.texts, *rest.texts]) == sorted(rows.texts)
    for side in (part, rest):
        places = [place[text] for text in side.texts]
        assert places == sorted(places)
        assert set(side.labels.tolist()) == set(range(len(sizes)))


def test_a_part_has_each_class_in_proportion() -> None:
    part, rest = carve(numbered(700, 200, 100), tenth(), role="select", classes=CLASSES)
    assert np.bincount(part.labels).tolist() == [70, 20, 10]
    assert np.bincount(rest.labels).tolist() == [630, 180, 90]


def test_a_rare_class_is_on_both_sides() -> None:
    part, rest = carve(numbered(500, 2), tenth(), role="select", classes=CLASSES)
    assert np.bincount(part.labels).tolist()[1] == 1
    assert np.bincount(rest.labels).tolist()[1] == 1


def test_a_draw_does_not_depend_on_the_order_of_rows() -> None:
    rows = numbered(30, 20)
    turned = list(range(50))
    random.Random(1).shuffle(turned)
    part, _ = carve(rows, tenth(), role="select", classes=CLASSES)
    same, _ = carve(rows.take(turned), tenth(), role="select", classes=CLASSES)
    assert set(same.texts) == set(part.texts)


def test_seeds_and_roles_draw_apart() -> None:
    rows = numbered(300, 300)
    drawn = {
        carve(rows, tenth(seed), role=role, classes=CLASSES)[0].texts
        for seed in (0, 1)
        for role in ("select", "report")
    }
    assert len(drawn) == 4


def test_a_draw_is_pinned_because_trial_ids_depend_on_its_rows() -> None:
    # The lowest two of each class by `printf '[0,"select","0-12"]' | sha256sum`.
    part, _ = carve(numbered(20, 20), tenth(), role="select", classes=CLASSES)
    assert part.texts == (("0-12",), ("0-18",), ("1-5",), ("1-13",))


def test_a_class_with_a_single_row_cannot_be_carved() -> None:
    with pytest.raises(DataError, match="class `b` has a single row"):
        carve(numbered(20, 1), tenth(), role="select", classes=CLASSES)


def test_a_part_smaller_than_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.select: a fraction of 0\.1 gives 1 of 6 rows"):
        carve(numbered(2, 2, 2), tenth(), role="select", classes=CLASSES)


def test_a_limit_is_stratified_and_keeps_the_order() -> None:
    limited = limit_rows(numbered(600, 300, 100), 100, seed=0, role="train")
    assert np.bincount(limited.labels).tolist() == [60, 30, 10]
    assert limited.labels.tolist() == sorted(limited.labels.tolist())


def test_a_larger_limit_holds_the_smaller_one() -> None:
    rows = numbered(600, 400)
    small = limit_rows(rows, 100, seed=3, role="train")
    large = limit_rows(rows, 200, seed=3, role="train")
    assert set(small.texts) < set(large.texts)


def test_a_limit_above_the_number_of_rows_is_all_rows() -> None:
    rows = numbered(3, 3)
    assert limit_rows(rows, 1000, seed=0, role="train") is rows


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.limit\.train: 2 is fewer than the 3 classes"):
        limit_rows(numbered(5, 5, 5), 2, seed=0, role="train")
