"""Decisions in the store: on the disk before they count, and read by whoever waits for them."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kdsweep.sweep.decisions import DecisionLog, read_decisions, wait_for_decision
from kdsweep.sweep.early_stopping import Decision
from kdsweep.sweep.errors import StaleEpochError

TRIAL = "a" * 16


def decision(number: int, *, id: str = TRIAL, goes_on: bool = True, rung: float = 0.2) -> Decision:
    return Decision(
        number=number,
        id=id,
        bracket="{}",
        metric="primary",
        rung=rung,
        reduction=3,
        score=0.1,
        goes_on=goes_on,
    )


def log_of(folder: Path, epoch: int) -> DecisionLog:
    return DecisionLog(folder / "decisions", epoch=epoch, fence=lambda: None)


def wait(
    folder: Path,
    *,
    ask: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = lambda _: None,
    beat: Callable[[], None] = lambda: None,
) -> Decision | None:
    return wait_for_decision(
        folder / "decisions",
        TRIAL,
        epoch=1,
        rung=0.2,
        ask=ask,
        stop=stop,
        beat=beat,
        sleep=sleep,
    )


def test_what_was_written_is_read_by_number_over_launches(tmp_path: Path) -> None:
    written = [decision(1), decision(2, goes_on=False), decision(3)]
    log_of(tmp_path, 9).append(written[0])
    log_of(tmp_path, 9).append(written[1])
    log_of(tmp_path, 10).append(written[2])
    assert read_decisions(tmp_path / "decisions") == tuple(written)
    assert read_decisions(tmp_path / "nothing") == ()


def test_a_line_that_was_not_written_to_its_end_is_no_decision(tmp_path: Path) -> None:
    log_of(tmp_path, 1).append(decision(1))
    file = tmp_path / "decisions" / "000001.jsonl"
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole + whole[:end])
        assert read_decisions(file.parent) == (decision(1),)
    file.write_bytes(whole[:-1])
    assert read_decisions(file.parent) == ()


def test_what_an_overtaken_launch_writes_late_does_not_count(tmp_path: Path) -> None:
    log_of(tmp_path, 1).append(decision(1))
    log_of(tmp_path, 2).append(decision(2, goes_on=True))
    log_of(tmp_path, 1).append(decision(2, goes_on=False))
    log_of(tmp_path, 1).append(decision(3, goes_on=False))
    assert [each.goes_on for each in read_decisions(tmp_path / "decisions")] == [True, True]


def test_an_overtaken_launch_decides_nothing(tmp_path: Path) -> None:
    def fence() -> None:
        raise StaleEpochError("launch 2 has taken over")

    log = DecisionLog(tmp_path / "decisions", epoch=1, fence=fence)
    with pytest.raises(StaleEpochError):
        log.append(decision(1))
    assert read_decisions(tmp_path / "decisions") == ()


def test_a_full_disk_leaves_the_decisions_before_and_no_half_line(tmp_path: Path) -> None:
    log = log_of(tmp_path, 1)
    log.append(decision(1))
    file = tmp_path / "decisions" / "000001.jsonl"
    before = file.read_bytes()
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal = pytest.importorskip("signal")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        with pytest.raises(OSError):
            log.append(decision(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
    log.append(decision(2))
    assert len(read_decisions(file.parent)) == 2


def test_a_lane_asks_once_and_waits_with_beats_until_it_is_decided(tmp_path: Path) -> None:
    asked: list[str] = []
    beats: list[str] = []
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            log_of(tmp_path, 1).append(decision(1, id="b" * 16))
            log_of(tmp_path, 1).append(decision(2, rung=0.6))
        if len(waits) == 9:
            log_of(tmp_path, 1).append(decision(3, goes_on=False))

    found = wait(
        tmp_path,
        ask=lambda: asked.append("asked"),
        beat=lambda: beats.append("beat"),
        sleep=sleep,
    )
    assert found == decision(3, goes_on=False)
    assert asked == ["asked"]
    assert len(beats) == len(waits) == 9
    assert waits[:3] == [0.05, 0.1, 0.2]
    assert max(waits) == waits[-1] == 2.0


def test_what_is_decided_already_is_not_asked(tmp_path: Path) -> None:
    log_of(tmp_path, 1).append(decision(1))

    def ask() -> None:
        raise AssertionError("asked though it is decided")

    assert wait(tmp_path, ask=ask) == decision(1)


def test_a_launch_that_answers_at_once_is_heard_without_waiting(tmp_path: Path) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("waited though it is decided")

    assert wait(tmp_path, ask=lambda: log_of(tmp_path, 1).append(decision(1)), sleep=sleep)


def test_a_lane_that_is_asked_to_leave_does_not_wait_for_a_decision(tmp_path: Path) -> None:
    leaves = threading.Event()
    assert wait(tmp_path, stop=leaves.is_set, sleep=lambda _: leaves.set()) is None


def test_a_decision_of_an_earlier_launch_is_for_the_launch_to_repeat(tmp_path: Path) -> None:
    log_of(tmp_path, 0).append(decision(1))
    assert wait(tmp_path, stop=lambda: True) is None


def test_whoever_waits_looks_at_no_line_of_other_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_of(tmp_path, 1)
    log.append(decision(1, id="b" * 16))
    file = tmp_path / "decisions" / "000001.jsonl"
    file.write_bytes(file.read_bytes().replace(b"goes_on", b"goes_off"))
    log.append(decision(2))
    found = wait(tmp_path)
    assert found is not None
    assert found.number == 2
    assert caplog.records == []
    # Who reads all of them says what is damaged.
    assert len(read_decisions(tmp_path / "decisions")) == 1
    assert "is no decision" in caplog.text
