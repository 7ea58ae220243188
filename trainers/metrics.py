"""How good predictions are."""

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt

from .glue import Metric

Classes = npt.NDArray[np.integer]


def score(metrics: Sequence[Metric], predictions: Classes, labels: Classes) -> dict[str, float]:
    """Each metric, in the order asked for.

    `accuracy`: share of rows predicted right. `f1`: harmonic mean of precision and recall of the
    second of two classes, 0 where neither is defined. `matthews`: the correlation of predictions
    and labels, for any number of classes, 0 where either is constant.

    Args:
        metrics: What to compute.
        predictions: Class ids, shape [N].
        labels: Class ids, shape [N].

    References:
        scikit-learn, `sklearn.metrics`: `accuracy_score`, `f1_score`, `matthews_corrcoef`.
    """
    return {metric: _score(metric, predictions, labels) for metric in metrics}


def _score(metric: Metric, predictions: Classes, labels: Classes) -> float:
    # Imported here: planning needs the names of metrics and nothing else.
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    match metric:
        case "accuracy":
            return float(accuracy_score(labels, predictions))
        case "f1":
            return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))
        case "matthews":
            return float(matthews_corrcoef(labels, predictions))
        case _:
            assert_never(metric)
