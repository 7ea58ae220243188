"""Tokens: equal to Hugging Face's own, made once, and believed only if whole."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers.implementations import BertWordPieceTokenizer

from kdsweep.search_spaces.embedded import embedded_model_folder
from kdsweep.search_spaces.errors import TeacherError
from kdsweep.trainers.rows import Rows
from kdsweep.trainers.sources import TeacherSource
from kdsweep.trainers.tasks import TaskData
from kdsweep.trainers.tokens import TokenisedSplit, TokenisedTask, cache_folder, tokenise

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "c", "é", "e"]
TEXTS = [
    "the cat",
    "The Cat sats!",
    "",
    "  the\tcat [SEP] sat ",
    "é cat",
    "猫 the",
    "the " * 30,
    "[MASK] cats",
]
PAIRS = [("the cat", "sat"), ("the " * 20, "cat sat"), ("cat", "sat " * 20), ("", "cat")]


def data_of(*texts: tuple[str, ...]) -> TaskData:
    rows = Rows(texts, np.zeros(len(texts), dtype=np.int64))
    return TaskData(
        name="data",
        train=rows,
        select=rows.take([0]),
        report=rows.take([len(texts) - 1, 0]),
        classes=("a", "b"),
        metric="accuracy",
        metrics=("accuracy",),
        dropped={},
        unlimited=(),
        text=("text",),
    )


DATA = data_of(*((text,) for text in TEXTS))


def teacher(
    folder: Path, *, json_file: bool = True, lowercase: bool = True, **config: object
) -> TeacherSource:
    """A tiny BERT's config and tokenizer, as tokenizer.json or as vocab.txt alone."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "type_vocab_size": 2}
    model = {"model_type": "bert", "pad_token_id": 0, **sizes, **config}
    (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    if json_file:
        made = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)
        # Settings that a shipped file may bring, and that must not act.
        made.enable_padding(length=40)
        made.enable_truncation(3)
        made.save(str(folder / "tokenizer.json"))
    return TeacherSource("tiny", folder, None)


def ids_of(split: TokenisedSplit) -> list[list[int]]:
    return [
        split.input_ids[start:end].tolist()
        for start, end in zip(split.offsets[:-1], split.offsets[1:], strict=True)
    ]


def types_of(split: TokenisedSplit) -> list[list[int]]:
    return [
        split.token_type_ids[start:end].tolist()
        for start, end in zip(split.offsets[:-1], split.offsets[1:], strict=True)
    ]


def arrays_of(task: TokenisedTask) -> list[list[int]]:
    return [
        array.tolist()
        for split in (task.train, task.select, task.report)
        for array in (split.input_ids, split.token_type_ids, split.offsets)
    ]


def test_rows_follow_one_another_without_padding(tmp_path: Path) -> None:
    made = tokenise(DATA, teacher(tmp_path / "model"), max_length=8, cache=tmp_path / "cache")
    # By hand from WORDS: [CLS] the cat [SEP]; `!` is unknown; an empty text is [CLS] [SEP].
    assert ids_of(made.train)[:3] == [[2, 5, 6, 3], [2, 5, 6, 7, 8, 1, 3], [2, 3]]
    assert ids_of(made.select) == ids_of(made.train)[:1]
    assert ids_of(made.report) == [ids_of(made.train)[-1], ids_of(made.train)[0]]
    assert max(map(len, ids_of(made.train))) == 8
    assert made.train.labels is DATA.train.labels
    assert made.pad_token_id == 0
    kinds = [made.train.input_ids.dtype, made.train.token_type_ids.dtype, made.train.offsets.dtype]
    assert kinds == [np.int32, np.uint8, np.int64]
    assert isinstance(made.train.input_ids, np.memmap)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("json_file", [True, False])
def test_tokens_equal_those_of_the_fast_tokenizer_of_transformers(
    tmp_path: Path, json_file: bool, lowercase: bool
) -> None:
    from transformers import AutoTokenizer

    source = teacher(tmp_path / "model", json_file=json_file, lowercase=lowercase)
    assert source.folder is not None
    expected = AutoTokenizer.from_pretrained(source.folder)
    for rows in ([(text,) for text in TEXTS], PAIRS):
        made = tokenise(data_of(*rows), source, max_length=9, cache=tmp_path / "cache").train
        columns = [list(column) for column in zip(*rows, strict=True)]
        theirs = expected(*columns, truncation="longest_first", max_length=9)
        assert ids_of(made) == theirs["input_ids"]
        assert types_of(made) == theirs["token_type_ids"]


@pytest.mark.demo
@pytest.mark.skipif(
    embedded_model_folder("minilm-l6-h384") is None, reason="the extra `demo` is not installed"
)
def test_tokens_of_the_embedded_teacher_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = embedded_model_folder("minilm-l6-h384")
    expected = AutoTokenizer.from_pretrained(folder)
    sentences = [*TEXTS, "I can't @you #naïve 🙂 www.a.b/c?d=1", "tokenisation " * 80]
    rows = [(text,) for text in sentences]
    source = TeacherSource("minilm-l6-h384", folder, None)
    made = tokenise(data_of(*rows), source, max_length=64, cache=tmp_path).train
    assert ids_of(made) == expected(sentences, truncation=True, max_length=64)["input_ids"]


def test_what_was_made_is_read_and_not_made_again(tmp_path: Path) -> None:
    source = teacher(tmp_path / "model")
    first = arrays_of(tokenise(DATA, source, max_length=8, cache=tmp_path / "cache"))
    before = snapshot(tmp_path / "cache")
    assert arrays_of(tokenise(DATA, source, max_length=8, cache=tmp_path / "cache")) == first
    assert snapshot(tmp_path / "cache") == before


def test_other_texts_lengths_and_tokenizers_are_kept_apart(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tokenise(DATA, teacher(tmp_path / "model"), max_length=8, cache=cache)
    tokenise(DATA, teacher(tmp_path / "model"), max_length=9, cache=cache)
    tokenise(DATA, teacher(tmp_path / "cased", lowercase=False), max_length=8, cache=cache)
    tokenise(data_of(("cat",)), teacher(tmp_path / "model"), max_length=8, cache=cache)
    assert len(list((cache / "tokens").glob("*/manifest.json"))) == 4


def test_the_same_content_elsewhere_is_found(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tokenise(DATA, teacher(tmp_path / "model"), max_length=8, cache=cache)
    before = snapshot(cache)
    tokenise(DATA, teacher(tmp_path / "copy"), max_length=8, cache=cache)
    assert snapshot(cache) == before


@pytest.mark.parametrize("name", ["train.input_ids.npy", "report.offsets.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_file_is_made_again(tmp_path: Path, name: str, damage: str) -> None:
    source = teacher(tmp_path / "model")
    whole = arrays_of(tokenise(DATA, source, max_length=8, cache=tmp_path / "cache"))
    (file,) = (tmp_path / "cache" / "tokens").glob(f"*/{name}")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        flipped = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else flipped)
    assert arrays_of(tokenise(DATA, source, max_length=8, cache=tmp_path / "cache")) == whole
    assert file.read_bytes() == content


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from kdsweep.search_spaces.errors import TeacherError
from kdsweep.trainers.rows import Rows
from kdsweep.trainers.sources import TeacherSource
from kdsweep.trainers.tasks import TaskData
from kdsweep.trainers.tokens import tokenise

folder, cache, mark = map(Path, sys.argv[1:])
rows = Rows(tuple((f"the cat {n}",) for n in range(5000)), np.zeros(5000, dtype=np.int64))
data = TaskData("data", rows, rows, rows, ("a", "b"), "accuracy", ("accuracy",), {}, (), ("text",))
{before}
made = tokenise(data, TeacherSource("tiny", folder, None), max_length=8, cache=cache)
(manifest,) = cache.glob("tokens/*/manifest.json")
print(manifest.stat().st_ino, manifest.stat().st_mtime_ns, made.train.input_ids[:4].tolist())
"""

TOGETHER = """
import os
mark.with_suffix(f".{os.getpid()}").touch()
while not mark.exists():
    time.sleep(0.001)
"""

# The kernel ends the process in the middle of a file, as a kill at that moment would.
KILLED_WHILE_WRITING = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def start(before: str, *paths: Path) -> "subprocess.Popen[str]":
    code = WORKER.replace("{before}", before)
    arguments = [sys.executable, "-c", code, *map(str, paths)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_processes_that_tokenise_the_same_at_once_make_it_once(tmp_path: Path) -> None:
    teacher(tmp_path / "model")
    mark = tmp_path / "go"
    workers = [start(TOGETHER, tmp_path / "model", tmp_path / "cache", mark) for _ in range(3)]
    while len(list(tmp_path.glob("go.*"))) < len(workers):
        time.sleep(0.01)
        assert all(worker.poll() is None for worker in workers)
    mark.touch()
    seen = {worker.communicate()[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    # Each tells which file it read; whoever made it again would have replaced it.
    assert len(seen) == 1


def test_a_maker_that_is_killed_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    teacher(tmp_path / "model")
    paths = (tmp_path / "model", tmp_path / "cache", tmp_path / "unused")
    killed = start(KILLED_WHILE_WRITING, *paths)
    killed.communicate()
    assert killed.returncode == -signal.SIGXFSZ
    left = {path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()}
    assert left == {".lock", ".partial"}
    after = start("", *paths)
    assert after.communicate()[0].endswith("[2, 5, 6, 1]\n")
    left = {path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()}
    assert left == {".lock", ""}


@pytest.mark.parametrize(
    ("config", "max_length", "message"),
    [
        ({}, 65, r"task\.max_length: 65 exceeds the 64 positions"),
        ({}, 3, "3 leaves no room for text beside 3 special tokens"),
        ({"vocab_size": 11}, 8, "knows 12 tokens and its model 11"),
        ({"type_vocab_size": 1}, 8, "cannot tell the first text from the second"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(
    tmp_path: Path, config: dict[str, int], max_length: int, message: str
) -> None:
    source = teacher(tmp_path / "model", **config)
    with pytest.raises(TeacherError, match=message):
        tokenise(data_of(*PAIRS), source, max_length=max_length, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", "{}"), ("vocab.txt", "the\ncat\n[UNK]\n")]
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, name: str, content: str) -> None:
    source = teacher(tmp_path / "model", json_file=name == "tokenizer.json")
    (tmp_path / "model" / name).write_text(content, encoding="utf-8")
    with pytest.raises(TeacherError, match=r"the tokenizer in .* cannot be read"):
        tokenise(DATA, source, max_length=8, cache=tmp_path / "cache")


def test_the_cache_lies_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSWEEP_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("KDSWEEP_CACHE_DIR")
    assert cache_folder().name == "kdsweep"


def snapshot(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.npy")
    }
