"""A cluster before anything is spent on it: its nodes, its door, what they see of the store.

Ray is asked in processes of their own (`driver_survey`), so that a launch never imports it.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..results.files import publish, replace
from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.resources import Request
from .errors import ClusterUnreachableError
from .inherited import for_ray, has_token
from .machines import Machine, unmet
from .provenance import Provenance, installed, provenance_here
from .work import Frozen

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]

SURVEY_SECONDS = 120.0
"""How long a cluster may take to answer for all of its nodes."""

PATIENCE_SECONDS = 10.0
"""How long one host waits for what another one wrote: network file systems cache their folders."""

BEACON = "beacon"


class Seen(Frozen):
    """What one node says of itself and of the store."""

    provenance: Provenance
    precision: Precision | None
    """What its device multiplies fast; None where there is no such device."""
    trouble: str | None
    """Why it cannot work in the store."""


class Node(Frozen):
    """One node that may train."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory_gb: float
    seen: Seen | None
    error: str | None
    """Why it says nothing."""

    @property
    def machine(self) -> Machine:
        """What it offers."""
        return Machine(self.name, self.cpus, self.gpus, self.memory_gb)


class Asked(Frozen):
    """What is asked of a cluster."""

    address: str
    folder: Path
    """What all nodes have to see: made by the launch inside of the store."""
    nonce: str
    device: Device


@dataclass(frozen=True)
class Surveyed:
    """A cluster that may be launched on."""

    nodes: tuple[Node, ...]
    is_open: bool
    """Whether it takes work from anybody."""
    warnings: tuple[str, ...]

    @property
    def precision(self) -> Precision | None:
        """What every node multiplies fast: where one does not, its trials would differ.

        None where it is this host that will train.
        """
        told = {node.seen.precision for node in self.nodes if node.seen is not None}
        return next((slowest for slowest in ("fp32", "bf16") if slowest in told), None)

    @property
    def hosts(self) -> tuple[Provenance, ...]:
        """With what its nodes run trials."""
        return tuple(node.seen.provenance for node in self.nodes if node.seen is not None)


HERE = Surveyed(nodes=(), is_open=False, warnings=())
"""This host alone."""


def survey(
    address: str,
    store: Store,
    requests: Collection[Request],
    *,
    device: Device,
    allows_open: bool,
) -> Surveyed:
    """Ask a cluster that is not our own.

    Raises:
        InputError: It takes work from anybody, knows another token, can never meet what trials ask
            for, or has nodes that cannot work in the store; all problems at once.
        ClusterUnreachableError: It does not answer.
    """
    is_open = _is_open(address)
    if is_open and not allows_open:
        raise InputError([_open(address)])
    if not is_open and not has_token(os.environ, Path.home()):
        raise InputError([_no_token(address)])
    with _beacon(store.folder) as (folder, nonce):
        asked = Asked(address=address, folder=folder, nonce=nonce, device=device)
        nodes = _ask(asked, is_open=is_open)
        unseen = {
            node.name: f"what it writes into {store.folder} is not seen here"
            for node in nodes
            if node.seen is not None
            and node.seen.trouble is None
            and not _appears(folder / node.id, nonce)
        }
    problems, warnings = judge(nodes, provenance_here(), device=device, unseen=unseen)
    problems += unmet(requests, [node.machine for node in nodes])
    if problems:
        raise InputError(problems)
    if is_open:
        warnings.insert(
            0, f"{address} asks for no token: anybody who reaches it can run code there"
        )
    return Surveyed(tuple(nodes), is_open, tuple(warnings))


def judge(
    nodes: Sequence[Node],
    here: Provenance,
    *,
    device: Device,
    unseen: dict[str, str],
) -> tuple[list[Problem], list[str]]:
    """Which nodes cannot be used, and what is worth knowing of the others.

    Another kdsweep would run other code, and another Python cannot read what Ray sends it: refused.
    Other versions of what computes change the last bits of numbers: a warning.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    for node in nodes:
        place = f"node {node.name}"
        if node.seen is None:
            mend = "See whether kdsweep is installed there, in the Python that Ray runs with."
            problems.append(Problem(place, f"does not answer: {node.error}", mend))
            continue
        if trouble := node.seen.trouble or unseen.get(node.name):
            mend = "All nodes and this host need the same folder under the same path: mount it, or "
            problems.append(Problem(place, trouble, mend + "name one that is, with `--store`."))
        there = node.seen.provenance
        for what, theirs, ours in (
            ("kdsweep", there.packages.get("kdsweep"), here.packages.get("kdsweep")),
            ("Python", _minor(there.python), _minor(here.python)),
        ):
            if theirs != ours:
                mend = "Lanes run what is installed on their node: install the same everywhere."
                problems.append(Problem(place, f"has {what} {theirs}, and here is {ours}", mend))
        if device == "cuda" and node.gpus and node.seen.precision is None:
            mend = "Install a torch that knows CUDA there, or keep the node's GPUs from Ray."
            problems.append(Problem(place, "has a GPU that its torch does not find", mend))
        warnings += [
            f"{place} has {name} {there.packages.get(name)}, and here is {ours}: the last bits of "
            "numbers may differ"
            for name, ours in here.packages.items()
            if name not in ("kdsweep", "ray") and there.packages.get(name) != ours
        ]
        if here.code and there.code and there.code.commit != here.code.commit:
            theirs, ours = there.code.commit[:12], here.code.commit[:12]
            warnings.append(f"{place} has kdsweep at commit {theirs}, and here it is at {ours}")
    return problems, warnings


def look(asked: str, node_id: str) -> str:
    """What a node does to say that it can work in the store; this runs on the node.

    From JSON to JSON: another kdsweep there may have other classes, which it is to tell.
    """
    question = Asked.model_validate_json(asked)
    return Seen(
        provenance=provenance_here(),
        precision=_precision(question.device),
        trouble=trouble_in(question.folder, node_id, question.nonce),
    ).model_dump_json()


def trouble_in(
    folder: Path, name: str, nonce: str, *, patience_seconds: float = PATIENCE_SECONDS
) -> str | None:
    """Read, write, rename and list where the store is said to be; what is wrong, or None."""
    store = folder.parent
    if not _appears(folder / BEACON, nonce, patience_seconds=patience_seconds):
        if not store.is_dir():
            return f"does not see the store: there is no folder {store}"
        return f"does not see the store: its {store} is another folder"
    try:
        for step in (publish, replace):
            step(folder / name, lambda path: _write(path, nonce))
            if name not in {path.name for path in folder.iterdir()}:
                return f"does not list what it wrote into {store}"
    except OSError as error:
        return f"cannot write into the store: {error}"
    return None


def why_unusable(store: Path, lock: Path, *, kdsweep: str) -> str | None:
    """Why work that was given to this node cannot be done on it; for nodes that join later."""
    host, ours = socket.gethostname(), installed("kdsweep")
    if ours != kdsweep:
        return f"node {host} has kdsweep {ours}, and the launch {kdsweep}"
    if not store.is_dir():
        return f"node {host} does not see the store: there is no folder {store}"
    if not lock.exists():
        return f"node {host} does not see the store: its {store} is another folder"
    return None


def _is_open(address: str) -> bool:
    said = _run("door", address, environment=for_ray(os.environ, is_local=False, is_open=True))
    match said:
        case {"opens": bool(is_open)}:
            return is_open
        case {"unreachable": why}:
            raise ClusterUnreachableError(f"no Ray cluster answers at {address}: {why}")
        case _:
            raise RuntimeError(f"a survey said {said}")


def _ask(asked: Asked, *, is_open: bool) -> list[Node]:
    environment = for_ray(os.environ, is_local=False, is_open=is_open)
    match said := _run("nodes", asked.model_dump_json(), environment=environment):
        case {"nodes": list(nodes)}:
            return [Node.model_validate(node) for node in nodes]
        case {"opens": False}:
            raise InputError([_no_token(asked.address)])
        case {"unreachable": why}:
            raise ClusterUnreachableError(f"no Ray cluster answers at {asked.address}: {why}")
        case _:
            raise RuntimeError(f"a survey said {said}")


def _run(*words: str, environment: dict[str, str]) -> dict[str, object]:
    try:
        said = subprocess.run(
            [sys.executable, "-m", "kdsweep.sweep.driver_survey", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SURVEY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"unreachable": f"it says nothing for {SURVEY_SECONDS:g} s"}
    if said.returncode != 0 or not said.stdout.strip():
        lines = said.stderr.strip().splitlines() or [f"exit status {said.returncode}"]
        return {"unreachable": lines[-1]}
    answer: dict[str, object] = json.loads(said.stdout.splitlines()[-1])
    return answer


@contextmanager
def _beacon(store: Path) -> Iterator[tuple[Path, str]]:
    """A folder in the store that every node is to find; gone afterwards, with whatever was made."""
    made = next((path for path in reversed([store, *store.parents]) if not path.exists()), None)
    nonce = secrets.token_hex(8)
    # A temporary's name: no reader takes it for a part of the store.
    folder = store / f".{nonce}.tmp"
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        publish(folder / BEACON, lambda path: _write(path, nonce))
        yield folder.resolve(), nonce
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made is not None:
            _remove_empty(store, made)


def _remove_empty(store: Path, made: Path) -> None:
    """Remove the folders that were made for the survey and hold nothing."""
    folder = store
    while True:
        try:
            folder.rmdir()
        except OSError:
            return
        if folder == made:
            return
        folder = folder.parent


def _appears(
    file: Path,
    text: str,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether a file with this text is there, or comes to be seen."""
    waited = 0.0
    while not (file.is_file() and file.read_text(encoding="ascii", errors="replace") == text):
        if waited >= patience_seconds:
            return False
        sleep(0.25)
        waited += 0.25
    return True


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")


def _precision(device: Device) -> Precision | None:
    """Asked of torch in a process of its own: Ray hides the GPUs from a task that reserves none."""
    code = (
        "import torch; from kdsweep.trainers.settings import fast_precision as fast; "
        f"device = '{device}'; "
        "print(fast(device) if device == 'cpu' or torch.cuda.is_available() else '')"
    )
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=shown, capture_output=True, text=True, check=True
    )
    match said.stdout.strip():
        case "fp32" | "bf16" as precision:
            return precision
        case _:
            return None


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _open(address: str) -> Problem:
    return Problem(
        "--address",
        f"{address} asks for no token: anybody who reaches it can run code on its nodes, and on "
        "this sweep",
        "Start it with `RAY_AUTH_MODE=token` and one token on all hosts (docs/clusters.md), or "
        "agree with `--insecure-cluster`.",
    )


def _no_token(address: str) -> Problem:
    return Problem(
        "--address",
        f"{address} asks for a token, and this host has none or another one",
        "Copy the cluster's `~/.ray/auth_token` to this host, readable by you alone, or set "
        "RAY_AUTH_TOKEN_PATH to where it lies.",
    )
