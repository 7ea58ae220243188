"""Files that are whole or absent, whatever dies while they are written.

A writer makes a temporary file beside the target: with a leading dot and without the target's
ending, so that no reader takes it for a part. Only a finished, synced file gets the real name.
What a disk or a network file system refuses for a moment is tried again for a few seconds.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = ".tmp"

_PROCESS = secrets.token_hex(4)
"""Beside this process's number, which one that was killed may have had, too."""

_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT})
"""Errors of a disk or a network file system that the next try may not meet."""

PAUSES_SECONDS = (0.1, 0.5, 2.5)
"""Between tries."""


class UnwritableError(OSError):
    """A disk or network file system refuses to keep something, however often it is asked."""


def allow() -> None:
    """The fence that forbids nothing."""


def publish(
    path: Path, write: Callable[[Path], None], *, fence: Callable[[], None] = allow
) -> None:
    """Write a file under a name that nobody has used yet.

    Args:
        path: Where the file is to appear.
        write: Writes the content to the path it is given.
        fence: Called when all is written and synced; whatever it raises forbids the file.

    Raises:
        FileExistsError: The name is taken; its file is untouched.
        UnwritableError: The disk refuses.
    """
    with _temporary(path) as temporary:

        def appear() -> None:
            fence()
            try:
                os.link(temporary, path)
            except FileExistsError:
                # A network file system may lose its answer to what it has done.
                if not path.samefile(temporary):
                    raise FileExistsError(f"{path} exists already") from None

        _patiently(lambda: _fill(temporary, write))
        _patiently(appear)
    _patiently(lambda: sync(path.parent))


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that may exist: readers see the old content or the new, never a mixture.

    Raises:
        UnwritableError: The disk refuses.
    """

    def appear() -> None:
        _fill(temporary, write)
        temporary.replace(path)

    with _temporary(path) as temporary:
        # Once it has its name, the file would have to be written anew.
        _patiently(appear)
    _patiently(lambda: sync(path.parent))


def publish_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a new folder, which appears with all of its files or not at all.

    Raises:
        FileExistsError: There is a folder of this name; it is untouched.
        UnwritableError: The disk refuses.
    """
    temporary = _temporary_path(folder)

    def fill() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        write(temporary)
        for place, _, names in os.walk(temporary):
            for name in names:
                sync(Path(place, name))
            sync(Path(place))

    try:
        _patiently(fill)
        if folder.exists():
            raise FileExistsError(f"{folder} exists already")
        try:
            temporary.rename(folder)
        except OSError as error:
            if folder.exists():
                raise FileExistsError(f"{folder} exists already") from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _patiently(lambda: sync(folder.parent))


def remove_temporaries(folder: Path) -> None:
    """Remove what writers left in a folder when they were killed.

    Only for whoever holds the lock: another process that still lives loses its unfinished file.
    """
    for path in folder.glob(f".*{_TEMPORARY}"):
        if not is_leftover(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a name is that of a file or folder which a writer has not finished."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def is_leftover(name: str) -> bool:
    """Whether a name is that of what another process has not finished.

    What this one is writing is none: another of its threads may be at it.
    """
    return is_temporary(name) and _own() not in name


def _fill(path: Path, write: Callable[[Path], None]) -> None:
    # Written again from its beginning at each try: after a sync that failed, the system may have
    # forgotten what it could not write, and the next sync would succeed without it.
    write(path)
    sync(path)


def _patiently(act: Callable[[], None]) -> None:
    """Act, and again where a disk's error may pass.

    Raises:
        UnwritableError: It has not passed.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            act()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if pause is None:
                raise UnwritableError(error.errno, error.strerror, error.filename) from error
            time.sleep(pause)
        else:
            return


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}{_own()}{secrets.token_hex(4)}{_TEMPORARY}")


def _own() -> str:
    """What stands in the names of this process's unfinished files, and of no other's."""
    return f".{os.getpid()}-{_PROCESS}-"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = _temporary_path(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
