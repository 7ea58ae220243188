"""Terms of every kind, random features of two small models, and a term's loss of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from kdsweep.search_spaces.knowledge import Term
from kdsweep.search_spaces.resolution import Feature, FeatureKind, ResolvedTerm, resolve_term
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.trainers.comparisons import Compared, Own, term_loss
from kdsweep.trainers.contrast import OF_LOGITS, Contrasts
from kdsweep.trainers.features import Features

LENGTHS = [5, 1, 3, 4]
"""Real tokens of each row."""
LABELS = torch.tensor([0, 3, 1, 1])
HIDDEN_TOKENS = {(0, 1): 6, (0, 4): 2, (2, 0): 0}
"""By row and position: which of a vocabulary of seven words stood there."""
ROWS, NUM_ROWS = torch.tensor([4, 0, 7, 2]), 9
"""Numbers of the rows in train, and how many it has."""
MODEL = Sizes(num_hidden_layers=3, hidden_size=6, num_attention_heads=2, num_labels=4)
"""Of both models, unless a test says otherwise."""

SOFT = {"kind": "soft_logits", "temperature": 2.0}
FIRST = {"matching": "first"}
HIDDEN = {"kind": "hidden_states", **FIRST}
ATTENTIONS = {"kind": "attentions", **FIRST}
RELATIONS = {"kind": "relations", **FIRST}

RESPONSE_TERMS: Mapping[str, dict[str, Any]] = {
    "hard_labels": {"kind": "hard_labels"},
    "label_smoothing": {"kind": "hard_labels", "label_smoothing": 0.1},
    "kl": SOFT,
    "cross_entropy": SOFT | {"distance": "cross_entropy"},
    "reverse_kl": SOFT | {"distance": "reverse_kl"},
    "jsd": SOFT | {"distance": {"jsd": 0.3}},
    "logit_mse": {"kind": "soft_logits", "distance": "mse"},
    "annealed_mse": {"kind": "soft_logits", "distance": {"annealed_mse": 7}},
    "dkd": SOFT | {"distance": {"dkd": {"target": 1.0, "others": 8.0}}},
    "dist": SOFT | {"distance": {"dist": {"rows": 1.0, "columns": 2.0}}},
    "standardise": SOFT | {"standardise": True},
}
LANGUAGE_TERMS: Mapping[str, dict[str, Any]] = {
    "masked_labels": {"kind": "masked_labels"},
    "masked_logits": {"kind": "masked_logits", "temperature": 2.0},
}
HIDDEN_TERMS: Mapping[str, dict[str, Any]] = {
    "hidden_mse": HIDDEN,
    "hidden_cosine": HIDDEN | {"distance": "cosine"},
    "pkd": HIDDEN | {"of": "cls", "normalise": True, "reduce_features": "sum"},
    "cls_cosine": HIDDEN | {"of": "cls", "distance": "cosine"},
    "mean_mse": HIDDEN | {"of": "mean"},
    "embedding": HIDDEN | {"matching": {"pairs": [[0, 0]]}},
    "gram": {"kind": "gram", **FIRST},
    "token_similarity": {"kind": "token_similarity", **FIRST},
    "cka": {"kind": "cka", **FIRST},
    "cka_of_rows": {"kind": "cka", "of": "mean", **FIRST},
    "word_pairs": {"kind": "word_relations", "window": 2, **FIRST},
    "word_angles": {"kind": "word_relations", "of": "angles", "window": 2, **FIRST},
    "layer_pairs": {"kind": "layer_relations", **FIRST},
    "layer_angles": {"kind": "layer_relations", "of": "angles", **FIRST},
}
ATTENTION_TERMS: Mapping[str, dict[str, Any]] = {
    "score_mse": ATTENTIONS,
    "score_mse_of_mean": ATTENTIONS | {"head_map": "mean"},
    "score_mse_of_sum": ATTENTIONS | {"head_map": "sum"},
    "score_cross_entropy_of_mean": ATTENTIONS | {"head_map": "mean", "distance": "cross_entropy"},
    "attention_kl": ATTENTIONS | {"of": "probabilities"},
    "attention_kl_of_mean": ATTENTIONS | {"of": "probabilities", "head_map": "mean"},
    "attention_cross_entropy": ATTENTIONS | {"of": "probabilities", "distance": "cross_entropy"},
    "attention_cross_entropy_of_mean": ATTENTIONS
    | {"of": "probabilities", "distance": "cross_entropy", "head_map": "mean"},
    "attention_mse": ATTENTIONS | {"of": "probabilities", "distance": "mse"},
    "attention_mse_of_mean": ATTENTIONS
    | {"of": "probabilities", "distance": "mse", "head_map": "mean"},
    "relations": RELATIONS,
    "value_relation": RELATIONS | {"of": ["v"]},
    "relation_heads": RELATIONS | {"heads": 3},
}
SAMPLE_TERMS: Mapping[str, dict[str, Any]] = {
    "rkd_distances": {"kind": "rkd", **FIRST},
    "rkd_angles": {"kind": "rkd", "relation": "angles", **FIRST},
    "rkd_of_logits": {"kind": "rkd", "of": "logits"},
    "sp": {"kind": "sp", **FIRST},
    "pkt": {"kind": "pkt", "of": "mean", **FIRST},
    "cc": {"kind": "cc", **FIRST},
}
CRD = {"kind": "crd", "dimension": 5, "negatives": 3}
CONTRAST_TERMS: Mapping[str, dict[str, Any]] = {
    "crd": CRD | FIRST,
    "crd_of_mean": CRD | FIRST | {"of": "mean"},
    "crd_of_logits": CRD | {"of": "logits"},
}
LAYER_TERMS = {**HIDDEN_TERMS, **ATTENTION_TERMS, **SAMPLE_TERMS, **CONTRAST_TERMS}
EVERY_TERM = {**RESPONSE_TERMS, **LANGUAGE_TERMS, **LAYER_TERMS}


def parse(term: dict[str, Any]) -> Term:
    """A term as a grid would write it."""
    return TypeAdapter[Term](Term).validate_python(term)


def token_mask(length: int = 5) -> Tensor:
    """True at the real tokens of each row."""
    return torch.arange(length) < torch.tensor(LENGTHS)[:, None]


def mean_of_heads(scores: Tensor) -> Tensor:
    """Of the probabilities with which the real keys are attended to, [B, 1, L, L]."""
    real = scores.masked_fill(~token_mask(scores.shape[-1])[:, None, None, :], -torch.inf)
    return real.softmax(dim=-1).mean(dim=1, keepdim=True)


def random_features(*, seed: int, sizes: Sizes = MODEL) -> dict[Feature, Tensor]:
    """Everything a model of these sizes shows of a batch, drawn from a normal distribution."""
    stream = torch.Generator().manual_seed(seed)
    rows, length = token_mask().shape
    heads, depth, width = sizes.num_attention_heads, sizes.num_hidden_layers, sizes.hidden_size
    features = {Feature("logits", 0): 2 * torch.randn(rows, 4, generator=stream)}
    for layer in range(depth + 1):
        hidden = torch.randn(rows, length, width, generator=stream)
        features[Feature("hidden_states", layer)] = hidden
        if layer:
            scores = 3 * torch.randn(rows, heads, length, length, generator=stream)
            features[Feature("attentions", layer)] = scores
            features[Feature("attention_means", layer)] = mean_of_heads(scores)
            for kind in ("queries", "keys", "values"):
                vectors = torch.randn(rows, length, width, generator=stream)
                features[Feature(kind, layer)] = vectors
    features[Feature("words", 0)] = 2 * torch.randn(len(HIDDEN_TOKENS), 7, generator=stream)
    return features


def targets(length: int = 5) -> Tensor:
    """The hidden tokens of each row, -100 at all others."""
    found = torch.full((len(LENGTHS), length), -100)
    for place, word in HIDDEN_TOKENS.items():
        found[place] = word
    return found


def features_of(*kinds: FeatureKind, **layers: Iterable[int]) -> frozenset[Feature]:
    """Features by kind: those without layers by name, the others with their layers."""
    of_layers = {Feature(kind, n) for kind, found in layers.items() for n in found}
    return frozenset({Feature(kind, 0) for kind in kinds} | of_layers)


def by_layer(features: Features, kind: FeatureKind) -> dict[int, Tensor]:
    """The features of one kind by their layer."""
    return {feature.layer: tensor for feature, tensor in features.items() if feature.kind == kind}


def contrasts(resolved: ResolvedTerm) -> Contrasts:
    """Maps and memories that have seen one batch and are left as they are."""
    made, sizes = Contrasts(resolved, num_rows=NUM_ROWS, seed=0), resolved.contrast
    assert sizes is not None
    assert sizes.student_width is not None
    assert sizes.teacher_width is not None
    stream = torch.Generator().manual_seed(9)
    contrasting = made.of_batch(ROWS, step=0)
    for pair in resolved.pairs or [OF_LOGITS]:
        widths = (sizes.student_width, sizes.teacher_width)
        contrasting(*(torch.randn(len(ROWS), width, generator=stream) for width in widths), pair)
    made.remember()
    return made.eval()


def loss(
    term: dict[str, Any],
    student: Features,
    teacher: Features,
    *,
    length: int = 5,
    sizes: tuple[Sizes, Sizes] = (MODEL, MODEL),
    progress: float = 0.0,
) -> Tensor:
    """A term's loss of two models without a projection."""
    resolved = resolve_term(parse(term), student=sizes[0], teacher=sizes[1])
    mask = token_mask(length)
    compared = Compared(student, teacher, LABELS, mask, progress, targets(length))
    contrasting = None
    if resolved.contrast is not None:
        precise = any(tensor.dtype == torch.float64 for tensor in student.values())
        made = contrasts(resolved).to(torch.float64 if precise else torch.float32)
        contrasting = made.of_batch(ROWS, step=1)
    return term_loss(resolved, compared, Own(contrast=contrasting)).loss


def pad(features: Features, *, to: int, garbage: float) -> dict[Feature, Tensor]:
    """Put garbage wherever a token of padding is involved, and add more padding."""
    real = token_mask(to)
    pairs = real[:, None, :, None] & real[:, None, None, :]
    padded: dict[Feature, Tensor] = {}
    for feature, tensor in features.items():
        match feature.kind:
            case "logits" | "words":
                padded[feature] = tensor
            case "attentions" | "attention_means":
                more = to - tensor.shape[-1]
                wide = torch.nn.functional.pad(tensor, (0, more, 0, more))
                padded[feature] = wide.masked_fill(~pairs, garbage)
            case _:
                long = torch.nn.functional.pad(tensor, (0, 0, 0, to - tensor.shape[1]))
                padded[feature] = long.masked_fill(~real[:, :, None], garbage)
    return padded
