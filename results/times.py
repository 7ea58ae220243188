"""Where the lanes of a sweep spent their time."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from .rows import VALUE

_SECONDS = VALUE + "seconds/"

OTHER = "other"
"""Time of attempts that no phase was told of: of those that failed, all of it."""


def lane_seconds(attempts: pa.Table) -> Mapping[str, float]:
    """Seconds by phase over all attempts, the longest first; empty before the first attempt.

    What attempts were begun for and is in none of their phases is `other`, so the sum is the time
    in which lanes had work.

    Args:
        attempts: Their table, as a snapshot has it.
    """
    if not attempts.num_rows:
        return {}
    spans = pc.subtract(attempts["ended"], attempts["started"]).cast(pa.duration("us"))
    whole = pc.sum(spans.cast(pa.int64())).as_py() / 1e6
    found = {
        name.removeprefix(_SECONDS): float(pc.sum(attempts[name]).as_py() or 0)
        for name in attempts.column_names
        if name.startswith(_SECONDS)
    }
    # Clocks of a phase and of an attempt are two, so of an attempt without rest a little may lack.
    found[OTHER] = max(0.0, whole - sum(found.values()))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
