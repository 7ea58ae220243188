"""Checkpoints: whole or not at all, checked when read, refused by another training."""

import json
from pathlib import Path

import pytest
import torch

from kdsweep.trainers.checkpoint import (
    FORMAT,
    Checkpoint,
    newest,
    publish,
    remove_partial,
    whole_folder,
)
from kdsweep.trainers.errors import CheckpointError


def checkpoint_of(step: int, *, stage: int = 0, identity: str = "this") -> Checkpoint:
    return Checkpoint(
        identity=identity,
        stage=stage,
        step=step,
        tensors={
            "model": {"weight": torch.full((3,), float(step))},
            "counts": {"seen": torch.arange(5, dtype=torch.uint8)},
            "objective": {},
        },
        state={"scores": {"accuracy": 0.1 + 0.2}},
    )


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path: Path) -> None:
    publish(checkpoint_of(7, stage=1), tmp_path)
    found = newest(tmp_path, identity="this")
    assert found is not None
    assert (found.stage, found.step) == (1, 7)
    assert found.state == {"scores": {"accuracy": 0.1 + 0.2}}
    assert torch.equal(found.tensors["model"]["weight"], torch.full((3,), 7.0))
    assert found.tensors["counts"]["seen"].dtype == torch.uint8
    assert found.tensors["objective"] == {}


def test_there_is_nothing_but_safetensors_and_json(tmp_path: Path) -> None:
    publish(checkpoint_of(7), tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {
        ".json",
        ".safetensors",
    }


def test_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    for step in (5, 50, 500, 5000):
        publish(checkpoint_of(step), tmp_path)
    steps = [path.name for path in sorted(tmp_path.iterdir())]
    assert steps == ["step-00-000000500", "step-00-000005000"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip", "empty manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    publish(checkpoint_of(1), tmp_path)
    publish(checkpoint_of(2), tmp_path)
    file = tmp_path / "step-00-000000002" / "model.safetensors"
    content = file.read_bytes()
    match damage:
        case "truncate":
            file.write_bytes(content[:-3])
        case "remove":
            file.unlink()
        case "flip":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case _:
            file.with_name("checkpoint.json").write_text("")
    found = newest(tmp_path, identity="this")
    assert found is not None
    assert found.step == 1


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest(tmp_path / "missing", identity="this") is None


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    publish(checkpoint_of(1, identity="other"), tmp_path)
    with pytest.raises(CheckpointError, match="of the training other, not of this"):
        newest(tmp_path, identity="this")


def test_an_older_format_is_trained_again_and_a_newer_one_refused(tmp_path: Path) -> None:
    publish(checkpoint_of(1), tmp_path)
    [folder] = tmp_path.glob("step-*")
    manifest = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(manifest | {"format": FORMAT - 1}))
    assert newest(tmp_path, identity="this") is None
    (folder / "checkpoint.json").write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}"):
        newest(tmp_path, identity="this")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def write_half() -> None:
        with whole_folder(tmp_path / "made") as folder:
            (folder / "half").write_text("")
            raise OSError

    with pytest.raises(OSError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    publish(checkpoint_of(1), tmp_path)
    (tmp_path / ".step-00-000000002.abc").mkdir()
    remove_partial(tmp_path, "step-*")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00-000000001"]
