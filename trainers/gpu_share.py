"""A share of a GPU as a bound on memory: Ray counts shares, and bounds nothing."""

from ..search_spaces.errors import InputError, Problem
from .settings import Settings

CONTEXT_BYTES = 2**29
"""What a process takes of a GPU before it computes: CUDA's context and its libraries' kernels."""


def memory_fraction(share: float, *, total_bytes: int) -> float:
    """The limit of PyTorch's allocator under which a process stays within its share of a GPU.

    Args:
        share: Of the GPU's memory, greater than 0 and at most 1.
        total_bytes: The GPU's memory.

    Raises:
        InputError: The context alone takes more than the share.
    """
    fraction = share - CONTEXT_BYTES / total_bytes
    if fraction <= 0:
        raise InputError(
            [
                Problem(
                    "resources.gpus",
                    f"{share:g} of a GPU of {total_bytes / 2**30:.1f} GB is no more than what CUDA "
                    "itself takes",
                    f"Give trials at least {2 * CONTEXT_BYTES / total_bytes:.2f}.",
                )
            ]
        )
    return fraction


def keep_to_share(settings: Settings) -> None:
    """Bound what this process may allocate on its GPU; before the first allocation.

    Without it one trial may take the memory of all. A whole GPU needs no bound, a CPU has none.

    Raises:
        InputError: The share is too small to compute with.
    """
    import torch

    device = torch.device(settings.device)
    if device.type != "cuda" or settings.gpu_share == 1:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    fraction = memory_fraction(settings.gpu_share, total_bytes=total)
    torch.cuda.set_per_process_memory_fraction(fraction, device)
