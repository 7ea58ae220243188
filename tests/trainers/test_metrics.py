"""Expected values by hand from the 2 x 2 table, and Matthews' from its formula."""

import numpy as np
import pytest

from kdsweep.trainers.metrics import score

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
LABELS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_metrics_equal_their_values_by_hand() -> None:
    values = score(("matthews", "f1", "accuracy"), PREDICTIONS, LABELS)
    assert values["accuracy"] == pytest.approx(7 / 10)
    assert values["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert values["matthews"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_metrics_come_in_the_order_asked_for_as_plain_numbers() -> None:
    values = score(("f1", "accuracy"), PREDICTIONS, LABELS)
    assert list(values) == ["f1", "accuracy"]
    assert all(type(value) is float for value in values.values())


def test_f1_counts_the_second_class_as_positive() -> None:
    turned = score(("f1",), 1 - PREDICTIONS, 1 - LABELS)["f1"]
    assert turned == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))


def test_metrics_of_constant_predictions_are_zero_and_no_warning() -> None:
    zeros = np.zeros(10, dtype=np.int64)
    assert score(("f1", "matthews"), zeros, LABELS) == {"f1": 0.0, "matthews": 0.0}
    assert score(("f1", "accuracy"), zeros, zeros) == {"f1": 0.0, "accuracy": 1.0}


def test_accuracy_and_matthews_know_three_classes() -> None:
    labels = np.array([0, 1, 2, 2])
    assert score(("accuracy", "matthews"), labels, labels) == {"accuracy": 1.0, "matthews": 1.0}
