"""How points are chosen: all of a grid, or some that a search proposes one after another."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict

from .spec import Count, Seed, Spec

Metric = Literal["primary", "parameters", "parameters/encoder", "flops_per_token", "latency_ms"]
"""What a search may look at: the task's main metric on select (higher is better), or a cost of the
student (lower is better). Never report, and never a loss: losses of different knowledge cannot be
compared."""


def _check_distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    for n, value in enumerate(values):
        if value in values[:n]:
            raise ValueError(f"`{value}` stands twice; write each once")
    return values


class GridSearch(Spec):
    """Every point."""

    method: Literal["grid"]
    """`grid`: every point of the axes."""


class Objective(Spec):
    """What a search improves."""

    metric: Metric = "primary"
    """`primary`: the task's main metric on select; or a cost of the student, to be lowered."""


class Objectives(Spec):
    """What a search improves at once; it looks for all the best compromises."""

    metrics: Annotated[
        tuple[Metric, ...], Field(min_length=2, max_length=3), AfterValidator(_check_distinct)
    ] = ("primary", "parameters")
    """`primary` is the task's main metric on select; the others are costs, to be lowered."""


class _Proposing(Spec):
    """What all searches say."""

    trials: Count
    """Slots of each study: points that are proposed. A point is trained with every seed of the axis
    `seed`; one that was proposed before is not trained again."""
    per: Annotated[tuple[str, ...], AfterValidator(_check_distinct)] = ()
    """Axes each of whose values has a study of its own with `trials` slots, so that every
    knowledge, say, is seen at its best."""
    over_seeds: Literal["mean"] = "mean"
    """What of a point's seeds the search is told."""
    seed: Seed = 0
    """Of the proposals."""


class RandomSearch(_Proposing):
    """Points drawn at random, whatever was found so far."""

    method: Literal["random"]
    """`random`: each choice is drawn evenly, ranges evenly or on a logarithmic scale."""
    objective: Objective = Objective()
    """By what the best so far is told."""


class TpeSearch(_Proposing):
    """Points where good ones were dense (tree-structured Parzen estimators).

    References:
        Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, 2011.
    """

    method: Literal["tpe"]
    """`tpe`: after ten results, where good points were dense and bad ones rare."""
    objective: Objective = Objective()
    """What is improved."""


class Nsga2Search(_Proposing):
    """Children of the points that no other beats in everything.

    References:
        Deb et al., *A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II*, 2002.
    """

    method: Literal["nsga2"]
    """`nsga2`: a genetic search for the best compromises of several objectives."""
    objective: Objectives = Objectives()
    """What is improved, together."""
    population: Annotated[int, Strict(), Field(ge=2)] = 10
    """Points of a generation; the first is random, so `trials` should be several times as many."""


Proposing = RandomSearch | TpeSearch | Nsga2Search
Search = Annotated[GridSearch | Proposing, Field(discriminator="method")]

METHODS = ("grid", "random", "tpe", "nsga2")


def metrics_of(search: Proposing) -> tuple[Metric, ...]:
    """What a search improves, in its order."""
    objective = search.objective
    return objective.metrics if isinstance(objective, Objectives) else (objective.metric,)
