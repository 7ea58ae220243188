"""A world small enough to train in: a tiny BERT, a tiny task, real files. Nothing is downloaded."""

import random
from dataclasses import dataclass
from pathlib import Path

from kdsweep.search_spaces.initialisation import Initialisation
from kdsweep.search_spaces.knowledge import Term
from kdsweep.search_spaces.shape import Shape
from kdsweep.search_spaces.task import Carve, Files, Task, Teacher
from kdsweep.search_spaces.training import Evaluate, FineTune, Training
from kdsweep.search_spaces.trial import Trial, make_stage

WORDS = [f"w{n}" for n in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

TASK = {
    "files": {"train": "train.csv", "report": "report.csv"},
    "text": ["text"],
    "max_length": 16,
    "select": {"from": "train", "fraction": 0.2},
    "report": "report",
}
"""How a grid names what `write_rows` writes beside it."""

SHORT = Training(epochs=2, batch_size=16, learning_rate=3e-3, evaluate=Evaluate(times=3))
"""16 steps, 8 an epoch; select is evaluated after 6, 11 and 16."""


@dataclass(frozen=True)
class World:
    """A task of two classes, a pre-trained model, and the teacher that it becomes."""

    task: Task
    teacher: Teacher
    prepared: Path
    """The folder of the prepared teacher."""
    cache: Path

    def trial(
        self,
        *terms: Term,
        training: Training = SHORT,
        shape: Shape | None = None,
        initialisation: Initialisation = "random",
        seed: int = 0,
    ) -> Trial:
        """A trial of one stage."""
        return Trial(
            task=self.task,
            teacher=self.teacher,
            shape=shape or Shape(layers=2, width=16, heads=2),
            initialisation=initialisation,
            stages=(make_stage(terms, training),),
            seed=seed,
        )


def make_world(folder: Path) -> World:
    """Write the files, and prepare the teacher."""
    from kdsweep.trainers import Assets, Settings, prepare_teacher

    write_model(folder / "model")
    write_rows(folder / "train.csv", num_rows=150, seed=1)
    write_rows(folder / "report.csv", num_rows=40, seed=2)
    world = World(
        task=Task(
            files=Files(train=str(folder / "train.csv"), report=str(folder / "report.csv")),
            text=("text",),
            select=Carve(from_="train", fraction=0.2),
            report="report",
            max_length=16,
        ),
        teacher=Teacher(
            model=str(folder / "model"),
            fine_tune=FineTune(epochs=4, learning_rate=5e-3, batch_size=16),
        ),
        prepared=folder / "teacher",
        cache=folder / "cache",
    )
    assets = Assets(Settings(), world.cache)
    for _ in prepare_teacher(world.teacher, world.task, into=world.prepared, assets=assets):
        pass
    return world


def write_model(folder: Path) -> None:
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


def write_rows(file: Path, *, num_rows: int, seed: int) -> None:
    """Texts whose class is told by which half of the vocabulary most of their words are from."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for n in range(num_rows):
        label = n % 2
        own, other = WORDS[label * 20 : label * 20 + 20], WORDS[20 - label * 20 :][:20]
        words = draw.choices(own, k=draw.randint(3, 9)) + draw.choices(other, k=1)
        draw.shuffle(words)
        lines.append(f"{' '.join(words)} n{seed}x{n},{('bad', 'good')[label]}")
    file.write_text("\n".join(lines) + "\n")
