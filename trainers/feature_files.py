"""The features of one source on this host's disk: read whole or not at all, written in parts.

    <folder>/
      source.json                   what it is, for people
      in_use                        locked by whoever reads or writes here
      publish                       locked by whoever makes, completes or removes an entry
      shard-0003                    locked by whoever computes it
      hidden_states-04.fp16/        an entry: one feature in one type, `data` and its manifest
      .hidden_states-04.fp16/       one that is not complete: `data` and, for each shard of it that
                                    is, a file `0003-8f3a21bc`, named by its CRC-32, that says
                                    how many seconds the teacher took

Rows lie in the order of the canonical pass (by length), so that a shard, some of its batches, is
one stretch of every entry. Nothing here needs torch.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .errors import StoppedError
from .feature_layout import Entry, Layout
from .file_lock import Held, try_lock

if TYPE_CHECKING:
    from pathlib import Path


log = logging.getLogger("kdsweep")

SCHEMA = 1
"""Raised when an entry's bytes come to mean something else."""

MANIFEST, DATA, SOURCE, IN_USE, PUBLISH = (
    "manifest.json",
    "data",
    "source.json",
    "in_use",
    "publish",
)

MOST_DAMAGES = 2
"""Of one entry, found by one lane; what is damaged more often is the disk."""

NOTHING = "00000000"
"""The CRC-32 of no bytes."""

LOOK_SECONDS = 0.05
"""Between two looks at what another process holds."""


@dataclass(frozen=True)
class Overflows:
    """Some number of an entry is beyond its type: another type has to be read."""


Part = dict[Entry, npt.NDArray[Any]]
"""The vectors of one batch, contiguous; an entry is missing where a number overflows."""


class Ran(NamedTuple):
    """What a teacher said about a batch."""

    part: Part
    seconds: float
    """Of its forward pass alone: loading it, packing and writing are no part of what it costs."""


class Run(Protocol):
    """Asks the teacher."""

    def __call__(self, start: int, end: int, *, entries: Sequence[Entry]) -> Ran:
        """What belongs to a stretch of the order, a batch."""
        ...


class _DamagedError(Exception):
    """An entry is not as its makers left it."""


class SourceFiles:
    """The entries of one source."""

    def __init__(self, folder: Path, layout: Layout, *, about: dict[str, str]) -> None:
        """Touch nothing yet.

        Args:
            folder: Named by the source's content.
            layout: Of its rows.
            about: What `source.json` tells.
        """
        self.folder = folder
        self.layout = layout
        self._about = about
        self._damages: Counter[Entry] = Counter()

    def use(self, stop: Callable[[], bool]) -> Held:
        """Make the folder, and keep everybody from removing it while the lock is held.

        Raises:
            OSError: The disk does not take it.
            StoppedError: `stop` became true before.
        """
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                held = _wait(self.folder / IN_USE, stop, shared=True)
            except FileNotFoundError:
                # Whoever prunes the cache was quicker.
                continue
            # What is there can be read from a full disk, too.
            with suppress(OSError):
                self._describe()
            return held

    def _describe(self) -> None:
        about = self.folder / SOURCE
        if not about.is_file():
            temporary = self.folder / f".{secrets.token_hex(4)}"
            temporary.write_text(json.dumps(self._about, indent=1), encoding="utf-8")
            temporary.replace(about)
        # When it was used last.
        about.touch()

    def is_there(self, entry: Entry) -> bool:
        """Whether an entry is complete, as far as can be seen without reading it."""
        return (self.folder / entry.name / MANIFEST).is_file()

    def read(self, entry: Entry, stop: Callable[[], bool]) -> npt.NDArray[Any] | Overflows | None:
        """An entry, mapped into memory, once its checksums were found to be right.

        What is damaged is set aside, for somebody to compute it again.

        Returns:
            Its vectors, of shape [size of its axis, width]; None where it is not there.

        Raises:
            OSError: It was damaged more often than chance can do it.
            StoppedError: `stop` became true while it was read.
        """
        if not (self.folder / entry.name).is_dir():
            return None
        try:
            return self._checked(entry, stop)
        except _DamagedError as damage:
            self._set_aside(entry, str(damage))
            return None

    def _checked(self, entry: Entry, stop: Callable[[], bool]) -> npt.NDArray[Any] | Overflows:
        folder = self.folder / entry.name
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            if manifest.get("overflows") is True:
                return Overflows()
            self._check_manifest(entry, manifest)
            numbers = np.memmap(folder / DATA, dtype=entry.dtype, mode="r")
        except (FileNotFoundError, ValueError, AttributeError) as error:
            raise _DamagedError(str(error)) from error
        vectors = numbers.reshape(-1, entry.width)
        for shard, expected in enumerate(manifest["checksums"]):
            if stop():
                raise StoppedError
            start, end = self._stretch(entry, self.layout.shards[shard])
            if (found := _checksum(vectors[start:end])) != expected:
                raise _DamagedError(f"the checksum of shard {shard} is {found}, not {expected}")
        return vectors

    def _check_manifest(self, entry: Entry, manifest: dict[str, Any]) -> None:
        size = self.layout.size(entry.axis) * entry.vector_bytes
        expected = {**self._manifest(entry), "size": size}
        for key in ("schema", "feature", "type", "width", "size"):
            if manifest.get(key) != expected[key]:
                what = f"its manifest says {key} {manifest.get(key)}, not {expected[key]}"
                raise _DamagedError(what)
        if len(manifest.get("checksums") or ()) != len(self.layout.shards):
            raise _DamagedError("its manifest has not one checksum a shard")
        found = (self.folder / entry.name / DATA).stat().st_size
        if found != size:
            raise _DamagedError(f"it has {found} bytes, not {size}")

    def seconds(self, entry: Entry) -> float | None:
        """What the teacher took for an entry that was read; None where nobody measured it."""
        try:
            told = json.loads((self.folder / entry.name / MANIFEST).read_bytes()).get("seconds")
        except (OSError, ValueError, AttributeError):
            return None
        return float(told) if isinstance(told, int | float) else None

    def begin(self, entry: Entry, stop: Callable[[], bool]) -> None:
        """Make room for an entry that is neither complete nor begun.

        Raises:
            OSError: There is no such room.
        """
        begun = self._partial(entry)
        if begun.is_dir():
            return
        with _wait(self.folder / PUBLISH, stop):
            if begun.is_dir() or self.is_there(entry):
                return
            new = self.folder / ".new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                _allocate(new / DATA, self.layout.size(entry.axis) * entry.vector_bytes)
            except OSError:
                shutil.rmtree(new, ignore_errors=True)
                raise
            new.rename(begun)

    def computed(self, entry: Entry) -> dict[int, str]:
        """The shards of an entry that are there before all of it is, with their checksums."""
        try:
            names = [file.name for file in self._partial(entry).iterdir()]
        except FileNotFoundError:
            return {}
        parts = (name.split("-") for name in names if "-" in name)
        return {int(shard): checksum for shard, checksum in parts}

    def lock_shard(self, shard: int) -> Held | None:
        """The right to compute a shard; None where somebody else has it."""
        return try_lock(self.folder / f"shard-{shard:04d}")

    def fill(self, entries: list[Entry], shard: int, run: Callable[[int, int], Ran]) -> None:
        """Compute a shard, whose lock is held, of entries that lack it.

        Args:
            entries: Which.
            shard: Which.
            run: Gives what belongs to a stretch of the order, a batch.
        """
        checksums = dict.fromkeys(entries, NOTHING)
        seconds = 0.0
        for start, end in self.layout.batches(shard):
            part, took = run(start, end)
            seconds += took
            for entry in list(checksums):
                vectors = part.get(entry)
                if vectors is None:
                    self._give_up(entry)
                elif self._write(entry, start, vectors):
                    checksums[entry] = _checksum(vectors, checksums[entry])
                    continue
                del checksums[entry]
        for entry, checksum in checksums.items():
            with suppress(FileNotFoundError):
                partial = self._partial(entry)
                new = partial / f".{secrets.token_hex(4)}"
                new.write_text(repr(seconds), encoding="utf-8")
                # Whoever publishes must not see the name without what it says.
                new.rename(partial / _note(shard, checksum))

    def _write(self, entry: Entry, row: int, vectors: npt.NDArray[Any]) -> bool:
        """Write what begins with a row of the order; False where the entry was given up."""
        start = int(self.layout.offsets[entry.axis][row]) * entry.vector_bytes
        try:
            with (self._partial(entry) / DATA).open("r+b") as file:
                file.seek(start)
                file.write(vectors.data)
        except FileNotFoundError:
            if self.is_there(entry):
                return False
            raise
        return True

    def publish(self, entry: Entry, stop: Callable[[], bool]) -> None:
        """Complete an entry if no shard of it is missing."""
        if len(self.computed(entry)) < len(self.layout.shards):
            return
        with _wait(self.folder / PUBLISH, stop):
            checksums = self.computed(entry)
            whole = self._partial(entry)
            if len(checksums) < len(self.layout.shards) or self.is_there(entry):
                return
            size = (whole / DATA).stat().st_size
            told = [checksums[shard] for shard in range(len(self.layout.shards))]
            manifest = {
                **self._manifest(entry),
                "size": size,
                "checksums": told,
                "seconds": _sum(whole / _note(*each) for each in checksums.items()),
            }
            _sync(whole / DATA)
            (whole / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            _sync(whole / MANIFEST)
            there = self.folder / entry.name
            # A folder of this name without a manifest is believed by nobody.
            shutil.rmtree(there, ignore_errors=True)
            whole.rename(there)
            for shard, checksum in checksums.items():
                (there / _note(shard, checksum)).unlink()

    def _give_up(self, entry: Entry) -> None:
        """Say that an entry does not fit its type."""
        log.warning("%s: a number is beyond %s; it is kept as fp32", entry.name, entry.type)
        with _wait(self.folder / PUBLISH, lambda: False):
            if self.is_there(entry):
                return
            new = self.folder / ".new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            manifest = {**self._manifest(entry), "overflows": True}
            (new / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            new.rename(self.folder / entry.name)
            shutil.rmtree(self._partial(entry), ignore_errors=True)

    def _set_aside(self, entry: Entry, why: str) -> None:
        log.warning(
            "%s is damaged (%s): it is removed and computed again", self.folder / entry.name, why
        )
        self._damages[entry] += 1
        if self._damages[entry] > MOST_DAMAGES:
            raise OSError(f"{self.folder / entry.name} does not read back as it was written")
        aside = self.folder / f".damaged-{secrets.token_hex(4)}"
        try:
            (self.folder / entry.name).rename(aside)
        except FileNotFoundError:
            # Another lane has seen it, too.
            return
        shutil.rmtree(aside, ignore_errors=True)

    def _manifest(self, entry: Entry) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kdsweep": version("kdsweep"),
            "feature": list(entry.feature),
            "type": entry.type,
            "width": entry.width,
        }

    def _partial(self, entry: Entry) -> Path:
        return self.folder / f".{entry.name}"

    def _stretch(self, entry: Entry, rows: tuple[int, int]) -> tuple[int, int]:
        offsets = self.layout.offsets[entry.axis]
        return int(offsets[rows[0]]), int(offsets[rows[1]])


def collect(
    files: SourceFiles,
    needed: list[Entry],
    wanted: list[Entry],
    *,
    run: Run,
    stop: Callable[[], bool],
) -> dict[Entry, npt.NDArray[Any] | Overflows]:
    """Read entries; those that are missing are computed by all who ask for them, shard by shard.

    Whoever finds a shard locked takes another one, and looks again. A lock ends with its holder,
    so what a killed lane had begun is computed by somebody else.

    Args:
        files: Of the source, in use by the caller.
        needed: What to read.
        wanted: What is computed in the same pass, if there is one: what others will read.
        run: Gives what belongs to a stretch of the order.
        stop: Looked at before every batch, and while others are waited for.

    Raises:
        OSError: The disk does not take it, or does not give it back.
        StoppedError: `stop` became true.
    """
    found: dict[Entry, npt.NDArray[Any] | Overflows] = {}
    while True:
        for entry in needed:
            if entry not in found and (there := files.read(entry, stop)) is not None:
                found[entry] = there
        if len(found) == len(needed):
            return found
        missing = [entry for entry in wanted if not files.is_there(entry)]
        for entry in missing:
            files.begin(entry, stop)
        if not _compute(files, missing, run=run, stop=stop):
            if stop():
                raise StoppedError
            time.sleep(LOOK_SECONDS)


def _compute(
    files: SourceFiles,
    missing: list[Entry],
    *,
    run: Run,
    stop: Callable[[], bool],
) -> bool:
    """Compute every shard that nobody else does; whether there was one."""
    worked = False
    computed = {entry: files.computed(entry) for entry in missing}
    # Long rows take longest: begun first, they keep nobody waiting at the end.
    for shard in reversed(range(len(files.layout.shards))):
        if all(shard in computed[entry] for entry in missing):
            continue
        if (held := files.lock_shard(shard)) is None:
            continue
        with held:
            lacking = [
                entry
                for entry in missing
                if not files.is_there(entry) and shard not in files.computed(entry)
            ]
            if lacking:
                files.fill(lacking, shard, partial(run, entries=lacking))
                worked = True
    for entry in missing:
        files.publish(entry, stop)
    return worked


def _wait(path: Path, stop: Callable[[], bool], *, shared: bool = False) -> Held:
    while (held := try_lock(path, shared=shared)) is None:
        if stop():
            raise StoppedError
        time.sleep(LOOK_SECONDS)
    return held


def _allocate(path: Path, size: int) -> None:
    """A file for which the disk has room, so that it is known now and not in the midst of it."""
    with path.open("wb") as file:
        file.truncate(size)
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _note(shard: int, checksum: str) -> str:
    """The name of the file that says that a shard is there."""
    return f"{shard:04d}-{checksum}"


def _sum(notes: Iterable[Path]) -> float | None:
    """Of what notes say; None if one says nothing, as those of older versions."""
    told = [note.read_text(encoding="utf-8") for note in notes]
    return sum(map(float, told)) if all(told) else None


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _checksum(vectors: npt.NDArray[Any], before: str = NOTHING) -> str:
    """CRC-32 in hexadecimal, of what goes on from something whose CRC-32 is `before`."""
    return f"{zlib.crc32(np.ascontiguousarray(vectors).data, int(before, 16)):08x}"
