"""Merging parts loses no row and shows none twice, whoever is killed and whoever reads then."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kdsweep import results
from kdsweep.results.compact import Block, CompactName, Kind
from kdsweep.results.compaction import Compaction
from kdsweep.results.history import read_logged
from kdsweep.results.parts import every, read_parts
from kdsweep.results.predictions import read_predicted
from kdsweep.results.questions import DamagedPartsWarning
from kdsweep.results.schema import NewerStoreError
from kdsweep.results.source import LocalSource, Source
from kdsweep.results.store import Store

from .test_history import A, B, end, planned_store
from .test_store import ID, OTHER, allow, make_attempt, new_store

Rows = dict[str, list[dict[str, Any]]]
IDS = (A, B, ID, OTHER)


def log_history(store: Store, id: str, epoch: int, number: int, *parts: dict[int, float]) -> None:
    history = store.open_history(id, epoch, number)
    for part in parts:
        for step, loss in part.items():
            history.append(step, {f"loss {id[0]}": loss})
        history.flush()


def predict(store: Store, id: str, epoch: int, number: int, split: str, classes: int) -> None:
    rows = np.arange(classes + 1)
    logits = np.full((classes + 1, classes), 0.5 + number)
    store.write_predictions(id, epoch, number, split, rows, rows % classes, logits)


def rows_of(source: Source) -> Rows:
    """What each part holds, wherever it lies; a part that is found twice is an error."""
    found: Rows = {}
    attempts = read_parts(source, "attempts", wanted=every, check=passing, compacted="attempts")
    history, predictions = read_logged(source, wanted=every).parts, read_predicted(source)
    for parts in (attempts, history, predictions):
        for block in parts.blocks:
            # A number that is not one equals itself as text.
            rows = [
                {name: repr(cell) for name, cell in row.items() if cell is not None}
                for row in block.table.to_pylist()
            ]
            for part in block.parts:
                assert part.name not in found
                found[part.name], rows = rows[: part.num_rows], rows[part.num_rows :]
    return found


def passing(block: Block) -> None:
    """Accepts every block."""


def compaction(store: Store, epoch: int = 9, **options: Any) -> Compaction:
    return Compaction(store.folder, epoch=epoch, **({"grace_seconds": 0.0} | options))


def alone(store: Store) -> list[str]:
    kinds = ("attempts", "history", "predictions")
    return sorted(path.name for kind in kinds for path in (store.folder / kind).glob("[!.]*"))


def compact_files(store: Store, kind: str = "") -> list[Path]:
    return sorted((store.folder / "compact").glob(f"{kind}*.parquet"))


def age(store: Store, seconds: float) -> None:
    """Let the compact files become older."""
    for path in compact_files(store):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two trials of two attempts each, the second resumed, with curves and predictions."""
    store = planned_store(tmp_path)
    for id in (A, B):
        log_history(store, id, 1, 1, {1: 0.1, 2: math.nan}, {3: 0.3})
        end(store, id, 1, 1, "failed", values={"host": "h", "x": 1.0 if id == A else "many"})
        history = store.open_history(id, 2, 1, resumed_from=(1, 1), resumed_from_step=2)
        history.append(3, {f"loss {id[0]}": 0.4, "train/term/0/loss": 0.5})
        history.close()
        end(store, id, 2, 1, "completed", resumed_from=(1, 1), resumed_from_step=2)
        for split, classes in (("select", 2), ("report", 3)):
            predict(store, id, 2, 1, split, classes)
    return store


def answers(store: Store) -> list[pd.DataFrame]:
    loaded = results.load(store.folder, include_inactive=True)
    return [
        loaded.trials,
        loaded.history().sort_index(axis=1),
        loaded.history(A),
        loaded.history(metrics=["loss a"]),
        loaded.history(long=True).sort_values(["trial_id", "metric", "step"], ignore_index=True),
        loaded.predictions(A, split="select"),
        loaded.predictions(B),
    ]


def test_results_are_the_same_before_between_and_after_merging(store: Store) -> None:
    before, rows = answers(store), rows_of(store.source)
    assert compaction(store).merge() == (4 + 6 + 4, 3)
    for expected, found in zip(before, answers(store), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    compaction(store).collect()
    assert alone(store) == []
    assert len(compact_files(store)) == 3
    for expected, found in zip(before, answers(store), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    # A value that was text in one attempt is text in all of them, merged or not.
    found = rows_of(store.source)
    assert found.pop(f"{A}.1-1.parquet")[0]["value/x"] == "'1'"
    assert rows.pop(f"{A}.1-1.parquet")[0]["value/x"] == "1.0"
    assert found == rows


def test_a_compact_file_can_be_read_by_whoever_knows_parquet_alone(store: Store) -> None:
    compaction(store).merge()
    [history] = compact_files(store, "history")
    frame = pd.read_parquet(history)
    assert frame["kdsweep/id"].tolist() == [A] * 4 + [B] * 4
    assert frame["kdsweep/attempt"].tolist() == ["1-1", "1-1", "1-1", "2-1"] * 2
    assert frame["step"].tolist() == [1, 2, 3, 3] * 2
    [predictions] = compact_files(store, "predictions")
    assert set(pd.read_parquet(predictions)["kdsweep/split"]) == {"select", "report"}


def test_a_trial_cannot_log_under_the_names_of_those_columns(store: Store) -> None:
    with pytest.raises(ValueError, match="names that begin with 'kdsweep/' are taken"):
        store.open_history(A, 7, 1).append(1, {"kdsweep/id": 1.0})


def test_merged_parts_stay_until_the_grace_is_over(store: Store) -> None:
    merging = compaction(store, grace_seconds=120.0)
    merging.merge()
    before = alone(store)
    files, seconds_left = merging.collect()
    assert (files, alone(store)) == (0, before)
    assert seconds_left is not None
    assert 100 < seconds_left <= 120
    age(store, 119)
    assert merging.collect().files == 0
    age(store, 2)
    assert merging.collect() == (14, None)
    assert alone(store) == []


def test_nothing_is_merged_where_there_is_little_and_what_runs_is_spared(store: Store) -> None:
    assert compaction(store).merge(at_least=7) == (0, 0)
    assert compaction(store).merge(at_least=6, spare={A}) == (0, 0)
    assert compaction(store).merge(spare={A}).parts == 7
    compaction(store).collect()
    assert {name[:16] for name in alone(store)} == {A}


def test_merging_again_does_nothing(store: Store) -> None:
    compaction(store).merge()
    names = [path.name for path in compact_files(store)]
    for fan in (8, 2):
        assert compaction(store).merge(fan=fan) == (0, 0)
    assert [path.name for path in compact_files(store)] == names


def test_a_part_that_two_launches_merged_counts_once_and_one_copy_goes(store: Store) -> None:
    # A launch that was overtaken may still publish once: its fence and its file are two steps.
    rows = rows_of(store.source)
    other = Store(store.folder)
    publishing = compaction(store, epoch=1, fence=lambda: merge_once(other))

    def merge_once(by: Store) -> None:
        if not compact_files(by, "attempts"):
            compaction(by, epoch=2).merge()

    publishing.merge()
    assert len(compact_files(store, "attempts")) == 2
    found = rows_of(store.source)
    assert found.keys() == rows.keys()
    compaction(store, epoch=3).collect()
    assert len(compact_files(store, "attempts")) == 1
    assert rows_of(store.source).keys() == rows.keys()


def test_whoever_lost_the_lock_publishes_and_removes_nothing(store: Store) -> None:
    def overtaken() -> None:
        raise PermissionError("a newer launch holds the sweep")

    with pytest.raises(PermissionError):
        compaction(store, fence=overtaken).merge()
    assert compact_files(store) == []
    compaction(store).merge()
    before = alone(store)
    with pytest.raises(PermissionError):
        compaction(store, fence=overtaken).collect()
    assert alone(store) == before


# --- work in all


def test_a_row_is_written_a_few_times_and_files_stay_few(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    written, seen, most = 0, set[str](), 0
    for n in range(1, 201):
        log_history(store, f"{n:08x}", 1, 1, {1: float(n)})
        compaction(store).merge()
        compaction(store).collect()
        for path in compact_files(store):
            if path.name not in seen:
                seen.add(path.name)
                written += pq.read_metadata(path).num_rows
        most = max(most, len(compact_files(store)))
    # By hand: each row once alone, and once more in each size up to 8, 64 and 512 rows.
    assert written <= 200 * 4
    assert most <= 7 * 4
    assert len(rows_of(store.source)) == 200
    compaction(store).merge(fan=2)
    compaction(store).collect()
    assert len(compact_files(store)) == 1
    assert len(rows_of(store.source)) == 200


def test_files_stop_growing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for n in range(1, 41):
        log_history(store, f"{n:08x}", 1, 1, dict.fromkeys(range(10), 0.5))
        # Two columns of ten rows: a file of 100 cells holds five trials.
        compaction(store, cells_of_a_file=100).merge(fan=2)
    compaction(store).collect()
    rows = [pq.read_metadata(path).num_rows for path in compact_files(store)]
    assert sum(rows) == 400
    assert all(25 <= count <= 50 for count in rows[:-1])


# --- damage


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 100, b"PAR1" + bytes(50) + b"PAR1"])
def test_a_damaged_part_is_not_swallowed(store: Store, content: bytes) -> None:
    bad = store.folder / "history" / f"{A}.1-1.2.parquet"
    bad.write_bytes(content)
    compaction(store).merge()
    compaction(store).collect()
    assert alone(store) == [bad.name]
    assert bad.read_bytes() == content
    assert [path for path, _ in store.damaged()] == [bad]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 100])
def test_of_a_damaged_compact_file_the_parts_are_read_while_they_are_there(
    store: Store, content: bytes
) -> None:
    rows = rows_of(store.source)
    compaction(store, grace_seconds=1e6).merge()
    for path in compact_files(store):
        path.write_bytes(content)
    assert rows_of(store.source) == rows
    with pytest.warns(DamagedPartsWarning, match=r"compact/attempts\.9-1"):
        assert len(results.load(store.folder).trials) == 2
    # They are merged anew, and only then they go.
    compaction(store).merge()
    compaction(store).collect()
    assert alone(store) == []
    assert rows_of(store.source).keys() == rows.keys()


@pytest.mark.filterwarnings("ignore::kdsweep.results.questions.DamagedPartsWarning")
def test_a_compact_file_damaged_after_its_parts_have_gone_is_left_out_alone(store: Store) -> None:
    compaction(store).merge(spare={B})
    compaction(store).merge()
    compaction(store).collect()
    first, *_ = compact_files(store, "attempts")
    first.write_bytes(first.read_bytes()[:-10])
    found = rows_of(store.source)
    assert f"{B}.2-1.parquet" in found
    assert f"{A}.2-1.parquet" not in found
    assert f"{A}.1-1.1.parquet" in found
    statuses = results.load(store.folder).trials.set_index("trial_id")["status"]
    assert (statuses[A], statuses[B]) == ("pending", "completed")
    assert [path for path, _ in store.damaged()] == [first]
    # Nobody merges or removes what cannot be read.
    compaction(store).merge(fan=2)
    compaction(store).collect()
    assert first in compact_files(store, "attempts")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["attempts", "history", "predictions"]), place=st.floats(0, 0.9999))
def test_no_part_goes_while_one_bit_of_its_compact_file_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: float
) -> None:
    store = planned_store(tmp_path_factory.mktemp("store"))
    log_history(store, A, 1, 1, {1: 0.1}, {2: 0.2})
    end(store, A, 1, 1, "completed")
    predict(store, A, 1, 1, "report", 2)
    rows = rows_of(store.source)
    compaction(store).merge()
    [path] = compact_files(store, kind)
    flip(path, place)
    compaction(store).collect()
    assert [found.parent.name for found in (store.folder / kind).iterdir()]
    found = rows_of(store.source)
    assert found.keys() == rows.keys()


def test_a_version_that_a_wrong_bit_made_is_damage_and_no_newer_kdsweep(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("kdsweep.results.compact.SCHEMA_VERSION", 6)
        compaction(store).merge()
    [path] = compact_files(store, "attempts")
    # As a name tells that was written with another version in it.
    *rest, digest, suffix = path.name.split(".")
    path.rename(path.with_name(".".join([*rest, digest[::-1], suffix])))
    [damaged] = results.load(store.folder).damaged
    assert damaged.reason == "its version is not the one that was written"


def test_a_compact_file_of_a_newer_version_is_a_clear_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        for module in ("compact", "tables"):
            newer.setattr(f"kdsweep.results.{module}.SCHEMA_VERSION", 3)
        compaction(store).merge()
    with pytest.raises(NewerStoreError, match=r"compact/attempts\.9-1.*schema version 3"):
        results.load(store.folder)


def test_parts_of_an_older_version_are_read_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        for module in ("store", "tables"):
            older.setattr(f"kdsweep.results.{module}.SCHEMA_VERSION", 1)
        store = planned_store(tmp_path)
        log_history(store, A, 1, 1, {1: 0.1})
        end(store, A, 1, 1, "completed")
    rows = rows_of(store.source)
    assert len(results.load(store.folder).trials) == 2
    compaction(store).merge()
    compaction(store).collect()
    assert rows_of(store.source) == rows


# --- kills and readers


class Killed(BaseException):
    """The process is no more."""


CALLS = ("link", "unlink", "fsync", "mkdir", "replace")


def rename_in_list(path: Path, name: str, other: str) -> None:
    """Let a compact file's list of parts say another name, which no checksum of Parquet covers."""
    content = path.read_bytes()
    assert len(name) == len(other)
    assert name.encode() in content
    path.write_bytes(content.replace(name.encode(), other.encode()))


def kind_of(name: str) -> str:
    rest = name.split(".")[2]
    return "attempts" if rest == "parquet" else "history" if rest.isdigit() else "predictions"


@pytest.fixture(params=["attempts", "history", "predictions"])
def renamed(request: pytest.FixtureRequest, store: Store) -> Iterator[tuple[Path, str, Rows]]:
    """A compact file in which one part has another name; that name, and what was in the store."""
    compaction(store).merge(fan=2)
    compaction(store).collect()
    before = rows_of(store.source)
    [path] = compact_files(store, request.param)
    name, *_ = (name for name in before if kind_of(name) == request.param)
    yield path, name, before


CHANGES: dict[str, Callable[[str], str]] = {
    "another trial": lambda name: name.replace(name[0], "f", 1),
    "no name": lambda name: name.replace(name[0], "#", 1),
    "that of another part": lambda name: name.replace("a" * 16, "b" * 16),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_of_a_file_whose_list_is_damaged_all_other_parts_are_rescued_and_none_under_a_wrong_name(
    store: Store, renamed: tuple[Path, str, Rows], change: Callable[[str], str]
) -> None:
    path, name, before = renamed
    rename_in_list(path, name, change(name))
    compaction(store).rescue(path.name)
    path.unlink()
    lost = {name, change(name)}
    assert rows_of(store.source) == {n: rows for n, rows in before.items() if n not in lost}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_damage_is_not_merged_and_does_not_hold_up_who_merges(
    store: Store, renamed: tuple[Path, str, Rows], change: Callable[[str], str]
) -> None:
    path, name, _ = renamed
    rename_in_list(path, name, change(name))
    content = path.read_bytes()
    log_history(store, OTHER, 1, 1, {1: 0.1})
    end(store, OTHER, 1, 1, "completed")
    predict(store, OTHER, 1, 1, "select", 2)
    now = compaction(store)
    assert now.merge(fan=2) == (3, 5), "three of new parts, and two of intact files with those"
    now.collect()
    assert path.read_bytes() == content


@contextmanager
def filesystem(before_each: Callable[[], None]) -> Iterator[None]:
    """Call something before each change of the file system in this process."""
    with pytest.MonkeyPatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, preceded(getattr(os, name), by=before_each))
        yield


def preceded(call: Callable[..., object], *, by: Callable[[], None]) -> Callable[..., object]:
    def preceded_call(*args: object, **options: object) -> object:
        by()
        return call(*args, **options)

    return preceded_call


def killed_at(number: int) -> Callable[[], None]:
    """Kills at a change of the file system; whatever it tries later does nothing either."""
    calls = iter(range(1, 10**9))

    def count() -> None:
        if next(calls) >= number:
            raise Killed

    return count


def test_a_reader_sees_all_parts_once_at_each_step_of_merging_and_removing(store: Store) -> None:
    rows = rows_of(store.source)
    looks = []

    def look() -> None:
        looks.append(rows_of(store.source).keys() == rows.keys())

    with filesystem(look):
        compaction(store).merge(spare={B})
        compaction(store).merge()
        compaction(store).merge(fan=2)
        compaction(store).collect()
    assert alone(store) == []
    assert len(looks) > 40
    assert all(looks)


def test_after_a_kill_at_any_step_all_is_there_and_the_next_pass_ends_the_work(
    tmp_path: Path,
) -> None:
    number = 0
    while True:
        number += 1
        store = planned_store(tmp_path / str(number))
        for id in (A, B):
            log_history(store, id, 1, 1, {1: 0.1}, {2: 0.2})
            end(store, id, 1, 1, "completed")
        rows = rows_of(store.source)
        try:
            with filesystem(killed_at(number)):
                compaction(store, epoch=1).merge(spare={B})
                compaction(store, epoch=1).merge()
                compaction(store, epoch=1).merge(fan=2)
                compaction(store, epoch=1).collect()
        except Killed:
            assert rows_of(store.source) == rows
            store.remove_temporaries()
            compaction(store, epoch=2).merge(fan=2)
            compaction(store, epoch=2).collect()
            assert (rows_of(store.source), alone(store)) == (rows, [])
            assert len(compact_files(store)) == 2
            continue
        break
    assert number > 30


class Meanwhile:
    """A place where something happens before one of the reader's calls."""

    def __init__(self, source: Source, number: int, happens: Callable[[], None]) -> None:
        self._source, self._left, self._happens = source, number, happens

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._happens()

    def names(self, folder: str) -> tuple[str, ...]:
        self._count()
        return self._source.names(folder)

    def content(self, path: str) -> bytes:
        self._count()
        return self._source.content(path)

    def open(self, path: str) -> object:
        self._count()
        return self._source.open(path)

    def age_seconds(self, path: str, *, now: float) -> float | None:
        return self._source.age_seconds(path, now=now)


@pytest.mark.parametrize("is_merged_before", [False, True])
def test_a_reader_in_whose_midst_parts_are_merged_and_removed_sees_all_once(
    tmp_path: Path, is_merged_before: bool
) -> None:
    for number in range(1, 30):
        store = planned_store(tmp_path / str(number))
        for id in (A, B):
            log_history(store, id, 1, 1, {1: 0.1}, {2: 0.2})
            end(store, id, 1, 1, "completed")
            predict(store, id, 1, 1, "report", 2)
        rows = rows_of(store.source)
        if is_merged_before:
            compaction(store).merge(spare={B})
            compaction(store).merge()

        def merge_and_remove(store: Store = store) -> None:
            compaction(store).merge(fan=2)
            compaction(store).collect()

        assert rows_of(Meanwhile(store.source, number, merge_and_remove)) == rows


def test_what_vanishes_without_a_successor_is_told(store: Store) -> None:
    part = store.folder / "attempts" / f"{A}.1-1.parquet"
    content = part.read_bytes()

    class Flickering(LocalSource):
        def content(self, path: str) -> bytes:
            if path.endswith(part.name):
                raise FileNotFoundError(path)
            return super().content(path)

    found = read_parts(
        Flickering(store.folder), "attempts", wanted=every, check=passing, compacted="attempts"
    )
    assert [path for path, _ in found.damaged] == [f"attempts/{part.name}"]
    assert part.read_bytes() == content


SCRIPT = """
import os, signal, sys
from pathlib import Path
from kdsweep.results.compaction import Compaction

left = int(sys.argv[2])
def deadly(call):
    def counted(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return counted
for name in ("link", "unlink", "fsync"):
    setattr(os, name, deadly(getattr(os, name)))
for fan in (8, 2):
    merging = Compaction(Path(sys.argv[1]), epoch=int(sys.argv[2]), grace_seconds=0)
    merging.merge(fan=fan)
    merging.collect()
"""


def test_a_process_that_is_killed_again_and_again_loses_nothing_before_other_eyes(
    tmp_path: Path,
) -> None:
    store = planned_store(tmp_path)
    for number in range(1, 31):
        log_history(store, A, 1, number, {1: 0.1}, {2: 0.2})
        end(store, A, 1, number, "failed")
    rows = rows_of(store.source)
    for kill_at in (2, 3, 5, 8, 20, 40, 10_000):
        merging = subprocess.Popen([sys.executable, "-c", SCRIPT, str(store.folder), str(kill_at)])
        while merging.poll() is None:
            assert rows_of(store.source) == rows
            time.sleep(0.01)
        assert merging.returncode == (0 if kill_at == 10_000 else -signal.SIGKILL)
        assert rows_of(store.source) == rows
    assert alone(store) == []


class MergingAgainstModel(RuleBasedStateMachine):
    """Writers, merges, removals, kills and damage in any order: each part is read once."""

    @initialize()
    def create(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = new_store(Path(self.folder.name))
        self.expected: Rows = {}
        self.number = 0
        self.epoch = 10

    @rule(id=st.sampled_from(IDS), num_parts=st.integers(1, 3), value=st.floats())
    def an_attempt_is_made(self, id: str, num_parts: int, value: float) -> None:
        self.number += 1
        parts = [{3 * part + step: value for step in range(3)} for part in range(num_parts)]
        log_history(self.store, id, 1, self.number, *parts)
        predict(self.store, id, 1, self.number, "report", 2 + self.number % 2)
        attempt = make_attempt(id, 1, self.number, values={f"metric {id}": value})
        self.store.commit_attempt(attempt, fence=allow)
        new = rows_of(self.store.source)
        assert len(new) == len(self.expected) + num_parts + 2
        self.expected |= {name: rows for name, rows in new.items() if name not in self.expected}

    @rule(fan=st.sampled_from([8, 2]), spare=st.sets(st.sampled_from(IDS), max_size=2))
    def parts_are_merged(self, fan: int, spare: set[str]) -> None:
        compaction(self.store, self.epoch).merge(fan=fan, spare=spare)

    @rule()
    def grace_passes_and_merged_parts_are_removed(self) -> None:
        age(self.store, 200)
        compaction(self.store, self.epoch, grace_seconds=120.0).collect()

    @rule(number=st.integers(1, 60), fan=st.sampled_from([8, 2]))
    def the_launch_is_killed_while_it_merges_and_another_takes_over(
        self, number: int, fan: int
    ) -> None:
        try:
            with filesystem(killed_at(number)):
                compaction(self.store, self.epoch).merge(fan=fan)
                compaction(self.store, self.epoch).collect()
        except Killed:
            self.epoch += 1

    @rule()
    def the_next_launch_cleans_up(self) -> None:
        self.store.remove_temporaries()

    @rule(data=st.data(), place=st.floats(0, 0.999))
    def a_compact_file_is_damaged_while_its_parts_are_there(
        self, data: st.DataObject, place: float
    ) -> None:
        held = {
            name: path
            for path in compact_files(self.store)
            if (told := CompactName.parse(path.name))
            for name in _parts_of(path, told)
        }
        alone_now = set(alone(self.store))
        safe = sorted(
            {
                path
                for path in held.values()
                if all(name in alone_now for name, other in held.items() if other == path)
            }
        )
        if safe:
            path = data.draw(st.sampled_from(safe))
            # Within the pages of its data, whose checksums tell it: readers do not digest files.
            content = bytearray(path.read_bytes())
            length = int.from_bytes(content[-8:-4], "little")
            content[4 + int(place * (len(content) - length - 12 - 4))] ^= 1
            path.write_bytes(content)

    @invariant()
    def each_part_is_read_once(self) -> None:
        if hasattr(self, "store"):
            assert rows_of(self.store.source) == self.expected

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _parts_of(path: Path, told: CompactName) -> list[str]:
    from kdsweep.results.compact import CompactFile

    kind: Kind = told.kind  # type: ignore[assignment]
    try:
        return [part.name for part in CompactFile(str(path), kind=kind, name=path.name).parts]
    except (OSError, ValueError):
        return []


MergingAgainstModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
test_merging_equals_its_model = MergingAgainstModel.TestCase
