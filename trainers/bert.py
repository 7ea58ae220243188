"""Where a BERT keeps its parts, and how its features are read. No other module knows.

Attention scores are computed again from the outputs of the query and key maps: PyTorch's fused
attention never shows them, and Hugging Face then returns an empty tuple of attentions without a
word. Only the blocks that are asked for pay for it.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import BertForSequenceClassification, PreTrainedModel

from ..search_spaces.errors import Problem, TeacherError
from .features import Features, Needs, Sizes


class Parts(NamedTuple):
    """A classifier's parts, from the tokens to the logits."""

    embeddings: tuple[nn.Embedding, ...]
    """Word, position and type embeddings."""
    embedding_norm: nn.LayerNorm
    blocks: tuple[nn.Module, ...]
    """Block n is `blocks[n - 1]`."""
    pooler: nn.Module
    """The map from the first token to the head."""
    head: nn.Linear


def classifier(model: nn.Module) -> BertForSequenceClassification:
    """The model itself, if it is one that this module knows.

    Raises:
        TeacherError: It is not a BERT encoder with a classification head.
    """
    if isinstance(model, BertForSequenceClassification) and not model.config.is_decoder:
        return model
    config = model.config if isinstance(model, PreTrainedModel) else None
    raise TeacherError(
        [
            Problem(
                path="teacher.model",
                what=f"is a {type(model).__name__} (model type "
                f"{getattr(config, 'model_type', 'unknown')!r})",
                mend="Name a BERT encoder with a classification head (model type 'bert').",
            )
        ]
    )


def sizes(model: nn.Module) -> Sizes:
    """The sizes of a model's features."""
    known = classifier(model)
    config = known.config
    return Sizes(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_labels=known.classifier.out_features,
    )


def parts(model: nn.Module) -> Parts:
    """The named parts of a model; together they hold every parameter."""
    known = classifier(model)
    embeddings, pooler = known.bert.embeddings, known.bert.pooler
    assert pooler is not None, "a classifier reads its pooler"
    return Parts(
        embeddings=(
            embeddings.word_embeddings,
            embeddings.position_embeddings,
            embeddings.token_type_embeddings,
        ),
        embedding_norm=embeddings.LayerNorm,
        blocks=tuple(known.bert.encoder.layer),
        pooler=pooler,
        head=known.classifier,
    )


def linear_maps(part: nn.Module) -> Iterator[nn.Linear]:
    """The linear maps of a block or pooler, in the same order in every model."""
    return (module for module in part.modules() if isinstance(module, nn.Linear))


def layer_norms(part: nn.Module) -> Iterator[nn.LayerNorm]:
    """The LayerNorms of a block, in the same order in every model."""
    return (module for module in part.modules() if isinstance(module, nn.LayerNorm))


def read_features(
    model: nn.Module,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor,
    needs: Needs,
) -> Features:
    """One forward pass, and of it what is needed; gradients flow as in the model itself.

    Args:
        model: A BERT classifier, in the mode in which the caller wants it.
        input_ids: Shape [B, L].
        attention_mask: Shape [B, L]; 0 is padding.
        token_type_ids: Shape [B, L].
        needs: Which features, by layer.

    Raises:
        TeacherError: The model is no BERT classifier.
        ValueError: A layer is needed that the model does not have.
    """
    known = classifier(model)
    size = sizes(known)
    _refuse_missing_layers(needs, size)
    outputs: dict[int, Tensor] = {}
    queries: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    blocks = known.bert.encoder.layer
    with ExitStack() as hooks:
        for layer in needs.hidden_states:
            source = blocks[layer - 1] if layer else known.bert.embeddings
            hooks.enter_context(_record(source, outputs, layer))
        for layer in needs.attentions:
            attention = blocks[layer - 1].get_submodule("attention.self")
            hooks.enter_context(_record(attention.get_submodule("query"), queries, layer))
            hooks.enter_context(_record(attention.get_submodule("key"), keys, layer))
        logits = known(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits
    # A layer that silently did not come back would be a term that silently is zero.
    assert outputs.keys() == needs.hidden_states, "the output of a block did not come back"
    assert queries.keys() == keys.keys() == needs.attentions, "an attention was not computed"
    num_heads = size.num_attention_heads
    scores = {layer: _scores(queries[layer], keys[layer], num_heads=num_heads) for layer in queries}
    rows, length = input_ids.shape
    assert all(one.shape == (rows, length, size.hidden_size) for one in outputs.values())
    assert all(one.shape == (rows, num_heads, length, length) for one in scores.values())
    return Features(
        logits=logits if needs.logits else None, hidden_states=outputs, attentions=scores
    )


def _refuse_missing_layers(needs: Needs, size: Sizes) -> None:
    depth = size.num_hidden_layers
    missing = sorted(
        {layer for layer in needs.hidden_states if not 0 <= layer <= depth}
        | {layer for layer in needs.attentions if not 1 <= layer <= depth}
    )
    if missing:
        raise ValueError(f"layers {missing} are needed of a model with {depth} blocks")


def _record(module: nn.Module, into: dict[int, Tensor], layer: int) -> RemovableHandle:
    """Keep the module's output; leaving the handle as a context removes the hook."""

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[layer] = output

    return module.register_forward_hook(keep)


def _scores(query_BLH: Tensor, key_BLH: Tensor, *, num_heads: int) -> Tensor:
    """Scaled dot products [B, A, L, L] in float32, in which fused attention accumulates them."""
    rows, length, width = query_BLH.shape
    size = width // num_heads
    with torch.autocast(query_BLH.device.type, enabled=False):
        query_BALD = query_BLH.float().view(rows, length, num_heads, size).transpose(1, 2)
        key_BADL = key_BLH.float().view(rows, length, num_heads, size).permute(0, 2, 3, 1)
        return torch.matmul(query_BALD * size**-0.5, key_BADL)
