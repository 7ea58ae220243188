import copy
from collections.abc import Callable

import pytest
import torch
from terms import by_layer, features_of
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from kdsweep.search_spaces.errors import TeacherError
from kdsweep.trainers.bert import layer_norms, linear_maps, parts, read_features, sizes
from kdsweep.trainers.features import LOGITS, Feature, Needs, Sizes

MakeBert = Callable[..., BertForSequenceClassification]
MakeBatch = Callable[..., dict[str, Tensor]]

BLOCKS = [1, 2, 3, 4]
ALL = features_of(
    "logits",
    hidden_states=[0, *BLOCKS],
    attentions=BLOCKS,
    attention_means=BLOCKS,
    queries=BLOCKS,
    keys=BLOCKS,
    values=BLOCKS,
)


def test_scores_become_the_attentions_that_hugging_face_returns_under_eager(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model, batch = make_bert(), make_batch()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    expected = eager(**batch, output_attentions=True).attentions
    features = read_features(model, **batch, needs=ALL)
    keys = batch["attention_mask"].bool()[:, None, None, :]
    assert len(expected) == 4
    for layer in range(1, 5):
        probabilities = (
            features[Feature("attentions", layer)].masked_fill(~keys, -torch.inf).softmax(dim=-1)
        )
        torch.testing.assert_close(probabilities, expected[layer - 1], atol=1e-6, rtol=1e-5)
        means = features[Feature("attention_means", layer)]
        real = batch["attention_mask"].bool()[:, None, :, None]
        theirs = expected[layer - 1].mean(dim=1, keepdim=True)
        torch.testing.assert_close(means * real, theirs * real, atol=1e-6, rtol=1e-5)


def test_hidden_states_are_those_that_hugging_face_returns(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model, batch = make_bert(), make_batch()
    expected = model(**batch, output_hidden_states=True)
    features = read_features(model, **batch, needs=ALL)
    assert len(expected.hidden_states) == 5
    for layer in range(5):
        assert torch.equal(features[Feature("hidden_states", layer)], expected.hidden_states[layer])
    assert torch.equal(features[LOGITS], expected.logits)


LITTLE = [
    features_of("logits"),
    features_of("logits", hidden_states=[0, 3], attentions=[3], keys=[4], values=[4]),
]
"""What leaves the last block's output to the first token."""


@pytest.mark.parametrize("needs", LITTLE)
@pytest.mark.parametrize("lengths", [(7, 4, 2), (5, 5, 5)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_last_block_of_the_first_token_alone_gives_the_logits_of_hugging_face(
    make_bert: MakeBert,
    make_batch: MakeBatch,
    needs: Needs,
    lengths: tuple[int, ...],
    implementation: str,
) -> None:
    model, batch = make_bert(), make_batch(lengths)
    model.set_attn_implementation(implementation)
    seen = _tokens_of_the_last_feed_forward(model)
    features = read_features(model, **batch, needs=needs)
    whole = read_features(model, **batch, needs=needs, is_whole=True)
    assert torch.equal(whole[LOGITS], model(**batch).logits)
    assert seen[:2] == [1, max(lengths)]
    for feature in needs:
        # Sums of a matrix product differ with its shape: a few units in the last place.
        torch.testing.assert_close(features[feature], whole[feature], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hidden_states", "queries", "attentions", "attention_means"])
def test_the_last_block_is_whole_where_it_is_read(
    make_bert: MakeBert, make_batch: MakeBatch, kind: str
) -> None:
    model = make_bert()
    seen = _tokens_of_the_last_feed_forward(model)
    read_features(model, **make_batch(), needs=features_of("logits", **{kind: [4]}))
    assert seen == [7]


def test_gradients_are_those_of_the_whole_last_block(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    short, batch = make_bert(), make_batch()
    whole = copy.deepcopy(short)
    for model, is_whole in ((short, False), (whole, True)):
        logits = read_features(model, **batch, needs=features_of("logits"), is_whole=is_whole)
        logits[LOGITS].square().sum().backward()
    for (name, one), other in zip(short.named_parameters(), whole.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        # A key's bias moves all scores of a query alike: its gradient is rounding alone.
        scale = max(float(other.grad.abs().max()), 1.0)
        torch.testing.assert_close(one.grad, other.grad, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("dropped", ["hidden", "probabilities"])
def test_a_last_block_of_the_first_token_alone_drops_out(
    make_bert: MakeBert, make_batch: MakeBatch, dropped: str
) -> None:
    model = make_bert(layers=1).train()
    block = model.bert.encoder.layer[0]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    of = block.output if dropped == "hidden" else block.attention.self
    of.dropout.p = 0.5
    batch = make_batch()
    first, second = (read_features(model, **batch, needs=features_of("logits")) for _ in range(2))
    assert not torch.equal(first[LOGITS], second[LOGITS])


def _tokens_of_the_last_feed_forward(model: BertForSequenceClassification) -> list[int]:
    """Filled by each forward pass to come."""
    seen: list[int] = []

    def see(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output.shape[1])

    model.bert.encoder.layer[-1].intermediate.register_forward_hook(see)
    return seen


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
def test_a_constant_planted_in_a_layers_output_is_read_back_under_that_index(
    make_bert: MakeBert, make_batch: MakeBatch, layer: int
) -> None:
    model = make_bert()
    last_of_layer = [
        model.bert.embeddings.LayerNorm,
        *(block.output.LayerNorm for block in model.bert.encoder.layer),
    ]
    nn.init.zeros_(last_of_layer[layer].weight)
    nn.init.constant_(last_of_layer[layer].bias, 42.0)
    hidden_states = by_layer(read_features(model, **make_batch(), needs=ALL), "hidden_states")
    assert [n for n in range(5) if bool((hidden_states[n] == 42.0).all())] == [layer]


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_a_constant_planted_in_a_blocks_attention_is_read_back_under_that_index(
    make_bert: MakeBert, make_batch: MakeBatch, layer: int
) -> None:
    model = make_bert(width=32, heads=2)
    attention = model.bert.encoder.layer[layer - 1].attention.self
    for linear, value in ((attention.query, 3.0), (attention.key, 5.0)):
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, value)
    # 16 features a head: 16 * 3 * 5 / sqrt(16)
    scores = by_layer(read_features(model, **make_batch(), needs=ALL), "attentions")
    assert [n for n in range(1, 5) if bool((scores[n] == 60.0).all())] == [layer]


def test_only_what_is_needed_comes_back(make_bert: MakeBert, make_batch: MakeBatch) -> None:
    needs = features_of(hidden_states=[0, 3], attentions=[2], values=[1])
    assert read_features(make_bert(), **make_batch(), needs=needs).keys() == needs


def test_queries_keys_and_values_are_the_outputs_of_the_blocks_own_maps(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model = make_bert()
    features = read_features(model, **make_batch(), needs=ALL)
    for layer in BLOCKS:
        below = features[Feature("hidden_states", layer - 1)]
        attention = model.bert.encoder.layer[layer - 1].attention.self
        maps = {"queries": attention.query, "keys": attention.key, "values": attention.value}
        for kind, linear in maps.items():
            assert torch.equal(by_layer(features, kind)[layer], linear(below))


def test_shapes_are_rows_tokens_features_and_heads(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    features = read_features(make_bert(), **make_batch([7, 4, 2], padded_to=9), needs=ALL)
    assert features[LOGITS].shape == (3, 3)
    for kind in ("hidden_states", "queries", "keys", "values"):
        assert {tensor.shape for tensor in by_layer(features, kind).values()} == {(3, 9, 32)}
    assert {tensor.shape for tensor in by_layer(features, "attentions").values()} == {(3, 4, 9, 9)}


def test_fused_attention_stays_in_use(make_bert: MakeBert, make_batch: MakeBatch) -> None:
    model = make_bert()
    read_features(model, **make_batch(), needs=ALL)
    assert model.config._attn_implementation == "sdpa"


def test_gradients_reach_query_and_key_through_the_scores(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model = make_bert()
    features = read_features(model, **make_batch(), needs=features_of(attentions=[4]))
    features[Feature("attentions", 4)].square().sum().backward()
    attention = model.bert.encoder.layer[3].attention.self
    for linear in (attention.query, attention.key):
        assert linear.weight.grad is not None
        assert linear.weight.grad.abs().sum() > 0


def test_no_hook_stays_behind(make_bert: MakeBert, make_batch: MakeBatch) -> None:
    model, batch = make_bert(), make_batch()
    before = _num_hooks(model)
    read_features(model, **batch, needs=ALL)
    assert _num_hooks(model) == before
    with pytest.raises(IndexError):
        read_features(model, **batch | {"input_ids": batch["input_ids"] + 1000}, needs=ALL)
    assert _num_hooks(model) == before


def _num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_scores_are_float32_under_autocast_and_close_to_those_without(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model, batch = make_bert(), make_batch()
    exact = by_layer(read_features(model, **batch, needs=ALL), "attentions")
    with torch.autocast("cpu", torch.bfloat16):
        scores = by_layer(read_features(model, **batch, needs=ALL), "attentions")
    assert {tensor.dtype for tensor in scores.values()} == {torch.float32}
    torch.testing.assert_close(scores[1], exact[1], atol=0.3, rtol=0.05)


class _Skipped(nn.Module):
    """Attention that never calls its own maps, as a pruned or a fused kernel would."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return hidden_states, None


def test_a_layer_that_does_not_come_back_is_an_error(
    make_bert: MakeBert, make_batch: MakeBatch
) -> None:
    model = make_bert()
    attention = model.bert.encoder.layer[1].attention
    attention.self = _Skipped(attention.self)
    with pytest.raises(AssertionError, match="did not come back"):
        read_features(model, **make_batch(), needs=ALL)


@pytest.mark.parametrize(
    "needs",
    [
        features_of(hidden_states=[5]),
        features_of(attentions=[5]),
        features_of(attentions=[0]),
        features_of(values=[0]),
        features_of(hidden_states=[-1]),
    ],
)
def test_a_layer_outside_the_model_is_refused(
    make_bert: MakeBert, make_batch: MakeBatch, needs: Needs
) -> None:
    with pytest.raises(ValueError, match="of a model with 4 blocks"):
        read_features(make_bert(), **make_batch(), needs=needs)


def test_another_kind_of_model_is_refused_by_name(make_batch: MakeBatch) -> None:
    config = RobertaConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    with pytest.raises(TeacherError, match=r"RobertaForSequenceClassification .*'roberta'"):
        sizes(RobertaForSequenceClassification(config))


def test_sizes_are_those_of_the_model(make_bert: MakeBert) -> None:
    model = make_bert(layers=2, width=24, heads=3, num_labels=5)
    assert sizes(model) == Sizes(
        num_hidden_layers=2, hidden_size=24, num_attention_heads=3, num_labels=5, vocab_size=60
    )


def test_the_named_parts_hold_every_parameter_once(make_bert: MakeBert) -> None:
    model = make_bert()
    named = parts(model)
    modules = [*named.embeddings, named.embedding_norm, *named.blocks, named.pooler, named.head]
    held = [parameter for module in modules for parameter in module.parameters()]
    assert len(held) == len({id(parameter) for parameter in held})
    assert {id(parameter) for parameter in held} == {
        id(parameter) for parameter in model.parameters()
    }


def test_a_block_is_its_six_linear_maps_and_two_layer_norms(make_bert: MakeBert) -> None:
    block = parts(make_bert()).blocks[0]
    maps, norms = list(linear_maps(block)), list(layer_norms(block))
    assert (len(maps), len(norms)) == (6, 2)
    assert len(list(block.parameters())) == 2 * (6 + 2)
