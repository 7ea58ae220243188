"""A world small enough to train in: a tiny BERT, a tiny task, real files. Nothing is downloaded."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WORDS = [f"w{n}" for n in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class World:
    """Where everything is."""

    folder: Path
    task: Any
    teacher: Any
    prepared: Path
    cache: Path
    make_trial: Callable[..., Any]


def _write_model(folder: Path) -> None:
    """A pre-trained BERT of three layers, width 32, without a head."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
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
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)


def _write_rows(file: Path, *, rows: int, seed: int) -> None:
    """Texts whose class is told by which half of the vocabulary most of their words are from."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for n in range(rows):
        label = n % 2
        own, other = WORDS[label * 20 : label * 20 + 20], WORDS[20 - label * 20 :][:20]
        words = draw.choices(own, k=draw.randint(3, 9)) + draw.choices(other, k=1)
        draw.shuffle(words)
        lines.append(f"{' '.join(words)} n{seed}x{n},{('bad', 'good')[label]}")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A task of two classes, a model, and the teacher that it became; made once a session."""
    from kdsweep.search_spaces.shape import Shape
    from kdsweep.search_spaces.task import Carve, Files, Task, Teacher
    from kdsweep.search_spaces.training import Evaluate, FineTune, Training
    from kdsweep.search_spaces.trial import Trial, make_stage
    from kdsweep.trainers import Assets, Settings, prepare_teacher

    folder = tmp_path_factory.mktemp("world")
    _write_model(folder / "model")
    _write_rows(folder / "train.csv", rows=150, seed=1)
    _write_rows(folder / "report.csv", rows=40, seed=2)
    task = Task(
        files=Files(train=str(folder / "train.csv"), report=str(folder / "report.csv")),
        text=("text",),
        select=Carve(from_="train", fraction=0.2),
        report="report",
        max_length=16,
    )
    teacher = Teacher(
        model=str(folder / "model"),
        fine_tune=FineTune(epochs=4, learning_rate=5e-3, batch_size=16),
    )

    def make_trial(terms: list[Any], **fields: Any) -> Trial:
        """A trial of 2 x 8 steps; `fields` are a trial's own or those of its training."""
        training = {
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "evaluate": Evaluate(times=3),
        }
        own = {
            "task": task,
            "teacher": teacher,
            "shape": Shape(layers=2, width=16, heads=2),
            "initialisation": "random",
            "seed": 0,
        }
        for name, value in fields.items():
            (own if name in own else training)[name] = value
        return Trial(stages=(make_stage(tuple(terms), Training(**training)),), **own)

    cache = folder / "cache"
    prepared = folder / "teacher"
    for _ in prepare_teacher(teacher, task, into=prepared, assets=Assets(Settings(), cache)):
        pass
    return World(folder, task, teacher, prepared, cache, make_trial)
