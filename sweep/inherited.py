"""What Ray's processes inherit from the environment of a launch, and what they must not."""

import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..results.files import sync

NAMES_OF_CODE = (
    # Each names a class or module that Ray imports and calls: `load_class`, `import_attr` and
    # `import_module` of its sources, for 2.59 to 2.61.
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_RUNTIME_ENV_PLUGINS",
    "RAY_START_HOOK",
    "RAY_JOB_SUBMIT_HOOK",
    "RAY_CLUSTER_ACTIVITY_HOOK",
    "RAY_TUNE_CALLBACKS",
    "RAY_TRAIN_CALLBACKS",
    "RAY_preload_python_modules",
    "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR",
)
"""Variables through which whoever sets one has code imported into a launch."""

CREDENTIALS = (
    # Tune copies them into the description of every actor, which Ray shows to whoever may ask it.
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)

_TOKEN_FROM = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def for_ray(environ: Mapping[str, str], *, is_local: bool, is_open: bool) -> dict[str, str]:
    """The environment for a process that speaks with Ray.

    Args:
        environ: Of the launch.
        is_local: Whether it starts a cluster of its own, which then listens on loopback alone.
        is_open: Whether it was agreed that the cluster knows no token.
    """
    kept = {
        name: value for name, value in environ.items() if name not in (*NAMES_OF_CODE, *CREDENTIALS)
    }
    if is_open:
        # Whoever answers there could be anybody: the token is for clusters that ask for it.
        return {n: v for n, v in kept.items() if n not in _TOKEN_FROM} | {
            "RAY_AUTH_MODE": "disabled"
        }
    kept["RAY_AUTH_MODE"] = "token"
    if is_local:
        # Ray then takes 127.0.0.1 for the node's address and listens nowhere else; its default is
        # every interface. Meant for systems on which it supports no clusters, it works on all.
        kept["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return kept


def ensure_token(environ: Mapping[str, str], home: Path) -> None:
    """Have a token for a cluster of one's own that nobody else can read, before Ray makes one.

    Ray would write it with the default umask; whoever reads it may run code on the cluster.
    """
    if any(name in environ for name in _TOKEN_FROM):
        return
    file = home / ".ray" / "auth_token"
    if not file.exists():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        _write_new(file, secrets.token_hex(32))
    if file.stat().st_mode & 0o077 and file.stat().st_uid == os.getuid():
        file.chmod(0o600)


def has_token(environ: Mapping[str, str], home: Path) -> bool:
    """Whether there is a token that a cluster could be asked with."""
    return any(name in environ for name in _TOKEN_FROM) or (home / ".ray" / "auth_token").is_file()


def _write_new(file: Path, text: str) -> None:
    """Make a file that only its owner can read, at no moment otherwise, unless it is there now."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".auth_token.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as target:
            target.write(text)
        sync(Path(temporary))
        with suppress(FileExistsError):
            Path(file).hardlink_to(temporary)
    finally:
        Path(temporary).unlink()
