"""Checks every invariant of a store, and mends what can be mended without losing anything.

Nothing that a store holds is executed or unpickled: files are read as Parquet, JSON and safetensors
or by their first bytes alone.
"""

import json
import re
import shutil
import struct
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

import numpy as np

from ..results.compact import CompactName, Held, part_place
from ..results.compaction import KINDS, Compaction
from ..results.files import is_leftover, is_temporary, replace
from ..results.history import Logged, read_logged
from ..results.parts import compact_files
from ..results.predictions import read_predicted
from ..results.proposals import Proposals, read_proposals
from ..results.reader import is_attempt, read_attempts, read_plans, read_sweep
from ..results.rows import attempts as attempt_rows
from ..results.schema import Attempt, AttemptKey, DamagedSweepError
from ..results.store import FOLDERS, Store
from .decisions import read_decisions, read_lines
from .early_stopping import Decided
from .lock import Holder, newest_epoch
from .referee import stopped_ids
from .upkeep import check_sweep, kept

Mend = Literal["remove", "quarantine", "make private", "rescue and quarantine", "keep decisions"]

_ROUNDS = 5
_QUARANTINE = "quarantine"
_PICKLES = re.compile(r".*\.(pkl|pickle|pt|pth|bin|ckpt|joblib|dill)", re.IGNORECASE)
_KNOWN: Mapping[str, re.Pattern[str]] = {
    "grids": re.compile(r"\d{4,}\.yaml|[0-9a-f]{8,64}\.py"),
    "plan": re.compile(r"\d+-\d+\.parquet"),
    "proposals": re.compile(r"[0-9a-f]{16}-\d{5}\.parquet"),
    "attempts": re.compile(r"[0-9a-f]{8,64}\.\d+-\d+\.parquet"),
    "history": re.compile(r"[0-9a-f]{8,64}\.\d+-\d+\.\d+\.parquet"),
    "predictions": re.compile(r"[0-9a-f]{8,64}\.\d+-\d+\.[a-z]{1,32}\.parquet"),
    "compact": re.compile(r"(attempts|history|predictions)\.\d+-\d+\.[0-9a-f]{16}\.parquet"),
    "decisions": re.compile(r"\d{6}\.jsonl"),
    "locks": re.compile(r"\d{6,}\.(json|beat|released|drain|log|[0-9a-f]{16}\.cancel)"),
}
"""Names of the files of each folder that holds files alone."""


class Finding(NamedTuple):
    """What is wrong with a file or folder."""

    path: str
    """Relative to the store."""
    reason: str
    mend: Mend | None
    """What `--repair` does; None where only a person can."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what of it was mended."""

    found: tuple[Finding, ...]
    """What is wrong now."""
    mended: tuple[Finding, ...]
    strangers: tuple[str, ...]
    """Files that no sweep wrote; they harm nothing and are left alone."""


def diagnose(folder: Path) -> Diagnosis:
    """Check a store and change nothing; also while a launch runs.

    Raises:
        InputError: There is no sweep.
        NewerStoreError: A newer version wrote it.
    """
    sweep = Store(folder)
    check_sweep(sweep)
    checked = _Checked(sweep, is_running=_is_held(sweep))
    return Diagnosis(checked.findings(), (), checked.strangers())


def repair(folder: Path) -> Diagnosis:
    """Check a store and mend it; what cannot be mended is moved to `quarantine/` or named.

    Raises:
        InputError: There is no sweep.
        SweepLockedError: A launch holds it.
        DamagedSweepError: `sweep.json` cannot be read.
    """
    sweep = Store(folder)
    check_sweep(sweep)
    mended: list[Finding] = []
    with kept(sweep) as lock:
        for _ in range(_ROUNDS):
            checked = _Checked(sweep, is_running=False)
            found = checked.findings()
            todo = [finding for finding in found if finding.mend is not None]
            if not todo:
                break
            for finding in todo:
                lock.check()
                _mend(sweep, finding, epoch=lock.epoch, fence=lock.check)
            mended += todo
        checked = _Checked(sweep, is_running=False)
        return Diagnosis(checked.findings(), tuple(mended), checked.strangers())


def _mend(sweep: Store, finding: Finding, *, epoch: int, fence: Callable[[], None]) -> None:
    path = sweep.folder / finding.path
    match finding.mend:
        case "remove":
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        case "make private":
            path.chmod(path.stat().st_mode & ~0o077)
        case "rescue and quarantine":
            Compaction(sweep.folder, epoch=epoch, fence=fence).rescue(path.name)
            _quarantine(sweep.folder, finding.path)
        case "quarantine":
            _quarantine(sweep.folder, finding.path)
        case "keep decisions":
            whole = b"".join(line + b"\n" for line in read_lines(path).whole)
            _quarantine(sweep.folder, finding.path, copy=True)
            replace(path, lambda temporary: _write(temporary, whole))
        case None:
            pass
        case _:
            assert_never(finding.mend)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _quarantine(folder: Path, path: str, *, copy: bool = False) -> None:
    """Move a file or folder, or copy a file, to where nobody reads it, under a name of its own."""
    target = folder / _QUARANTINE / path
    number = 0
    while target.exists():
        number += 1
        target = folder / _QUARANTINE / f"{path}.{number}"
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if copy:
        shutil.copy2(folder / path, target)
    else:
        (folder / path).rename(target)


def _is_held(sweep: Store) -> bool:
    """Whether a launch may be at work: its unfinished files are no leftovers."""
    locks = sweep.locks_folder
    epoch = newest_epoch(locks) if locks.is_dir() else 0
    if not epoch or (locks / f"{epoch:06d}.released").exists():
        return False
    try:
        holder = Holder(**json.loads((locks / f"{epoch:06d}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return False
    return holder.host != Holder.here().host or holder.is_alive_here()


class _Checked:
    """A store as it was read once, and what is wrong with it."""

    def __init__(self, sweep: Store, *, is_running: bool) -> None:
        self._sweep = sweep
        self._folder = sweep.folder
        self._is_running = is_running

    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong; each path once."""
        checks = (
            self._sweep_file,
            self._private,
            self._pickles,
            self._leftovers,
            self._locks,
            self._compact,
            self._plans,
            self._parts,
            self._proposed,
            self._decisions,
            self._attempts,
            self._history,
            self._predictions,
            self._folders,
        )
        found: dict[str, Finding] = {}
        for check in checks:
            for finding in check():
                found.setdefault(finding.path, finding)
        return tuple(found.values())

    def strangers(self) -> tuple[str, ...]:
        """Files and folders whose names no sweep gives."""
        names = [
            *self._sweep.strangers(),
            *(
                f"{folder}/{path.name}"
                for folder, pattern in _KNOWN.items()
                for path in self._entries(folder)
                if not pattern.fullmatch(path.name) and not is_temporary(path.name)
            ),
        ]
        damaged = {finding.path for finding in self._pickles()}
        return tuple(sorted(name for name in names if name not in damaged))

    @cached_property
    def _rows(self) -> tuple[Attempt, ...]:
        return attempt_rows(read_attempts(self._sweep.source).table)

    @cached_property
    def _logged(self) -> Logged:
        return read_logged(self._sweep.source, wanted=lambda _: True)

    @cached_property
    def _completed(self) -> dict[str, Attempt]:
        return {row.id: row for row in self._rows if row.status == "completed"}

    @cached_property
    def _proposals(self) -> Proposals:
        return read_proposals(self._sweep.source)

    @cached_property
    def _planned(self) -> Mapping[str, str]:
        """What each id is that is planned, or once was."""
        plans = read_plans(self._sweep.source)
        return {
            id: what
            for plan in (plans.current, *plans.older, *self._proposals.tables)
            for id, what in zip(plan["id"].to_pylist(), plan["what"].to_pylist(), strict=True)
            if id is not None
        }

    def _entries(self, folder: str) -> list[Path]:
        path = self._folder / folder
        return sorted(path.iterdir()) if path.is_dir() else []

    def _sweep_file(self) -> Iterator[Finding]:
        try:
            read_sweep(self._sweep.source)
        except DamagedSweepError as error:
            yield Finding("sweep.json", f"{error}; restore it from a copy", None)

    def _private(self) -> Iterator[Finding]:
        for name in ("", *FOLDERS):
            path = self._folder / name
            if path.is_dir() and path.stat().st_mode & 0o077:
                yield Finding(name or ".", "others than its owner may enter it", "make private")

    def _pickles(self) -> Iterator[Finding]:
        for path in _files(self._folder):
            if _is_pickle(path):
                reason = "a pickle executes code when it is loaded; no sweep writes one"
                yield Finding(self._place(path), reason, "quarantine")

    def _leftovers(self) -> Iterator[Finding]:
        if self._is_running:
            return
        for path in sorted(self._folder.rglob(".*.tmp")):
            is_aside = path.relative_to(self._folder).parts[0] == _QUARANTINE
            if is_leftover(path.name) and not is_aside:
                yield Finding(self._place(path), "a killed writer left it", "remove")
        for id in self._completed:
            for path in sorted(self._sweep.work_folder(id, 0, 0).parent.glob("*/checkpoints")):
                reason = "checkpoints of what is completed"
                yield Finding(self._place(path), reason, "remove")

    def _locks(self) -> Iterator[Finding]:
        for path in self._entries("locks"):
            if path.suffix == ".json" and not is_temporary(path.name):
                try:
                    Holder(**json.loads(path.read_text()))
                except (OSError, ValueError, TypeError) as error:
                    reason = f"names no launch ({error}); if none runs, remove it"
                    yield Finding(f"locks/{path.name}", reason, None)

    def _compact(self) -> Iterator[Finding]:
        for path in self._entries("compact"):
            told = CompactName.parse(path.name)
            if told is not None and not told.fits(path.read_bytes()):
                reason = "its bytes are not those that were written: name and SHA-256 differ"
                yield Finding(f"compact/{path.name}", reason, "rescue and quarantine")
        for kind in KINDS:
            files = compact_files(self._sweep.source, kind)
            for damage in files.damaged:
                yield Finding(damage.path, damage.reason, "rescue and quarantine")
            for name, file in files.files:
                names = [part.name for part in file.parts]
                if len(set(names)) < len(names) or not all(map(_FITS[kind], names)):
                    reason = "its list of parts names one twice, or one of another kind"
                    yield Finding(f"compact/{name}", reason, "rescue and quarantine")

    def _plans(self) -> Iterator[Finding]:
        plans = read_plans(self._sweep.source)
        for damage in plans.damaged:
            yield Finding(damage.path, damage.reason, "quarantine")
        for damage in self._proposals.damaged:
            yield Finding(damage.path, damage.reason, "quarantine")
        # Of a search everything that is planned lies in its proposals.
        is_planned = plans.current.num_rows or self._proposals.found
        if not is_planned and not self._is_running:
            reason = "no whole plan: `kdsweep launch` with the grid plans anew"
            yield Finding("plan", reason, None)

        for name in plans.lacking if not self._is_running else ():
            reason = (
                "a part of the newest plan is missing, so the plan before it counts; "
                "`kdsweep launch` with the grid plans anew"
            )
            yield Finding(f"plan/{name}", reason, None)

    def _proposed(self) -> Iterator[Finding]:
        slots: dict[str, set[int]] = defaultdict(set)
        for path in self._entries("proposals"):
            if _KNOWN["proposals"].fullmatch(path.name):
                study, _, number = path.stem.partition("-")
                slots[study].add(int(number))
        for study, found in slots.items():
            for slot in sorted(set(range(max(found))) - found):
                reason = "a slot before the last is missing: its trials are in no plan any more"
                yield Finding(f"proposals/{study}-{slot:05d}.parquet", reason, None)

    def _decisions(self) -> Iterator[Finding]:
        for path in self._entries("decisions"):
            if _KNOWN["decisions"].fullmatch(path.name) and not self._is_running:
                for reason in read_lines(path).wrong[:1]:
                    yield Finding(f"decisions/{path.name}", reason, "keep decisions")
        numbers = [each.number for each in read_decisions(self._sweep.decisions_folder)]
        if missing := sorted(set(range(1, max(numbers, default=0))) - set(numbers)):
            reason = (
                f"decision {missing[0]} is missing, and there are later ones: its trial is asked "
                "again, and they cannot be replayed"
            )
            yield Finding("decisions", reason, None)
        last = Decided(read_decisions(self._sweep.decisions_folder))
        for id in sorted(stopped_ids(self._rows)):
            if last.last(id) is None:
                reason = f"trial {id} was stopped, and no decision says so: it will go on"
                yield Finding(f"decisions ({id})", reason, None)

    def _parts(self) -> Iterator[Finding]:
        for damage in (
            *read_attempts(self._sweep.source).damaged,
            *self._logged.parts.damaged,
            *read_predicted(self._sweep.source).damaged,
        ):
            is_compact = damage.path.startswith("compact/")
            mend: Mend = "rescue and quarantine" if is_compact else "quarantine"
            yield Finding(damage.path, damage.reason, mend)

    def _attempts(self) -> Iterator[Finding]:
        known = {AttemptKey(row.id, row.epoch, row.number) for row in self._rows}
        known |= {part.key for part in _parts_of(self._logged)}
        for row in self._rows:
            path = f"attempts/{row.id}.{row.epoch}-{row.number}.parquet"
            if row.id not in self._planned:
                reason = "no plan names its work; `kdsweep launch` with its grid plans it again"
                yield Finding(path, reason, None)
            if row.resumed_from is None:
                continue
            parent = AttemptKey(row.id, *row.resumed_from)
            if parent not in known and not self._sweep.work_folder(*parent).is_dir():
                yield Finding(
                    path, f"goes on from attempt {parent}, of which nothing is left", None
                )

    def _history(self) -> Iterator[Finding]:
        numbers: dict[AttemptKey, list[int]] = defaultdict(list)
        for part in _parts_of(self._logged):
            numbers[part.key].append(int(part_place(part.name)[1] or 0))
        lost = {
            key: sorted(set(range(1, max(found) + 1)) - set(found))
            for key, found in numbers.items()
            if len(found) < max(found)
        }
        for key, missing in lost.items():
            reason = f"part {missing[0]} is missing, and there are later ones: the curve has a hole"
            yield Finding(f"history/{key}.{missing[0]}.parquet", reason, None)
        for row in self._completed.values():
            key = AttemptKey(row.id, row.epoch, row.number)
            # One that goes on from the last step, as after a kill in a commit, has nothing to log.
            best_step = row.values.get("select/primary/best_step")
            if key not in numbers and int(best_step or 0) > row.resumed_from_step > 0:
                reason = "its attempt went on from another and logged nothing: the curve has a hole"
                yield Finding(f"history/{key}.1.parquet", reason, None)
        for block in self._logged.parts.blocks:
            steps = block.table["step"].to_numpy()
            end = 0
            for part in block.parts:
                begin, end = end, end + part.num_rows
                if (np.diff(steps[begin:end]) == 0).any():
                    yield Finding(f"history/{part.name}", "a step stands twice in it", None)

    def _predictions(self) -> Iterator[Finding]:
        sizes: dict[tuple[str, str], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        tasks = {row.id: _task_of(row) for row in self._rows}
        for block in read_predicted(self._sweep.source).blocks:
            for part in block.parts:
                if part.key.id not in tasks and not self._is_running:
                    reason = "predictions of work that nobody has attempted"
                    alone = (self._folder / "predictions" / part.name).exists()
                    yield Finding(
                        f"predictions/{part.name}", reason, "quarantine" if alone else None
                    )
                    continue
                of = tasks.get(part.key.id, ""), part_place(part.name)[1] or ""
                sizes[of][part.num_rows].append(part.name)
        for (_, split), by_size in sizes.items():
            usual = max(by_size, key=lambda size: len(by_size[size]))
            for size, names in by_size.items():
                for name in names if size != usual else ():
                    reason = f"{size} rows, and {usual} in the others of this task on {split}"
                    yield Finding(f"predictions/{name}", reason, None)

    def _folders(self) -> Iterator[Finding]:
        whats = {"teachers": "teacher", "stages": "stage", "students": "trial"}
        for folder, what in whats.items():
            planned = {id for id, its in self._planned.items() if its == what}
            for path in self._entries(folder):
                place = f"{folder}/{path.name}"
                if is_temporary(path.name):
                    continue
                if reason := _not_whole(path):
                    yield Finding(place, reason, "quarantine")
                elif not any(path.name.startswith(id) for id in _among(path.name, planned)):
                    yield Finding(place, f"belongs to no {what} of a plan", "quarantine")
                elif (
                    folder == "students"
                    and not self._is_running
                    and path.name not in self._completed
                ):
                    yield Finding(place, "of a trial that is not completed", "quarantine")

    def _place(self, path: Path) -> str:
        return str(path.relative_to(self._folder))


_FITS: Mapping[str, Callable[[str], bool]] = {
    "attempts": is_attempt,
    "history": lambda name: _KNOWN["history"].fullmatch(name) is not None,
    "predictions": lambda name: _KNOWN["predictions"].fullmatch(name) is not None,
}


def _among(name: str, ids: Set[str]) -> Set[str]:
    """The ids that a folder's name may begin with: a teacher's folder has the whole digest."""
    return ids & {name, name[:16]}


def _parts_of(logged: Logged) -> Iterator[Held]:
    return (part for block in logged.parts.blocks for part in block.parts)


def _task_of(row: Attempt) -> str:
    found = re.search(r'"task_digest":\s*"([0-9a-f]+)"', row.config_json)
    return found[1] if found else ""


def _files(folder: Path) -> Iterator[Path]:
    """All files but those in quarantine; links are not followed."""
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] != _QUARANTINE and path.is_file():
            yield path


def _is_pickle(path: Path) -> bool:
    if _PICKLES.fullmatch(path.name):
        return True
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError:
        return False
    if begin == b"PK\x03\x04":
        # What torch.save writes holds one.
        try:
            return any(name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist())
        except (OSError, zipfile.BadZipFile):
            return False
    # Protocols 2 to 5 name themselves.
    return begin[:2] in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}


def _not_whole(folder: Path) -> str | None:
    """Why a folder of weights is damaged, if it is."""
    if not folder.is_dir():
        return "a file where a folder should be"
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        return "holds no weights"
    for path in weights:
        if reason := _damage_of_weights(path):
            return f"{path.name}: {reason}"
    for path in sorted(folder.rglob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"{path.name}: {error}"
    return None


def _damage_of_weights(path: Path) -> str | None:
    """Whether a safetensors file is as long as its header says, without reading its tensors."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            [length] = struct.unpack("<Q", file.read(8))
            if length > size:
                return "cut short"
            header = json.loads(file.read(length))
        spans = [
            tuple(tensor["data_offsets"])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        return f"its header cannot be read: {error}"
    spans.sort()
    if any(end != begin for (_, end), (begin, _) in pairwise(spans)):
        return "its tensors overlap or leave gaps"
    expected = 8 + length + (spans[-1][1] if spans else 0)
    return None if size == expected else f"{size} bytes instead of {expected}"
