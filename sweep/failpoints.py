"""Faults on demand, so that tests can break a real sweep at a chosen line.

`KDSWEEP_FAILPOINT=row=raise:3fa8` raises where trial 3fa8... reports a row of its history; several
may stand there, with spaces between. Actions are `raise`, `hang` (which also ignores SIGTERM) and
`kill` (SIGKILL of this process); places are `row`, `checkpoint` (once there is one), `decision`
(once it is known at a rung), `commit`, `proposal` (once a search has written that of which the
trial is the first), `lane` (where an actor of Ray's hands work to its lane), and `ask` and `tell`,
where Ray Tune calls us with ids of its own. A file after the id (`kill:3fa8:FILE`) makes it happen
once: it acts unless the file exists, and makes the file.
"""

import os
import signal
import time
from pathlib import Path
from typing import Literal

Place = Literal["row", "checkpoint", "decision", "commit", "proposal", "lane", "ask", "tell"]


def failpoint(place: Place, id: str) -> None:
    """Do to the work `id` what the environment asks for at this place; else nothing."""
    for asked in os.environ.get("KDSWEEP_FAILPOINT", "").split():
        wanted, _, rest = asked.partition("=")
        action, prefix, *once = rest.split(":", 2)
        if wanted == place and id.startswith(prefix) and _is_due(once):
            _act(action, f"failpoint {place} of {id}")


def _is_due(once: list[str]) -> bool:
    if not once:
        return True
    try:
        Path(once[0]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(action: str, message: str) -> None:
    match action:
        case "raise":
            raise RuntimeError(message)
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(10**6)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            raise ValueError(f"{action}: no such action of a failpoint")
