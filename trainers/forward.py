"""One forward pass over a batch, in a trial's precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .bert import read_features

if TYPE_CHECKING:
    from .batches import Batch
    from .features import Features, Needs
    from .language import LanguageHead
    from .settings import Precision


def forward(
    model: nn.Module,
    batch: Batch,
    needs: Needs,
    *,
    precision: Precision,
    language_head: LanguageHead | None = None,
    is_whole: bool = False,
) -> Features:
    """The features that are needed, as `read_features`; the weights stay in fp32 in any case."""
    device_type = batch.input_ids.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
        return read_features(
            model,
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
            needs=needs,
            is_hidden=batch.is_hidden,
            language_head=language_head,
            is_whole=is_whole,
        )


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model's weights, in place; a transformers model's own `to` is typed wrongly."""
    nn.Module.to(model, device)
