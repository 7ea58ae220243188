"""How weights follow their gradients: AdamW, its schedule, and clipping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from ..search_spaces.training import Training


def make_optimiser(modules: Iterable[nn.Module], training: Training) -> torch.optim.AdamW:
    """AdamW over all parameters of some modules; biases and LayerNorms do not decay."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.ndim > 1],
                "weight_decay": training.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        fused=True,
    )


def learning_rate(training: Training, *, step: int, num_steps: int) -> float:
    """The rate of the step that follows `step` earlier ones: a linear rise, then a linear fall.

    The first step has a rate above 0, and the step after the last would have 0.
    """
    rise = round(training.warmup * num_steps)
    share = (step + 1) / rise if step < rise else (num_steps - step) / (num_steps - rise)
    return training.learning_rate * share


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Of every parameter's next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Scale all gradients so that their common norm is at most `max_norm`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # On the CPU looking costs nothing, and not to scale saves a pass over all gradients.
    if norm.device.type != "cpu" or norm > max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def gradient_norms(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[float]:
    """The norm of each loss's own gradient with respect to the parameters, without weights.

    The graph stays, so that the step itself can follow; no gradient is accumulated.
    """
    norms = []
    for loss in losses:
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True
        )
        reached = [gradient for gradient in gradients if gradient is not None]
        norms.append(float(torch.nn.utils.get_total_norm(reached)))
    return norms
