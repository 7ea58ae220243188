"""The doctor names what is damaged, mends what can be mended, and loses nothing."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest

from kdsweep import results
from kdsweep.results import files, store
from kdsweep.results.compaction import Compaction
from kdsweep.results.files import allow
from kdsweep.results.proposals import Proposal, write_proposal
from kdsweep.results.questions import DamagedPartsWarning
from kdsweep.results.store import Store
from kdsweep.sweep.decisions import DecisionLog
from kdsweep.sweep.doctor import diagnose, repair
from kdsweep.sweep.errors import SweepLockedError
from kdsweep.sweep.lock import take

from .test_decisions import decision

Kdsweep = Callable[..., CompletedProcess[str]]


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def places(found: object) -> list[str]:
    return [finding.path for finding in found]  # type: ignore[attr-defined]


def merged(folder: Path) -> None:
    compaction = Compaction(folder, epoch=1, grace_seconds=0)
    compaction.merge()
    compaction.collect()


def numbers(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = results.load(folder)
    return found.trials, found.history().sort_index(axis=1)


@pytest.mark.parametrize("is_merged", [False, True])
def test_a_completed_sweep_is_sound_and_repairing_it_changes_no_number(
    launched: Path, kdsweep: Kdsweep, is_merged: bool
) -> None:
    before = numbers(launched)
    if is_merged:
        merged(launched)
    said = kdsweep("doctor", launched)
    assert (said.returncode, said.stdout) == (0, f"{launched}: sound\n"), said.stdout
    said = kdsweep("doctor", launched, "--repair", "--json")
    assert said.returncode == 0
    assert json.loads(said.stdout) == {
        "schema_version": 1,
        "found": [],
        "mended": [],
        "strangers": [],
    }
    for expected, found in zip(before, numbers(launched), strict=True):
        pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "content"),
    [("plan", b""), ("attempts", b"PAR1"), ("history", b"garbage" * 50), ("predictions", b"")],
)
def test_a_damaged_part_is_named_and_moved_aside(
    launched: Path, kdsweep: Kdsweep, kind: str, content: bytes
) -> None:
    part = first(launched, f"{kind}/*.parquet")
    part.write_bytes(content)
    place = str(part.relative_to(launched))
    said = kdsweep("doctor", launched)
    assert said.returncode == 3
    assert place in said.stdout
    assert part.read_bytes() == content
    told = repair(launched)
    assert place in places(told.mended)
    assert not part.exists()
    assert (launched / "quarantine" / place).read_bytes() == content
    results.load(launched)


def test_what_is_left_of_a_flipped_compact_file_is_written_anew(launched: Path) -> None:
    before = numbers(launched)
    merged(launched)
    path = first(launched, "compact/history.*")
    content = bytearray(path.read_bytes())
    # The name of the program that wrote it: no reader looks at it.
    content[content.index(b"parquet-cpp-arrow")] ^= 1
    path.write_bytes(content)
    told = diagnose(launched)
    assert places(told.found) == [f"compact/{path.name}"]
    told = repair(launched)
    assert told.found == ()
    assert (launched / "quarantine" / "compact" / path.name).read_bytes() == content
    for expected, found in zip(before, numbers(launched), strict=True):
        pd.testing.assert_frame_equal(found, expected)


def test_of_a_compact_file_cut_short_the_parts_that_are_there_still_count(launched: Path) -> None:
    before = numbers(launched)
    Compaction(launched, epoch=1).merge()
    path = first(launched, "compact/attempts.*")
    path.write_bytes(path.read_bytes()[:-100])
    assert repair(launched).found == ()
    assert not path.exists()
    for expected, found in zip(before, numbers(launched), strict=True):
        pd.testing.assert_frame_equal(found, expected)


def test_leftovers_of_killed_writers_go_and_strangers_stay(launched: Path) -> None:
    trial = first(launched, "work/*/*")
    (trial / "checkpoints" / "step-1").mkdir(parents=True)
    (launched / "attempts" / ".x.parquet.1-ab.tmp").write_bytes(b"half")
    (launched / "students" / ".y.1-ab.tmp").mkdir()
    (launched / "notes.txt").write_text("mine")
    (launched / "history" / "notes.txt").write_text("mine too")
    told = repair(launched)
    assert told.found == ()
    assert sorted(places(told.mended)) == sorted(
        [
            "attempts/.x.parquet.1-ab.tmp",
            "students/.y.1-ab.tmp",
            str((trial / "checkpoints").relative_to(launched)),
        ]
    )
    assert told.strangers == ("history/notes.txt", "notes.txt")
    assert (launched / "notes.txt").read_text() == "mine"


def test_the_beat_of_the_repair_itself_is_no_leftover(launched: Path) -> None:
    found = []

    def write(temporary: Path) -> None:
        temporary.write_text("{}")
        found.append(repair(launched))

    # As when its thread is just writing.
    files.replace(launched / "locks" / "000002.beat", write)
    [told] = found
    assert (told.found, told.mended) == ((), ())


def test_weights_cut_short_or_of_nobody_are_moved_aside(launched: Path) -> None:
    whole = first(launched, "students/*")
    stranger = launched / "students" / ("ab" * 8)
    shutil.copytree(whole, stranger)
    weights = first(whole, "*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    told = repair(launched)
    assert told.found == ()
    assert sorted(places(told.mended)) == sorted(
        [f"students/{whole.name}", f"students/{stranger.name}"]
    )


def test_a_missing_part_of_a_curve_is_named(launched: Path) -> None:
    parts = sorted(launched.glob("history/*.2.parquet"))
    assert parts, "the sweep flushes after every row"
    parts[0].unlink()
    [finding] = diagnose(launched).found
    assert finding.path == f"history/{parts[0].name}"
    assert "hole" in finding.reason


def decide(folder: Path, *numbers: int, epoch: int = 1) -> Path:
    log = DecisionLog(folder / "decisions", epoch=epoch, fence=lambda: None)
    for number in numbers:
        log.append(decision(number))
    return folder / "decisions" / f"{epoch:06d}.jsonl"


@pytest.mark.parametrize(
    ("tail", "reason"),
    [(b'{"id": "a', "not written to its end"), (b"{}\n", "line 3 is no decision")],
)
def test_what_is_no_decision_is_named_and_moved_aside_and_the_others_stay(
    launched: Path, tail: bytes, reason: str
) -> None:
    file = decide(launched, 1, 2)
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    [finding] = diagnose(launched).found
    assert finding.path == "decisions/000001.jsonl"
    assert reason in finding.reason
    told = repair(launched)
    assert (told.found, told.mended) == ((), (finding,))
    assert file.read_bytes() == whole
    assert (launched / "quarantine/decisions/000001.jsonl").read_bytes() == whole + tail


def test_a_decision_that_is_missing_among_others_is_named(launched: Path) -> None:
    decide(launched, 1, 3)
    decide(launched, 4, epoch=2)
    [finding] = diagnose(launched).found
    assert "decision 2 is missing" in finding.reason


def test_a_trial_that_was_stopped_without_a_decision_is_named(launched: Path) -> None:
    attempt = next(row for row in Store(launched).read_attempts() if row.what == "trial")
    first(launched, f"attempts/{attempt.id}.*").unlink()
    Store(launched).commit_attempt(replace(attempt, status="stopped"), fence=lambda: None)
    # Its student stays of when it was completed.
    found = [each for each in diagnose(launched).found if each.path.startswith("decisions")]
    assert [attempt.id in each.reason for each in found] == [True]
    DecisionLog(launched / "decisions", epoch=1, fence=lambda: None).append(
        decision(1, id=attempt.id, goes_on=False)
    )
    assert not [each for each in diagnose(launched).found if each.path.startswith("decisions")]


def test_a_newest_plan_that_lacks_a_part_is_named(
    launched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_ROWS_OF_A_PLAN_PART", 2)
    rows = Store(launched).read_plan()
    Store(launched).write_plan(rows[:-1], epoch=7)
    assert diagnose(launched).found == ()
    (launched / "plan" / "7-2.parquet").unlink()
    [finding] = diagnose(launched).found
    assert finding.path == "plan/7-2.parquet"
    assert "the plan before it counts" in finding.reason


def test_a_missing_slot_of_a_search_is_named(launched: Path) -> None:
    for slot in (0, 2):
        proposal = Proposal("ab" * 8, slot, {}, {}, (), (), ())
        write_proposal(launched, proposal, ())
    [finding] = diagnose(launched).found
    assert finding.path == f"proposals/{'ab' * 8}-00001.parquet"


def test_a_curve_that_lost_its_end_is_named(launched: Path) -> None:
    ended = first(launched, "attempts/*.parquet")
    id = ended.name.partition(".")[0]
    sweep = Store(launched)
    [row] = [each for each in sweep.read_attempts() if each.id == id]
    ended.unlink()
    # As if all of it but the first step had been trained by a second attempt.
    going_on = {"number": 2, "resumed_from": (1, 1), "resumed_from_step": 1}
    sweep.commit_attempt(replace(row, **going_on), fence=allow)
    [finding] = diagnose(launched).found
    assert finding.path == f"history/{id}.1-2.1.parquet"
    assert "hole" in finding.reason


def test_a_store_open_to_others_is_made_private(launched: Path) -> None:
    launched.chmod(0o755)
    assert places(diagnose(launched).found) == ["."]
    assert repair(launched).found == ()
    assert launched.stat().st_mode & 0o077 == 0


def test_a_held_sweep_is_looked_at_and_not_repaired(launched: Path) -> None:
    lock = take(launched / "locks")
    (launched / "attempts" / ".x.parquet.1-ab.tmp").write_bytes(b"half")
    assert diagnose(launched).found == ()
    with pytest.raises(SweepLockedError):
        repair(launched)
    lock.release()
    assert len(diagnose(launched).found) == 1


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


@pytest.mark.filterwarnings("ignore::kdsweep.results.questions.DamagedPartsWarning")
def test_nothing_in_a_store_is_a_pickle_and_a_planted_one_is_never_executed(
    launched: Path, cache: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    for folder in (launched, cache):
        for path in folder.rglob("*"):
            if path.is_file():
                assert path.read_bytes()[:2] not in {b"\x80" + bytes([n]) for n in range(2, 6)}
    went_off = tmp_path / "went-off"
    bomb = pickle.dumps(Bomb(went_off))
    student = first(launched, "students/*")
    planted = [
        launched / "attempts" / f"{'ab' * 8}.1-1.parquet",
        launched / "compact" / f"history.1-1.{'ab' * 8}.parquet",
        student / "pytorch_model.bin",
        launched / "cache.pkl",
    ]
    (launched / "compact").mkdir(exist_ok=True)
    for path in planted:
        path.write_bytes(bomb)
    plugin = launched / "grids" / f"{'cd' * 32}.py"
    plugin.write_text(f"import os\nos.mkdir({str(went_off)!r})\n")
    (launched / "conftest.py").write_text(plugin.read_text())
    found = results.load(launched)
    assert len(found.trials) == 4
    found.history()
    for verb in ("status", "results", "doctor"):
        kdsweep(verb, launched)
    told = repair(launched)
    assert {str(path.relative_to(launched)) for path in planted} <= set(places(told.mended))
    assert told.found == ()
    assert not went_off.exists()
    pickle.loads(bomb)
    assert went_off.exists(), "the bomb works"


def test_a_damaged_file_warns_and_is_left_out(launched: Path) -> None:
    first(launched, "attempts/*.parquet").write_bytes(b"PAR1")
    with pytest.warns(DamagedPartsWarning):
        results.load(launched)
