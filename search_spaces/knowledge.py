"""What is transferred: one class a kind. A term is a kind with its weight, label and matching."""

from typing import Annotated, Literal

from pydantic import Field

from .matching import Matching
from .spec import Label, Positive, Spec, Weight


class _Term(Spec):
    label: Label | None = None
    """Names the term in addresses and columns; its kind unless said. Not part of any id."""
    weight: Weight = 1.0
    """Multiplies the term in the objective; 0 removes the term."""


class HardLabels(_Term):
    """Cross-entropy of the student's logits with the task's own labels."""

    kind: Literal["hard_labels"]


class SoftLogits(_Term):
    """The teacher's output distribution, softened by a temperature, or its raw logits.

    `kl`: `temperature**2 * KL(teacher || student)`, mean over rows, in nats (Hinton, Vinyals and
    Dean, 2015, arXiv:1503.02531, section 2). `mse`: mean squared difference of the logits over
    rows and classes (Ba and Caruana, 2014, arXiv:1312.6184, equation 1); it has no temperature.
    """

    kind: Literal["soft_logits"]
    distance: Literal["kl", "mse"] = "kl"
    """`kl` compares softened distributions, `mse` raw logits."""
    temperature: Positive | None = None
    """Divides both models' logits before the softmax; what the axis `temperature` fills."""


class HiddenStates(_Term):
    """The outputs of matched blocks, over the tokens that are not padding.

    `mse`: mean over tokens and features of the squared difference (Jiao et al., TinyBERT, 2020,
    arXiv:1909.10351, equation 8). `cosine`: mean over tokens of `1 - cos` (Sanh et al.,
    DistilBERT, 2019, arXiv:1910.01108, section 3).
    """

    kind: Literal["hidden_states"]
    distance: Literal["mse", "cosine"] = "mse"
    """How two vectors of one token are compared."""
    projection: Literal["linear", "none"] = "linear"
    """`linear` learns a map from the student's width to the teacher's where the widths differ;
    `none` needs equal widths."""
    matching: Matching | None = None
    """Which layers are compared; what the axis `matching` fills."""


class Attentions(_Term):
    """The attention of matched blocks, over pairs of tokens that are not padding.

    `scores`: mean squared difference of the scaled dot products before the softmax (Jiao et al.,
    TinyBERT, 2020, arXiv:1909.10351, equation 7). `probabilities`: `KL(teacher || student)` of
    each row, mean over heads and rows (Wang et al., MiniLM, 2020, arXiv:2002.10957, equation 4).
    """

    kind: Literal["attentions"]
    of: Literal["scores", "probabilities"] = "scores"
    """What is compared: dot products before the softmax, or the distributions after it."""
    head_map: Literal["equal", "mean"] = "equal"
    """`equal` compares head with head and needs equal numbers; `mean` compares the heads' mean."""
    matching: Matching | None = None
    """Which layers are compared; what the axis `matching` fills."""


Term = Annotated[HardLabels | SoftLogits | HiddenStates | Attentions, Field(discriminator="kind")]
"""One summand of the objective."""

LayerTerm = HiddenStates | Attentions
"""Terms that compare layers and therefore need a matching."""


def term_label(term: Term) -> str:
    """The name of a term in addresses, tables and columns."""
    return term.label or term.kind
