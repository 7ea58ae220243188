"""Which trials go on from a rung: a pure rule over numbered decisions.

Asynchronous successive halving in its stopping form: a trial that reaches a rung is compared with
whoever reached it before, and is never looked at there again. So a decision is a function of the
decisions before it, and whoever replays them comes to the same.

References:
    Li et al., *A System for Massively Parallel Hyperparameter Tuning*, 2020, arXiv:1810.05934,
    algorithm 2: the best `len(rung) // reduction` of a rung go on.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Rung(NamedTuple):
    """Where scores are compared with each other."""

    bracket: str
    """What the compared trials have in common, as JSON."""
    metric: str
    share: float
    """Of the steps of a trial's last stage."""


class Question(BaseModel):
    """A trial at a rung."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Of the trial."""
    bracket: str
    metric: str
    rung: float
    """Its share of the steps of a trial's last stage."""
    reduction: int
    score: float | None
    """Of the metric on select, higher is better; None: it is not a number."""

    @property
    def place(self) -> Rung:
        """The rung at which the trial stands."""
        return Rung(self.bracket, self.metric, self.rung)


class Decision(Question):
    """A question and its answer."""

    number: int
    """Decisions of a sweep are numbered from 1."""
    goes_on: bool


class Decided:
    """What follows from the decisions so far."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        self._scores: dict[Rung, dict[str, float | None]] = defaultdict(dict)
        self._answers: dict[tuple[Rung, int, str], bool] = {}
        self._last: dict[str, Decision] = {}
        self.count = 0
        for decision in decisions:
            self.add(decision)

    def add(self, decision: Decision) -> None:
        """Take in the next decision."""
        self._scores[decision.place][decision.id] = decision.score
        self._answers[decision.place, decision.reduction, decision.id] = decision.goes_on
        self._last[decision.id] = decision
        self.count = decision.number

    def decide(self, question: Question) -> Decision:
        """The next decision; whoever asks again, as after a kill, hears what was decided."""
        place, id = question.place, question.id
        goes_on = self._answers.get((place, question.reduction, id))
        if goes_on is None:
            others = [score for other, score in self._scores[place].items() if other != id]
            goes_on = is_among_best(question.score, others, reduction=question.reduction)
        return Decision(**question.model_dump(), number=self.count + 1, goes_on=goes_on)

    def last(self, id: str) -> Decision | None:
        """What was decided last of a trial."""
        return self._last.get(id)


def is_among_best(score: float | None, others: Collection[float | None], *, reduction: int) -> bool:
    """Whether a score is among the best `n // reduction` of the `n` scores with it, or is the best.

    A score goes on with whom it ties, so that nobody is stopped by the order of arrival. What is
    not a number is worse than every number, counts among the `n`, and never goes on.
    """
    if score is None:
        return False
    better = sum(other is not None and other > score for other in others)
    return better < max(1, (len(others) + 1) // reduction)
