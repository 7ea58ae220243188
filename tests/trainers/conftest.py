"""Tiny models and batches, made here: no download, weights large enough for features to differ."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 60


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads on tensors this small spend their time waiting for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def make_bert() -> Callable[..., BertForSequenceClassification]:
    """`make_bert(layers=4, width=32, heads=4, num_labels=3, seed=0)`: a BERT in `eval()`."""

    def make(
        *, layers: int = 4, width: int = 32, heads: int = 4, num_labels: int = 3, seed: int = 0
    ) -> BertForSequenceClassification:
        config = BertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=40,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            num_labels=num_labels,
            initializer_range=0.3,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return BertForSequenceClassification(config).eval()

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    """`make_batch([7, 4, 2], padded_to=9)`: a model's inputs, rows of these lengths."""

    def make(
        lengths: Sequence[int] = (7, 4, 2), *, padded_to: int | None = None, seed: int = 0
    ) -> dict[str, Tensor]:
        stream = torch.Generator().manual_seed(seed)
        shape = (len(lengths), padded_to or max(lengths))
        input_ids = torch.zeros(shape, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        token_type_ids = torch.zeros(shape, dtype=torch.long)
        for row, length in enumerate(lengths):
            input_ids[row, :length] = torch.randint(1, VOCABULARY, (length,), generator=stream)
            attention_mask[row, :length] = 1
            token_type_ids[row, length // 2 : length] = 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }

    return make
