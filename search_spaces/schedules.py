"""How weights and temperatures change within a stage; a schedule multiplies what it schedules.

Progress is the share of the stage's steps that are done, from 0 at its first step to almost 1 at
its last.
"""

import math
from typing import Annotated, Literal, assert_never

from pydantic import AfterValidator

from .spec import NonNegative, Positive, Share, Spec

RatioKind = Literal["hard_labels", "soft_logits", "hidden_states", "attentions", "relations"]
"""Terms that others may follow."""


def _in_order(gate: tuple[float, float]) -> tuple[float, float]:
    if gate[0] >= gate[1]:
        raise ValueError(f"`gate: [{gate[0]:g}, {gate[1]:g}]` is never open: begin before the end")
    return gate


class LinearUp(Spec):
    """Rises from 0 to 1 over a first share of the stage, and stays."""

    linear_up: Share
    """The share of the stage's steps over which it rises."""


class LinearDown(Spec):
    """Falls from 1 to 0 over a first share of the stage, and stays."""

    linear_down: Share
    """The share of the stage's steps over which it falls."""


class Cosine(Spec):
    """Falls from 1 to 0 along half a cosine over a first share of the stage, and stays."""

    cosine: Share
    """The share of the stage's steps over which it falls."""


class Gate(Spec):
    """1 in a part of the stage and 0 outside."""

    gate: Annotated[tuple[Share, Share], AfterValidator(_in_order)]
    """Where that part begins and ends, as shares of the stage's steps."""


class Below(Spec):
    """A loss that has to fall before another term begins."""

    kind: RatioKind
    """The term that is watched; the stage has one of this kind."""
    loss: Positive
    """What its loss on a batch has to fall below."""


class Threshold(Spec):
    """0 until another term's loss on a batch has fallen below a number, then 1 for good."""

    once: Below
    """Which term, and how far."""


class Ratio(Spec):
    """The loss of another term divided by the own one, so that both weigh the same.

    The ratio is taken anew from every batch, and no gradient flows through it.
    Paper: Muralidharan et al., Minitron, 2024, arXiv:2407.14679, weigh their terms so.
    """

    ratio_to: RatioKind
    """The other term; the stage has one of this kind."""


WeightSchedule = LinearUp | LinearDown | Cosine | Gate | Threshold | Ratio


class Anneal(Spec):
    """Moves linearly from `temperature` to another one over the stage."""

    anneal: Positive
    """The temperature at the end."""


class FocalWeights(Spec):
    """Settings of `flsw`."""

    beta: NonNegative = 1.0
    """How far temperatures may differ."""
    gamma: Positive = 1.0
    """How sharply distance counts."""


class Focal(Spec):
    """Softens rows less where the student is far from the teacher.

    Formula: temperature + beta * (mean(w) - w) for each row, w = (1 - cos(z_S, z_T))**gamma.
    Source: TextBrewer's `flsw` scheduler; at least a tenth of `temperature`.
    """

    flsw: FocalWeights
    """Strength and sharpness."""


class Confidence(Spec):
    """Softens rows less where the student is unsure.

    Formula: temperature + beta * (mean(w) - w) for each row, w = 1 / (max p_S + 0.001).
    Source: TextBrewer's `cwsm` scheduler; at least a tenth of `temperature`.
    """

    cwsm: NonNegative
    """beta: how far temperatures may differ."""


TemperatureSchedule = Anneal | Focal | Confidence


def followed(schedule: WeightSchedule | None) -> RatioKind | None:
    """The kind of the other term that a schedule looks at."""
    match schedule:
        case Threshold(once=below):
            return below.kind
        case Ratio(ratio_to=kind):
            return kind
        case _:
            return None


def planned_factor(schedule: LinearUp | LinearDown | Cosine | Gate, *, progress: float) -> float:
    """What a weight is multiplied with at some progress of its stage; between 0 and 1."""
    match schedule:
        case LinearUp(linear_up=share):
            return _done(progress, share)
        case LinearDown(linear_down=share):
            return 1 - _done(progress, share)
        case Cosine(cosine=share):
            return (1 + math.cos(math.pi * _done(progress, share))) / 2
        case Gate(gate=(begin, end)):
            return float(begin <= progress < end)
        case _:
            assert_never(schedule)


def _done(progress: float, share: float) -> float:
    return min(1.0, progress / share) if share else 1.0
