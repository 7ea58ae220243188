"""Make a student of a shape, with the teacher's vocabulary and random weights."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.initialization import no_init_weights

from ..search_spaces.shape import Shape
from .bert import parts
from .streams import generator

INITIAL_STD = 0.02
"""Standard deviation of random weights, as in BERT (Devlin et al., 2019, arXiv:1810.04805)."""


def build_student(
    shape: Shape,
    *,
    teacher_config: BertConfig,
    num_labels: int,
    class_names: Sequence[str],
    dropout: float,
    seed: int,
) -> BertForSequenceClassification:
    """A classifier in training mode, on the CPU, in float32, all of whose weights are random.

    Maps and embeddings come from N(0, 0.02), biases are 0, LayerNorms 1 and 0. Every parameter has
    a stream of its own: a weight depends on the seed, its name and its shape alone, so that the
    blocks of a deeper student begin like those of a shallow one, whatever the task's classes.

    Args:
        shape: Depth, width, heads and feed-forward width.
        teacher_config: Gives vocabulary, positions, token types, activation and LayerNorm epsilon.
        num_labels: Classes of the task.
        class_names: Their names, in the order of the logits.
        dropout: Of hidden states, attention probabilities and the head's input.
        seed: The trial's seed.
    """
    if len(class_names) != num_labels:
        raise ValueError(f"{len(class_names)} class names were given for {num_labels} classes")
    config = BertConfig(
        vocab_size=teacher_config.vocab_size,
        max_position_embeddings=teacher_config.max_position_embeddings,
        type_vocab_size=teacher_config.type_vocab_size,
        pad_token_id=teacher_config.pad_token_id,
        hidden_act=teacher_config.hidden_act,
        layer_norm_eps=teacher_config.layer_norm_eps,
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        classifier_dropout=dropout,
        initializer_range=INITIAL_STD,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
    # Their own initialisation would draw every weight once more, from the global stream.
    with no_init_weights():
        student = BertForSequenceClassification(config)
    student.set_attn_implementation("sdpa")
    _fill(student.bert, seed=seed, role="backbone")
    _fill(student.classifier, seed=seed, role="head")
    student.train()
    return student


@torch.no_grad()
def _fill(part: nn.Module, *, seed: int, role: str) -> None:
    for prefix, module in part.named_modules():
        match module:
            case nn.LayerNorm():
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            case nn.Linear():
                stream = generator(seed, role, f"{prefix}.weight")
                nn.init.normal_(module.weight, std=INITIAL_STD, generator=stream)
                nn.init.zeros_(module.bias)
            case nn.Embedding():
                stream = generator(seed, role, f"{prefix}.weight")
                nn.init.normal_(module.weight, std=INITIAL_STD, generator=stream)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])


def count_parameters(model: nn.Module) -> dict[str, int]:
    """The parameters of a model: all, its embeddings with their LayerNorm, and its blocks.

    Pooler and head are in the first number alone.
    """
    known = parts(model)
    return {
        "parameters": _size([model]),
        "parameters/embeddings": _size([*known.embeddings, known.embedding_norm]),
        "parameters/encoder": _size(known.blocks),
    }


def _size(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
