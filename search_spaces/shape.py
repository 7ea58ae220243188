"""Depth, width, heads and feed-forward width of a student, and the budgets that tie them."""

import math
from typing import Annotated, Literal

from pydantic import Field, Strict, StringConstraints

from .spec import Count, ProperShare, Spec


class Shape(Spec):
    """A student's size."""

    layers: Count
    """Number of blocks (`num_hidden_layers`)."""
    width: Count
    """Width of the residual stream (`hidden_size`)."""
    heads: Count
    """Attention heads of a block; divides the width."""
    feed_forward: Count | None = None
    """Inner width of the feed-forward part (`intermediate_size`); 4 times the width unless said."""

    @property
    def intermediate_size(self) -> int:
        """The feed-forward width in numbers."""
        return self.feed_forward or 4 * self.width


class IsoShapes(Spec):
    """All shapes whose size is equal within a tolerance: depth against width at one budget."""

    iso: Literal["encoder_parameters"]
    """What is held equal: the parameters of the blocks, without embeddings and pooler."""
    target: Annotated[float, Strict(), Field(ge=1, le=1e12)]
    """The budget, in parameters."""
    tolerance: ProperShare = 0.05
    """Largest relative difference from the target."""
    layers: Annotated[tuple[Count, ...], Field(min_length=1)]
    """The depths to try."""
    width_multiple: Count = 64
    """Widths are multiples of this."""
    heads: Count | Annotated[str, StringConstraints(pattern=r"^width/[1-9][0-9]*$")] = "width/64"
    """A number of heads, or `width/N`: one head for every N features."""


def encoder_parameters(shape: Shape) -> int:
    """Parameters of a BERT encoder's blocks: 4(H^2 + H) + 2HF + F + H + 4H for each.

    Query, key, value and output maps, two feed-forward maps, two LayerNorms, all with biases.
    """
    width, inner = shape.width, shape.intermediate_size
    block = 4 * (width**2 + width) + 2 * width * inner + inner + width + 4 * width
    return shape.layers * block


def embedding_parameters(
    width: int, *, vocab_size: int, max_positions: int, type_vocab_size: int = 2
) -> int:
    """Parameters of a BERT's embeddings: word, position and type rows and a LayerNorm."""
    return (vocab_size + max_positions + type_vocab_size) * width + 2 * width


def forward_flops_per_token(shape: Shape, *, sequence_length: int) -> int:
    """Floating-point operations of the blocks for one token, a multiply-add counted as two."""
    width, inner = shape.width, shape.intermediate_size
    return shape.layers * (2 * (4 * width**2 + 2 * width * inner) + 4 * sequence_length * width)


def iso_shapes(spec: IsoShapes) -> tuple[Shape, ...]:
    """Every shape within the tolerance, by depth and then width; may be empty."""
    found = []
    for layers in sorted(set(spec.layers)):
        # A block of width H has at most 25 H^2 parameters: no narrower width comes near the target.
        narrowest = math.isqrt(int(spec.target * (1 - spec.tolerance) / (25 * layers)))
        width = max(1, narrowest // spec.width_multiple) * spec.width_multiple
        while encoder_parameters(_shape(spec, layers, width)) <= spec.target * (1 + spec.tolerance):
            shape = _shape(spec, layers, width)
            if encoder_parameters(shape) >= spec.target * (1 - spec.tolerance):
                found.append(shape)
            width += spec.width_multiple
    return tuple(found)


def _shape(spec: IsoShapes, layers: int, width: int) -> Shape:
    heads = spec.heads if isinstance(spec.heads, int) else width // int(spec.heads.split("/")[1])
    return Shape(layers=layers, width=width, heads=max(1, heads))


def shape_label(shape: Shape) -> str:
    """`3x384x12`, and `3x384x12x1000` where the feed-forward width is not 4 times the width."""
    label = f"{shape.layers}x{shape.width}x{shape.heads}"
    return label if shape.intermediate_size == 4 * shape.width else f"{label}x{shape.feed_forward}"
