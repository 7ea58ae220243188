"""How two features are compared: neither masked nor reduced.

The student comes first. No gradient flows into the teacher: the objective detaches it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-8


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of every number; the shape stays."""
    return F.mse_loss(student, teacher, reduction="none")


def huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the square of a difference below 1, and the difference less a half above."""
    return F.smooth_l1_loss(student, teacher, reduction="none")


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine along the last axis, between 0 and 2; the last axis goes."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def kl(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities in nats; the last axis goes."""
    return (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)


def reverse_kl(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    """KL(student || teacher) of log-probabilities in nats; the last axis goes."""
    return kl(teacher_log, student_log)


def cross_entropy(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    """Cross-entropy of the student under the teacher: their KL plus the teacher's entropy."""
    return -(teacher_log.exp() * student_log).sum(dim=-1)


def jsd(student_log: Tensor, teacher_log: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of log-probabilities along the last axis, in nats.

    `beta KL(teacher || m) + (1 - beta) KL(student || m)` with
    `m = beta teacher + (1 - beta) student`; between 0 and 1 both excluded.

    References:
        Agarwal et al., *GKD*, 2024, arXiv:2306.13649.
    """
    share = torch.tensor(beta, dtype=student_log.dtype, device=student_log.device)
    mixture = torch.logaddexp(teacher_log + share.log(), student_log + torch.log1p(-share))
    return beta * kl(mixture, teacher_log) + (1 - beta) * kl(mixture, student_log)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, *, target: float, others: float
) -> Tensor:
    """Decoupled distillation: the target class against the rest, and the rest among themselves.

    With two classes the second part is 0.

    Args:
        student: Softened logits, shape [B, C].
        teacher: Softened logits, shape [B, C].
        labels: Class indices, shape [B].
        target: Weight of the first part.
        others: Weight of the second part.

    Returns:
        In nats, shape [B].

    References:
        Zhao et al., *Decoupled Knowledge Distillation*, 2022, arXiv:2203.08679.
    """
    is_target = F.one_hot(labels, student.shape[-1]).bool()
    parts = [_decoupled(logits, is_target) for logits in (student, teacher)]
    (student_binary, student_rest), (teacher_binary, teacher_rest) = parts
    return target * kl(student_binary, teacher_binary) + others * kl(student_rest, teacher_rest)


def _decoupled(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target and rest [B, 2], and of the rest's classes [B, C - 1]."""
    rows, classes = logits.shape
    log_probabilities = F.log_softmax(logits, dim=-1)
    rest = log_probabilities[~is_target].view(rows, classes - 1)
    binary = torch.stack([log_probabilities[is_target], rest.logsumexp(dim=-1)], dim=-1)
    return binary, F.log_softmax(rest, dim=-1)


def pearson_distance(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """One minus Pearson's correlation along an axis, between 0 and 2; the axis goes."""
    student = student - student.mean(dim=dim, keepdim=True)
    teacher = teacher - teacher.mean(dim=dim, keepdim=True)
    return 1 - F.cosine_similarity(student, teacher, dim=dim, eps=_EPSILON)


def cka_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the similarity of two centred Gram matrices [N, N]; shape [].

    References:
        Kornblith et al., *Similarity of Neural Network Representations Revisited*, 2019,
        arXiv:1905.00414.
    """
    # Estimates of a variance may fall below 0 when examples are few.
    norms = [side.square().sum().clamp_min(_EPSILON).sqrt() for side in (student, teacher)]
    return 1 - (student * teacher).sum() / (norms[0] * norms[1])
