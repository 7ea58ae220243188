"""Ending single trials of a running launch: a request in the store, and who sees it.

`locks/<epoch>.<id>.cancel` asks one launch to end one trial. Whoever books the attempt as
`cancelled` removes the request; the mark of the launch's end removes what was not seen.
"""

import getpass
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..results.files import replace
from ..results.store import Store
from .errors import NothingMatchesError
from .failures import Failure
from .lock import cancel_request, write_text
from .stop_request import running_launch
from .words import count, named_ids
from .work import Work


def ask_to_cancel(folder: Path, words: Sequence[str], *, tell: Callable[[str], None]) -> None:
    """Ask the launch that holds a sweep to end some of its trials, and to go on with the others.

    Args:
        folder: The sweep's.
        words: Ids of trials or groups, or beginnings of them.
        tell: Hears what happens.

    Raises:
        InputError: There is no sweep, or a word names no trial of it.
        NothingMatchesError: No launch is running, or all of these trials are completed.
    """
    launch = running_launch(folder)
    sweep = Store(folder)
    groups = {str(row.id): str(row.group_id) for row in sweep.read_plan() if row.what == "trial"}
    asked = named_ids(words, groups, folder=folder)
    completed = {each.id for each in sweep.read_attempts() if each.status == "completed"}
    if not (left := sorted(asked - completed)):
        raise NothingMatchesError(f"{count(len(asked), 'trial')} named, and completed already")
    body = json.dumps({"by": f"{_user()} on {socket.gethostname()}"})
    for id in left:
        replace(cancel_request(launch.locks, launch.epoch, id), partial(write_text, body))
    done = asked & completed
    tell(
        f"{launch} is asked to end {count(len(left), 'trial')}: {', '.join(left)}; it goes on with "
        "the others" + (f" ({len(done)} of those named completed already)" if done else "")
    )


def cancelled(work: Work) -> Failure | None:
    """What a request says of an attempt; None where nobody asked."""
    try:
        text = _request_for(work).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    by = "somebody"
    with suppress(ValueError, KeyError, TypeError):
        by = str(json.loads(text)["by"])
    told = f"{by} asked that this trial end (kdsweep stop --trial)"
    return Failure("cancelled", told, {"failure/asked_by": by})


def forget_request(work: Work) -> None:
    """Remove a request that has led to an attempt's row: a retry, if there is one, begins anew."""
    with suppress(OSError):
        _request_for(work).unlink()


def _request_for(work: Work) -> Path:
    return cancel_request(Store(work.store).locks_folder, work.epoch, work.id)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run as a user without a name.
        return "somebody"
