"""What shapes the features of a model have: all that a term must know of it."""

from dataclasses import dataclass

from .facts import ModelFacts
from .shape import Shape


@dataclass(frozen=True)
class Sizes:
    """Sizes of one model."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_labels: int | None
    """Classes of the task; None: not known yet."""
    vocab_size: int | None = None
    """Rows of the word embeddings; None: not known."""


def trial_sizes(shape: Shape, model: ModelFacts, *, num_labels: int | None) -> tuple[Sizes, Sizes]:
    """The sizes of a student and of its teacher."""
    return (
        Sizes(shape.layers, shape.width, shape.heads, num_labels, model.vocab_size),
        Sizes(
            model.num_hidden_layers,
            model.hidden_size,
            model.num_attention_heads,
            num_labels,
            model.vocab_size,
        ),
    )
