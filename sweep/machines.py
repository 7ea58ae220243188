"""What machines offer, and whether what trials ask for can ever be met by them."""

import os
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..search_spaces.errors import Problem
from ..search_spaces.resources import Request

GIB = 2**30

_UNITS: Mapping[str, str] = {"cpus": "cpus", "gpus": "GPUs", "memory_gb": "GB of memory"}


@dataclass(frozen=True)
class Machine:
    """What a host, or a node of a cluster, has for trials."""

    name: str
    cpus: float
    gpus: float
    memory_gb: float
    """In units of 2**30 bytes, as requests are."""

    def room(self, request: Request) -> bool:
        """Whether it could run such a trial at all."""
        return (
            request.cpus <= self.cpus
            and request.gpus <= self.gpus
            and request.memory_gb <= self.memory_gb
        )


def this_machine() -> Machine:
    """This host, as a cluster of its own would offer it."""
    return Machine(
        name="this machine",
        cpus=_usable_cpus(),
        gpus=_visible_gpus(),
        memory_gb=_usable_memory() / GIB,
    )


def unmet(requests: Collection[Request], machines: Sequence[Machine]) -> list[Problem]:
    """What no machine can ever give: of each kind the largest request, all kinds at once."""
    problems = []
    for kind, unit in _UNITS.items():
        largest = max(getattr(request, kind) for request in requests)
        most = max((getattr(machine, kind) for machine in machines), default=0)
        if largest > most:
            where = next((m.name for m in machines if getattr(m, kind) == most), "no node")
            problems.append(
                _problem(
                    f"resources.{kind}",
                    f"a trial asks for {largest:g} {unit}, and {where} has {most:.4g}"
                    + ("" if len(machines) == 1 else ", the most of any node"),
                )
            )
    if problems:
        return problems
    # Each amount is there somewhere, and no machine has all of them.
    alone = [r for r in requests if not any(machine.room(r) for machine in machines)]
    return [
        _problem(
            "resources",
            f"a trial asks for {r.cpus} cpus, {r.gpus:g} GPUs and {r.memory_gb:g} GB of memory at "
            "once, and no node has all of that",
        )
        for r in alone
    ]


def unplaced(requests: Iterable[Request], machines: Sequence[Machine]) -> int:
    """How many of these requests would have to wait if all came at once, each where it fits first.

    Larger ones are placed first.
    """
    left = [[machine.cpus, machine.gpus, machine.memory_gb] for machine in machines]
    waiting = 0
    for request in sorted(requests, key=lambda r: (r.gpus, r.memory_gb, r.cpus), reverse=True):
        asked = (request.cpus, request.gpus, request.memory_gb)
        # Shares of a GPU are sums of binary fractions: four times 0.1 and a bit is still 0.4.
        room = next(
            (n for n in left if all(a <= b + 1e-6 for a, b in zip(asked, n, strict=True))), None
        )
        if room is None:
            waiting += 1
        else:
            room[:] = [b - a for a, b in zip(asked, room, strict=True)]
    return waiting


def _problem(path: str, what: str) -> Problem:
    mend = "Ask for less, or run where there is more: `--address HOST:PORT` of a Ray cluster."
    return Problem(path, what, mend)


def _usable_cpus() -> int:
    """Processors that this process may use, by affinity and by its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = psutil.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def _usable_memory() -> int:
    """Bytes that this process may use: the host's, or its container's."""
    limits = [
        int(limit)
        for file in (
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        )
        if (limit := _read(file)).isdecimal()
    ]
    return min([psutil.virtual_memory().total, *limits])


def _visible_gpus() -> int:
    """NVIDIA GPUs, without importing torch to count them, which takes seconds."""
    driver = Path("/proc/driver/nvidia/gpus")
    present = len(list(driver.iterdir())) if driver.is_dir() else 0
    if not present and (tool := shutil.which("nvidia-smi")) is not None:
        # Under WSL the driver has no such folder.
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True)
        present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None or not present:
        return present
    return len([name for name in shown.split(",") if name.strip() not in ("", "-1")])


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
