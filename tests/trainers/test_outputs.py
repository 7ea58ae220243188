"""A teacher's outputs: kept or asked again, they are the same to the objective."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from terms import features_of
from world import World

from kdsweep.search_spaces.errors import InputError, TeacherError
from kdsweep.search_spaces.feature_choice import SourceChoice
from kdsweep.trainers.assets import Assets, Tokens
from kdsweep.trainers.batches import collate, epoch_batches, length_batches
from kdsweep.trainers.errors import StoppedError
from kdsweep.trainers.feature_layout import BATCH_SIZE, Layout, feature_bytes
from kdsweep.trainers.features import LOGITS, Feature, Features, Needs, Sizes
from kdsweep.trainers.outputs import Kept, Online, TeacherOutputs
from kdsweep.trainers.settings import Precision, Settings
from kdsweep.trainers.sources import TeacherSource
from kdsweep.trainers.teacher import never

ALL = features_of("logits", hidden_states=[0, 2, 3], attentions=[1, 3], keys=[2])
SIZES = Sizes(num_hidden_layers=3, hidden_size=32, num_attention_heads=4, num_labels=2)
SOURCE = "0123456789abcdef"


def assets_of(
    world: World,
    *,
    features_gb: float = 1.0,
    kept: Needs | None = None,
    cache: Path | None = None,
) -> Assets:
    """Of a sweep that has decided to keep `kept`; by size alone, where nobody has."""
    choices = None
    if kept is not None:
        choices = (SourceChoice(source=SOURCE, kept=tuple(sorted(kept))),)
    settings = Settings(features_gb=features_gb, features=choices)
    return Assets(settings, cache or world.cache)


def tokens_of(world: World, assets: Assets) -> Tokens:
    source = TeacherSource("tiny", world.prepared, None)
    return assets.tokens(assets.task(world.task), source, max_length=world.task.max_length)


def outputs_of(
    world: World,
    assets: Assets,
    needs: Needs,
    *,
    precision: Precision = "fp32",
    stop: Callable[[], bool] = never,
) -> TeacherOutputs:
    return assets.outputs(
        world.prepared,
        tokens_of(world, assets).train,
        source=SOURCE,
        task="tiny",
        pad_token_id=tokens_of(world, assets).pad_token_id,
        needs=needs,
        sizes=SIZES,
        precision=precision,
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
            case "attentions" | "attention_means":
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


def test_beside_training_in_bf16_all_but_logits_are_rounded_to_fp16(
    world: World, tmp_path: Path
) -> None:
    assets = assets_of(world, kept=ALL, cache=tmp_path)
    tokens = tokens_of(world, assets)
    kept = outputs_of(world, assets, ALL, precision="bf16")
    online = outputs_of(world, assets_of(world, features_gb=0), ALL, precision="bf16")
    keeping = assets.keeps(SOURCE, ALL, sizes=SIZES, rows=tokens.train, precision="bf16")
    assert keeping is not None
    assert keeping.type_of(ALL) == "fp16"
    assert keeping.type_of(frozenset({LOGITS})) == "fp32"
    for rows in length_batches(tokens.train.lengths, BATCH_SIZE):
        ours, theirs = real(*read(kept, tokens, rows)), real(*read(online, tokens, rows))
        assert torch.equal(ours.pop(LOGITS), theirs.pop(LOGITS).float())
        for feature, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[feature].float(), rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("feature", [LOGITS, Feature("hidden_states", 2)])
def test_what_else_is_kept_in_the_same_pass_changes_no_number(
    world: World, tmp_path: Path, feature: Feature
) -> None:
    needs = frozenset({feature})
    alone = outputs_of(world, assets_of(world, cache=tmp_path / "1"), needs)
    among = outputs_of(world, assets_of(world, kept=ALL, cache=tmp_path / "2"), needs)
    after_another = assets_of(world, cache=tmp_path / "3")
    outputs_of(world, after_another, features_of(attentions=[1]))
    later = outputs_of(world, after_another, needs)
    assert isinstance(alone, Kept)
    assert isinstance(among, Kept)
    assert isinstance(later, Kept)
    assert torch.equal(alone.kept[feature], among.kept[feature])
    assert torch.equal(alone.kept[feature], later.kept[feature])


def test_one_pass_computes_all_that_the_sweep_keeps(world: World, tmp_path: Path) -> None:
    assets = assets_of(world, kept=ALL, cache=tmp_path)
    outputs_of(world, assets, frozenset({LOGITS}))

    def no_pass() -> None:
        raise AssertionError("the teacher runs")

    elsewhere = assets_of(world, kept=ALL, cache=tmp_path)
    elsewhere.teacher = no_pass  # type: ignore[assignment, method-assign]
    assert isinstance(outputs_of(world, elsewhere, ALL), Kept)


def test_whether_outputs_are_kept_follows_from_sizes_where_no_sweep_has_chosen(
    world: World,
) -> None:
    rows = tokens_of(world, assets_of(world)).train
    layout = Layout(rows.lengths.numpy())
    feature = Feature("hidden_states", 1)
    size = feature_bytes(feature, sizes=SIZES, layout=layout, type="fp32")
    assert size == int(rows.lengths.sum()) * 32 * 4
    for bytes, is_kept in ((size, True), (size - 1, False)):
        keeping = assets_of(world, features_gb=bytes / 1e9).keeps(
            SOURCE, frozenset({feature}), sizes=SIZES, rows=rows, precision="bf16"
        )
        assert (keeping is not None) == is_kept


def test_what_a_sweep_has_decided_holds(world: World) -> None:
    rows = tokens_of(world, assets_of(world)).train
    decided = SourceChoice(source=SOURCE, kept=tuple(sorted(ALL)), online=((LOGITS,),))
    assets = Assets(Settings(features=(decided,)), world.cache)

    def is_kept(source: str, needs: Needs) -> bool:
        return assets.keeps(source, needs, sizes=SIZES, rows=rows, precision="fp32") is not None

    assert is_kept(SOURCE, ALL)
    assert not is_kept(SOURCE, frozenset({LOGITS})), "it was to run online before all was kept"
    assert not is_kept(SOURCE, features_of(hidden_states=[1]))
    assert not is_kept("another", ALL)


def test_what_a_lane_reads_of_files_is_no_memory_of_its_own(world: World, tmp_path: Path) -> None:
    outputs = outputs_of(world, assets_of(world, cache=tmp_path), ALL)
    assert isinstance(outputs, Kept)
    mapped = Path("/proc/self/maps").read_text()
    assert sum(str(tmp_path) in line for line in mapped.splitlines()) >= len(ALL)


def test_what_finds_room_neither_on_the_disk_nor_in_memory_is_refused(
    world: World, tmp_path: Path
) -> None:
    tokens_of(world, assets_of(world, cache=tmp_path))
    (tmp_path / "features").write_text("no folder")
    settings = Settings(memory_gb=1e-3)
    with pytest.raises(InputError, match=r"cannot be kept there .*\n.*KDSWEEP_CACHE_DIR"):
        outputs_of(world, Assets(settings, tmp_path), ALL)


def test_a_pass_over_train_can_be_stopped(world: World, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        outputs_of(world, assets_of(world, cache=tmp_path), ALL, stop=lambda: True)


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
