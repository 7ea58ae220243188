"""Failures that look alike, counted together."""

import pandas as pd

from .fingerprint import fingerprint

COLUMNS = ("failure_class", "fingerprint", "count", "what", "first", "error")


def group_failures(**frames: pd.DataFrame) -> pd.DataFrame:
    """One row for each class and fingerprint of what has failed, the most frequent first.

    `first` is the id of the earliest, and `error` its last lines.

    Args:
        frames: By what they are of: `trial`, `stage` or `teacher`.
    """
    work = pd.concat(
        [frame.assign(what=what, first=frame[f"{what}_id"]) for what, frame in frames.items()]
    )
    failed = work[work["status"] == "failed"].sort_values(["ended", "first"])
    failed = failed.assign(
        error=failed["error"].fillna(""), failure_class=failed["failure_class"].fillna("error")
    )
    failed = failed.assign(fingerprint=[fingerprint(error) for error in failed["error"]])
    groups = failed.groupby(["failure_class", "fingerprint", "what"], as_index=False, sort=False)
    counted = groups.agg(
        count=("first", "size"), first=("first", "first"), error=("error", "first")
    )
    ordered = counted.sort_values("count", ascending=False, kind="stable")
    return ordered[list(COLUMNS)].reset_index(drop=True)
