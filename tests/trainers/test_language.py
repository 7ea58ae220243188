"""Hidden tokens and the head that guesses them, against masked language models of transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
)
from world import SPECIAL, World, write_model

from kdsweep.search_spaces.errors import TeacherError
from kdsweep.search_spaces.task import Teacher
from kdsweep.trainers.batches import Batch
from kdsweep.trainers.bert import read_features
from kdsweep.trainers.features import WORDS
from kdsweep.trainers.language import (
    LanguageHead,
    Vocabulary,
    hide_tokens,
    make_language_head,
    save_language_head,
    teachers_language_head,
)
from kdsweep.trainers.sources import TeacherSource, locate_teacher
from kdsweep.trainers.streams import generator

MakeBert = Callable[..., BertForSequenceClassification]

VOCABULARY = Vocabulary(size=60, mask_token_id=4, special=torch.arange(5))


def batch_of(rows: int = 40, length: int = 30) -> Batch:
    """Rows of 1 to `length` - 2 words between [CLS] and [SEP]."""
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (rows, length), generator=stream)
    lengths = torch.randint(3, length + 1, (rows,), generator=stream)
    mask = torch.arange(length) < lengths[:, None]
    ids[:, 0] = 2
    ids[torch.arange(rows), lengths - 1] = 3
    ids = ids.masked_fill(~mask, 0)
    return Batch(torch.arange(rows), ids, mask.long(), torch.zeros_like(ids), lengths)


def hidden(batch: Batch, seed: int = 0) -> Batch:
    return hide_tokens(batch, VOCABULARY, stream=generator(seed, "hidden", "0", "0"))


# Which tokens are hidden (BERT, appendix A.1)


def test_of_each_row_15_percent_of_the_words_are_hidden_and_at_least_one() -> None:
    batch = batch_of()
    words = batch.attention_mask.sum(1) - 2
    found = hidden(batch)
    assert found.is_hidden is not None
    assert found.is_hidden.sum(1).tolist() == [max(1, round(0.15 * n)) for n in words.tolist()]


def test_special_tokens_and_padding_are_never_hidden_and_targets_are_what_stood_there() -> None:
    batch = batch_of()
    found = hidden(batch)
    assert found.is_hidden is not None
    assert found.targets is not None
    assert (batch.input_ids[found.is_hidden] >= len(SPECIAL)).all()
    assert (found.targets[found.is_hidden] == batch.input_ids[found.is_hidden]).all()
    assert (found.targets[~found.is_hidden] == -100).all()
    assert (found.input_ids[~found.is_hidden] == batch.input_ids[~found.is_hidden]).all()


def test_four_fifths_are_masked_a_tenth_is_another_word_and_a_tenth_stays() -> None:
    batch = batch_of(rows=4000)
    found = hidden(batch)
    assert found.is_hidden is not None
    shown, true = found.input_ids[found.is_hidden], batch.input_ids[found.is_hidden]
    shares = [(shown == 4).float().mean().item(), (shown == true).float().mean().item()]
    # Of some 10,000 tokens; a random word is the true one in one of sixty.
    assert shares == pytest.approx([0.8 + 0.1 / 60, 0.1 + 0.1 / 60], abs=0.015)


def test_a_row_of_special_tokens_alone_hides_nothing() -> None:
    ids = torch.tensor([[2, 3, 0, 0]])
    empty = Batch(torch.zeros(1), ids, (ids > 0).long(), torch.zeros_like(ids), torch.zeros(1))
    found = hidden(empty)
    assert found.is_hidden is not None
    assert not found.is_hidden.any()


def test_what_is_hidden_depends_on_the_stream_alone() -> None:
    batch = batch_of()
    one, again, other = hidden(batch), hidden(batch), hidden(batch, seed=1)
    assert one.input_ids.equal(again.input_ids)
    assert not one.input_ids.equal(other.input_ids)


# The head


@pytest.fixture
def model() -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=45,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = BertForMaskedLM(config).eval()
        torch.nn.init.normal_(made.cls.predictions.bias)
    return made


def as_source(folder: Path) -> TeacherSource:
    return TeacherSource(model="saved", folder=folder, revision=None)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_words_are_the_logits_of_transformers_at_the_hidden_tokens(
    kind: type[BertForMaskedLM | BertForPreTraining], model: BertForMaskedLM, tmp_path: Path
) -> None:
    known = kind(model.config).eval()
    known.load_state_dict(model.state_dict(), strict=False)
    known.save_pretrained(tmp_path)
    ours = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    head = teachers_language_head(as_source(tmp_path), tmp_path / "prepared")
    found = hide_tokens(
        batch_of(rows=6, length=12),
        Vocabulary(size=45, mask_token_id=4, special=torch.arange(5)),
        stream=generator(0, "hidden"),
    )
    ids = found.input_ids.clamp_max(44)
    inputs = {
        "input_ids": ids,
        "attention_mask": found.attention_mask,
        "token_type_ids": found.token_type_ids,
    }
    with torch.no_grad():
        words = read_features(
            ours,
            **inputs,
            needs=frozenset({WORDS}),
            is_hidden=found.is_hidden,
            language_head=head,
        )[WORDS]
        said = known(**inputs)
        logits = said.logits if kind is BertForMaskedLM else said.prediction_logits
    torch.testing.assert_close(words, logits[found.is_hidden])


def test_a_checkpoint_without_a_head_is_refused_with_the_way_out(
    world: World, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError) as caught:
        teachers_language_head(locate_teacher(world.teacher), tmp_path)
    assert "has no head for masked language modelling" in str(caught.value)
    assert "language_head: {}" in str(caught.value)


def test_a_head_that_was_trained_is_read_in_place_of_the_checkpoints(
    model: BertForMaskedLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    trained = make_language_head(model.config, seed=3)
    save_language_head(trained, tmp_path)
    found = teachers_language_head(as_source(tmp_path), tmp_path)
    assert found.transform.dense.weight.equal(trained.transform.dense.weight)


def test_a_head_is_a_function_of_its_seed_and_leaves_the_global_stream_alone(
    model: BertForMaskedLM,
) -> None:
    def weights(head: LanguageHead) -> list[float]:
        return head.transform.dense.weight.flatten().tolist()

    state = torch.get_rng_state()
    one, again, other = (make_language_head(model.config, seed=seed) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(state)
    assert weights(one) == weights(again) != weights(other)


def test_the_vocabulary_is_that_of_the_teachers_tokenizer(world: World) -> None:
    found = Vocabulary.of(locate_teacher(world.teacher))
    assert (found.size, found.mask_token_id) == (45, 4)
    assert found.special.tolist() == [0, 1, 2, 3, 4]


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    file.write_text(file.read_text().replace("[MASK]", "mask"))
    with pytest.raises(TeacherError, match="has no token"):
        Vocabulary.of(locate_teacher(Teacher(model=str(tmp_path / "model"))))
