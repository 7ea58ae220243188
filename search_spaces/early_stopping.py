"""Early stopping as a grid writes it: which trials are compared, where, and how many go on."""

import math
from fractions import Fraction
from typing import Literal

from .spec import Factor, ProperShare, Spec

_DIGITS = 9
"""To which a rung's share is rounded: 0.2 times 3 is a rung at 0.6."""


class Asha(Spec):
    """Asynchronous successive halving: at each rung a trial goes on if it is among the best there.

    References:
        Li et al., *A System for Massively Parallel Hyperparameter Tuning*, 2020, arXiv:1810.05934.
    """

    method: Literal["asha"]
    """`asha`: asynchronous successive halving."""
    metric: Literal["primary", "accuracy", "f1", "matthews"] = "primary"
    """What is compared: a metric of the task on select; `primary` is the task's main one. Losses
    of different objectives cannot be compared."""
    grace: ProperShare = 0.2
    """The first rung, as a share of the steps of a trial's last stage."""
    reduction: Factor = 3
    """About one of so many trials goes on from each rung; each rung is so many times as far as the
    one before."""
    within: tuple[str, ...] = ("task.name", "knowledge")
    """Paths of axes: only trials with equal values of them are compared."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the steps of a trial's last stage, all below 1."""
        shares: list[float] = []
        while (share := round(self.grace * self.reduction ** len(shares), _DIGITS)) < 1:
            shares.append(share)
        return tuple(shares)


def rung_steps(rungs: tuple[float, ...], *, num_steps: int, times: int) -> dict[int, float]:
    """After which steps of a stage a trial stands at a rung: the first evaluation at or after it.

    Args:
        rungs: Shares of the steps, growing.
        num_steps: Optimiser steps of the stage.
        times: Evaluations of select in it, spread evenly.

    Returns:
        The share of a rung by its step. The end is no rung; of rungs that fall on one evaluation
        the first stands for all.
    """
    found: dict[int, float] = {}
    for share in rungs:
        # Exact: in floating point 0.07 of 100 evaluations is a little more than seven.
        evaluation = math.ceil(Fraction(str(share)) * times)
        step = -(-num_steps * evaluation // times)
        if step < num_steps:
            found.setdefault(step, share)
    return found


def has_rung(stopping: Asha, *, times: int) -> bool:
    """Whether any of so many evaluations lies between the first rung and the end."""
    # With as many steps as evaluations no evaluation falls on another.
    return bool(rung_steps(stopping.rungs, num_steps=times, times=times))
