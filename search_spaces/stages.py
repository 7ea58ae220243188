"""Knowledge as a grid writes it: terms, stage after stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .knowledge import Term
from .texts import Unlabelled
from .training import Training

StageData = Literal["task"] | Unlabelled
"""What a stage trains on: the task's train rows, or text without labels."""

StageTeacher = Literal["fine_tuned", "pretrained"]
"""Which state of the teacher teaches: the one that knows the task, or the one before it."""


@dataclass(frozen=True)
class StageTerms:
    """The terms of one stage, before axes fill what they leave open."""

    terms: tuple[Term, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the section `training` that the stage says for itself."""
    name: str | None = None
    """Of a stage among several."""
    data: StageData = "task"
    """What it trains on."""
    teacher: StageTeacher = "fine_tuned"
    """Who teaches."""
    share: float | None = None
    """Of `training.total_steps`; None: what the others leave, in equal parts."""


Knowledge = tuple[StageTerms, ...]
"""A value of the axis `knowledge`; one stage unless it says several."""


ROUNDING = 1e-9
"""Three thirds, written with some digits, are one."""


class LengthError(ValueError):
    """The lengths of stages do not fit together."""


def all_terms(knowledge: Knowledge) -> Iterator[Term]:
    """The terms of every stage, in order."""
    return (term for stage in knowledge for term in stage.terms)


def stage_trainings(training: Training, stages: Sequence[StageTerms]) -> tuple[Training, ...]:
    """How each stage is optimised: what the grid says, and over it what the stage says.

    A stage that says `epochs` or `total_steps` of its own has these; the others divide the grid's
    `total_steps`.

    Raises:
        LengthError: A share has nothing to be a share of, shares are more than the whole, or one
            leaves a stage without a step.
    """
    total = training.total_steps
    own = [bool({"epochs", "total_steps"} & stage.training.keys()) for stage in stages]
    if total is None:
        shared = next((stage.name for stage in stages if stage.share is not None), None)
        if shared is not None:
            raise LengthError(
                f"stage `{shared}` has a `share`, and `training.total_steps` is not said"
            )
        return tuple(_trained(training, stage, steps=None) for stage in stages)
    takes = _divided(
        total, [stage for stage, is_own in zip(stages, own, strict=True) if not is_own]
    )
    steps = iter(takes)
    return tuple(
        _trained(training, stage, steps=None if is_own else next(steps))
        for stage, is_own in zip(stages, own, strict=True)
    )


def _divided(total: int, stages: Sequence[StageTerms]) -> list[int]:
    """Whole steps in proportion to the shares, which add up to `total` where the shares do to 1."""
    said = sum(stage.share or 0 for stage in stages)
    if said > 1 + ROUNDING:
        raise LengthError(f"the stages' shares add up to {said:g}, which is more than 1")
    left = 1 - said
    num_open = sum(stage.share is None for stage in stages)
    steps, before = [], 0.0
    for stage in stages:
        after = before + (left / num_open if stage.share is None else stage.share)
        steps.append(round(after * total) - round(before * total))
        if steps[-1] < 1:
            raise LengthError(f"stage `{stage.name}` has none of the {total} `total_steps`")
        before = after
    return steps


def _trained(training: Training, stage: StageTerms, *, steps: int | None) -> Training:
    if steps is None and not stage.training and training.total_steps is None:
        return training
    said = training.model_dump(exclude_unset=True) | {"total_steps": steps} | dict(stage.training)
    return Training.model_validate(said)
