"""The launch's side of early stopping: hears of trials at rungs, decides, and knows who is done."""

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from ..results.schema import Attempt, PlanRow
from ..results.store import Store
from ..search_spaces.columns import column_paths, short_names
from ..search_spaces.early_stopping import Asha
from ..search_spaces.expansion import PlannedTrial
from ..search_spaces.grid import Grid
from ..search_spaces.sections import get_typed
from ..search_spaces.trial import canonical_json
from .decisions import DecisionLog, read_decisions
from .early_stopping import Decided, Question
from .errors import StaleEpochError
from .lock import Lock
from .planning import config_of
from .work import Work


class Referee:
    """Decides of one trial after the other; each decision is in the store before it acts."""

    def __init__(
        self, sweep: Store, grid: Grid, planned: Mapping[str, PlanRow], lock: Lock
    ) -> None:
        folder = sweep.decisions_folder
        self._stopping = grid.early_stopping
        self._brackets = Brackets(grid)
        self._planned = planned
        self._decided = Decided(read_decisions(folder))
        self._log = DecisionLog(folder, epoch=lock.epoch, fence=lock.check)

    def hear(self, work: Work, said: Mapping[str, Any]) -> None:
        """Take in what a lane says; if its trial stands at a rung, decide."""
        if self._stopping is None or "rung" not in said:
            return
        score = float(said["scores"][self._stopping.metric])
        question = Question(
            id=work.id,
            bracket=self._brackets.of(self._trial(work.id)),
            metric=self._stopping.metric,
            rung=said["rung"],
            reduction=self._stopping.reduction,
            score=score if math.isfinite(score) else None,
        )
        decision = self._decided.decide(question)
        # A launch that was overtaken decides nothing more; its lanes are asked to leave.
        with contextlib.suppress(StaleEpochError):
            self._log.append(decision)
            self._decided.add(decision)

    def stopped(self, attempts: Sequence[Attempt]) -> set[str]:
        """Trials that are stopped, and of which this launch's grid does not ask for more."""
        ids = stopped_ids(attempts) & self._planned.keys()
        return standing(ids, self._trial, self._decided, self._stopping, self._brackets)

    def _trial(self, id: str) -> PlannedTrial:
        row = self._planned[id]
        config = config_of(row)
        assert config.trial is not None, "only trials stand at rungs"
        return PlannedTrial(config.trial, row.axes, config.resources)


class Brackets:
    """Which of a grid's trials are compared with each other."""

    def __init__(self, grid: Grid) -> None:
        self._within = grid.early_stopping.within if grid.early_stopping else ()
        self._columns = short_names(column_paths(grid))

    def of(self, planned: PlannedTrial) -> str:
        """What a trial has in common with those that it is compared with, as JSON by path."""
        return canonical_json({path: self._value(path, planned) for path in self._within})

    def _value(self, path: str, planned: PlannedTrial) -> Any:  # noqa: ANN401  (any JSON)
        if path in self._columns:
            return planned.axes.get(self._columns[path])
        section, *steps = path.split(".")
        trial = planned.trial
        sections = {
            "task": trial.task,
            "teacher": trial.teacher,
            "training": trial.stages[-1].training,
        }
        return to_jsonable_python(get_typed(sections[section], steps))


def stopped_ids(attempts: Sequence[Attempt]) -> set[str]:
    """Trials whose last attempt was stopped at a rung, and that are not completed."""
    latest = {each.id: each.status for each in sorted(attempts, key=lambda a: (a.epoch, a.number))}
    completed = {each.id for each in attempts if each.status == "completed"}
    return {id for id, status in latest.items() if status == "stopped"} - completed


def standing(
    stopped: Collection[str],
    planned: Callable[[str], PlannedTrial],
    decided: Decided,
    stopping: Asha | None,
    brackets: Brackets,
) -> set[str]:
    """Of stopped trials those to which a grid's rule would put the very question again.

    Under another rule, or none, a trial goes on from its checkpoint.
    """

    def stands(id: str) -> bool:
        last = decided.last(id)
        return (
            stopping is not None
            and last is not None
            and not last.goes_on
            and (last.metric, last.reduction) == (stopping.metric, stopping.reduction)
            and last.rung in stopping.rungs
            and last.bracket == brackets.of(planned(id))
        )

    return {id for id in stopped if stands(id)}
