"""The other end of a lane: starts it, hands it work, hears or infers the outcome, replaces it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from .cancelling import cancelled, forget_request
from .failures import LAST_LINES, Failure, failure_of_exit, policy
from .work import Attempted, Outcome, Work, fail

LANE = (sys.executable, "-m", "kdsweep.sweep.lane")

LOOK_SECONDS = 1.0
"""Between two looks at a lane's memory, and for a request to end its work."""

DEATH_SECONDS = 2.0
"""For a killed process to be gone; one that hangs in the kernel is left behind."""

GIB = 2**30

ALLOCATOR = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_threshold": 32 * 2**20,
    "glibc.malloc.trim_threshold": 512 * 2**20,
}
"""A step frees what the next one asks for; to give pages back to the kernel meanwhile, and have
them cleared anew, cost up to a tenth of it. Whoever has no glibc reads none of this."""


class LaneProcess:
    """One lane and the work it holds. Whatever happens to the process becomes an Outcome."""

    def __init__(self, command: Sequence[str] = LANE) -> None:
        """Start nothing yet.

        Args:
            command: What a lane's process executes; the file descriptor of its answers is added.
        """
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._buffer = b""
        self._has_spoken = False
        self._said: list[dict[str, Any]] = []
        self._work: Work | None = None
        self._began = datetime.now(UTC)
        self._deadline = 0.0
        self._heard_at: float | None = None
        """When the work in hand last told a step; None until it has."""
        self._waits_since: float | None = None
        """When the work in hand came to a rung; None unless it waits for a decision there."""
        self._looked_at = 0.0
        self._kernel_kills = 0
        self.step = 0

    def begin(self, work: Work) -> None:
        """Hand over a piece of work; a lane that died meanwhile is replaced first."""
        if self._process is None or self._process.poll() is not None:
            self._start(work)
        self._work, self.step, self._heard_at, self._waits_since = work, 0, None, None
        self._said = []
        self._began = datetime.now(UTC)
        self._kernel_kills = _kernel_kills()
        self._looked_at = time.monotonic()
        self._deadline = self._looked_at + work.timeout_seconds
        # A lane that dies before it reads is noticed by the next poll, like any other death.
        with contextlib.suppress(BrokenPipeError):
            self._write(work.model_dump_json())

    def poll(self, seconds: float) -> Outcome | None:
        """Wait up to `seconds` for the outcome of the work in hand; less if the lane has a say."""
        if self._work is None or self._process is None:
            raise RuntimeError("poll without work")
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if (failure := self._beyond_limits(self._work, self._process)) is not None:
                return self._lost(failure)
            # A lane's own children may keep its answers open after its end.
            is_over = self._process.poll() is not None
            wait = 0.0 if is_over else min(left, LOOK_SECONDS)
            readable, _, _ = select.select([self._answers], [], [], wait)
            received = os.read(self._answers, 1 << 16) if readable else b""
            if received and (outcome := self._heard(received)):
                return self._ended(outcome)
            if not received and (readable or is_over):
                return self._lost(self._how_it_ended(self._process))
            if self._said:
                return None
        return None

    def heard(self) -> list[dict[str, Any]]:
        """What the lane has said since it was last asked, beside steps and outcomes."""
        said, self._said = self._said, []
        return said

    def drain(self) -> None:
        """Ask the lane to checkpoint and leave the trial."""
        with contextlib.suppress(BrokenPipeError):
            self._write(json.dumps({"drain": True}))

    def close(self) -> None:
        """End the lane and everything it started."""
        if self._process is None:
            return
        # Those that left the lane's process group are found by their parents, while these live.
        family = _family(self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_SECONDS)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._answers)
        self._process = None

    def _start(self, work: Work) -> None:
        self.close()
        threads = str(work.threads)
        answers, child_end = os.pipe()
        try:
            with _open_log(work.folder / "log.txt") as log:
                self._process = subprocess.Popen(
                    [*self._command, str(child_end)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(child_end,),
                    # A session of its own: one signal ends the lane with all it started, and a
                    # Ctrl-C in the terminal does not reach it.
                    start_new_session=True,
                    env=os.environ
                    | {
                        "OMP_NUM_THREADS": threads,
                        "MKL_NUM_THREADS": threads,
                        "TOKENIZERS_PARALLELISM": "false",
                        "GLIBC_TUNABLES": _tunables(),
                    },
                )
        except BaseException:
            os.close(answers)
            raise
        finally:
            os.close(child_end)
        self._answers = answers
        self._buffer = b""
        self._has_spoken = False

    def _write(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("no lane")
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _heard(self, received: bytes) -> Outcome | None:
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        outcome = None
        for line in lines:
            self._has_spoken = True
            match json.loads(line):
                case {"step": step}:
                    now = time.monotonic()
                    if self._waits_since is not None and step > self.step:
                        # The launch took this time, not the trial.
                        self._deadline += now - self._waits_since
                        self._waits_since = None
                    self.step, self._heard_at = step, now
                case {"told": told}:
                    self._said.append(told)
                    if "rung" in told:
                        self.step, self._waits_since = told["step"], time.monotonic()
                case {"outcome": told}:
                    outcome = Outcome.model_validate(told)
        return outcome

    def _beyond_limits(self, work: Work, process: "subprocess.Popen[bytes]") -> Failure | None:
        now = time.monotonic()
        if self._waits_since is None and now > self._deadline:
            minutes = work.timeout_seconds / 60
            told = f"still running after its limit of {minutes:g} minutes"
            return Failure("timeout", told, {"failure/limit_minutes": minutes})
        # Until the first step there is no telling: a large model may take long to load.
        if self._heard_at is not None and now - self._heard_at > work.stall_seconds:
            minutes = work.stall_seconds / 60
            told = f"no step for {minutes:g} minutes, after step {self.step}"
            return Failure("stalled", told, {"failure/limit_minutes": minutes})
        if now - self._looked_at < LOOK_SECONDS:
            return None
        self._looked_at = now
        if (asked := cancelled(work)) is not None:
            return asked
        memory = private_memory(process.pid)
        if memory > work.resources.memory_gb * GIB:
            told = (
                f"{memory / GIB:.2f} GiB of memory of its own, and `resources.memory_gb` is "
                f"{work.resources.memory_gb:g}"
            )
            evidence = {
                "failure/memory_gb": memory / GIB,
                "failure/limit_memory_gb": work.resources.memory_gb,
            }
            return Failure("out_of_memory", told, evidence)
        return None

    def _how_it_ended(self, process: "subprocess.Popen[bytes]") -> Failure:
        try:
            returncode = process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            return Failure("error", "the lane closed its answers and did not leave")
        return failure_of_exit(
            returncode,
            has_spoken=self._has_spoken,
            kernel_kills=_kernel_kills() - self._kernel_kills,
        )

    def _ended(self, outcome: Outcome) -> Outcome:
        self._work = None
        if outcome.failure_class is not None and policy(outcome.failure_class).ends_lane:
            self.close()
        return outcome

    def _lost(self, failure: Failure) -> Outcome:
        work, self._work = self._work, None
        self.close()
        if work is None:
            raise RuntimeError("no work was lost")
        outcome = fail(
            work,
            failure.failure_class,
            "\n".join([*_tail(work.folder / "log.txt"), failure.error]),
            attempted=Attempted(self._began, step=self.step),
            evidence=failure.evidence,
        )
        if failure.failure_class == "cancelled":
            forget_request(work)
        return outcome


def private_memory(pid: int) -> int:
    """Bytes of a process and all it started that nobody else could use.

    Files that are mapped into memory are not counted, even where one process alone maps them (and
    so the kernel's `Private_Clean` and psutil's `uss` would): a host's lanes share the kept outputs
    of a teacher, and the kernel takes such pages back when it needs room.
    """
    return sum(_private(process) for process in _family(pid))


def _private(process: psutil.Process) -> int:
    try:
        memory: Any = process.memory_info()
    except psutil.Error:
        return 0
    # Only Linux tells what of it is files.
    return int(memory.rss - getattr(memory, "shared", 0))


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _kernel_kills() -> int:
    """How many processes the kernel of this host has killed for want of memory; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _tunables() -> str:
    """The allocator's, after which the user's own count."""
    own = os.environ.get("GLIBC_TUNABLES", "")
    return ":".join([*(f"{name}={value}" for name, value in ALLOCATOR.items()), own]).rstrip(":")


@contextlib.contextmanager
def _open_log(path: Path) -> Iterator[int | IO[bytes]]:
    """Where the first words of a lane go; nowhere where nothing can be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError:
        yield subprocess.DEVNULL
        return
    with log:
        yield log


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return []
