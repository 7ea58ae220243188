"""Which point a search tries next: a function of what it knows, and of nothing else."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kdsweep.search_spaces import read_grid
from kdsweep.search_spaces.search import Nsga2Search, Proposing, RandomSearch, TpeSearch
from kdsweep.search_spaces.space import Space
from kdsweep.sweep.sampling import Chosen, Past, State, choose

GRID = """
name: test
task: {name: tweets}
teacher: {model: teacher}
axes:
  knowledge: [hard_labels, soft_logits, [soft_logits, hidden_states]]
  shape: [{layers: 3, width: 384, heads: 12}, {layers: 2, width: 128, heads: 2}]
  training.learning_rate: {log: [1e-6, 1e-1]}
  training.epochs: {integers: [1, 9]}
when:
  - {if: {knowledge: {has: hidden_states}}, axes: {terms.hidden_states.weight: {log: [0.1, 10]}}}
"""
SPACE = Space(read_grid(GRID + "search: {method: random, trials: 1}", file="", base=Path()), {})

RANDOM = RandomSearch(method="random", trials=40)
TPE = TpeSearch(method="tpe", trials=40)
NSGA2 = Nsga2Search(method="nsga2", trials=40, population=5)

Score = Callable[[Chosen], tuple[float, ...] | None]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def studied(search: Proposing, score: Score, num: int) -> list[Past]:
    """A study in which every point is completed, or fails, before the next is asked for."""
    past: list[Past] = []
    for seed in range(num):
        chosen = choose(search, SPACE, past, seed=seed)
        values = score(chosen)
        past.append(Past(chosen, "failed" if values is None else "completed", values))
    return past


def peak(chosen: Chosen) -> tuple[float, ...]:
    """Best for soft logits at a rate of 1e-3."""
    distance = abs(math.log10(float(chosen.choices["training.learning_rate"])) + 3)
    return (-distance - (chosen.choices["knowledge"] != "soft_logits"),)


def trade(chosen: Chosen) -> tuple[float, ...]:
    """Quality against a cost that the smaller shape lowers."""
    return (*peak(chosen), 1.0 if chosen.choices["shape"] == "2x128x2" else 3.0)


def mean(points: Sequence[Past]) -> float:
    return sum(each.values[0] for each in points if each.values) / len(points)


@pytest.mark.parametrize(
    ("search", "score"),
    [(RANDOM, peak), (TPE, peak), (NSGA2, trade)],
    ids=["random", "tpe", "nsga2"],
)
def test_the_same_past_and_seed_give_the_same_point(search: Proposing, score: Score) -> None:
    past = studied(search, score, 25)
    assert studied(search, score, 25) == past
    assert choose(search, SPACE, past, seed=1) == choose(search, SPACE, past, seed=1)
    assert choose(search, SPACE, past, seed=1) != choose(search, SPACE, past, seed=2)


def test_tpe_and_nsga2_come_nearer_to_the_peak_than_they_began() -> None:
    for search, score in ((TPE, peak), (NSGA2, trade)):
        past = studied(search, score, 40)
        assert mean(past[-10:]) > mean(past[:10]) + 0.5


def test_random_search_does_not_look_at_what_it_found() -> None:
    past = studied(RANDOM, peak, 20)
    turned = [Past(each.chosen, "completed", (-(each.values or (0,))[0],)) for each in past]
    assert choose(RANDOM, SPACE, past, seed=9) == choose(RANDOM, SPACE, turned, seed=9)


def test_a_failed_point_says_nothing() -> None:
    past = studied(TPE, peak, 15)
    failed = Past(Chosen({**past[0].chosen.choices}), "failed")
    assert choose(TPE, SPACE, [*past, failed], seed=3) == choose(TPE, SPACE, past, seed=3)


def test_tpe_keeps_away_from_what_is_running_and_from_what_is_impossible() -> None:
    past = studied(TPE, peak, 30)
    best = max(past, key=lambda each: each.values or (-math.inf,)).chosen

    def share(state: State) -> float:
        """How often the epochs of the best are chosen again beside three more such points."""
        also = [Past(best, state)] * 3
        drawn = [choose(TPE, SPACE, [*past, *also], seed=seed) for seed in range(40)]
        epochs = [each.choices["training.epochs"] for each in drawn]
        return epochs.count(best.choices["training.epochs"]) / len(epochs)

    # A failed point says nothing, so it stands for a study without these three.
    assert share("running") < share("failed") / 2
    assert share("impossible") < share("failed") / 2


def test_nsga2_crosses_parents_of_the_generation_before() -> None:
    past = studied(NSGA2, trade, 11)
    generations = [each.chosen.attributes["NSGAIISampler:generation"] for each in past]
    assert generations == [0] * 5 + [1] * 5 + [2]
    # Also genes that do not act on a point are there for its children.
    assert all("when[0].terms.hidden_states.weight" in each.chosen.choices for each in past)


def test_nsga2_leaves_impossible_points_out_of_its_generations() -> None:
    past = studied(NSGA2, trade, 4)
    impossible = [Past(Chosen(each.chosen.choices), "impossible") for each in past]
    following = choose(NSGA2, SPACE, [*past, *impossible], seed=0)
    assert following.attributes["NSGAIISampler:generation"] == 0


def test_choices_of_a_grid_that_has_changed_are_left_out() -> None:
    past = studied(TPE, peak, 15)
    renamed = [
        Past(Chosen({**each.chosen.choices, "gone": "x"}), each.state, each.values) for each in past
    ]
    assert choose(TPE, SPACE, renamed, seed=3) == choose(TPE, SPACE, past, seed=3)
