"""Where the features of a split's rows lie, and how large they are. Nothing here needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..search_spaces.resolution import Feature
    from ..search_spaces.sizes import Sizes

BATCH_SIZE = 32
"""Of the canonical pass."""

SHARD_BATCHES = 16
"""Of a shard at the least: about a second's work."""

MOST_SHARDS = 128

Type = Literal["fp32", "fp16"]

Axis = Literal["rows", "tokens", "pairs"]
"""What a feature has a vector of numbers for: a row, a token, or a pair of tokens of a row."""

Offsets = npt.NDArray[np.int64]

_DTYPES: dict[Type, str] = {"fp32": "<f4", "fp16": "<f2"}


class Layout:
    """Where everything of a split's rows lies, in the order of the canonical pass."""

    def __init__(self, lengths: npt.NDArray[np.int64]) -> None:
        self.order: npt.NDArray[np.int64] = np.argsort(lengths, kind="stable")
        """The rows' numbers in the split."""
        ordered = lengths[self.order]
        self.offsets: dict[Axis, Offsets] = {
            "rows": np.arange(len(lengths) + 1),
            "tokens": np.concatenate([[0], ordered.cumsum()]),
            "pairs": np.concatenate([[0], np.square(ordered).cumsum()]),
        }
        """Where what belongs to each row in this order starts, and the end."""
        num_batches = -(-len(lengths) // BATCH_SIZE)
        shard = BATCH_SIZE * max(SHARD_BATCHES, -(-num_batches // MOST_SHARDS))
        self.shards: tuple[tuple[int, int], ...] = tuple(
            (first, min(first + shard, len(lengths))) for first in range(0, len(lengths), shard)
        )
        """The stretches of this order that are computed by one lane each."""

    def batches(self, shard: int) -> Iterator[tuple[int, int]]:
        """The stretches of the order that are the batches of a shard."""
        first, end = self.shards[shard]
        for start in range(first, end, BATCH_SIZE):
            yield start, min(start + BATCH_SIZE, end)

    def size(self, axis: Axis) -> int:
        """How many vectors of numbers a feature has."""
        return int(self.offsets[axis][-1])


class Entry(NamedTuple):
    """A feature of a source in one type."""

    feature: Feature
    type: Type
    width: int
    """Numbers of a vector."""

    @property
    def axis(self) -> Axis:
        """What it has a vector for."""
        return axis_of(self.feature)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.feature.kind}-{self.feature.layer:02d}.{self.type}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        return np.dtype(_DTYPES[self.type])

    @property
    def vector_bytes(self) -> int:
        """Of one vector."""
        return self.width * self.dtype.itemsize


def axis_of(feature: Feature) -> Axis:
    """What a feature has a vector for."""
    match feature.kind:
        case "logits":
            return "rows"
        case "hidden_states" | "queries" | "keys" | "values":
            return "tokens"
        case "attentions" | "attention_means":
            return "pairs"
        case "words":
            raise AssertionError("hidden tokens are others in every step")
        case _:
            assert_never(feature.kind)


def feature_bytes(feature: Feature, *, sizes: Sizes, layout: Layout, type: Type) -> int:
    """What keeping a feature of all rows takes."""
    return (
        layout.size(axis_of(feature))
        * feature_width(feature, sizes)
        * np.dtype(_DTYPES[type]).itemsize
    )


def feature_width(feature: Feature, sizes: Sizes) -> int:
    """Numbers of a feature for each row, token, or pair of tokens."""
    match axis_of(feature):
        case "rows":
            assert sizes.num_labels is not None, "a model that runs has its classes"
            return sizes.num_labels
        case "tokens":
            return sizes.hidden_size
        case "pairs":
            return 1 if feature.kind == "attention_means" else sizes.num_attention_heads


def feature_type(feature: Feature, *, is_compact: bool) -> Type:
    """In which type a feature is kept."""
    return "fp16" if is_compact and feature.kind != "logits" else "fp32"
