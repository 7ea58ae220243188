"""Write a model as anybody's `from_pretrained` reads it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from .frozen import WEIGHTS
from .sources import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint's tokenizer, as they are."""
    return {
        name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()
    }


def save_model(
    model: BertForSequenceClassification, tokenizer: Mapping[str, bytes], folder: Path
) -> None:
    """Config, weights and tokenizer into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)


def copy_folder(folder: Path, target: Path) -> None:
    """Everything of a folder into another, which is made."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
