"""A search: slots are planned, and filled one after another by what the results so far suggest.

A proposal is written to the store before any of its trials trains. It says what was chosen and what
the study had been told until then, so a launch that is killed anywhere leaves nothing unsaid: the
next one reads the proposals in the order of their slots, tells the same results at the same places
and goes on. A slot that was proposed is never proposed anew.
"""

import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..results.proposals import (
    Proposal,
    Study,
    Told,
    next_slots,
    read_proposals,
    write_proposal,
)
from ..results.schema import PlanRow
from ..results.store import Store
from ..search_spaces.expansion import Plan, PlannedTrial, Skipped
from ..search_spaces.grid import Grid
from ..search_spaces.search import GridSearch, Metric, Proposing, metrics_of
from ..search_spaces.space import (
    Arm,
    Impossible,
    Points,
    Space,
    UnknownChoiceError,
    arms,
    recorded,
)
from ..search_spaces.trial import digest
from .estimate import PlannedWork, planned_work
from .failpoints import failpoint
from .planning import Begun, Content, ContentFacts, config_of, identify_trials, plan_rows
from .sampling import Chosen, Past, choose
from .work import Scalar

MOST_DRAWS = 50
"""Points that a slot may draw until one is possible."""


def column(metric: Metric) -> str:
    """Where the results of a trial say a metric."""
    return "select/primary" if metric == "primary" else metric


@dataclass
class _Study:
    """A study in memory: its proposals, and what it was told at which of them."""

    id: str
    arm: Arm
    space: Space
    next_slot: int
    proposals: dict[int, Proposal] = field(default_factory=dict)
    told: dict[int, Told] = field(default_factory=dict)
    is_stopped: bool = False

    def add(self, proposal: Proposal) -> None:
        """Take in a proposal, and what the study was told before it."""
        self.proposals[proposal.slot] = proposal
        self.told |= {told.slot: told for told in proposal.told}
        self.next_slot = max(self.next_slot, proposal.slot + 1)

    def past(self) -> Iterator[Past]:
        """Every point that was drawn, in order, with what the study knows of it."""
        for slot, proposal in sorted(self.proposals.items()):
            for choices in proposal.impossible:
                yield Past(Chosen(choices), "impossible")
            if proposal.choices is None:
                continue
            chosen = Chosen(proposal.choices, proposal.attributes)
            told = self.told.get(slot)
            if told is None:
                yield Past(chosen, "running")
            elif told.values is None:
                yield Past(chosen, "failed")
            else:
                yield Past(chosen, "completed", told.values)


class Searching:
    """The studies of a grid's search, as far as the store has them, and their next proposals."""

    def __init__(
        self,
        sweep: Store,
        search: Proposing,
        studies: Sequence[_Study],
        rows: Sequence[PlanRow],
        resolver: "_Resolver",
    ) -> None:
        self._sweep = sweep
        self._search = search
        self._studies = studies
        self._resolver = resolver
        self._known = {row.id for row in rows}
        self._results: dict[str, Mapping[str, Scalar]] = {}
        self.rows = tuple(rows)
        """What is proposed already, as rows of a plan."""

    @property
    def told(self) -> list[Study]:
        """The studies for `sweep.json`."""
        metrics = tuple(column(metric) for metric in metrics_of(self._search))
        return [Study(each.id, each.arm, self._search.trials, metrics) for each in self._studies]

    @property
    def trials(self) -> dict[str, PlannedTrial]:
        """What is proposed already, by id."""
        configs = [(row, config_of(row)) for row in self.rows if row.what == "trial"]
        return {
            str(row.id): PlannedTrial(config.trial, row.axes, config.resources)
            for row, config in configs
            if config.trial is not None
        }

    @property
    def slots_left(self) -> int:
        """Slots that nothing was proposed for."""
        return sum(max(0, self._search.trials - study.next_slot) for study in self._studies)

    @property
    def slots(self) -> tuple[int, int]:
        """How many slots are filled, and how many there are."""
        planned = self._search.trials * len(self._studies)
        return planned - self.slots_left, planned

    @property
    def trials_left(self) -> int:
        """Trials that these slots may come to."""
        return sum(
            max(0, self._search.trials - study.next_slot) * study.space.most_seeds
            for study in self._studies
        )

    def complete(self, id: str, values: Mapping[str, Scalar]) -> None:
        """Take in the results of a completed trial."""
        self._results[id] = values

    def propose(self, lost: Collection[str]) -> tuple[PlanRow, ...]:
        """Fill slots until there is something to train; gives the rows that are new.

        Arms take turns. A slot whose point was proposed before, or is impossible, is filled and
        asks for nothing.

        Args:
            lost: Ids of what has failed for good or was stopped, and of what waits for that.
        """
        new: list[PlanRow] = []
        while (study := self._next()) is not None:
            rows = [row for row in self._fill(study, lost) if row.id not in self._known]
            self._known |= {row.id for row in rows if row.id is not None}
            new += rows
            trials = {str(row.id) for row in rows if row.what == "trial"}
            if trials - self._results.keys() - set(lost):
                break
        return tuple(new)

    def _next(self) -> _Study | None:
        open_ = [
            study
            for study in self._studies
            if study.next_slot < self._search.trials and not study.is_stopped
        ]
        return min(open_, key=lambda study: study.next_slot, default=None)

    def _fill(self, study: _Study, lost: Collection[str]) -> tuple[PlanRow, ...]:
        """Propose one slot, on paper first."""
        news = tuple(self._news(study, lost))
        study.told |= {told.slot: told for told in news}
        past = list(study.past())
        slot = study.next_slot
        impossible: list[Mapping[str, Any]] = []
        skipped: list[Skipped] = []
        rows: tuple[PlanRow, ...] = ()
        chosen: Chosen | None = None
        for draw in range(MOST_DRAWS):
            drawn = choose(
                self._search, study.space, past, seed=_seed(self._search, study.id, slot, draw)
            )
            found = self._resolver.rows(study.space, drawn.choices)
            if not isinstance(found, Impossible):
                chosen, rows = drawn, found
                break
            impossible.append(drawn.choices)
            skipped.append(_skipped(found))
            past.append(Past(Chosen(drawn.choices), "impossible"))
        trials = [row for row in rows if row.what == "trial"]
        if any(id in lost for row in trials for id in row.depends_on):
            # Without its teacher nothing of this study can be trained until that one is mended.
            study.is_stopped = True
            return ()
        proposal = Proposal(
            study=study.id,
            slot=slot,
            choices=chosen.choices if chosen else None,
            attributes=chosen.attributes if chosen else {},
            impossible=tuple(impossible),
            told=news,
            trials=tuple(str(row.id) for row in trials),
        )
        rows = (*rows, *self._resolver.skipped_rows(skipped))
        write_proposal(self._sweep.folder, proposal, rows)
        failpoint("proposal", next(iter(proposal.trials), ""))
        study.add(proposal)
        return rows

    def _news(self, study: _Study, lost: Collection[str]) -> Iterator[Told]:
        """What is known now and the study was not told, in the order of slots."""
        for slot, proposal in sorted(study.proposals.items()):
            values = self._values(proposal.trials)
            if values is not None or not set(lost).isdisjoint(proposal.trials):
                told = Told(slot, values if values and all(map(math.isfinite, values)) else None)
                if told != study.told.get(slot):
                    yield told

    def _values(self, trials: Sequence[str]) -> tuple[float, ...] | None:
        """The mean of each metric over a point's seeds; None until all are completed."""
        found = [self._results[id] for id in trials if id in self._results]
        if not trials or len(found) < len(trials):
            return None
        return tuple(
            math.fsum(_number(values.get(column(metric))) for values in found) / len(found)
            for metric in metrics_of(self._search)
        )


def _number(value: Scalar) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


class _Resolver:
    """From choices to rows of the plan."""

    def __init__(self, grid: Grid, content: Content) -> None:
        self._content = content
        self._points = Points(grid, ContentFacts(content))

    def rows(self, space: Space, choices: Mapping[str, Any]) -> tuple[PlanRow, ...] | Impossible:
        """A point's teacher and trials, one for each seed; or why there is none.

        Raises:
            UnknownChoiceError: A choice is none of this space.
        """
        resolved = self._points.resolve(space.points(recorded(choices)))
        if isinstance(resolved, Impossible):
            return resolved
        return plan_rows(_plan(trials=resolved), self._content)

    def skipped_rows(self, skipped: Sequence[Skipped]) -> tuple[PlanRow, ...]:
        """Points that cannot be trained, as rows."""
        return plan_rows(_plan(skipped=skipped), self._content)


def _plan(*, trials: Sequence[PlannedTrial] = (), skipped: Sequence[Skipped] = ()) -> Plan:
    num = len(trials) + len(skipped)
    return Plan(tuple(trials), tuple(skipped), (), num, 0, ())


def _skipped(impossible: Impossible) -> Skipped:
    rule, _, reason = impossible.reason.partition(": ")
    return Skipped(impossible.axes, rule, reason)


def open_search(sweep: Store, grid: Grid, content: Content) -> Searching | None:
    """The studies of a grid's search as the store has them; None of a grid without a search.

    For the holder of the sweep's lock: nobody else may propose meanwhile.

    Raises:
        DataError: Rows are missing or wrong.
        TeacherError: The teacher is unknown or does not fit.
    """
    search = grid.search
    if isinstance(search, GridSearch):
        return None
    resolver = _Resolver(grid, content)
    proposals = read_proposals(sweep.source)
    slots = next_slots(sweep.source)
    studies = []
    rows: dict[str, PlanRow] = {}
    for arm in arms(grid, search):
        space = Space(grid, arm)
        editions = (_study_id(search, arm, edition) for edition in itertools.count())
        id, found = next(
            (id, found)
            for id in editions
            if (found := _still_mean(proposals.of({id}).found, space, resolver)) is not None
        )
        study = _Study(id, arm, space, slots.get(id, 0))
        for proposal in proposals.of({id}).found:
            study.add(proposal)
        studies.append(study)
        for row in found:
            rows.setdefault(str(row.id), row)
    return Searching(sweep, search, studies, tuple(rows.values()), resolver)


def _still_mean(
    proposals: Sequence[Proposal], space: Space, resolver: _Resolver
) -> list[PlanRow] | None:
    """The rows of proposals; None if one of them comes to other trials than when it was made.

    Another grid, or other rows or weights, may have made another point of what was chosen.
    """
    rows: list[PlanRow] = []
    for proposal in proposals:
        if proposal.choices is None:
            continue
        try:
            found = resolver.rows(space, proposal.choices)
        except UnknownChoiceError:
            return None
        if isinstance(found, Impossible):
            return None
        if tuple(row.id for row in found if row.what == "trial") != proposal.trials:
            return None
        rows += found
    return rows


def _study_id(search: Proposing, arm: Arm, edition: int) -> str:
    """What tells a study from others; its number of slots may grow.

    The edition is raised where proposals of the one before mean other trials by now.
    """
    how = search.model_dump(mode="json", exclude={"trials", "per"})
    return digest({"search": how, "arm": dict(arm), "edition": edition})[:16]


def _seed(search: Proposing, study: str, slot: int, draw: int) -> int:
    text = f"{search.seed} {study} {slot} {draw}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def record_studies(sweep: Store, search: Searching | None) -> None:
    """Say in `sweep.json` whose proposals are planned."""
    studies = [
        {"id": s.id, "arm": dict(s.arm), "slots": s.slots, "metrics": list(s.metrics)}
        for s in (search.told if search is not None else ())
    ]
    told = sweep.read_sweep()
    if told.get("studies", []) != studies:
        sweep.write_sweep(told | {"studies": studies})


@dataclass(frozen=True)
class Slots:
    """What a search would propose."""

    method: str
    trials: int
    """Of each study."""
    studies: int
    per: tuple[str, ...]
    seeds: int
    """With which a point is trained, at most."""
    points: int | None
    """Of the space, seeds and what rules change apart; None: a range has no end of them."""
    left: int
    """Trials that a launch would train at most."""

    @property
    def most_trials(self) -> int:
        """Trials of all slots at most, equal ones counted each time."""
        return self.trials * self.studies * self.seeds

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "per": list(self.per), "most_trials": self.most_trials}


def slots_of(grid: Grid, search: Proposing, proposed: Searching | None, *, num_done: int) -> Slots:
    """What a search would still propose; `proposed` is None where nobody can read the store."""
    spaces = [Space(grid, arm) for arm in arms(grid, search)]
    seeds = max(space.most_seeds for space in spaces)
    slots_left = search.trials * len(spaces) if proposed is None else proposed.slots_left
    num_proposed = 0 if proposed is None else len(proposed.trials)
    return Slots(
        method=search.method,
        trials=search.trials,
        studies=len(spaces),
        per=search.per,
        seeds=seeds,
        points=Space(grid, {}).num_points,
        left=num_proposed - num_done + slots_left * seeds,
    )


def search_work(search: Searching, plan: Plan, content: Content) -> list[PlannedWork]:
    """What is proposed, and for slots that are left as many trials of those it may meet.

    Args:
        search: As the store has it.
        plan: What it may meet.
        content: What the grid reads.
    """
    facts = ContentFacts(content)
    proposed = _plan(trials=list(search.trials.values()))
    begun = Begun()
    identify_trials(proposed, content, begun)
    work = planned_work(proposed, begun, facts)
    met = planned_work(plan, None, facts)
    return [*work, *itertools.islice(itertools.cycle(met), search.trials_left)]
