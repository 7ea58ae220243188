"""What early stopping costs and saves: the rule replayed over the recorded curves of a whole sweep.

    python benchmarks/early_stopping.py [STORE] [REPLAYS]

Each replay shuffles the trials of a completed sweep (runs/quickstart unless said) and lets lanes
train them again in that order; steps take their time, scores are those that were recorded. It
uses the very rule that stops trials, and nothing is trained. Told are means over the replays:

* steps: the share of all optimiser steps that was taken;
* completed: the share of trials that came to their end;
* regret: by how many points the group that the leaderboard would name (mean over its completed
  seeds on select) is worse than the best group of the whole sweep, by means over all seeds;
* stopped: the share of trials that was stopped, by kind of knowledge.

Beside the rule stands the same one deciding by lot, for what is saved without looking at scores.
"""

import heapq
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles

from kdsweep import results
from kdsweep.results.store import Store
from kdsweep.search_spaces.early_stopping import Asha, rung_steps
from kdsweep.sweep.early_stopping import Decided, Question
from kdsweep.sweep.work import Config

REPLAYS = 200
LANES = 4
RULES: Mapping[str, Asha] = {
    "as by default": Asha(method="asha"),
    "across knowledge": Asha(method="asha", within=("task.name",)),
    "of two, one goes on": Asha(method="asha", reduction=2),
    "from 0.4 of the steps": Asha(method="asha", grace=0.4),
}


@dataclass(frozen=True)
class Curve:
    """What a completed trial recorded."""

    id: str
    group: str
    knowledge: str
    task: str
    steps: tuple[int, ...]
    """At which its last stage was evaluated; the last is its end."""
    scores: tuple[float, ...]
    report: float


@dataclass(frozen=True)
class Replay:
    """One order of arrival."""

    steps: float
    completed: float
    select_regret: float
    report_regret: float
    stopped: Mapping[str, float]


def read_curves(store: Path) -> list[Curve]:
    """The completed trials of a sweep."""
    found = results.load(store)
    trials = found.trials.query("status == 'completed'").set_index("trial_id")
    attempts = {attempt.id: attempt for attempt in Store(store).read_attempts()}
    curves = []
    for id, trial in trials.iterrows():
        config = Config.model_validate_json(attempts[str(id)].config_json)
        assert config.trial is not None
        times = config.trial.stages[-1].training.evaluate.times
        metric = f"select/{trial['primary_metric']}"
        history = found.history(str(id), metric).tail(times)
        curves.append(
            Curve(
                id=str(id),
                group=str(trial["group_id"]),
                knowledge=str(trial["knowledge"]),
                task=config.task_digest,
                steps=tuple(history["step"]),
                scores=tuple(history[metric]),
                report=float(trial["report/primary"]),
            )
        )
    return curves


def replay(
    curves: Sequence[Curve], rule: Asha, *, seed: int, score: Callable[[float], float]
) -> Replay:
    """Train a sweep again in some order, with the rule."""
    draw = random.Random(seed)
    waiting = draw.sample(list(curves), len(curves))
    decided, order = Decided(), itertools.count()
    taken, ended = 0, list[Curve]()
    # Moments at which a trial comes to an evaluation: the time, the trial, how many it has had.
    ahead: list[tuple[int, int, Curve, int]] = []

    def train(curve: Curve, number: int, *, now: int) -> None:
        nonlocal taken
        before = curve.steps[number - 1] if number else 0
        took = curve.steps[number] - before
        taken += took
        heapq.heappush(ahead, (now + took, next(order), curve, number + 1))

    for _ in range(min(LANES, len(waiting))):
        train(waiting.pop(), 0, now=0)
    while ahead:
        now, _, curve, number = heapq.heappop(ahead)
        # Where a stage has as many steps as evaluations, steps count evaluations.
        times = len(curve.steps)
        share = rung_steps(rule.rungs, num_steps=times, times=times).get(number)
        goes_on = True
        if share is not None:
            asked = Question(
                id=curve.id,
                bracket=json.dumps(
                    [curve.task, curve.knowledge if "knowledge" in rule.within else None]
                ),
                metric=rule.metric,
                rung=share,
                reduction=rule.reduction,
                score=score(curve.scores[number - 1]),
            )
            decided.add(decision := decided.decide(asked))
            goes_on = decision.goes_on
        if goes_on and number < times:
            train(curve, number, now=now)
            continue
        if goes_on:
            ended.append(curve)
        if waiting:
            train(waiting.pop(), 0, now=now)
    done = {curve.id for curve in ended}
    by_knowledge = defaultdict(list)
    for curve in curves:
        by_knowledge[curve.knowledge].append(curve.id not in done)
    select, report = group_means(curves)
    best, named = leader(curves), leader(ended)
    return Replay(
        steps=taken / sum(curve.steps[-1] for curve in curves),
        completed=len(ended) / len(curves),
        select_regret=select[best] - select[named],
        report_regret=report[best] - report[named],
        stopped={knowledge: mean(each) for knowledge, each in by_knowledge.items()},
    )


def group_means(curves: Sequence[Curve]) -> tuple[dict[str, float], dict[str, float]]:
    """By group its mean over seeds on select and on report."""
    groups: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        groups[curve.group].append(curve)
    return (
        {group: mean(each.scores[-1] for each in found) for group, found in groups.items()},
        {group: mean(each.report for each in found) for group, found in groups.items()},
    )


def leader(curves: Sequence[Curve]) -> str:
    """The group that stands first; of equals the lower id."""
    select, _ = group_means(curves)
    return min(select, key=lambda group: (-select[group], group))


def main() -> None:
    """Print a table and one JSON line."""
    store = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    replays = int(sys.argv[2]) if len(sys.argv) > 2 else REPLAYS
    curves = read_curves(store)
    kinds = list(dict.fromkeys(curve.knowledge for curve in curves))
    lot = random.Random(0)
    rows = []
    for name, rule in RULES.items():
        for how, score in (("", lambda score: score), (", by lot", lambda _: lot.random())):
            made = [replay(curves, rule, seed=seed, score=score) for seed in range(replays)]
            regrets = [100 * each.select_regret for each in made]
            rows.append(
                {
                    "rule": name + how,
                    "steps": mean(each.steps for each in made),
                    "completed": mean(each.completed for each in made),
                    "select_regret": mean(regrets),
                    "select_regret_p90": quantiles(regrets, n=10)[-1],
                    "best_named": mean(regret == 0 for regret in regrets),
                    "report_regret": mean(100 * each.report_regret for each in made),
                    "stopped": {kind: mean(each.stopped[kind] for each in made) for kind in kinds},
                }
            )
    print(f"{len(curves)} trials of {store}, {replays} replays with {LANES} lanes; points: 1/100")
    for number, kind in enumerate(kinds, start=1):
        print(f"k{number}: {kind}")
    kept = " ".join(f"{f'k{number}':>5}" for number in range(1, len(kinds) + 1))
    print(
        f"{'':32} {'steps':>6} {'completed':>9}  {'regret on select':^20}  {'report':>9}  stopped"
    )
    print(f"{'rule':32} {'':6} {'':9}  {'mean':>6} {'p90':>6} {'none':>6}  {'mean':>9}  {kept}")
    for row in rows:
        stopped = " ".join(f"{share:5.0%}" for share in row["stopped"].values())
        print(
            f"{row['rule']:32} {row['steps']:6.0%} {row['completed']:9.0%}"
            f"  {row['select_regret']:6.2f} {row['select_regret_p90']:6.2f}"
            f" {row['best_named']:6.0%}  {row['report_regret']:9.2f}  {stopped}"
        )
    print(json.dumps({"bench": "early_stopping", "trials": len(curves), "rows": rows}))


if __name__ == "__main__":
    main()
