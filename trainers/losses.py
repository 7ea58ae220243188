"""Losses as pure functions of features; which reduction is part of each one's contract.

Every function computes in float32 at least, whatever the features' precision, detaches the
teacher, and gives the mean in shape []. Positions of padding may hold anything, NaN included:
they are replaced before they meet a function whose derivative would multiply by them.

B rows, L tokens, H features, A heads, C classes. A token mask is boolean, True at real tokens;
in attentions, axis 2 is the query and axis 3 the key.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER_ATTENDED = torch.finfo(torch.float32).min / 2
"""Finite, because -inf - -inf is NaN; its exponential is exactly 0."""


def hard_label_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the task's labels.

    Args:
        student_logits: Shape [B, C].
        labels: Class indices, shape [B].

    Returns:
        Mean over rows, in nats, shape [].
    """
    return F.cross_entropy(_precise(student_logits), labels)


def soft_logit_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Forward KL divergence between softened distributions, times `temperature**2`.

    The square keeps the gradient's size when the temperature changes.

    Args:
        student_logits: Shape [B, C].
        teacher_logits: Shape [B, C]; no gradient flows into it.
        temperature: Greater than 0; 1 leaves both distributions unsoftened.

    Returns:
        Mean over rows, in nats, shape [].

    References:
        Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015,
        arXiv:1503.02531, section 2.
    """
    student = F.log_softmax(_precise(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_precise(teacher_logits.detach()) / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def soft_logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Squared difference of the raw logits.

    Args:
        student_logits: Shape [B, C].
        teacher_logits: Shape [B, C]; no gradient flows into it.

    Returns:
        Mean over rows and classes, shape [].

    References:
        Ba and Caruana, *Do Deep Nets Really Need to be Deep?*, 2014, arXiv:1312.6184, equation 1.
    """
    return F.mse_loss(_precise(student_logits), _precise(teacher_logits.detach()))


def hidden_state_mse(student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
    """Squared difference of hidden states of one width.

    Args:
        student: Shape [B, L, H], projected to the teacher's width where the widths differ.
        teacher: Shape [B, L, H]; no gradient flows into it.
        token_mask: Shape [B, L].

    Returns:
        Mean over the batch's real tokens and over features, shape [].

    References:
        Jiao et al., *TinyBERT*, 2020, arXiv:1909.10351, equation 8, over real tokens alone.
    """
    difference = _precise(student) - _precise(teacher.detach())
    return zero_padding(difference, token_mask).square().mean(dim=-1).sum() / token_mask.sum()


def hidden_state_cosine(student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
    """One minus the cosine of hidden states of one width.

    Args:
        student: Shape [B, L, H], projected to the teacher's width where the widths differ.
        teacher: Shape [B, L, H]; no gradient flows into it.
        token_mask: Shape [B, L].

    Returns:
        Mean over the batch's real tokens, between 0 and 2, shape [].

    References:
        Sanh et al., *DistilBERT*, 2019, arXiv:1910.01108, section 3.
    """
    student = zero_padding(_precise(student), token_mask)
    teacher = zero_padding(_precise(teacher.detach()), token_mask)
    distance = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return torch.where(token_mask, distance, 0.0).sum() / token_mask.sum()


def attention_score_mse(student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
    """Squared difference of attention scores, the dot products before mask and softmax.

    Args:
        student: Shape [B, A, L, L].
        teacher: Shape [B, A, L, L]; no gradient flows into it.
        token_mask: Shape [B, L].

    Returns:
        Mean over heads and over the batch's pairs of real tokens, shape [].

    References:
        Jiao et al., *TinyBERT*, 2020, arXiv:1909.10351, equation 7, over real pairs alone.
    """
    pairs = _token_pairs(token_mask)
    difference = torch.where(pairs, _precise(student) - _precise(teacher.detach()), 0.0)
    return difference.square().mean(dim=1).sum() / pairs.sum()


def attention_probability_kl(student: Tensor, teacher: Tensor, token_mask: Tensor) -> Tensor:
    """KL divergence of the teacher's attention from the student's, row by row.

    Args:
        student: Logarithms of probabilities, shape [B, A, L, L].
        teacher: Logarithms of probabilities, shape [B, A, L, L]; no gradient flows into it.
        token_mask: Shape [B, L].

    Returns:
        Sum over keys, mean over heads and over the batch's real queries, in nats, shape [].

    References:
        Wang et al., *MiniLM*, 2020, arXiv:2002.10957, equation 4.
    """
    teacher = _precise(teacher.detach())
    divergence = teacher.exp() * (teacher - _precise(student))
    real = torch.where(_token_pairs(token_mask), divergence, 0.0)
    return real.sum(dim=-1).mean(dim=1).sum() / token_mask.sum()


def attention_log_probabilities(scores: Tensor, token_mask: Tensor) -> Tensor:
    """Softmax of attention scores over the real keys, as logarithms.

    Args:
        scores: Dot products before mask and softmax, shape [B, A, L, L].
        token_mask: Shape [B, L].

    Returns:
        Shape [B, A, L, L]; finite everywhere, of no meaning at pairs with padding.
    """
    # Queries of padding are replaced too: a row of NaN would have a gradient of NaN.
    pairs = _token_pairs(token_mask)
    return F.log_softmax(torch.where(pairs, _precise(scores), _NEVER_ATTENDED), dim=-1)


def mean_of_heads(scores: Tensor) -> Tensor:
    """The mean over heads, with one head as its axis: [B, A, L, L] to [B, 1, L, L]."""
    return _precise(scores).mean(dim=1, keepdim=True)


def mean_of_head_log_probabilities(log_probabilities: Tensor) -> Tensor:
    """The logarithm of the heads' mean probability: [B, A, L, L] to [B, 1, L, L]."""
    num_heads = log_probabilities.shape[1]
    return _precise(log_probabilities).logsumexp(dim=1, keepdim=True) - math.log(num_heads)


def zero_padding(features: Tensor, token_mask: Tensor) -> Tensor:
    """Features [B, L, H] with zeros where the token mask [B, L] is False."""
    return torch.where(token_mask.unsqueeze(-1), features, 0.0)


def _token_pairs(token_mask: Tensor) -> Tensor:
    """Shape [B, 1, L, L]: True where query and key are both real tokens."""
    return token_mask[:, None, :, None] & token_mask[:, None, None, :]


def _precise(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
