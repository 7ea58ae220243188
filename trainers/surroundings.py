"""What of PyTorch is global: kept apart for a training and for whoever drives it."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.utils import deterministic

if TYPE_CHECKING:
    from .settings import Settings

_T = TypeVar("_T")


@dataclass(frozen=True)
class Surroundings:
    """Global state that numbers depend on."""

    threads: int
    random: Tensor
    device_random: Tensor | None
    """Of the CUDA device; None on the CPU."""
    is_deterministic: bool
    warns_only: bool
    fills_memory: bool

    @classmethod
    def read(cls, device: torch.device) -> Surroundings:
        """As they are now."""
        return cls(
            threads=torch.get_num_threads(),
            random=torch.get_rng_state(),
            device_random=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            is_deterministic=torch.are_deterministic_algorithms_enabled(),
            warns_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            fills_memory=deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        )

    def apply(self, device: torch.device) -> None:
        """Make them so."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        torch.set_rng_state(self.random)
        if self.device_random is not None:
            torch.cuda.set_rng_state(self.device_random, device)
        torch.use_deterministic_algorithms(self.is_deterministic, warn_only=self.warns_only)
        deterministic.fill_uninitialized_memory = self.fills_memory  # type: ignore[attr-defined]


def within(reports: Generator[_T, None, None], settings: Settings) -> Generator[_T, None, None]:
    """Run a generator in pinned surroundings of its own; between two reports they are outside.

    So neither the consumer's random numbers reach the training, nor the other way round.
    """
    device = torch.device(settings.device)
    if device.type == "cuda":
        # Without it cuBLAS may sum in another order from call to call; read at its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    outside = Surroundings.read(device)
    inside = Surroundings(
        threads=settings.threads,
        random=outside.random,
        device_random=outside.device_random,
        is_deterministic=True,
        # An operation without a deterministic form is then heard of, and the trial goes on.
        warns_only=True,
        # Every buffer is written before it is read; filling it first would cost a pass.
        fills_memory=False,
    )
    try:
        while True:
            outside = Surroundings.read(device)
            inside.apply(device)
            try:
                report = next(reports)
            except StopIteration:
                return
            finally:
                inside = Surroundings.read(device)
                outside.apply(device)
            yield report
    finally:
        reports.close()
