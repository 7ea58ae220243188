"""Reads a store, also while others write to it: whole plans, committed attempts, who is at work."""

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from .compact import Block, is_part, part_place
from .parts import read_parts
from .parts import tables as tables_of
from .rows import ATTEMPTS, PLAN, check_columns
from .schema import SCHEMA_VERSION, AttemptKey, Damaged, DamagedSweepError, NewerStoreError
from .source import LocalSource, Source
from .tables import concatenate, stamp

_PLAN = re.compile(r"(\d+)-(\d+)\.parquet")
_LOCK = re.compile(r"(\d+)\.(json|beat|released)")

_SILENT_SECONDS = 600.0
"""A launch on another host that has not beaten for so long is taken for dead."""


class StoreNotFoundError(FileNotFoundError):
    """There is no store at this place."""


@dataclass(frozen=True)
class Plans:
    """What is planned, and what once was."""

    current: pa.Table
    older: tuple[pa.Table, ...]
    """Earlier plans, the newest first."""
    damaged: tuple[Damaged, ...]
    lacking: tuple[str, ...]
    """Parts for want of which the newest plan does not count."""
    lost: tuple[Damaged, ...]
    """Those of them that are part of a newer plan than the current one."""


@dataclass(frozen=True)
class Attempts:
    """All committed attempts, by epoch, number and id."""

    table: pa.Table
    damaged: tuple[Damaged, ...]


def read_sweep(source: Source) -> dict[str, Any]:
    """What `sweep.json` says.

    Raises:
        StoreNotFoundError: There is none.
        NewerStoreError: A newer version wrote it.
        DamagedSweepError: It cannot be read.
    """
    try:
        text = source.content("sweep.json")
    except FileNotFoundError:
        inside = [name for name in source.names("") if "sweep.json" in source.names(name)]
        mend = (
            f"It holds the sweeps {', '.join(inside)}: name one of them."
            if inside
            else ("Name the folder that `kdsweep launch` wrote to (without --store: runs/<name>).")
        )
        raise StoreNotFoundError(f"{source}: no sweep.json here\n    {mend}") from None
    try:
        sweep: dict[str, Any] = json.loads(text)
        version = int(sweep.pop("schema_version"))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DamagedSweepError(f"{source}/sweep.json is damaged: {error!r}") from error
    if version > SCHEMA_VERSION:
        raise NewerStoreError(f"{source}/sweep.json", version)
    return sweep


def read_plans(source: Source) -> Plans:
    """The complete plans; one that was only partly written does not count."""
    parts = read_parts(
        source,
        "plan",
        wanted=lambda name: _PLAN.fullmatch(name) is not None,
        check=_check_plan,
    )
    by_epoch: dict[int, dict[int, pa.Table]] = {}
    for block in parts.blocks:
        epoch, number = _plan_place(block.parts[0].name)
        by_epoch.setdefault(epoch, {})[number] = block.table
    complete = {
        epoch: concatenate([found[number] for number in sorted(found)])
        for epoch, found in sorted(by_epoch.items(), reverse=True)
        if len(found) == _num_parts(found)
    }
    current, *older = complete.values() or [PLAN.empty_table()]
    whole = max(complete, default=0)
    lost = tuple(part for part in parts.damaged if _epoch_of(part) > whole)
    newest = max(by_epoch, default=0)
    found = by_epoch.get(newest, {})
    lacking = sorted(set(range(1, _num_parts(found) + 1)) - found.keys())
    names = tuple(f"{newest}-{number}.parquet" for number in lacking)
    return Plans(current, tuple(older), parts.damaged, lacking=names, lost=lost)


def _num_parts(found: Mapping[int, pa.Table]) -> int:
    """How many parts a plan has, by any of those that were found."""
    return int(stamp(next(iter(found.values())), "parts") or 0) if found else 0


def read_attempts(source: Source) -> Attempts:
    """Every committed attempt that can be read."""
    parts = read_parts(
        source,
        "attempts",
        wanted=is_attempt,
        check=check_attempts,
        compacted="attempts",
    )
    table = concatenate([ATTEMPTS.empty_table(), *tables_of(parts.blocks)])
    order = [("epoch", "ascending"), ("number", "ascending"), ("id", "ascending")]
    return Attempts(table.sort_by(order), parts.damaged)


class Beat(NamedTuple):
    """What a living launch says of itself."""

    running: frozenset[str] = frozenset()
    """Ids of the work that it is doing."""
    num_waiting: int = 0
    """How much of what failed waits for the time at which it is tried again."""
    seconds_until_retry: float | None = None
    """From now until the first of it is."""


NO_BEAT = Beat()


def read_beat(source: Source) -> Beat:
    """The beat of a living launch; the empty one where none lives."""
    files = [match for name in source.names("locks") if (match := _LOCK.fullmatch(name))]
    newest = max((int(match[1]) for match in files), default=None)
    kinds = {match[2] for match in files if int(match[1]) == newest}
    if newest is None or "released" in kinds or "beat" not in kinds:
        return NO_BEAT
    name = next(match[0] for match in files if int(match[1]) == newest and match[2] == "beat")
    try:
        beat = json.loads(source.content(f"locks/{name}"))
        told = Beat(
            frozenset(beat["running"]),
            int(beat.get("num_waiting", 0)),
            beat.get("seconds_until_retry"),
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return NO_BEAT
    age = source.age_seconds(f"locks/{name}", now=time.time())
    if not _lives(source, beat, age):
        return NO_BEAT
    return told._replace(seconds_until_retry=_later(told.seconds_until_retry, age))


def _later(seconds: float | None, age: float | None) -> float | None:
    """What is left of a wait some time after it was told."""
    return None if seconds is None else max(0.0, seconds - max(0.0, age or 0.0))


def is_attempt(name: str) -> bool:
    """Whether a name is that of the row of an attempt."""
    return is_part(name) and part_place(name)[1] is None


def check_attempts(block: Block) -> None:
    """Refuse rows that are not those of the attempts which their names say."""
    table = block.table
    check_columns(table, ATTEMPTS)
    if table.num_rows != len(block.parts):
        raise ValueError(f"{table.num_rows} rows instead of {len(block.parts)}")
    columns = [table[name].to_pylist() for name in ("id", "epoch", "number")]
    keys = (AttemptKey(*found) for found in zip(*columns, strict=True))
    if [f"{key}.parquet" for key in keys] != [part.name for part in block.parts]:
        raise ValueError("the file's name and its content name different attempts")


def _check_plan(block: Block) -> None:
    check_columns(block.table, PLAN)
    if stamp(block.table, "part") != str(_plan_place(block.parts[0].name)[1]):
        raise ValueError("the file's name and its content name different parts")


def _epoch_of(part: Damaged) -> int:
    return _plan_place(part.path.rpartition("/")[2])[0]


def _plan_place(name: str) -> tuple[int, int]:
    match = _PLAN.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} names no part of a plan")
    return int(match[1]), int(match[2])


def _lives(source: Source, beat: Mapping[str, Any], age_seconds: float | None) -> bool:
    if isinstance(source, LocalSource) and beat.get("host") == socket.gethostname():
        return _process_exists(int(beat["pid"]))
    return age_seconds is None or age_seconds < _SILENT_SECONDS


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
