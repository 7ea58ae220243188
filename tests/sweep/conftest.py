"""A sweep small enough to be killed many times: a tiny BERT, a tiny task, real files."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [f"w{n}" for n in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_teacher(folder: Path) -> None:
    """A pre-trained BERT of two layers, width 32, without a head."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)


def write_rows(file: Path, *, rows: int, seed: int) -> None:
    """Texts whose class is told by which half of the vocabulary most of their words are from."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for n in range(rows):
        label = n % 2
        own, other = WORDS[label * 20 : label * 20 + 20], WORDS[20 - label * 20 :][:20]
        words = draw.choices(own, k=draw.randint(4, 9)) + draw.choices(other, k=1)
        draw.shuffle(words)
        lines.append(f"{' '.join(words)} n{seed}x{n},{'ab'[label]}")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher/`, `train.csv` and `report.csv`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_teacher(folder / "teacher")
    write_rows(folder / "train.csv", rows=240, seed=1)
    write_rows(folder / "report.csv", rows=60, seed=2)
    return folder


GRID: Mapping[str, Any] = {
    "name": "tiny",
    "task": {
        "files": {"train": "train.csv", "report": "report.csv"},
        "text": ["text"],
        "max_length": 16,
        "select": {"from": "train", "fraction": 0.2},
        "report": "report",
    },
    "teacher": {
        "model": "./teacher",
        "fine_tune": {"epochs": 4, "learning_rate": 5e-3, "batch_size": 16},
    },
    "axes": {
        "knowledge": ["hard_labels", ["hard_labels", "soft_logits", "hidden_states"]],
        "shape": [{"layers": 1, "width": 16, "heads": 2}],
        "seed": [0, 1],
    },
    "training": {
        "epochs": 4,
        "learning_rate": 1e-2,
        "batch_size": 16,
        "evaluate": {"times": 4},
    },
    "resources": {"memory_gb": 0.5},
}

WriteGrid = Callable[..., Path]
Kdsweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def write_grid(tiny: Path, tmp_path: Path) -> WriteGrid:
    """Writes the tiny grid, with whole sections replaced, beside its data."""

    def write(file: str = "grid.yaml", **sections: Any) -> Path:
        for name in ("teacher", "train.csv", "report.csv"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(tiny / name)
        path = tmp_path / file
        # JSON is YAML.
        path.write_text(json.dumps({**GRID, **sections}, indent=1))
        return path

    return write


@pytest.fixture
def environment(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command: a cache of its own, a checkpoint after every row."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    return os.environ | {
        "KDSWEEP_CACHE_DIR": str(cache),
        "KDSWEEP_CHECKPOINT_SECONDS": "0",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def kdsweep(tmp_path: Path, environment: dict[str, str]) -> Kdsweep:
    """Runs the command line in the folder of the grid."""

    def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdsweep.sweep", *map(str, arguments)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=180,
        )

    return run
