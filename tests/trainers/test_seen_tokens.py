"""Only embeddings of tokens that are read are trained; the model that comes of it is no other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from kdsweep.search_spaces.training import Training
from kdsweep.trainers.batches import Split
from kdsweep.trainers.optim import make_optimiser, set_learning_rate
from kdsweep.trainers.seen_tokens import SeenEmbedding, seeing, seen_ids

MakeBert = Callable[..., BertForSequenceClassification]
MakeBatch = Callable[..., dict[str, Tensor]]

TRAINING = Training(weight_decay=0.1)
RATES = (0.01, 0.02, 0.005)
LABELS = torch.tensor([0, 1, 2])


def _split(*rows: list[int]) -> Split:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([id for row in rows for id in row])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return Split(ids, torch.zeros_like(ids), offsets, torch.zeros(len(rows), dtype=torch.long))


def _take_steps(
    model: BertForSequenceClassification,
    batch: dict[str, Tensor],
    after: Callable[[float], None] = lambda _: None,
) -> None:
    optimiser = make_optimiser([model], TRAINING)
    for rate in RATES:
        set_learning_rate(optimiser, rate)
        nn.functional.cross_entropy(model(**batch).logits, LABELS).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after(rate)


def test_ids_are_those_of_all_splits_and_padding() -> None:
    ids = seen_ids([_split([5, 9, 5], [7]), _split([9, 3])], pad_token_id=0)
    assert ids.tolist() == [0, 3, 5, 7, 9]


def test_training_equals_that_of_all_embeddings(make_bert: MakeBert, make_batch: MakeBatch) -> None:
    batch = make_batch()
    whole, narrow = make_bert(), make_bert()
    _take_steps(whole, batch)
    with seeing(narrow, batch["input_ids"].unique()) as seen:
        assert narrow.bert.embeddings.word_embeddings.weight.shape[0] < whole.config.vocab_size
        _take_steps(narrow, batch, lambda rate: seen.step(learning_rate=rate, weight_decay=0.1))
    expected = whole.state_dict()
    assert narrow.state_dict().keys() == expected.keys()
    for name, weight in narrow.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)


def test_tokens_that_are_not_read_only_decay(make_bert: MakeBert) -> None:
    model = make_bert()
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()
    with seeing(model, torch.tensor([0, 4])) as seen:
        for rate in RATES:
            seen.step(learning_rate=rate, weight_decay=0.1)
    after = model.bert.embeddings.word_embeddings.weight.detach()
    # 0.999 times 0.998 times 0.9995
    torch.testing.assert_close(after[5:], before[5:] * 0.9965035, rtol=1e-6, atol=0)
    assert torch.equal(after[[0, 4]], before[[0, 4]])


def test_what_is_not_trained_does_not_decay_either(make_bert: MakeBert) -> None:
    model = make_bert()
    model.requires_grad_(requires_grad=False)
    before = model.bert.embeddings.word_embeddings.weight.clone()
    with seeing(model, torch.tensor([0, 4])) as seen:
        seen.step(learning_rate=0.1, weight_decay=0.1)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before)


def test_the_models_own_embeddings_come_back_whatever_happens(make_bert: MakeBert) -> None:
    model = make_bert()
    own = model.bert.embeddings.word_embeddings
    with pytest.raises(KeyError), seeing(model, torch.tensor([0, 4])):
        assert isinstance(model.bert.embeddings.word_embeddings, SeenEmbedding)
        raise KeyError
    assert model.bert.embeddings.word_embeddings is own


def test_kept_weights_are_widened_as_of_their_own_step(make_bert: MakeBert) -> None:
    model = make_bert()
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()
    name = "bert.embeddings.word_embeddings.weight"
    with seeing(model, torch.tensor([0, 4])) as seen:
        seen.step(learning_rate=0.5, weight_decay=0.1)
        kept = {name: torch.ones(2, before.shape[1])}
        widened = seen.widen(kept, decay=0.5)
    expected = before * 0.5
    expected[[0, 4]] = 1.0
    assert torch.equal(widened[name], expected)


def test_a_token_that_was_not_counted_is_an_error(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model, batch = make_bert(), make_batch()
    with (
        seeing(model, batch["input_ids"].unique()[1:]),
        pytest.raises(IndexError, match="out of range"),
    ):
        model(**batch)


def test_padding_gets_no_gradient(make_bert: MakeBert, make_batch: MakeBatch) -> None:
    model, batch = make_bert(), make_batch(padded_to=9)
    with seeing(model, batch["input_ids"].unique()):
        model(**batch).logits.sum().backward()
        weight = model.bert.embeddings.word_embeddings.weight
        assert weight.grad is not None
        assert not weight.grad[0].any()
        assert weight.grad[1:].any(dim=1).all()
