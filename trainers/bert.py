"""Where a BERT keeps its parts, and how its features are read. No other module knows.

A classifier reads the first token alone, so of its last block it needs that token's output, for
which all tokens give keys and values. Unless somebody reads more of the block, the rest is left
out: nearly half of a model with two blocks.

Attention scores are computed again from the outputs of the query and key maps: PyTorch's fused
attention never shows them, and Hugging Face then returns an empty tuple of attentions without a
word. Only the blocks that are asked for pay for it. Their mean over heads is made here too: to hold
every head's for it would cost what it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer, eager_attention_forward

from ..search_spaces.errors import Problem, TeacherError
from .features import LOGITS, WORDS, Feature, Features, Needs, Sizes
from .transforms import attention_probabilities, clean, mean_of_heads

if TYPE_CHECKING:
    from .language import LanguageHead


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
        vocab_size=config.vocab_size,
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
    is_hidden: Tensor | None = None,
    language_head: LanguageHead | None = None,
    is_whole: bool = False,
) -> Features:
    """One forward pass, and of it what is needed; gradients flow as in the model itself.

    Args:
        model: A BERT classifier, in the mode in which the caller wants it.
        input_ids: Shape [B, L].
        attention_mask: Shape [B, L]; 0 is padding.
        token_type_ids: Shape [B, L].
        needs: Which features.
        is_hidden: Shape [B, L]; where `words` are read.
        language_head: Makes `words` of the last block's hidden states.
        is_whole: Run the last block for all tokens whatever is needed, so that no feature's
            rounding hangs on what else is read.

    Raises:
        TeacherError: The model is no BERT classifier.
        ValueError: A layer is needed that the model does not have.
    """
    known = classifier(model)
    size = sizes(known)
    _refuse_missing_layers(needs, size)
    features: dict[Feature, Tensor] = {}
    last = Feature("hidden_states", size.num_hidden_layers)
    with ExitStack() as hooks:
        recorded = _recorded(needs - {WORDS} | ({last} if WORDS in needs else frozenset()))
        for feature in recorded:
            hooks.enter_context(_record(_source(known, feature), features, feature))
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        if is_whole or recorded & _of_all_tokens(size):
            features[LOGITS] = known(**inputs).logits
        else:
            features[LOGITS] = _logits_alone(known, **inputs)
    # A layer that silently did not come back would be a term that silently is zero.
    assert recorded <= features.keys(), "the output of a layer did not come back"
    for layer in {feature.layer for feature in needs if feature.kind in _OF_SCORES}:
        scores = _scores(
            features[Feature("queries", layer)],
            features[Feature("keys", layer)],
            num_heads=size.num_attention_heads,
        )
        # One layer's scores at a time, where nobody reads them: they are the largest feature.
        if (of_heads := Feature("attentions", layer)) in needs:
            features[of_heads] = scores
        if (mean := Feature("attention_means", layer)) in needs:
            features[mean] = _mean_of_heads(scores, attention_mask.bool())
    num_words = 0
    if WORDS in needs:
        assert language_head is not None, "words are read through a head"
        assert is_hidden is not None, "words are read where tokens are hidden"
        hidden = features[last][is_hidden]
        features[WORDS] = language_head(hidden, known.bert.embeddings.word_embeddings.weight)
        num_words = len(hidden)
    rows, length = input_ids.shape
    shapes = {
        "logits": (rows, size.num_labels),
        "words": (num_words, size.vocab_size),
        "attentions": (rows, size.num_attention_heads, length, length),
        "attention_means": (rows, 1, length, length),
    }
    read = {feature: features[feature] for feature in needs}
    assert all(
        one.shape == shapes.get(feature.kind, (rows, length, size.hidden_size))
        for feature, one in read.items()
    )
    return read


_OF_SCORES = ("attentions", "attention_means")
"""Kinds that are made of queries and keys."""


def _of_all_tokens(size: Sizes) -> Needs:
    """What only a whole last block gives; its keys and values are of all tokens anyway."""
    return frozenset(Feature(kind, size.num_hidden_layers) for kind in ("hidden_states", "queries"))


def _logits_alone(
    model: BertForSequenceClassification,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor,
) -> Tensor:
    """The logits of the model's own forward pass, without the work that they do not depend on."""
    hidden_BLH = model.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    mask = create_bidirectional_mask(
        config=model.config, inputs_embeds=hidden_BLH, attention_mask=attention_mask
    )
    *blocks, last = parts(model).blocks
    assert isinstance(last, BertLayer)
    for block in blocks:
        hidden_BLH = block(hidden_BLH, mask)
    first_B1H = _first_token(last, hidden_BLH, mask)
    pooled_BH = parts(model).pooler(first_B1H)
    logits: Tensor = model.classifier(model.dropout(pooled_BH))
    return logits


def _first_token(block: BertLayer, hidden_BLH: Tensor, mask: Tensor | None) -> Tensor:
    """A block's output at the first token, [B, 1, H]."""
    attention = block.attention.self
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )

    def by_head(vectors: Tensor) -> Tensor:
        heads: Tensor = vectors.unflatten(-1, (attention.num_attention_heads, -1))
        return heads.transpose(1, 2)

    first_B1H = hidden_BLH[:, :1]
    mixed_B1AD, _ = attend(
        attention,
        by_head(attention.query(first_B1H)),
        by_head(attention.key(hidden_BLH)),
        by_head(attention.value(hidden_BLH)),
        None if mask is None else mask[:, :, :1],
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
    )
    attended_B1H = block.attention.output(mixed_B1AD.flatten(2), first_B1H)
    output_B1H: Tensor = block.output(block.intermediate(attended_B1H), attended_B1H)
    return output_B1H


def _refuse_missing_layers(needs: Needs, size: Sizes) -> None:
    depth = size.num_hidden_layers
    missing = sorted(
        {
            layer
            for kind, layer in needs
            if not int(kind not in ("logits", "words", "hidden_states")) <= layer <= depth
        }
    )
    if missing:
        raise ValueError(f"layers {missing} are needed of a model with {depth} blocks")


def _recorded(needs: Needs) -> Needs:
    """What hooks must keep: scores are made of queries and keys."""
    made = {feature for feature in needs if feature.kind in _OF_SCORES}
    parts = {Feature(kind, layer) for _, layer in made for kind in ("queries", "keys")}
    return (needs - made - {LOGITS}) | parts


def _source(model: BertForSequenceClassification, feature: Feature) -> nn.Module:
    """The module whose output a feature is."""
    kind, layer = feature
    if kind == "hidden_states" and layer == 0:
        return model.bert.embeddings
    block = model.bert.encoder.layer[layer - 1]
    if kind == "hidden_states":
        return block
    name = {"queries": "query", "keys": "key", "values": "value"}[kind]
    return block.get_submodule(f"attention.self.{name}")


def _record(module: nn.Module, into: dict[Feature, Tensor], feature: Feature) -> RemovableHandle:
    """Keep the module's output; leaving the handle as a context removes the hook."""

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        into[feature] = output

    return module.register_forward_hook(keep)


def _scores(query_BLH: Tensor, key_BLH: Tensor, *, num_heads: int) -> Tensor:
    """Scaled dot products [B, A, L, L] in float32, in which fused attention accumulates them."""
    rows, length, width = query_BLH.shape
    size = width // num_heads

    def by_head(vectors_BLH: Tensor) -> Tensor:
        # Copied once, as what is multiplied: float32, head after head.
        vectors_BALD = vectors_BLH.view(rows, length, num_heads, size).transpose(1, 2)
        return vectors_BALD.to(torch.float32, memory_format=torch.contiguous_format)

    with torch.autocast(query_BLH.device.type, enabled=False):
        scores: Tensor = by_head(query_BLH) @ by_head(key_BLH).transpose(2, 3) * size**-0.5
    return scores


def _mean_of_heads(scores: Tensor, token_mask: Tensor) -> Tensor:
    """The mean over heads of the probabilities [B, 1, L, L], in float32."""
    with torch.autocast(scores.device.type, enabled=False):
        probabilities = attention_probabilities(clean("attentions", scores, token_mask), token_mask)
        return mean_of_heads(probabilities)
