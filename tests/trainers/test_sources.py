"""Teachers: found by name, folder or commit; told by content; refused where they do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kdsweep.search_spaces.embedded import embedded_model_folder
from kdsweep.search_spaces.errors import TeacherError
from kdsweep.search_spaces.task import Task, Teacher
from kdsweep.trainers.rows import Rows
from kdsweep.trainers.sources import (
    TeacherSource,
    check_classes,
    locate_teacher,
    teacher_digest,
)
from kdsweep.trainers.tasks import TaskData

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TASK = Task(name="owner/data", max_length=16)

needs_minilm = pytest.mark.skipif(
    embedded_model_folder("minilm-l6-h384") is None, reason="the extra `demo` is not installed"
)


def data_of(*classes: str) -> TaskData:
    rows = Rows(
        tuple((f"text {name}",) for name in classes), np.arange(len(classes), dtype=np.int64)
    )
    return TaskData(
        name="data",
        train=rows,
        select=rows,
        report=rows,
        classes=classes,
        metric="accuracy",
        metrics=("accuracy",),
        dropped={},
        unlimited=(),
        text=("text",),
    )


DATA = data_of("negative", "positive")


def checkpoint(
    folder: Path, *, names: dict[str, str] | None = None, outputs: int | None = None, seed: int = 0
) -> Path:
    """A folder that looks like a BERT's, with a head if `outputs` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {"model_type": "bert", "vocab_size": 8}
    if names is not None:
        config["id2label"] = names
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n", encoding="utf-8")
    values = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
    tensors = {"bert.embeddings.word_embeddings.weight": values}
    if outputs is not None:
        tensors["classifier.weight"] = values[:outputs]
    save_file(tensors, folder / "model.safetensors")
    return folder


def teacher_of(folder: Path, *, fine_tune: dict[str, object] | None = None) -> Teacher:
    return Teacher.model_validate({"model": str(folder), "fine_tune": fine_tune})


def classes_of(folder: Path, *, task: TaskData = DATA) -> tuple[int, ...]:
    teacher = teacher_of(folder)
    return check_classes(locate_teacher(teacher), task, teacher)


def digest_of(folder: Path, *, task: TaskData = DATA, **fine_tune: object) -> str:
    teacher = teacher_of(folder, fine_tune=fine_tune)
    return teacher_digest(teacher, locate_teacher(teacher), task, TASK)


def test_a_local_folder_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "teacher")
    assert locate_teacher(teacher_of(folder)) == TeacherSource(str(folder), folder, None)


@pytest.mark.demo
@needs_minilm
def test_the_embedded_teacher_is_found_and_has_no_head() -> None:
    source = locate_teacher(Teacher(model="minilm-l6-h384"))
    assert (source.folder, source.revision) == (embedded_model_folder("minilm-l6-h384"), None)
    with pytest.raises(TeacherError, match="`minilm-l6-h384` has no classification head"):
        check_classes(source, DATA, Teacher(model="minilm-l6-h384"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "minilm-l6-h383"}, "neither an embedded name.*\n.*mean `minilm-l6-h384`"),
        ({"model": "owner/model"}, "needs a full commit\n.*Add `revision:`"),
        ({"model": "/nowhere/teacher"}, "/nowhere/teacher is not a folder"),
    ],
)
def test_unknown_teachers_are_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        locate_teacher(Teacher.model_validate(keys))


def test_a_local_folder_has_no_revision(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    with pytest.raises(TeacherError, match="only a hub model has a revision"):
        locate_teacher(Teacher(model=str(folder), revision=COMMIT))


def test_a_pickle_is_refused_with_a_mend(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"pytorch_model\.bin, a pickle(.|\n)*save_pretrained"):
        locate_teacher(teacher_of(folder))


def test_a_model_type_that_the_trainer_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(TeacherError, match=r"model type `gpt2`, and so far .* only where bert"):
        locate_teacher(teacher_of(folder))


@pytest.mark.parametrize("size", [0, 5, 60])
def test_truncated_weights_are_refused(tmp_path: Path, size: int) -> None:
    folder = checkpoint(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:size])
    with pytest.raises(TeacherError, match=r"model\.safetensors cannot be read"):
        locate_teacher(teacher_of(folder))


def test_everything_a_folder_lacks_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(TeacherError) as caught:
        locate_teacher(teacher_of(tmp_path))
    config, tokenizer, weights = (problem.what for problem in caught.value.problems)
    assert "config.json" in config
    assert "has no tokenizer" in tokenizer
    assert "has no model.safetensors" in weights


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, names={"0": "negative", "1": "positive"}, outputs=2)
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    index = {"weight_map": {"classifier.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert classes_of(folder) == (0, 1)
    (folder / shard).unlink()
    with pytest.raises(TeacherError, match=f"{shard} cannot be read"):
        locate_teacher(teacher_of(folder))


def test_the_digest_follows_content_and_not_places(tmp_path: Path) -> None:
    one, same = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "same")
    other = checkpoint(tmp_path / "other", seed=1)
    assert digest_of(one) == digest_of(same)
    assert digest_of(one) != digest_of(other)
    (same / "README.md").write_text("unread", encoding="utf-8")
    assert digest_of(one) == digest_of(same)
    (same / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nother\n", encoding="utf-8")
    assert digest_of(one) != digest_of(same)


def test_the_digest_follows_the_recipe_and_the_task(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    assert digest_of(folder, epochs=3) == digest_of(folder)
    assert digest_of(folder, epochs=2) != digest_of(folder)
    assert digest_of(folder, task=data_of("positive", "negative")) != digest_of(folder)


def test_the_floor_is_no_part_of_the_digest(tmp_path: Path) -> None:
    plain = teacher_of(checkpoint(tmp_path))
    floored = Teacher.model_validate({"model": str(tmp_path), "floor": {"accuracy": 0.9}})
    source = locate_teacher(plain)
    digests = {teacher_digest(teacher, source, DATA, TASK) for teacher in (plain, floored)}
    assert len(digests) == 1


def test_a_hub_model_is_known_by_its_commit_without_its_files() -> None:
    source = TeacherSource("owner/model", None, COMMIT)
    other = TeacherSource("owner/model", None, COMMIT[::-1])
    teacher = Teacher(model="owner/model", revision=COMMIT)
    one, two = (teacher_digest(teacher, which, DATA, TASK) for which in (source, other))
    assert one != two


def test_a_hub_model_is_read_from_the_cache_and_out_of_reach_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    teacher = Teacher(model="owner/model", revision=COMMIT)
    assert locate_teacher(teacher, download=False) == TeacherSource("owner/model", None, COMMIT)
    with pytest.raises(TeacherError, match=r"not in the local cache and cannot be downloaded"):
        locate_teacher(teacher)
    folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    checkpoint(folder)
    assert locate_teacher(teacher).folder == folder


def test_a_teacher_that_is_fine_tuned_has_the_order_of_the_task(tmp_path: Path) -> None:
    teacher = teacher_of(checkpoint(tmp_path), fine_tune={})
    assert check_classes(locate_teacher(teacher), DATA, teacher) == (0, 1)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ({"0": "negative", "1": "positive"}, (0, 1)),
        ({"0": "POSITIVE", "1": "Negative "}, (1, 0)),
        ({"1": "negative", "0": "positive"}, (1, 0)),
    ],
)
def test_classes_are_found_by_name_whatever_their_case(
    tmp_path: Path, names: dict[str, str], order: tuple[int, ...]
) -> None:
    assert classes_of(checkpoint(tmp_path, names=names, outputs=2)) == order


def test_more_than_ten_classes_are_ordered_as_numbers(tmp_path: Path) -> None:
    words = [f"class {letter}" for letter in "abcdefghijkl"]
    names = {str(n): word for n, word in enumerate(words)}
    folder = checkpoint(tmp_path, names=dict(sorted(names.items())))
    save_file({"classifier.weight": np.zeros((12, 4), np.float32)}, folder / "model.safetensors")
    assert classes_of(folder, task=data_of(*words)) == tuple(range(12))


def test_classes_that_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, names={"0": "us", "1": "US"}, outputs=2)
    assert classes_of(folder, task=data_of("US", "us")) == (1, 0)


@pytest.mark.parametrize(
    ("names", "outputs", "message"),
    [
        (None, None, "has no classification head\n.*fine_tune"),
        (None, 2, "tells 2 classes apart .without names."),
        ({"0": "LABEL_0", "1": "LABEL_1"}, 2, "does not say what its classes mean(.|\n)*id2label"),
        ({"0": "negative", "1": "neutral"}, 2, "has other classes"),
        ({"0": "negative", "1": "neutral", "2": "positive"}, 3, "tells 3 classes apart"),
        ({"0": "negative", "1": "positive"}, 3, "tells 3 classes apart"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(
    tmp_path: Path, names: dict[str, str] | None, outputs: int | None, message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        classes_of(checkpoint(tmp_path, names=names, outputs=outputs))
