"""Which students are kept."""

import shutil
from collections.abc import Mapping

from ..results.store import Store


def keep_best_student(sweep: Store, scores: Mapping[str, float]) -> None:
    """Of a group's completed trials keep the student that is best on select; ties: the lower id.

    Args:
        sweep: The store.
        scores: Best select score of the group's completed trials, by id.
    """
    best = min(scores, key=lambda id: (-scores[id], id))
    for id in scores:
        if id != best:
            shutil.rmtree(sweep.student_folder(id), ignore_errors=True)
