"""Knowledge as a grid writes it: terms, stage after stage."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .knowledge import Term
from .training import Training


@dataclass(frozen=True)
class StageTerms:
    """The terms of one stage, before axes fill what they leave open."""

    terms: tuple[Term, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the section `training` that the stage says for itself."""
    name: str | None = None
    """Of a stage among several."""


Knowledge = tuple[StageTerms, ...]
"""A value of the axis `knowledge`; one stage unless it says several."""


def all_terms(knowledge: Knowledge) -> Iterator[Term]:
    """The terms of every stage, in order."""
    return (term for stage in knowledge for term in stage.terms)


def stage_training(training: Training, stage: StageTerms) -> Training:
    """How a stage is optimised: what the grid says, and over it what the stage says."""
    if not stage.training:
        return training
    return Training.model_validate(training.model_dump(exclude_unset=True) | dict(stage.training))
