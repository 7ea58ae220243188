"""Whatever becomes of a lane's process is an outcome, and a row in the store."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from toy import ENDLESS, PROGRAM

from kdsweep.results.store import Store
from kdsweep.sweep.lane_process import LaneProcess, private_memory
from kdsweep.sweep.lock import cancel_request
from kdsweep.sweep.work import Outcome, Work


def finish(lane: LaneProcess) -> Outcome:
    while (outcome := lane.poll(1.0)) is None:
        pass
    return outcome


Toy = Callable[[str], LaneProcess]


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """Lanes that run a script after they have read their first work; they are closed at the end."""
    made: list[LaneProcess] = []

    def make(script: str) -> LaneProcess:
        path = tmp_path / f"toy-{len(made)}.py"
        path.write_text(TOY.format(script=dedent(script)))
        made.append(LaneProcess((sys.executable, str(path))))
        return made[-1]

    yield make
    for lane in made:
        lane.close()


def test_a_lane_that_cannot_start_leaves_no_pipe(work: Work) -> None:
    lane = LaneProcess(("/no/such/program",))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            lane.begin(work)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_a_lane_said_is_not_told_of_the_next_work(toy: Toy, work: Work) -> None:
    lane = toy("tell(told={'rung': 1, 'step': 7}); os.write(answers, b'no JSON\\n'); hang()")
    lane.begin(work)
    with pytest.raises(json.JSONDecodeError):
        finish(lane)
    lane.close()
    lane.begin(work)
    assert (lane.heard(), lane.step) == ([], 0)


TOY = """\
import json, mmap, os, signal, subprocess, sys, time
answers = int(sys.argv[1])
def tell(**message):
    os.write(answers, json.dumps(message).encode() + b"\\n")
def hang():
    time.sleep(10**6)
work = json.loads(sys.stdin.readline())
{script}
"""


def step_of(lane: LaneProcess) -> int:
    """What a toy tells as its step, once it does."""
    while not lane.step:
        assert lane.poll(0.1) is None
    return lane.step


def is_gone(pid: int) -> bool:
    """Whether a process does nothing any more, in a moment; nobody may have reaped it."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def only_values(work: Work) -> Mapping[str, object]:
    [row] = Store(work.store).read_attempts()
    return row.values


def only_row(work: Work) -> tuple[str, str | None]:
    [row] = Store(work.store).read_attempts()
    return row.status, row.failure_class


def test_work_past_its_limit_is_ended_and_recorded_as_timeout(work: Work) -> None:
    lane = LaneProcess()
    # Nothing imports torch and trains a teacher in a hundredth of a second.
    lane.begin(work.model_copy(update={"timeout_seconds": 0.01}))
    process = psutil.Process().children()[0]
    outcome = finish(lane)
    assert (outcome.status, outcome.failure_class) == ("failed", "timeout")
    assert only_row(work) == ("failed", "timeout")
    assert not process.is_running()


def test_a_lane_that_is_killed_is_recorded_as_signal_and_the_next_work_gets_a_new_one(
    work: Work,
) -> None:
    lane = LaneProcess(PROGRAM)
    lane.begin(work)
    first = psutil.Process().children()[0].pid
    os.kill(first, signal.SIGKILL)
    outcome = finish(lane)
    assert (outcome.status, outcome.failure_class) == ("failed", "signal")
    assert "SIGKILL" in str(outcome.error)
    assert only_row(work) == ("failed", "signal")
    lane.begin(work.model_copy(update={"number": 2}))
    assert psutil.Process().children()[0].pid != first
    assert finish(lane).status == "completed"
    lane.close()
    assert psutil.Process().children() == []


def test_an_attempt_of_an_overtaken_launch_commits_nothing(work: Work) -> None:
    locks = Store(work.store).locks_folder
    (locks / "000002.json").write_text("{}")
    lane = LaneProcess(PROGRAM)
    lane.begin(work)
    assert finish(lane).status == "overtaken"
    lane.close()
    assert Store(work.store).read_attempts() == ()


def test_a_lane_leaves_when_its_standard_input_closes(work: Work) -> None:
    lane = LaneProcess()
    lane.begin(work)
    process = psutil.Process().children()[0]
    assert lane._process is not None
    assert lane._process.stdin is not None
    lane._process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_a_lane_with_more_memory_of_its_own_than_it_asked_for_is_ended(
    work: Work, toy: Toy
) -> None:
    lane = toy("held = bytearray(300 << 20); tell(step=1); hang()")
    asked = work.resources.model_copy(update={"memory_gb": 0.25})
    lane.begin(work.model_copy(update={"resources": asked}))
    outcome = finish(lane)
    assert outcome.failure_class == "out_of_memory"
    assert "`resources.memory_gb` is 0.25" in str(outcome.error)
    assert only_row(work) == ("failed", "out_of_memory")
    values = only_values(work)
    assert values["failure/limit_memory_gb"] == 0.25
    assert 0.29 < float(str(values["failure/memory_gb"])) < 1


def test_memory_of_the_lanes_children_is_its_own(work: Work, toy: Toy) -> None:
    lane = toy(
        """
        child = "import time; held = bytearray(300 << 20); print(flush=True); time.sleep(10**6)"
        started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        started.stdout.readline()
        tell(step=os.getpid())
        hang()
        """
    )
    lane.begin(work)
    assert private_memory(step_of(lane)) > 300 << 20


def test_mapped_files_are_nobodys_own_memory(work: Work, toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "features").write_bytes(bytes(300 << 20))
    lane = toy(
        f"""
        file = open({str(tmp_path / "features")!r}, "r+b")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        read = sum(mapped[::4096])
        tell(step=os.getpid())
        hang()
        """
    )
    lane.begin(work)
    pid = step_of(lane)
    assert psutil.Process(pid).memory_info().rss > 300 << 20
    assert private_memory(pid) < 100 << 20


def test_work_that_takes_no_more_steps_is_ended_as_stalled(work: Work, toy: Toy) -> None:
    lane = toy("tell(step=7); hang()")
    lane.begin(work.model_copy(update={"stall_seconds": 0.06}))
    outcome = finish(lane)
    assert (outcome.failure_class, outcome.step) == ("stalled", 7)
    assert "no step for 0.001 minutes, after step 7" in str(outcome.error)
    assert only_values(work) == {
        **only_values(work),
        "failure/step": 7,
        "failure/limit_minutes": 0.001,
    }


def test_waiting_for_a_decision_takes_nothing_of_a_trials_time(work: Work, toy: Toy) -> None:
    lane = toy(
        """
        tell(told={"rung": 0.2, "step": 7, "scores": {}})
        for _ in range(40):
            time.sleep(0.1)
            tell(step=7)
        tell(step=8)
        hang()
        """
    )
    lane.begin(work.model_copy(update={"timeout_seconds": 3.0}))
    outcome = finish(lane)
    assert (outcome.failure_class, outcome.step) == ("timeout", 8)


def test_what_has_not_begun_to_take_steps_is_not_stalled(work: Work, toy: Toy) -> None:
    lane = toy(
        """
        tell(ready=True)
        time.sleep(1)
        tell(outcome={"status": "completed"})
        """
    )
    lane.begin(work.model_copy(update={"stall_seconds": 0.01}))
    assert finish(lane).status == "completed"


def test_a_lane_ends_with_all_it_started_even_what_left_its_group_or_ignores_sigterm(
    work: Work, toy: Toy
) -> None:
    lane = toy(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleeper = [sys.executable, "-c", "import time; time.sleep(10**6)"]
        shell = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:], "\\
            "start_new_session=True); print(child.pid, flush=True); child.wait()"
        started = subprocess.Popen(
            [sys.executable, "-c", shell, *sleeper],
            stdout=subprocess.PIPE, start_new_session=True,
        )
        tell(step=int(started.stdout.readline()))
        hang()
        """
    )
    lane.begin(work)
    grandchild = step_of(lane)
    assert psutil.Process(grandchild).parent().ppid() != os.getpid()
    lane.close()
    assert is_gone(grandchild)
    assert psutil.Process().children() == []


def test_a_lane_that_sigterm_ends_is_preempted(work: Work, toy: Toy) -> None:
    lane = toy("tell(step=os.getpid()); hang()")
    lane.begin(work)
    os.kill(step_of(lane), signal.SIGTERM)
    assert finish(lane).failure_class == "preempted"
    assert only_values(work)["failure/signal"] == "SIGTERM"


def test_a_lane_that_cannot_start_fails_for_its_environment_with_its_last_words(
    work: Work, toy: Toy
) -> None:
    lane = toy("import no_such_module")
    lane.begin(work)
    outcome = finish(lane)
    assert outcome.failure_class == "environment"
    assert "ModuleNotFoundError: No module named 'no_such_module'" in str(outcome.error)
    assert only_values(work)["failure/exit_status"] == 1


def test_a_lane_that_leaves_in_mid_work_is_an_error(work: Work, toy: Toy) -> None:
    lane = toy("tell(step=1); sys.exit(3)")
    lane.begin(work)
    assert finish(lane).failure_class == "error"
    assert only_values(work)["failure/exit_status"] == 3


def test_a_dead_lane_is_noticed_while_a_child_holds_its_answers(work: Work, toy: Toy) -> None:
    lane = toy(
        """
        child = os.fork()
        if not child:
            hang()
        tell(step=child)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    lane.begin(work)
    assert finish(lane).failure_class == "signal"
    assert is_gone(lane.step)


def test_work_that_somebody_asks_to_end_is_cancelled_and_says_by_whom(work: Work, toy: Toy) -> None:
    lane = toy("tell(step=7); hang()")
    lane.begin(work)
    step_of(lane)
    request = cancel_request(Store(work.store).locks_folder, work.epoch, work.id)
    request.write_text(json.dumps({"by": "ada on engine"}))
    outcome = finish(lane)
    assert (outcome.failure_class, outcome.step) == ("cancelled", 7)
    assert only_values(work)["failure/asked_by"] == "ada on engine"
    assert "ada on engine asked that this trial end" in str(outcome.error)
    # A retry, where the grid has one, is not asked to end as well.
    assert not request.exists()


@pytest.mark.parametrize(
    ("failure_class", "is_kept"),
    [("nan", True), ("environment", True), ("error", False), ("out_of_memory", False)],
)
def test_a_lane_whose_memory_may_be_harmed_is_replaced(
    work: Work, toy: Toy, failure_class: str, is_kept: bool
) -> None:
    lane = toy(
        f"""
        outcome = dict(status="failed", failure_class={failure_class!r}, step=os.getpid())
        tell(outcome=outcome)
        sys.stdin.readline()
        tell(outcome=outcome)
        hang()
        """
    )
    lane.begin(work)
    first = finish(lane).step
    lane.begin(work.model_copy(update={"number": 2}))
    assert (finish(lane).step == first) is is_kept


def test_sigterm_lets_a_lane_checkpoint_and_leave_and_the_next_attempt_goes_on(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENDLESS.items():
        monkeypatch.setenv(name, value)
    # Of toys only trials can have so many steps.
    work = work.model_copy(update={"what": "trial"})
    lane = LaneProcess(PROGRAM)
    rows = []
    for number in (1, 2):
        parent = (work.epoch, 1) if number == 2 else None
        lane.begin(work.model_copy(update={"number": number, "parent": parent}))
        [process] = psutil.Process().children()
        step_of(lane)
        process.terminate()
        outcome = finish(lane)
        assert (outcome.status, outcome.failure_class) == ("failed", "preempted")
        assert is_gone(process.pid)
        *_, row = Store(work.store).read_attempts()
        rows.append(row)
    lane.close()
    first, second = rows
    assert first.values["failure/signal"] == "SIGTERM"
    assert second.resumed_from == (work.epoch, 1)
    assert second.resumed_from_step == first.values["failure/step"]


def test_a_lane_that_is_asked_to_leave_between_two_pieces_of_work_says_so_of_the_next(
    tmp_path: Path,
) -> None:
    answers, said = os.pipe()
    lane = subprocess.Popen(
        [sys.executable, "-m", "kdsweep.sweep.lane", str(said)],
        stdin=subprocess.PIPE,
        pass_fds=(said,),
        cwd=tmp_path,
    )
    os.close(said)
    with os.fdopen(answers) as lines:
        assert next(lines) == '{"ready": true}\n'
        lane.terminate()
        # Not 0: whatever it was handed meanwhile did not fail by itself (`failure_of_exit`).
        assert lane.wait(60) == -signal.SIGTERM


def test_the_allocator_of_a_lane_keeps_what_is_freed_unless_the_user_says_otherwise(
    work: Work, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    lane = toy(
        """
        tell(told={"tunables": os.environ["GLIBC_TUNABLES"]})
        tell(outcome=dict(status="failed", failure_class="preempted", step=0))
        hang()
        """
    )
    lane.begin(work)
    finish(lane)
    [said] = lane.heard()
    *ours, own = said["tunables"].split(":")
    assert "glibc.malloc.trim_threshold=536870912" in ours
    # Of one that is named twice the last counts.
    assert own == "glibc.malloc.hugetlb=0"


FREES = """
import psutil
from kdsweep.sweep.lane import give_back_memory

blocks = [b"x" * 60_000 for _ in range(4_000)]
scattered = blocks[::40]
del blocks
freed = psutil.Process().memory_info().rss
give_back_memory()
print(freed - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no such C library")
def test_between_two_trials_free_memory_goes_back_even_from_among_what_is_in_use() -> None:
    said = subprocess.run([sys.executable, "-c", FREES], capture_output=True, check=True, text=True)
    # 39 of 40 blocks are free, 234 MB, in stretches of 2.3.
    assert int(said.stdout) > 150e6
