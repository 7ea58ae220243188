"""Teachers: prepared whole or not at all, exactly repeatable, and frozen for good."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from world import World

from kdsweep.search_spaces.errors import DataError, TeacherError
from kdsweep.search_spaces.task import Carve, Files, Task, Teacher
from kdsweep.search_spaces.training import FineTune
from kdsweep.search_spaces.trial import Digests
from kdsweep.trainers import (
    Assets,
    Finished,
    Interrupted,
    Report,
    Settings,
    load_teacher,
    prepare_teacher,
)
from kdsweep.trainers.errors import FrozenError
from kdsweep.trainers.frozen import TeacherRecord, load_classifier, teacher_logits

ONE_EPOCH = FineTune(epochs=1, learning_rate=5e-3, batch_size=16)


def prepare(world: World, into: Path, **keywords: Any) -> list[Report]:
    teacher = keywords.pop("teacher", world.teacher)
    task = keywords.pop("task", world.task)
    assets = Assets(keywords.pop("settings", Settings()), world.cache)
    return list(prepare_teacher(teacher, task, into=into, assets=assets, **keywords))


def finished(reports: list[Report]) -> Finished:
    last = reports[-1]
    assert isinstance(last, Finished)
    return last


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_teacher_learns_its_task(world: World) -> None:
    values = TeacherRecord.read(world.prepared).values
    # Made so that a few words tell the class; the majority has half of the rows.
    assert values["select/majority"] == 0.5
    assert values["select/accuracy"] > 0.9
    assert values["report/accuracy"] > 0.9


def test_the_folder_holds_a_model_that_anybody_can_load(world: World) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(world.prepared)
    assert model.config.id2label == {0: "bad", 1: "good"}
    data = Assets(Settings(), world.cache).task(world.task).data
    tokenizer = AutoTokenizer.from_pretrained(world.prepared)
    for split, rows in (("select", data.select), ("report", data.report)):
        logits = model(**tokenizer(rows.texts[2][0], return_tensors="pt")).logits[0]
        expected = teacher_logits(world.prepared)[split][2]
        torch.testing.assert_close(logits.detach(), expected, rtol=1e-4, atol=1e-4)


def test_what_the_folder_says_is_what_the_last_report_said(world: World, tmp_path: Path) -> None:
    teacher = world.teacher.model_copy(update={"fine_tune": ONE_EPOCH})
    last = finished(prepare(world, tmp_path / "teacher", teacher=teacher))
    record = json.loads((tmp_path / "teacher" / "teacher.json").read_text())
    assert record["values"] == dict(last.values)
    assert record["classes"] == ["bad", "good"]
    logits = teacher_logits(tmp_path / "teacher")["report"].numpy()
    assert (logits == last.predictions.report.last).all()


def test_a_second_preparation_gives_the_same_bits(world: World, tmp_path: Path) -> None:
    torch.rand(10)
    prepare(world, tmp_path / "teacher")
    assert weights(tmp_path / "teacher") == weights(world.prepared)


@pytest.mark.parametrize("step", [3, 8, 20])
def test_a_resumed_preparation_gives_the_same_bits(world: World, tmp_path: Path, step: int) -> None:
    into, checkpoints = tmp_path / "teacher", tmp_path / "checkpoints"
    calls = itertools.count()
    before = prepare(world, into, checkpoints=checkpoints, stop=lambda: next(calls) >= step)
    assert before[-1] == Interrupted(step)
    assert not into.exists()
    after = prepare(world, into, checkpoints=checkpoints, resume_from=checkpoints)
    assert finished(after).values["resumed_from_step"] == step
    assert weights(into) == weights(world.prepared)


def test_a_prepared_teacher_is_reported_again_without_training(
    world: World, tmp_path: Path
) -> None:
    again = prepare(world, world.prepared)
    assert len(again) == 1
    assert finished(again).values == TeacherRecord.read(world.prepared).values


def test_a_folder_with_another_teacher_is_not_overwritten(world: World) -> None:
    teacher = world.teacher.model_copy(update={"fine_tune": ONE_EPOCH})
    before = weights(world.prepared)
    with pytest.raises(TeacherError, match="holds another teacher"):
        prepare(world, world.prepared, teacher=teacher)
    assert weights(world.prepared) == before


def test_nothing_is_left_where_preparation_is_closed(world: World, tmp_path: Path) -> None:
    into = tmp_path / "teacher"
    (tmp_path / ".teacher.killed").mkdir()
    assets = Assets(Settings(), world.cache)
    reports = prepare_teacher(world.teacher, world.task, into=into, assets=assets)
    next(reports)
    next(reports)
    reports.close()
    assert list(tmp_path.iterdir()) == []


def test_files_that_changed_since_the_plan_are_refused(world: World, tmp_path: Path) -> None:
    task = Assets(Settings(), world.cache).task(world.task).digest
    with pytest.raises(DataError, match="teacher: has changed since it was planned"):
        prepare(world, tmp_path / "teacher", digests=Digests(task=task, teacher="0" * 64))


def _swapped(world: World, folder: Path) -> Path:
    """The prepared teacher, saved with its classes in the other order."""
    model, _ = load_classifier(world.prepared)
    model.classifier.weight.data = model.classifier.weight.data.flip(0)
    model.classifier.bias.data = model.classifier.bias.data.flip(0)
    model.config.id2label = {0: "GOOD", 1: "BAD"}
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((world.prepared / "tokenizer.json").read_bytes())
    return folder


def test_classes_of_a_teacher_that_knows_the_task_are_mapped_by_name(
    world: World, tmp_path: Path
) -> None:
    teacher = Teacher(model=str(_swapped(world, tmp_path / "swapped")))
    last = finished(prepare(world, tmp_path / "teacher", teacher=teacher))
    assert last.step == 0
    original = teacher_logits(world.prepared)
    for split, logits in teacher_logits(tmp_path / "teacher").items():
        torch.testing.assert_close(logits, original[split])
    config = BertConfig.from_pretrained(tmp_path / "teacher")
    assert config.id2label == {0: "bad", 1: "good"}


def test_a_teacher_with_other_classes_is_refused(world: World, tmp_path: Path) -> None:
    assert world.task.files is not None
    assert world.task.files.report is not None
    rows = Path(world.task.files.report).read_text()
    for name in ("train", "report"):
        (tmp_path / f"{name}.csv").write_text(rows.replace(",bad", ",sad"))
    task = Task(
        files=Files(train=str(tmp_path / "train.csv")),
        text=("text",),
        report=Carve(from_="train", fraction=0.3),
        max_length=16,
    )
    with pytest.raises(TeacherError, match="classes"):
        prepare(world, tmp_path / "teacher", task=task, teacher=Teacher(model=str(world.prepared)))
    assert not (tmp_path / "teacher").exists()


def test_a_new_head_comes_from_the_fine_tunings_seed_alone(world: World, tmp_path: Path) -> None:
    def head(seed: int, name: str) -> torch.Tensor:
        # A rate of almost 0: what is drawn is what stays.
        fine_tune = FineTune(epochs=1, learning_rate=1e-12, weight_decay=0.0, seed=seed)
        teacher = world.teacher.model_copy(update={"fine_tune": fine_tune})
        prepare(world, tmp_path / name, teacher=teacher)
        return load_teacher(tmp_path / name).model.classifier.weight

    first = head(0, "first")
    assert first.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.allclose(first, head(0, "again"))
    assert not torch.allclose(first, head(1, "other"), atol=1e-3)


def test_a_wrappers_train_does_not_wake_the_teachers_dropout(world: World) -> None:
    teacher = load_teacher(world.prepared)
    wrapper = nn.Sequential(teacher)
    ids = torch.arange(5, 11)[None]
    before = teacher.model(input_ids=ids).logits
    wrapper.train()
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher.model(input_ids=ids).logits, before)
    assert not before.requires_grad


def test_a_changed_weight_is_found_out(world: World) -> None:
    teacher = load_teacher(world.prepared)
    teacher.check_unchanged()
    with torch.no_grad():
        next(teacher.model.bert.encoder.parameters()).view(-1)[5] += 1e-6
    with pytest.raises(FrozenError, match="encoder"):
        teacher.check_unchanged()


def test_a_damaged_folder_is_refused(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    for file in world.prepared.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = weights(folder)
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TeacherError, match="not the file that was written"):
        load_teacher(folder)
