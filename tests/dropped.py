"""See what a model that trains was left without."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from kdsweep.trainers.dropout import MaskedDropout


@contextmanager
def dropped_by_heads() -> Iterator[list[str]]:
    """What the input of the head was left without, pass after pass."""
    found: list[str] = []

    def watch(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(module, MaskedDropout) and module.training and output.ndim == 2:
            found.append("".join(map(str, (output == 0).int().flatten().tolist())))

    with nn.modules.module.register_module_forward_hook(watch):
        yield found
