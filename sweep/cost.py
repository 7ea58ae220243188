"""What work that is still to do would take, from what was measured of work like it; pure."""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

DECILES = 10
"""From so many measurements on, the fastest and the slowest tenth are left out of a range."""

CHECKPOINTS = 2
"""That a training keeps at once."""

COPIES = 4
"""Of the weights in a checkpoint: the weights, two moments, and the best weights so far."""

FP32 = 4
"""Bytes of a weight."""


@dataclass(frozen=True)
class Piece:
    """A piece of work as far as its time depends on it."""

    like: tuple[str, Hashable]
    """What shares a pace: `teacher` or `student`, and what is trained on what."""
    flops: float | None
    """Floating-point operations of its training; None: unknown."""


class Measured(NamedTuple):
    """A piece of work and the seconds that it took."""

    piece: Piece
    seconds: float


@dataclass(frozen=True)
class Between:
    """A quantity that is not known better than its range."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> "Between":
        """Of so many."""
        return Between(self.low * factor, self.middle * factor, self.high * factor)

    def __add__(self, other: "Between") -> "Between":
        """Of both, if both are low or high for one reason: such as a busy machine."""
        return Between(self.low + other.low, self.middle + other.middle, self.high + other.high)


NOTHING = Between(0.0, 0.0, 0.0)


class Reckoned(NamedTuple):
    """What a list of work takes."""

    seconds: Between
    num_unknown: int
    """Pieces that are not in it: their length is unknown, or nothing like them was measured."""


def reckon(todo: Iterable[Piece], measured: Sequence[Measured]) -> Reckoned:
    """Seconds of one lane.

    A piece goes at the pace of work that is like it, where there is none at that of all teachers or
    all students.
    """
    paces = _paces(measured)
    seconds, num_unknown = NOTHING, 0
    for piece in todo:
        pace = paces.get(piece.like) or paces.get(piece.like[0])
        if pace is None or piece.flops is None:
            num_unknown += 1
        else:
            seconds += pace.times(piece.flops)
    return Reckoned(seconds, num_unknown)


def _paces(measured: Iterable[Measured]) -> dict[Hashable, Between]:
    """Seconds per operation by what is trained, and by whether it is a teacher or a student."""
    by_key: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for piece, seconds in measured:
        if piece.flops:
            by_key[piece.like].append((seconds, piece.flops))
            by_key[piece.like[0]].append((seconds, piece.flops))
    return {key: _pace(found) for key, found in by_key.items()}


def _pace(found: Sequence[tuple[float, float]]) -> Between:
    middle = sum(seconds for seconds, _ in found) / sum(flops for _, flops in found)
    rates = sorted(seconds / flops for seconds, flops in found)
    if len(rates) >= DECILES:
        rates = statistics.quantiles(rates, n=DECILES)
    return Between(min(rates[0], middle), middle, max(rates[-1], middle))


@dataclass(frozen=True)
class Disk:
    """Bytes that the work still to do would take."""

    kept: float
    """Students as `keep` says, teachers, and stages that several trials begin with."""
    rows: float | None
    """Attempts, history and predictions; None until a trial has been completed."""
    checkpoints: tuple[int, ...]
    """Of each piece of work while it is trained, the largest first."""
    free: int
    """On the file system of the store."""

    @property
    def lane(self) -> int:
        """Checkpoints of one lane, at the most."""
        return max(self.checkpoints, default=0)

    def needed(self, lanes: int) -> float:
        """At the most, as far as it is known: with the largest work in all lanes at once."""
        return self.kept + (self.rows or 0.0) + sum(self.checkpoints[:lanes])


def checkpoint_bytes(parameters: int) -> int:
    """Of a training that keeps its newest checkpoints."""
    return CHECKPOINTS * COPIES * FP32 * parameters
