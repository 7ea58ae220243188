"""A lane: a process that imports torch once and trains one trial after another.

Run as `python -m kdsweep.sweep.lane FD`. It reads one JSON object a line on standard input, a piece
of work or `{"drain": true}`, and answers on the file descriptor FD: `{"ready": true}` once it can
work, `{"step": n}` while it does, and `{"outcome": ...}` at the end; what it says as
`{"told": {...}}` reaches the launch as it is. When its standard input closes, whoever asked for the
work is gone, and so is the lane.
"""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

from .failures import Failure
from .redaction import RedactingStream
from .work import Keeper, Outcome, Work, run

BEAT_SECONDS = 1.0
"""Between two beats, at least."""

SIGTERM = Failure(
    "preempted", "SIGTERM asked the lane to leave", evidence={"failure/signal": "SIGTERM"}
)


def main(keeper: Keeper) -> None:
    """Serve until standard input closes, or until the host asks the lane to leave."""
    # Ctrl-C reaches every process of the terminal; only the launch decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print lands in logs, which are shown to more people than the environment is.
    sys.stdout = cast("TextIO", RedactingStream(sys.stdout))
    sys.stderr = cast("TextIO", RedactingStream(sys.stderr))
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as answers:
        Lane(answers, keeper).serve()


class Lane:
    """Takes work in, trains it in this thread, and tells how it goes."""

    def __init__(self, answers: TextIO, keeper: Keeper) -> None:
        self._answers = answers
        self._keeper = keeper
        self._asked: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        """What is still to do; None asks the lane to leave."""
        self._is_drained = self._is_preempted = False
        self._step = 0
        self._last_beat = 0.0

    def serve(self) -> None:
        """Do one piece of work after another."""
        signal.signal(signal.SIGTERM, self._preempt)
        threading.Thread(target=self._listen, daemon=True).start()
        self._tell({"ready": True})
        while (work := self._asked.get()) is not None:
            # Without its log the work may still be done; what matters will fail to be written, too.
            with suppress(OSError):
                _send_output_to(work.folder / "log.txt")
            outcome = self._do(work)
            give_back_memory()
            self._tell({"outcome": outcome.model_dump()})
        # Work that came too late is not begun, and whoever handed it over hears by the signal why.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _do(self, work: Work) -> Outcome:
        self._step = 0
        return run(
            work,
            keeper=self._keeper,
            stop=self._stop,
            beat=self._beat,
            tell=lambda said: self._tell({"told": {**said}}),
            leaves=lambda: SIGTERM if self._is_preempted else None,
        )

    def _stop(self) -> bool:
        # Training looks here before every step, in the thread that takes the step: one that hangs
        # does not, and then nobody says that it lives.
        if time.monotonic() - self._last_beat > BEAT_SECONDS:
            self._beat(self._step)
        return self._is_drained or self._is_preempted

    def _beat(self, step: int) -> None:
        self._step, self._last_beat = step, time.monotonic()
        self._tell({"step": step})

    def _tell(self, message: Mapping[str, object]) -> None:
        print(json.dumps(message), file=self._answers)

    def _preempt(self, *_: object) -> None:
        """SIGTERM: the host is going, or wants its memory back."""
        self._is_preempted = True
        self._asked.put(None)

    def _listen(self) -> None:
        for line in sys.stdin:
            if "drain" in (message := json.loads(line)):
                self._is_drained = True
            else:
                self._asked.put(Work.model_validate(message))
        # Nobody is left to hear an outcome, and a newer launch may already train this trial.
        os._exit(0)


def give_back_memory() -> None:
    """What is free inside the heap goes back to the kernel, where the C library can do that.

    Tensors of every size come and go, so that the next trial's do not fit where the last one's
    were: without this, a lane comes to own more with each trial and uses no more of it.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _send_output_to(path: Path) -> None:
    """Warnings and the last words of a crash belong to the attempt that caused them."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())


if __name__ == "__main__":
    main(Keeper())
