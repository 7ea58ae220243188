"""The one module that knows Optuna: which point to try next, given what became of others.

A study lives for one question. It is made in memory from what is known, asked once and thrown away,
so a choice is a pure function of search, space, past and seed, and Optuna keeps nothing that a
killed launch could lose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, assert_never

from ..search_spaces.search import (
    Metric,
    Nsga2Search,
    Proposing,
    RandomSearch,
    TpeSearch,
    metrics_of,
)
from ..search_spaces.space import Choice, Parameter, Space
from ..search_spaces.values import Range

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STARTUP = 10
"""Points that TPE draws at random before it has seen enough."""


State = Literal["completed", "failed", "running", "impossible"]


@dataclass(frozen=True)
class Chosen:
    """A point by what was chosen, and what the sampler keeps beside it."""

    choices: Mapping[str, Choice]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """A point that was chosen before."""

    chosen: Chosen
    state: State
    values: tuple[float, ...] | None = None
    """By metric, of a completed point."""


def choose(search: Proposing, space: Space, past: Sequence[Past], *, seed: int) -> Chosen:
    """The next point of a study.

    TPE takes what is running for bad, so that several lanes do not all try one place; NSGA-II and
    random search do not look at it. Impossible points violate a constraint, which TPE takes for
    worse than any result; they are in no generation of NSGA-II, so all of its parents were trained.

    Args:
        search: How.
        space: What may be chosen.
        past: Every point of the study so far, in the order in which they were chosen.
        seed: Of the sampler.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metrics = metrics_of(search)
    num_impossible = sum(each.state == "impossible" for each in past)
    study = optuna.create_study(
        directions=[direction(metric) for metric in metrics],
        sampler=_sampler(search, seed=seed, startup=STARTUP + num_impossible),
    )
    distributions = {each.name: _distribution(each) for each in space.parameters}
    study.add_trials([_frozen(each, space, distributions, metrics) for each in past])
    trial = study.ask()
    if isinstance(search, Nsga2Search):
        # A child is crossed from whole parents: genes that do not act on one act on its children.
        for parameter in space.parameters:
            _suggest(trial, parameter)
    space.points(lambda parameter: _suggest(trial, parameter))
    frozen = study.get_trials(deepcopy=False)[-1]
    return Chosen(dict(frozen.params), dict(frozen.system_attrs))


def direction(metric: Metric) -> Literal["maximize", "minimize"]:
    """Which way a metric gets better."""
    return "maximize" if metric == "primary" else "minimize"


def _sampler(search: Proposing, *, seed: int, startup: int) -> "BaseSampler":
    from optuna import samplers

    match search:
        case RandomSearch():
            return samplers.RandomSampler(seed=seed)
        case TpeSearch():
            return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
        case Nsga2Search(population=population):
            return samplers.NSGAIISampler(seed=seed, population_size=population)
        case _:
            assert_never(search)


def _suggest(trial: "Trial", parameter: Parameter) -> Choice:
    match parameter.domain:
        case Range(kind="integers", low=low, high=high):
            return trial.suggest_int(parameter.name, int(low), int(high))
        case Range(kind=kind, low=low, high=high):
            return trial.suggest_float(parameter.name, low, high, log=kind == "log")
        case labels:
            return trial.suggest_categorical(parameter.name, labels)


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna import distributions

    match parameter.domain:
        case Range(kind="integers", low=low, high=high):
            return distributions.IntDistribution(int(low), int(high))
        case Range(kind=kind, low=low, high=high):
            return distributions.FloatDistribution(low, high, log=kind == "log")
        case labels:
            return distributions.CategoricalDistribution(labels)


def _frozen(
    past: Past,
    space: Space,
    distributions: Mapping[str, "BaseDistribution"],
    metrics: Sequence[Metric],
) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    # A grid may have lost an axis that acted on no point so far.
    known = {
        each.name: past.chosen.choices[each.name]
        for each in space.parameters
        if each.name in past.chosen.choices and each.has(past.chosen.choices[each.name])
    }
    values: Sequence[float] | None = None
    constraints = None
    match past.state:
        case "completed":
            state, values = TrialState.COMPLETE, past.values
        case "impossible":
            # Optuna compares violations before values, but wants some.
            worst = {"maximize": float("-inf"), "minimize": float("inf")}
            state, values = TrialState.COMPLETE, [worst[direction(each)] for each in metrics]
            constraints = {"impossible": 1.0}
        case "failed":
            state = TrialState.FAIL
        case "running":
            state = TrialState.RUNNING
        case _:
            assert_never(past.state)
    return create_trial(
        state=state,
        values=values,
        params=known,
        distributions={name: distributions[name] for name in known},
        system_attrs=dict(past.chosen.attributes),
        constraints=constraints,
    )
