"""The other end of a lane: starts it, hands it work, hears or infers the outcome, replaces it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from .failures import LAST_LINES, describe_exit
from .work import Outcome, Work, fail

LANE = (sys.executable, "-m", "kdsweep.sweep.lane")


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
        self._work: Work | None = None
        self._deadline = 0.0
        self._said: list[dict[str, Any]] = []
        self.step = 0

    def begin(self, work: Work) -> None:
        """Hand over a piece of work; a lane that died meanwhile is replaced first."""
        if self._process is None or self._process.poll() is not None:
            self._start(work)
        self._work, self.step = work, 0
        self._deadline = time.monotonic() + work.timeout_seconds
        # A lane that dies before it reads is noticed by the next poll, like any other death.
        with contextlib.suppress(BrokenPipeError):
            self._write(work.model_dump_json())

    def poll(self, seconds: float) -> Outcome | None:
        """Wait up to `seconds` for the outcome of the work in hand; less if the lane has a say."""
        if self._work is None or self._process is None:
            raise RuntimeError("poll without work")
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if time.monotonic() > self._deadline:
                limit = self._work.timeout_seconds / 60
                return self._lost("timeout", f"still running after its limit of {limit:g} minutes")
            readable, _, _ = select.select([self._answers], [], [], left)
            if not readable:
                continue
            received = os.read(self._answers, 1 << 16)
            if not received:
                returncode = self._process.wait()
                kind = "signal" if returncode < 0 else "error"
                return self._lost(kind, describe_exit(returncode))
            if outcome := self._heard(received):
                self._work = None
                return outcome
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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._answers)
        self._process = None

    def _start(self, work: Work) -> None:
        self.close()
        self._answers, child_end = os.pipe()
        threads = str(work.threads)
        self._process = subprocess.Popen(
            [*self._command, str(child_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(child_end,),
            # A session of its own: one signal ends the lane with all it started, and a Ctrl-C in
            # the terminal does not reach it.
            start_new_session=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": "false",
            },
        )
        os.close(child_end)
        self._buffer = b""

    def _write(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("no lane")
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _heard(self, received: bytes) -> Outcome | None:
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        outcome = None
        for line in lines:
            message = json.loads(line)
            match message:
                case {"step": step}:
                    self.step = step
                case {"told": told}:
                    self._said.append(told)
                case {"outcome": told}:
                    outcome = Outcome.model_validate(told)
        return outcome

    def _lost(self, failure_class: str, why: str) -> Outcome:
        work, self._work = self._work, None
        self.close()
        if work is None:
            raise RuntimeError("no work was lost")
        log = work.folder / "log.txt"
        tail = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.exists() else []
        return fail(work, failure_class, "\n".join([*tail, why]))
