"""Features on disk: computed together, read whole or not at all, computed again when damaged."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from feature_lane import ENTRIES, HIDDEN, LENGTHS, LOGITS, Toy, checksum, files_in, whole

from kdsweep.trainers.errors import StoppedError
from kdsweep.trainers.feature_files import Overflows, collect
from kdsweep.trainers.feature_layout import Layout
from kdsweep.trainers.file_lock import try_lock
from kdsweep.trainers.teacher import never

BATCHES = -(-len(LENGTHS) // 32)
EXPECTED = [checksum(whole(entry)) for entry in ENTRIES]


@contextmanager
def lane(folder: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """One that has come to the features and waits for a line before it asks for them."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[1] / "feature_lane.py"), str(folder), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def told(process: "subprocess.Popen[str]") -> dict[str, object]:
    assert process.stdout is not None
    found: dict[str, object] = json.loads(process.stdout.readline())
    return found


def read_all(folder: Path, toy: Toy | None = None) -> list[int]:
    files = files_in(folder)
    files.use(never)
    found = collect(files, ENTRIES, ENTRIES, run=toy or Toy(), stop=never)
    return [checksum(found[entry]) for entry in ENTRIES]


def data_of(folder: Path) -> Path:
    return folder / HIDDEN.name / "data"


def test_a_layout_has_each_row_once_in_the_order_of_lengths_and_shards_of_whole_batches() -> None:
    layout = Layout(LENGTHS)
    batches = [batch for shard in range(len(layout.shards)) for batch in layout.batches(shard)]
    assert [n for start, end in batches for n in range(start, end)] == list(range(len(LENGTHS)))
    assert {end - start for start, end in batches[:-1]} == {32}
    assert sorted(layout.order) == list(range(len(LENGTHS)))
    assert (np.diff(LENGTHS[layout.order]) >= 0).all()
    assert layout.size("pairs") == int((LENGTHS**2).sum())


def test_two_lanes_at_once_compute_a_part_each_and_read_the_same(tmp_path: Path) -> None:
    with lane(tmp_path / "source") as one, lane(tmp_path / "source") as other:
        go(one)
        go(other)
        first, second = told(one), told(other)
    assert first["read"] == second["read"] == EXPECTED
    shares = [first["batches"], second["batches"]]
    assert sum(map(int, map(str, shares))) == BATCHES
    assert 0 not in shares


def test_what_a_killed_lane_had_begun_is_completed_by_another(tmp_path: Path) -> None:
    with lane(tmp_path / "source", "20") as killed:
        go(killed)
        assert killed.wait() == -9
    # Sixteen batches are a shard; the four of the second one are lost.
    assert not (tmp_path / "source" / HIDDEN.name).exists()
    toy = Toy()
    assert read_all(tmp_path / "source", toy) == EXPECTED
    done = Layout(LENGTHS).shards[-1]
    assert len(toy.batches) == BATCHES - (-(-(done[1] - done[0]) // 32))


def test_a_lane_takes_over_from_one_that_is_killed_while_it_waits(tmp_path: Path) -> None:
    with lane(tmp_path / "source", "40") as killed, lane(tmp_path / "source") as other:
        go(killed)
        go(other)
        assert told(other)["read"] == EXPECTED
        assert killed.wait() == -9


def test_an_entry_says_what_its_teacher_took_whichever_lanes_computed_it(tmp_path: Path) -> None:
    with lane(tmp_path / "source", "20") as killed:
        go(killed)
        assert killed.wait() == -9
    assert read_all(tmp_path / "source") == EXPECTED
    # The toy says a quarter of a second a batch; what a killed lane had not completed is no cost.
    files = files_in(tmp_path / "source")
    assert [files.seconds(entry) for entry in ENTRIES] == [0.25 * BATCHES] * 3


def test_of_an_entry_by_an_older_version_nobody_knows_what_its_teacher_took(tmp_path: Path) -> None:
    assert read_all(tmp_path / "source") == EXPECTED
    manifest = data_of(tmp_path / "source").with_name("manifest.json")
    told = json.loads(manifest.read_text())
    del told["seconds"]
    manifest.write_text(json.dumps(told))
    assert read_all(tmp_path / "source") == EXPECTED
    assert files_in(tmp_path / "source").seconds(HIDDEN) is None


def test_nothing_half_written_is_read(tmp_path: Path) -> None:
    files = files_in(tmp_path / "source")
    held = files.use(never)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return False

    class Stopping(Toy):
        def __call__(self, start: int, end: int, *, entries: object) -> object:
            if len(self.batches) == 30:
                raise StoppedError
            return super().__call__(start, end, entries=entries)  # type: ignore[arg-type]

    with pytest.raises(StoppedError):
        collect(files, ENTRIES, ENTRIES, run=Stopping(), stop=stop)  # type: ignore[arg-type]
    assert [files.read(entry, never) for entry in ENTRIES] == [None, None, None]
    held.close()
    assert read_all(tmp_path / "source") == EXPECTED


@pytest.mark.parametrize("damage", ["truncated", "flipped", "without manifest", "other manifest"])
def test_a_damaged_entry_is_found_out_told_and_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "source"
    assert read_all(folder) == EXPECTED
    match damage:
        case "truncated":
            os.truncate(data_of(folder), 1000)
        case "flipped":
            with data_of(folder).open("r+b") as file:
                file.seek(12_345)
                byte = file.read(1)
                file.seek(12_345)
                file.write(bytes([byte[0] ^ 1]))
        case "without manifest":
            data_of(folder).with_name("manifest.json").unlink()
        case _:
            data_of(folder).with_name("manifest.json").write_text('{"schema": 1, "width": 7}')
    toy = Toy()
    with caplog.at_level(logging.WARNING, logger="kdsweep"):
        assert read_all(folder, toy) == EXPECTED
    assert len(toy.batches) == BATCHES
    [line] = caplog.messages
    assert HIDDEN.name in line
    assert "is damaged" in line
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {e.name for e in ENTRIES}


def test_what_is_beyond_a_type_is_not_kept_in_it(tmp_path: Path) -> None:
    files = files_in(tmp_path / "source")
    files.use(never)
    found = collect(files, ENTRIES, ENTRIES, run=Toy(overflows=True), stop=never)
    assert isinstance(found[HIDDEN], Overflows)
    assert checksum(found[LOGITS]) == EXPECTED[0]
    assert files.read(HIDDEN, never) == Overflows(), "others learn it without a pass"
    wide = HIDDEN._replace(type="fp32")
    again = collect(files, [wide], [wide], run=Toy(overflows=True), stop=never)
    assert checksum(again[wide]) == checksum(whole(wide))


def test_a_lane_that_waits_for_another_can_be_stopped(tmp_path: Path) -> None:
    files = files_in(tmp_path / "source")
    files.use(never)
    held = [files.lock_shard(shard) for shard in range(len(Layout(LENGTHS).shards))]
    until = time.monotonic() + 0.3
    with pytest.raises(StoppedError):
        collect(files, ENTRIES, ENTRIES, run=Toy(), stop=lambda: time.monotonic() > until)
    assert None not in held


def test_a_disk_without_room_says_so_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    files = files_in(tmp_path / "source")
    files.use(never)
    toy = Toy()
    with pytest.raises(OSError, match="No space left"):
        collect(files, ENTRIES, ENTRIES, run=toy, stop=never)
    assert toy.batches == []
    assert not [path for path in (tmp_path / "source").iterdir() if path.is_dir()]


def test_a_lock_is_not_taken_on_a_file_that_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    remover = try_lock(path)
    assert remover is not None
    path.unlink()
    other = try_lock(path)
    assert other is not None
    assert try_lock(path) is None
    threading.Timer(0.0, remover.close).start()
    assert try_lock(path, shared=True) is None
