"""How a host runs trials: what is part of no trial's id, and the same for all of a sweep."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..search_spaces.errors import InputError, Problem
from ..search_spaces.feature_choice import SourceChoice

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """Pinned once for a sweep; a host that cannot honour it must refuse."""

    threads: int = 1
    """Of the arithmetic on the CPU."""
    device: str = "cpu"
    """A torch device."""
    gpu_share: float = 1.0
    """How much of the GPU's memory this process may take, its own context counted."""
    precision: Precision = "fp32"
    """What a trial's `precision: auto` becomes."""
    features: tuple[SourceChoice, ...] | None = None
    """What of its teachers' outputs a sweep keeps; None: nobody has chosen, and a stage keeps what
    it reads, in fp32, unless it is larger than `features_gb`."""
    features_gb: float = 1.0
    """In 10**9 bytes."""
    memory_gb: float | None = None
    """What this process may hold of its own, in 2**30 bytes; None: what the host has."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints; up to ten times as long where writing one takes long."""

    def resolve(self, precision: Literal["auto", "fp32", "bf16"]) -> Precision:
        """The precision of a trial that asks for `precision`."""
        return self.precision if precision == "auto" else precision


def fast_precision(device: str) -> Precision:
    """`bf16` where the hardware multiplies it, else `fp32`."""
    if device == "cpu" and (flags := cpu_flags()):
        # Whoever finds nothing to do need not wait for torch.
        return "bf16" if flags & {"avx512_bf16", "amx_tile"} else "fp32"
    import torch

    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # These two read the CPU's own flags; there is no public name for them.
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if multiplies else "fp32"


def cpu_flags() -> frozenset[str]:
    """What the kernel says that an x86 processor can do; nothing where it does not say."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", told, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def check_host(settings: Settings) -> None:
    """Refuse a host on which what is pinned would mean something else, or nothing.

    Raises:
        InputError: It has no such device, or multiplies in another precision.
    """
    import torch

    is_gpu = torch.device(settings.device).type == "cuda"
    if is_gpu and not torch.cuda.is_available():
        what, mend = "trials ask for a GPU, and torch finds none here", "Mend its driver or torch."
    elif settings.precision == "bf16" and fast_precision(settings.device) == "fp32":
        what = "this sweep is pinned to bf16, and this host does not multiply it: sums would differ"
        mend = "Keep this host out of the cluster, or launch into another folder."
    else:
        return
    raise InputError([Problem(f"host {socket.gethostname()}", what, mend)])
