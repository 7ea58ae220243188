"""What this host keeps of texts and teachers, beside any store: to list it and to remove it.

Everything here can be made again, and is, once somebody needs it.
"""

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ..search_spaces.errors import InputError, Problem
from ..trainers.feature_files import DATA, IN_USE, MANIFEST, SOURCE
from ..trainers.file_lock import try_lock
from .words import count, printable, size

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True)
class Cached:
    """The tokens of some texts, or one feature of a teacher over some rows."""

    what: str
    teacher: str | None
    task: str | None
    precision: str | None
    bytes: int
    is_complete: bool
    last_used: datetime
    is_in_use: bool
    folder: Path
    """What is removed as one."""


def list_cache(cache: Path) -> list[Cached]:
    """All of it, what was used last first."""
    found = [*_features(cache / "features"), *_tokens(cache / "tokens")]
    return sorted(found, key=lambda each: (each.last_used, each.what), reverse=True)


def prune(cache: Path, *, older_than: float) -> list[Cached]:
    """Remove what nobody has used for so many seconds, and nobody holds.

    Returns:
        What was removed.
    """
    before = time.time() - older_than
    removed = []
    by_folder: dict[Path, list[Cached]] = {}
    for each in list_cache(cache):
        by_folder.setdefault(each.folder, []).append(each)
    for folder, entries in by_folder.items():
        if max(each.last_used.timestamp() for each in entries) <= before and _remove(folder):
            removed += entries
    return removed


def parse_age(told: str) -> float:
    """Seconds of `30d`, `12h` or `2w`.

    Raises:
        InputError: It is none of these.
    """
    found = re.fullmatch(r"(\d+)([hdw])", told)
    if found is None:
        what = f"is `{told}`, which is no age"
        raise InputError([Problem("--older-than", what, "Write hours, days or weeks: 12h, 30d.")])
    return float(int(found[1]) * _SECONDS[found[2]])


def print_cache(entries: list[Cached], cache: Path, console: Console, *, as_json: bool) -> None:
    """A line for each entry, and their sum."""
    total = sum(each.bytes for each in entries)
    if as_json:
        told = {
            "schema_version": 1,
            "folder": str(cache),
            "bytes": total,
            "entries": [_as_json(each) for each in entries],
        }
        console.file.write(json.dumps(told, indent=2) + "\n")
        return
    rows = [("what", "of", "over", "size", "last used", ""), *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if entries else []:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        console.file.write(printable(line.rstrip()) + "\n")
    console.file.write(printable(f"{count(len(entries), 'item')}, {size(total)} in {cache}\n"))


def _row(each: Cached) -> tuple[str, ...]:
    of = f"{each.teacher} ({each.precision})" if each.teacher else ""
    state = "in use" if each.is_in_use else "" if each.is_complete else "incomplete"
    used = each.last_used.strftime("%Y-%m-%d %H:%M")
    return each.what, of, each.task or "", size(each.bytes), used, state


def _as_json(each: Cached) -> dict[str, Any]:
    return {
        **asdict(each),
        "last_used": each.last_used.isoformat(timespec="seconds"),
        "folder": str(each.folder),
    }


def _features(folder: Path) -> Iterator[Cached]:
    for source in _folders(folder):
        told = _read(source / SOURCE)
        held = _held(source / IN_USE)
        for entry in _folders(source, hidden=True):
            if (size := _bytes(entry / DATA)) is None:
                continue
            yield Cached(
                what=entry.name.removeprefix("."),
                teacher=told.get("teacher"),
                task=told.get("task"),
                precision=told.get("precision"),
                bytes=size,
                is_complete=(entry / MANIFEST).is_file(),
                last_used=_used(source / SOURCE),
                is_in_use=held,
                folder=source,
            )


def _tokens(folder: Path) -> Iterator[Cached]:
    for entry in _folders(folder):
        yield Cached(
            what="tokens",
            teacher=None,
            task=None,
            precision=None,
            bytes=sum(_bytes(file) or 0 for file in entry.iterdir()),
            is_complete=True,
            last_used=_used(entry),
            is_in_use=_held(_lock_of(entry)),
            folder=entry,
        )


def _remove(folder: Path) -> bool:
    """Remove a folder unless somebody holds it; whoever comes then finds nothing at all."""
    with suppress(FileNotFoundError):
        if (held := try_lock(_lock_of(folder))) is None:
            return False
        with held:
            gone = folder.with_name(f".removed-{secrets.token_hex(4)}")
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True
    return False


def _lock_of(folder: Path) -> Path:
    if folder.parent.name == "features":
        return folder / IN_USE
    return folder.with_name(f"{folder.name}.lock")


def _held(lock: Path) -> bool:
    try:
        held = try_lock(lock)
    except OSError:
        return False
    if held is None:
        return True
    held.close()
    return False


def _folders(folder: Path, *, hidden: bool = False) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and (hidden or path.name[0] != ".")
    )


def _read(file: Path) -> dict[str, str]:
    try:
        told = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _bytes(file: Path) -> int | None:
    try:
        # What is preallocated and not written yet may take no room.
        return file.stat().st_blocks * 512
    except OSError:
        return None


def _used(path: Path) -> datetime:
    try:
        seconds = path.stat().st_mtime
    except OSError:
        seconds = 0.0
    return datetime.fromtimestamp(seconds, UTC)
