"""A lane: a process that imports torch once and trains one trial after another.

Run as `python -m kdsweep.sweep.lane FD`. It reads one JSON object a line on standard input, a piece
of work or `{"drain": true}`, and answers on the file descriptor FD with `{"step": n}` while it
trains and `{"outcome": ...}` at the end; what it says as `{"told": {...}}` reaches the launch as it
is. When its standard input closes, whoever asked for the work is gone, and so is the lane.
"""

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path

from .work import Keeper, Work, run


def main(keeper: Keeper) -> None:
    """Serve until standard input closes."""
    # Ctrl-C reaches every process of the terminal; only the launch decides what it means. A SIGTERM
    # is somebody else's (a memory killer's): it ends the lane, and the trial is tried in a new one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    asked: queue.Queue[Work] = queue.Queue()
    threading.Thread(target=_listen, args=(asked, stop), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as answers:
        while True:
            work = asked.get()
            _send_output_to(work.folder / "log.txt")
            outcome = run(
                work,
                keeper=keeper,
                stop=stop.is_set,
                beat=lambda step: print(json.dumps({"step": step}), file=answers),
                tell=lambda said: print(json.dumps({"told": said}), file=answers),
            )
            print(json.dumps({"outcome": outcome.model_dump()}), file=answers)


def _listen(asked: "queue.Queue[Work]", stop: threading.Event) -> None:
    for line in sys.stdin:
        if "drain" in (message := json.loads(line)):
            stop.set()
        else:
            asked.put(Work.model_validate(message))
    # Nobody is left to hear an outcome, and a newer launch may already train this trial.
    os._exit(0)


def _send_output_to(path: Path) -> None:
    """Warnings and the last words of a crash belong to the attempt that caused them."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())


if __name__ == "__main__":
    main(Keeper())
