"""How a student, or a teacher's fine-tuning, is optimised."""

from typing import Literal

from .spec import Count, NonNegative, Positive, ProperShare, Seed, Share, Spec
from .texts import Unlabelled


class Evaluate(Spec):
    """When the select split is evaluated."""

    times: Count = 10
    """Evaluations of select, spread evenly over the steps; the last step is always one."""


class Training(Spec):
    """AdamW with a linear warm-up and a linear decay to zero."""

    learning_rate: Positive = 1e-4
    """The peak of the schedule."""
    epochs: Count = 3
    """Passes over a stage's rows; the last partial batch counts."""
    total_steps: Count | None = None
    """Optimiser steps of all stages together, in place of `epochs`; a stage's `share` says how many
    are its own."""
    batch_size: Count = 32
    """Rows of one optimiser step."""
    dropout: Share = 0.1
    """Of the student's hidden states and attention probabilities."""
    weight_decay: NonNegative = 0.01
    """Decoupled (AdamW); biases and LayerNorms are left out."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises."""
    gradient_clipping: Positive | None = 1.0
    """Largest norm of the gradient, projections included; null: no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward and backward pass; weights and losses stay in fp32. `auto` becomes bf16 where
    the hardware multiplies it, and is pinned at a sweep's first launch."""
    evaluate: Evaluate = Evaluate()
    """When the select split is evaluated."""


class FineTune(Spec):
    """How a pre-trained teacher learns the task, once, before the trials."""

    epochs: Count = 3
    """Passes over the training split."""
    learning_rate: Positive = 5e-5
    """The peak of the schedule."""
    batch_size: Count = 32
    """Rows of one optimiser step."""
    dropout: Share = 0.1
    """Of hidden states and attention probabilities."""
    weight_decay: NonNegative = 0.01
    """Decoupled (AdamW); biases and LayerNorms are left out."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises."""
    seed: Seed = 0
    """Of the new head, the data order and dropout."""


class LanguageHead(Spec):
    """How a pre-trained teacher gets a head for masked language modelling, once, before the trials.

    Its encoder stays as it is; only the head learns.
    """

    data: Unlabelled = "unlabelled"
    """The text it learns from: `unlabelled`, all rows that train had before `task.limit`, or
    `{text: FILE}`."""
    steps: Count = 1000
    """Optimiser steps."""
    learning_rate: Positive = 1e-3
    """The peak of the schedule."""
    batch_size: Count = 32
    """Rows of one optimiser step."""
    seed: Seed = 0
    """Of the head, the data order and the hidden tokens."""


class Limit(Spec):
    """How many rows of a split are used, drawn with a seed and stratified by label."""

    train: Count | None = None
    """Rows of train; all unless said."""
    select: Count | None = None
    """Rows of select; all unless said."""
    seed: Seed = 0
    """Of the draw."""


class AboveMajority(Spec):
    """A floor relative to the task: the largest class's share of select, plus a margin."""

    above_majority: ProperShare
    """The margin, as a share: 0.05 asks for five points of accuracy above the majority class."""


class Accuracy(Spec):
    """A floor in absolute terms."""

    accuracy: ProperShare
    """The least accuracy on select."""


Floor = AboveMajority | Accuracy
