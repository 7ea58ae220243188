"""With which code and packages a launch ran, on which hosts, and how that differs from before."""

import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from .work import Frozen

PACKAGES = ("kdsweep", "torch", "transformers", "tokenizers", "datasets", "ray", "numpy")

GIT_SECONDS = 10.0

_GIT = (
    "git",
    # Neither may be a program that a repository names for itself.
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null"),
)


class Commit(Frozen):
    """Where a working tree stands."""

    commit: str
    dirty: bool | None
    """Whether tracked files differ from it; None where there is no working tree to ask."""


class Provenance(Frozen):
    """What one host runs trials with."""

    host: str
    platform: str
    python: str
    packages: Mapping[str, str]
    code: Commit | None
    """Of kdsweep itself, where it was installed from a repository."""


def provenance_here() -> Provenance:
    """This host and this installation, which is what lanes run: no code is shipped to them."""
    return Provenance(
        host=socket.gethostname(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := installed(name)) is not None},
        code=_code(),
    )


@cache
def installed(name: str) -> str | None:
    """The version of a package here; None if there is none.

    Looked up once: reading a package's metadata takes half a millisecond, and what a process has
    imported stays what it is.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit_of(folder: Path) -> Commit | None:
    """Where the repository stands that a folder is part of; None where there is none."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Commit(commit=head, dirty=bool(changed))


def differences(before: Sequence[Provenance], now: Sequence[Provenance]) -> list[str]:
    """What differs between the hosts of two launches, so far as it may change numbers."""
    old, new = _told(before), _told(now)
    return [
        f"{what} is {_listed(new[what])} and was {_listed(old[what])}"
        for what in new
        if what in old and new[what] != old[what]
    ]


def _told(hosts: Sequence[Provenance]) -> dict[str, set[str]]:
    """By what it is: every value that some host has."""
    told: dict[str, set[str]] = {}
    for host in hosts:
        facts = {"Python": host.python, **host.packages}
        if host.code is not None:
            edited = " with changes that are not committed" if host.code.dirty else ""
            facts["the commit of kdsweep"] = host.code.commit[:12] + edited
        for what, value in facts.items():
            told.setdefault(what, set()).add(value)
    return told


def _listed(values: set[str]) -> str:
    return " and ".join(sorted(values))


def _code() -> Commit | None:
    """From the repository that this file is tracked in, or what the installer noted."""
    file = Path(__file__).resolve()
    # A virtual environment inside of somebody's repository is not that repository's code.
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is not None:
        return commit_of(file.parent)
    try:
        noted = distribution("kdsweep").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    commit = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return Commit(commit=commit, dirty=None) if isinstance(commit, str) else None


def _git(folder: Path, *words: str) -> str | None:
    if shutil.which("git") is None:
        return None
    try:
        said = subprocess.run(
            [*_GIT, "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() if said.returncode == 0 else None
