"""A loss of the user's own, for `plugin.yaml`."""

from torch import Tensor


def pooled_l1(student: Tensor, teacher: Tensor, token_mask: Tensor, *, power: int = 1) -> Tensor:
    """Mean absolute difference of the mean states of each row's real tokens."""
    real = token_mask.unsqueeze(-1)
    pooled = [(side * real).sum(1) / real.sum(1) for side in (student, teacher)]
    return (pooled[0] - pooled[1]).abs().pow(power).mean()
