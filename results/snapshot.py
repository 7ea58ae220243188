"""A store as it was at one moment."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from .outcome import Outcome, Try, outcomes
from .proposals import Proposal, Study, first_of_each, read_proposals, read_studies
from .reader import Beat, read_attempts, read_beat, read_plans, read_sweep
from .schema import AttemptKey, Damaged, DamagedSweepError
from .source import Source


@dataclass(frozen=True)
class Snapshot:
    """Plan, attempts and running work, read together."""

    source: Source
    plan: pa.Table
    """The current plan, and what a search has added to it."""
    older_plans: tuple[pa.Table, ...]
    """Earlier plans, the newest first, and what searches have proposed at any time."""
    attempts: pa.Table
    beat: Beat
    """What a living launch says of itself."""
    damaged: tuple[Damaged, ...]
    studies: tuple[Study, ...] = ()
    """Of the search that chooses what is planned."""
    proposals: tuple[Proposal, ...] = ()
    """Of these studies, by study and slot."""

    @cached_property
    def tries(self) -> Mapping[str, tuple[Try, ...]]:
        """The committed attempts of each id."""
        found: dict[str, list[Try]] = defaultdict(list)
        columns = self.attempts.select(["id", "epoch", "number", "status", "ended"])
        for row, cells in enumerate(zip(*(c.to_pylist() for c in columns.columns), strict=True)):
            id, epoch, number, status, ended = cells
            found[id].append(Try(AttemptKey(id, epoch, number), status, ended, row))
        return {id: tuple(tries) for id, tries in found.items()}

    @cached_property
    def outcomes(self) -> Mapping[str, Outcome]:
        """How each planned or attempted piece of work stands."""
        work = self.plan.filter(pc.is_valid(self.plan["id"]))
        depends_on = dict(zip(work["id"].to_pylist(), work["depends_on"].to_pylist(), strict=True))
        return outcomes(depends_on, self.tries, self.beat.running)


def take_snapshot(source: Source) -> Snapshot:
    """Read a store.

    Raises:
        StoreNotFoundError: There is none.
        NewerStoreError: A newer version wrote it.
    """
    damaged: tuple[Damaged, ...] = ()
    studies: tuple[Study, ...] = ()
    try:
        studies = read_studies(read_sweep(source))
    except DamagedSweepError as error:
        damaged = (Damaged("sweep.json", str(error)),)
    # Whoever is named by the beat first and has committed since is completed, not lost: attempts
    # are read last.
    beat = read_beat(source)
    plans = read_plans(source)
    proposals = read_proposals(source)
    active = proposals.of({study.id for study in studies})
    attempts = read_attempts(source)
    return Snapshot(
        source=source,
        plan=first_of_each([plans.current, *active.tables]),
        older_plans=(*plans.older, *proposals.tables),
        attempts=attempts.table,
        beat=beat,
        damaged=(*damaged, *plans.damaged, *proposals.damaged, *attempts.damaged),
        studies=studies,
        proposals=active.found,
    )
