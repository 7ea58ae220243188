"""Where the lanes of a sweep spent their time, and what features spared them."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from .rows import VALUE

_SECONDS = VALUE + "seconds/"

OTHER = "other"
"""Time of attempts that no phase was told of: of those that failed, all of it."""

_SPARED, _FEATURES = VALUE + "seconds_spared", VALUE + "features"


@dataclass(frozen=True)
class Spared:
    """What features spared the attempts that read them."""

    seconds: float
    """Of teachers, less what getting the features took, which may be more."""
    share: float
    """Of the time that lanes would have taken without."""
    unknown: int
    """Attempts of which nobody measured it; they are no part of the above."""


def spared_by_features(attempts: pa.Table) -> Spared | None:
    """What features spared; None where no attempt that told of its time read any.

    Args:
        attempts: Their table, as a snapshot has it.
    """
    if _FEATURES not in attempts.column_names:
        return None
    has_read = pc.fill_null(pc.starts_with(attempts[_FEATURES], "cached"), False)  # noqa: FBT003
    nothing = pa.nulls(attempts.num_rows, pa.float64())
    told = attempts[_SPARED] if _SPARED in attempts.column_names else nothing
    unknown = pc.sum(pc.and_(has_read, pc.is_null(told))).as_py() or 0
    # Who reads features never spends exactly what they spare.
    if not unknown and not pc.any(pc.not_equal(told, 0.0)).as_py():
        return None
    seconds = float(pc.sum(told).as_py() or 0.0)
    whole = sum(lane_seconds(attempts).values()) + seconds
    return Spared(seconds, seconds / whole if whole else 0.0, unknown)


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
