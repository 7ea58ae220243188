"""A teacher's outputs: kept or asked again, they are the same to the objective."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from terms import features_of
from world import World

from kdsweep.search_spaces.errors import TeacherError
from kdsweep.trainers.assets import Assets, Tokens
from kdsweep.trainers.batches import collate, epoch_batches, length_batches
from kdsweep.trainers.errors import StoppedError
from kdsweep.trainers.features import Feature, Features, Needs, Sizes
from kdsweep.trainers.outputs import (
    BATCH_SIZE,
    Kept,
    Online,
    TeacherOutputs,
    feature_bytes,
)
from kdsweep.trainers.settings import Settings
from kdsweep.trainers.sources import TeacherSource
from kdsweep.trainers.teacher import never

ALL = features_of("logits", hidden_states=[0, 2, 3], attentions=[1, 3], keys=[2])
SIZES = Sizes(num_hidden_layers=3, hidden_size=32, num_attention_heads=4, num_labels=2)


def assets_of(world: World, *, features_gb: float = 1.0, hint: Needs = frozenset()) -> Assets:
    return Assets(Settings(features_gb=features_gb), world.cache, hint=hint)


def tokens_of(world: World, assets: Assets) -> Tokens:
    source = TeacherSource("tiny", world.prepared, None)
    return assets.tokens(assets.task(world.task), source, max_length=world.task.max_length)


def outputs_of(
    world: World, assets: Assets, needs: Needs, *, stop: Callable[[], bool] = never
) -> TeacherOutputs:
    return assets.outputs(
        world.prepared,
        tokens_of(world, assets).train,
        rows_digest=assets.task(world.task).digest,
        pad_token_id=tokens_of(world, assets).pad_token_id,
        needs=needs,
        sizes=SIZES,
        precision="fp32",
        stop=stop,
    )


def read(
    outputs: TeacherOutputs, tokens: Tokens, rows: torch.Tensor
) -> tuple[Features, torch.Tensor]:
    batch = collate(tokens.train, rows, pad_token_id=tokens.pad_token_id)
    return outputs.features(batch), batch.attention_mask.bool()


def real(features: Features, mask: torch.Tensor) -> dict[Feature, torch.Tensor]:
    """What stands at tokens that are not padding."""
    pairs = mask[:, :, None] & mask[:, None, :]
    found = {}
    for feature, tensor in features.items():
        match feature.kind:
            case "logits":
                found[feature] = tensor
            case "attentions":
                found[feature] = tensor.permute(0, 2, 3, 1)[pairs]
            case _:
                found[feature] = tensor[mask]
    return found


@pytest.mark.parametrize("batch_size", [7, 16])
def test_kept_outputs_equal_the_teacher_that_runs_on_the_batch(
    world: World, batch_size: int
) -> None:
    assets = assets_of(world)
    tokens = tokens_of(world, assets)
    kept, online = (
        outputs_of(world, assets, ALL),
        outputs_of(world, assets_of(world, features_gb=0), ALL),
    )
    assert isinstance(kept, Kept)
    assert isinstance(online, Online)
    for rows in epoch_batches(tokens.train.lengths, batch_size=batch_size, seed=0, epoch=0)[:4]:
        ours, theirs = real(*read(kept, tokens, rows)), real(*read(online, tokens, rows))
        assert ours.keys() == theirs.keys()
        for feature, tensor in ours.items():
            # Sums differ with the batch's composition; 1e-5 is the tolerance that is stated.
            torch.testing.assert_close(tensor, theirs[feature], rtol=1e-5, atol=1e-5)


def test_kept_outputs_equal_the_teacher_bit_for_bit_on_the_batches_of_the_pass(
    world: World,
) -> None:
    assets = assets_of(world)
    tokens = tokens_of(world, assets)
    kept, online = (
        outputs_of(world, assets, ALL),
        outputs_of(world, assets_of(world, features_gb=0), ALL),
    )
    for rows in length_batches(tokens.train.lengths, BATCH_SIZE):
        ours, theirs = real(*read(kept, tokens, rows)), real(*read(online, tokens, rows))
        assert all(torch.equal(tensor, theirs[feature]) for feature, tensor in ours.items())


def test_what_else_is_kept_in_the_same_pass_changes_no_number(world: World) -> None:
    needs = features_of(hidden_states=[2])
    alone = outputs_of(world, assets_of(world), needs)
    hinted = outputs_of(world, assets_of(world, hint=ALL), needs)
    after_another = assets_of(world)
    outputs_of(world, after_another, features_of("logits", attentions=[1]))
    later = outputs_of(world, after_another, needs)
    feature = Feature("hidden_states", 2)
    assert isinstance(alone, Kept)
    assert isinstance(hinted, Kept)
    assert isinstance(later, Kept)
    assert torch.equal(alone.kept[feature], hinted.kept[feature])
    assert torch.equal(alone.kept[feature], later.kept[feature])


def test_a_hint_spares_later_trials_the_pass(world: World) -> None:
    assets = assets_of(world, hint=ALL | features_of(hidden_states=[12]))
    outputs_of(world, assets, features_of("logits"))

    def no_pass() -> bool:
        raise AssertionError("the teacher runs")

    outputs_of(world, assets, ALL, stop=no_pass)


def test_whether_outputs_are_kept_follows_from_sizes_alone(world: World) -> None:
    assets = assets_of(world)
    lengths = tokens_of(world, assets).train.lengths
    size = feature_bytes(Feature("hidden_states", 1), sizes=SIZES, lengths=lengths)
    needs = features_of(hidden_states=[1])
    assert size == int(lengths.sum()) * 32 * 4
    assert assets_of(world, features_gb=size / 1e9).keeps(needs, sizes=SIZES, lengths=lengths)
    tight = assets_of(world, features_gb=(size - 1) / 1e9)
    assert not tight.keeps(needs, sizes=SIZES, lengths=lengths)


def test_a_lane_forgets_what_it_kept_longest_ago(world: World) -> None:
    lengths = tokens_of(world, assets_of(world)).train.lengths
    size = feature_bytes(Feature("hidden_states", 1), sizes=SIZES, lengths=lengths)
    assets = assets_of(world, features_gb=1.2 * size / 1e9)
    for layer in (1, 2, 3):
        outputs_of(world, assets, features_of(hidden_states=[layer]))
    assert {feature.layer for _, feature in assets._kept} == {2, 3}


def test_a_pass_over_train_can_be_stopped(world: World) -> None:
    with pytest.raises(StoppedError):
        outputs_of(world, assets_of(world), ALL, stop=lambda: True)


def test_no_gradient_reaches_the_teacher(world: World) -> None:
    assets = assets_of(world)
    tokens = tokens_of(world, assets)
    for features_gb in (0.0, 1.0):
        outputs = outputs_of(world, assets_of(world, features_gb=features_gb), ALL)
        features, _ = read(outputs, tokens, torch.arange(5))
        assert features.keys() == ALL
        assert not any(tensor.requires_grad for tensor in features.values())


def test_a_folder_without_a_teacher_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"teacher\.json cannot be read"):
        assets_of(world).teacher(tmp_path)
