"""What is made of a feature before two models are compared; the same for both sides.

Features come in float32 with zeros in the place of padding (`clean`). B rows, L tokens, H features,
A heads, C classes, N examples; a token mask [B, L] is boolean, True at real tokens. In attentions
axis 2 is the query and axis 3 the key.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..search_spaces.resolution import FeatureKind
from .masking import kept

_NEVER_ATTENDED = torch.finfo(torch.float32).min / 2
"""Finite, because -inf - -inf is NaN; its exponential is exactly 0."""

_EPSILON = 1e-8
_LEAST_PROBABILITY = 1e-30


def clean(kind: FeatureKind, feature: Tensor, token_mask: Tensor) -> Tensor:
    """A feature in float32 at least, with zeros in the place of padding.

    Padding may hold anything, NaN included, and a derivative multiplies by what it meets: zeros
    come first, and a mask afterwards.
    """
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    match kind:
        case "logits" | "words":
            return feature
        case "attentions" | "attention_means":
            return kept(feature, token_pairs(token_mask).unsqueeze(1))
        case _:
            return kept(feature, token_mask.unsqueeze(-1))


def token_pairs(token_mask: Tensor) -> Tensor:
    """Shape [B, L, L]: True where query and key are both real tokens."""
    return token_mask[:, :, None] & token_mask[:, None, :]


# Logits


def standardise(logits: Tensor) -> Tensor:
    """Each row brought to mean 0 and deviation 1; [B, C] to [B, C].

    References:
        Sun et al., *Logit Standardization in Knowledge Distillation*, 2024, arXiv:2403.01427.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + _EPSILON)


# Hidden states


def first_token(hidden: Tensor) -> Tensor:
    """The first token of each row: [B, L, H] to [B, H]."""
    return hidden[:, 0]


def mean_of_tokens(hidden: Tensor, token_mask: Tensor) -> Tensor:
    """The mean of each row's real tokens: [B, L, H] to [B, H]."""
    return hidden.sum(dim=1) / token_mask.sum(dim=1, keepdim=True)


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the last axis brought to length 1; zero stays zero."""
    return F.normalize(vectors, dim=-1)


def gram(hidden: Tensor, token_mask: Tensor) -> Tensor:
    """Products of features, mean over a row's tokens: [B, L, H] to [B, H, H]."""
    return hidden.transpose(1, 2) @ hidden / token_mask.sum(dim=1)[:, None, None]


def token_similarity(hidden: Tensor) -> Tensor:
    """Products of a row's tokens, mean over features: [B, L, H] to [B, L, L]."""
    return hidden @ hidden.transpose(1, 2) / hidden.shape[-1]


def examples(hidden: Tensor, token_mask: Tensor) -> Tensor:
    """The real tokens of a batch, one after the other: [B, L, H] to [N, H]."""
    return hidden[token_mask]


def centred_gram(examples_NH: Tensor) -> Tensor:
    """Products of examples, with rows and columns centred without bias: [N, H] to [N, N].

    The mean product of two such matrices of N examples over N * (N - 3) is the unbiased estimate of
    HSIC with a linear kernel (Székely and Rizzo, 2014, Annals of Statistics 42, equation 2.1; equal
    to Song et al., 2012, JMLR 13, equation 5). N is at least 4.
    """
    n = len(examples_NH)
    # What is compared does not change with the mean, and float32 sums lose less without it.
    examples_NH = examples_NH - examples_NH.mean(dim=0)
    others = ~torch.eye(n, dtype=torch.bool, device=examples_NH.device)
    products = torch.where(others, examples_NH @ examples_NH.T, 0.0)
    sums = products.sum(dim=0)
    centred = (
        products
        - sums[:, None] / (n - 2)
        - sums[None, :] / (n - 2)
        + sums.sum() / ((n - 1) * (n - 2))
    )
    return torch.where(others, centred, 0.0)


# Attention


def attention_log_probabilities(scores: Tensor, token_mask: Tensor) -> Tensor:
    """Softmax of scores over the real keys, as logarithms: [B, A, L, L] to the same.

    Finite everywhere, of no meaning at pairs with padding.
    """
    return F.log_softmax(_of_real_keys(scores, token_mask), dim=-1)


def attention_probabilities(scores: Tensor, token_mask: Tensor) -> Tensor:
    """Softmax of scores over the real keys: [B, A, L, L] to the same.

    Of no meaning where the query is padding.
    """
    return F.softmax(_of_real_keys(scores, token_mask), dim=-1)


def _of_real_keys(scores: Tensor, token_mask: Tensor) -> Tensor:
    never = scores.new_zeros(token_mask.shape).masked_fill_(~token_mask, _NEVER_ATTENDED)
    return scores + never[:, None, None, :]


def mean_of_heads(attention: Tensor) -> Tensor:
    """The mean over heads, with one head as its axis: [B, A, L, L] to [B, 1, L, L]."""
    return attention.mean(dim=1, keepdim=True)


def sum_of_heads(attention: Tensor) -> Tensor:
    """The sum over heads, with one head as its axis: [B, A, L, L] to [B, 1, L, L]."""
    return attention.sum(dim=1, keepdim=True)


def mean_of_neighbouring_heads(attention: Tensor, *, num_groups: int) -> Tensor:
    """The mean over groups of neighbouring heads: [B, A, L, L] to [B, num_groups, L, L]."""
    rows, _, length, _ = attention.shape
    return attention.view(rows, num_groups, -1, length, length).mean(dim=2)


def logarithm(probabilities: Tensor) -> Tensor:
    """Of probabilities, those below 1e-30 as if they were that, and without a gradient.

    A gradient divides by what it is the logarithm of: with its weight it must stay finite.
    """
    return probabilities.clamp_min(_LEAST_PROBABILITY).log()


def log_mean_of_heads(log_probabilities: Tensor, *, num_groups: int) -> Tensor:
    """Logarithm of the mean probability over groups of neighbouring heads.

    [B, A, L, L] to [B, num_groups, L, L].
    """
    rows, _, length, _ = log_probabilities.shape
    grouped = log_probabilities.view(rows, num_groups, -1, length, length)
    return grouped.logsumexp(dim=2) - math.log(grouped.shape[2])


def self_relations(vectors: Tensor, token_mask: Tensor, *, num_heads: int) -> Tensor:
    """Log-probabilities with which a token's vector picks those of its row, head by head.

    Args:
        vectors: Queries, keys or values, shape [B, L, H]; H is a multiple of `num_heads`.
        token_mask: Shape [B, L].
        num_heads: Relation heads, the new split of H.

    Returns:
        Shape [B, num_heads, L, L].

    References:
        Wang et al., *MiniLMv2*, 2021, arXiv:2012.15828; scaled by the relation heads' own width.
    """
    rows, length, _ = vectors.shape
    heads = vectors.view(rows, length, num_heads, -1).transpose(1, 2)
    scores = (heads * heads.shape[-1] ** -0.5) @ heads.transpose(-1, -2)
    return attention_log_probabilities(scores, token_mask)


# Tokens and layers among themselves


def neighbours(token_mask: Tensor, *, window: int) -> Tensor:
    """Shape [B, L, L]: True where two real tokens are at most `window` apart."""
    place = torch.arange(token_mask.shape[1], device=token_mask.device)
    return token_pairs(token_mask) & ((place[:, None] - place[None, :]).abs() <= window)


def word_relations(hidden: Tensor, related: Tensor) -> Tensor:
    """Log-probabilities with which a token picks a related one by their cosine.

    Args:
        hidden: Shape [B, L, H].
        related: Shape [B, L, L], boolean.

    Returns:
        Shape [B, L, L].
    """
    directions = unit(hidden)
    cosines = directions @ directions.transpose(1, 2)
    return F.log_softmax(torch.where(related, cosines, _NEVER_ATTENDED), dim=-1)


def word_angles(hidden: Tensor, *, window: int) -> tuple[Tensor, Tensor]:
    """Cosines of the angles at each token between the tokens around it.

    Args:
        hidden: Shape [B, L, H].
        window: How far away these tokens may be.

    Returns:
        Cosines of shape [B, L, P], and for each of the P pairs of neighbours the two offsets from
        the token, shape [P, 2].
    """
    offsets = [step for step in range(-window, window + 1) if step]
    padded = F.pad(hidden, (0, 0, window, window))
    length = hidden.shape[1]
    around = torch.stack(
        [padded[:, window + step : window + step + length] for step in offsets], dim=2
    )
    directions = unit(around - hidden.unsqueeze(2))
    first, second = torch.triu_indices(len(offsets), len(offsets), 1, device=hidden.device)
    cosines = (directions @ directions.transpose(-1, -2))[..., first, second]
    steps = torch.tensor(offsets, device=hidden.device)
    return cosines, torch.stack([steps[first], steps[second]], dim=-1)


def both_real(token_mask: Tensor, offsets: Tensor) -> Tensor:
    """Whether a token and both tokens at its offsets are real: [B, L], [P, 2] to [B, L, P]."""
    length = token_mask.shape[1]
    place = torch.arange(length, device=token_mask.device)[:, None, None] + offsets
    is_inside = (place >= 0) & (place < length)
    is_real = token_mask[:, place.clamp(0, length - 1)] & is_inside
    return is_real.all(dim=-1) & token_mask[:, :, None]


def layer_relations(layers: Tensor) -> Tensor:
    """Log-probabilities with which a token's layer picks another by their cosine.

    [B, L, number of layers, H] to [B, L, number of layers, number of layers].
    """
    directions = unit(layers)
    return F.log_softmax(directions @ directions.transpose(-1, -2), dim=-1)


def layer_angles(layers: Tensor) -> Tensor:
    """Cosines of the angles at a layer between one below and one above, of the same token.

    [B, L, number of layers, H] to [B, L, number of triples].
    """
    number = layers.shape[2]
    triples = torch.combinations(torch.arange(number, device=layers.device), 3)
    below, middle, above = (layers[:, :, triples[:, n]] for n in range(3))
    return (unit(below - middle) * unit(above - middle)).sum(dim=-1)


# Rows among themselves


def row_distances(rows: Tensor) -> Tensor:
    """Distances of pairs of rows divided by their mean: [B, H] to [pairs].

    References:
        Park et al., *Relational Knowledge Distillation*, 2019, arXiv:1904.05068.
    """
    distances = F.pdist(rows)
    return distances / distances.mean().clamp_min(_EPSILON)


def row_angles(rows: Tensor) -> Tensor:
    """Cosines of the angles at a row between two others: [B, H] to [triples]."""
    number = len(rows)
    directions = unit(rows[None, :, :] - rows[:, None, :])
    cosines = directions @ directions.transpose(1, 2)
    place = torch.arange(number, device=rows.device)
    at, first, second = place[:, None, None], place[None, :, None], place[None, None, :]
    return cosines[(first < second) & (at != first) & (at != second)]


def row_similarities(rows: Tensor) -> Tensor:
    """Products of rows, each row of them brought to length 1: [B, H] to [B, B].

    References:
        Tung and Mori, *Similarity-Preserving Knowledge Distillation*, 2019, arXiv:1907.09682.
    """
    return unit(rows @ rows.T)


def row_probabilities(rows: Tensor) -> Tensor:
    """Log-probabilities with which a row picks another by their cosine: [B, H] to [B, B - 1].

    References:
        Passalis and Tefas, *Probabilistic Knowledge Transfer*, 2018, arXiv:1803.10837.
    """
    directions = unit(rows)
    number = len(rows)
    others = ~torch.eye(number, dtype=torch.bool, device=rows.device)
    likeness = (1 + directions @ directions.T)[others].view(number, number - 1) / 2
    return F.normalize(likeness.clamp_min(_EPSILON), p=1, dim=-1).log()


def row_correlations(rows: Tensor, *, gamma: float) -> Tensor:
    """Gaussian kernel of rows of length 1: [B, H] to [B, B].

    References:
        Peng et al., *Correlation Congruence*, 2019, arXiv:1904.01802.
    """
    directions = unit(rows)
    # Of vectors of length 1 the squared distance is 2 - 2 cos.
    return torch.exp(-2 * gamma * (1 - directions @ directions.T))
