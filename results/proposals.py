"""What a search proposed: a file for each slot, written before anything of it trains.

A file `proposals/<study>-<slot>.parquet` is a part of the plan: its rows are the trials of one
point, and the teacher they need. Beside them, in its metadata, it says what the search chose and
which results it had been told since its study's proposal before, so that the study can be built
again and every proposal be made a second time.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from .files import publish
from .rows import PLAN, check_columns, plan_table
from .schema import Damaged, PlanRow, Scalar, check_counts, check_id
from .source import Source
from .tables import concatenate, decode, stamp, take, write_table

FOLDER = "proposals"

_NAME = re.compile(r"([0-9a-f]{16})-(\d{5})\.parquet")


@dataclass(frozen=True)
class Study:
    """A search within one arm, as `sweep.json` tells it."""

    id: str
    arm: Mapping[str, Scalar | None]
    """The axes that it does not choose, and their labels."""
    slots: int
    """How many points it may propose."""
    metrics: tuple[str, ...]
    """What it improves: columns of trials."""


class Told(NamedTuple):
    """What a study was told of one of its points."""

    slot: int
    values: tuple[float, ...] | None
    """By metric; None: nothing of it will come to a result."""


@dataclass(frozen=True)
class Proposal:
    """A point that a search chose."""

    study: str
    slot: int
    """Counts the points of a study, from 0."""
    choices: Mapping[str, Scalar] | None
    """By parameter; None: every point that was drawn is impossible."""
    attributes: Mapping[str, Any]
    """What the sampler keeps beside them."""
    impossible: tuple[Mapping[str, Scalar], ...]
    """What was chosen first, and can be no trial."""
    told: tuple[Told, ...]
    """Results since the study's proposal before, in the order of their slots."""
    trials: tuple[str, ...]
    """Ids of the point's trials, one for each seed."""

    def __post_init__(self) -> None:
        for id in (self.study, *self.trials):
            check_id(id)
        check_counts(self.slot)


@dataclass(frozen=True)
class Proposals:
    """What searches have proposed, by slot."""

    found: tuple[Proposal, ...]
    tables: tuple[pa.Table, ...]
    """The rows that each adds to the plan."""
    damaged: tuple[Damaged, ...]

    def of(self, studies: Collection[str]) -> "Proposals":
        """Those of some studies."""
        kept = [
            (proposal, table)
            for proposal, table in zip(self.found, self.tables, strict=True)
            if proposal.study in studies
        ]
        return Proposals(tuple(p for p, _ in kept), tuple(t for _, t in kept), self.damaged)


def write_proposal(folder: Path, proposal: Proposal, rows: Sequence[PlanRow]) -> None:
    """Publish a proposal with the rows of its trials, and of what they need.

    Raises:
        FileExistsError: This slot is taken.
    """
    target = folder / FOLDER / f"{proposal.study}-{proposal.slot:05d}.parquet"
    target.parent.mkdir(mode=0o700, exist_ok=True)
    told = {"proposal": json.dumps(asdict(proposal), allow_nan=False)}
    publish(target, partial(write_table, plan_table(rows), kind="plan", metadata=told))


def read_proposals(source: Source) -> Proposals:
    """Every proposal that was ever made, by slot."""
    found: list[tuple[Proposal, pa.Table]] = []
    damaged = []
    for name in source.names(FOLDER):
        if (match := _NAME.fullmatch(name)) is None:
            continue
        path = f"{FOLDER}/{name}"
        try:
            table = decode(source.content(path), kind="plan", name=path)
            found.append((_proposal(table, study=match[1], slot=int(match[2])), table))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(Damaged(path, str(error).partition("\n")[0]))
    found.sort(key=lambda each: (each[0].slot, each[0].study))
    return Proposals(tuple(p for p, _ in found), tuple(t for _, t in found), tuple(damaged))


def next_slots(source: Source) -> Mapping[str, int]:
    """The first slot of each study that nothing was ever written to."""
    slots: dict[str, int] = {}
    for name in source.names(FOLDER):
        if match := _NAME.fullmatch(name):
            slots[match[1]] = max(slots.get(match[1], 0), int(match[2]) + 1)
    return slots


def read_studies(sweep: Mapping[str, Any]) -> tuple[Study, ...]:
    """The studies whose proposals are planned, from what `sweep.json` says."""
    return tuple(
        Study(each["id"], each["arm"], each["slots"], tuple(each["metrics"]))
        for each in sweep.get("studies", [])
    )


def first_of_each(plans: Sequence[pa.Table]) -> pa.Table:
    """The rows of all plans, of each id the first; skipped points have none and are kept."""
    if len(plans) == 1:
        return plans[0]
    joined = concatenate(plans)
    seen: set[str] = set()
    rows: list[int | None] = []
    for row, id in enumerate(joined["id"].to_pylist()):
        if id is None or id not in seen:
            rows.append(row)
            seen.add(id)
    return take(joined, rows)


def _proposal(table: pa.Table, *, study: str, slot: int) -> Proposal:
    check_columns(table, PLAN)
    said = json.loads(stamp(table, "proposal") or "")
    proposal = Proposal(
        study=said["study"],
        slot=said["slot"],
        choices=said["choices"],
        attributes=said["attributes"],
        impossible=tuple(said["impossible"]),
        told=tuple(
            Told(n, None if values is None else tuple(values)) for n, values in said["told"]
        ),
        trials=tuple(said["trials"]),
    )
    if (proposal.study, proposal.slot) != (study, slot):
        raise ValueError("the file's name and its content name different slots")
    return proposal
