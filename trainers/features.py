"""What a model gives to the objective, and what of it the objective asks for.

Layers are counted from 1; 0 is the embedding output. B rows, L tokens, H width, A heads, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What is read of one model; two needs are united by `|`."""

    logits: bool = False
    """Whether the logits are read."""
    hidden_states: frozenset[int] = frozenset()
    """Layers whose output is read; 0 is the embedding output."""
    attentions: frozenset[int] = frozenset()
    """Blocks whose attention scores are read."""

    def __or__(self, other: Self) -> Self:
        return type(self)(
            logits=self.logits or other.logits,
            hidden_states=self.hidden_states | other.hidden_states,
            attentions=self.attentions | other.attentions,
        )

    def __bool__(self) -> bool:
        return self.logits or bool(self.hidden_states) or bool(self.attentions)


@dataclass(frozen=True)
class Features:
    """What one forward pass gave; positions of padding may hold anything."""

    logits: Tensor | None = None
    """Shape [B, C]."""
    hidden_states: Mapping[int, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """By layer, shape [B, L, H]."""
    attentions: Mapping[int, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    """By block, shape [B, A, L, L], query by key: scaled dot products before mask and softmax."""


@dataclass(frozen=True)
class Sizes:
    """What shapes one model's features have."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_labels: int
