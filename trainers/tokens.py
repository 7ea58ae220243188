"""Texts as tokens, made once for each content and kept on disk."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..search_spaces.errors import Problem, TeacherError
from ..search_spaces.trial import digest
from .rows import digest_texts
from .sources import (
    TeacherSource,
    folder_of,
    read_config,
    tokenizer_digest,
    tokenizer_vocabulary,
)
from .tasks import TaskData

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_LABEL = -100
"""Stands where a row has no label; the index that cross-entropy leaves out."""

_CACHE_VERSION = 1
_MANIFEST = "manifest.json"
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, eq=False)
class TokenisedSplit:
    """The tokens of a split's rows, one row after the other, without padding.

    Row `n` is `input_ids[offsets[n]:offsets[n + 1]]`.
    """

    input_ids: npt.NDArray[np.int32]
    """Token ids, special tokens included; memory-mapped."""
    token_type_ids: npt.NDArray[np.uint8]
    """0 for the first text, 1 for the second; memory-mapped."""
    offsets: npt.NDArray[np.int64]
    """Where each row begins, and where the last one ends: rows + 1 numbers."""
    labels: npt.NDArray[np.int64]
    """The class id of each row."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class TokenisedTask:
    """A task's three splits as tokens."""

    train: TokenisedSplit
    select: TokenisedSplit
    report: TokenisedSplit
    pad_token_id: int
    """What fills a batch's shorter rows."""


def cache_folder() -> Path:
    """Where derived files are kept: `KDSWEEP_CACHE_DIR`, or the user's cache folder."""
    if named := os.environ.get("KDSWEEP_CACHE_DIR"):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("kdsweep")


def tokenise(
    data: TaskData, source: TeacherSource, *, max_length: int, cache: Path
) -> TokenisedTask:
    """A task's texts as the teacher's tokens, made once for all processes that share a cache.

    Pairs are cut by taking tokens from the longer text first. What is kept is found by its
    content (texts, tokenizer files and length) and believed only if its checksums hold.

    Args:
        data: The task's rows.
        source: The teacher, whose tokenizer the student shares.
        max_length: Longest row in tokens, special tokens included.
        cache: Where the tokens are kept.

    Raises:
        TeacherError: The tokenizer is missing or damaged, or its tokens do not fit the teacher.
    """
    splits = {"train": data.train, "select": data.select, "report": data.report}
    texts = {name: rows.texts for name, rows in splits.items()}
    arrays = _tokenised(texts, source, max_length=max_length, cache=cache)
    return TokenisedTask(
        **{name: _split(arrays, name, rows.labels) for name, rows in splits.items()},
        pad_token_id=read_config(source).get("pad_token_id") or 0,
    )


def tokenise_texts(
    texts: Sequence[tuple[str, ...]], source: TeacherSource, *, max_length: int, cache: Path
) -> TokenisedSplit:
    """Texts without labels as the teacher's tokens; labels are `NO_LABEL`. See `tokenise`."""
    arrays = _tokenised({"texts": texts}, source, max_length=max_length, cache=cache)
    return _split(arrays, "texts", np.full(len(texts), NO_LABEL, dtype=np.int64))


def _tokenised(
    texts: Mapping[str, Sequence[tuple[str, ...]]],
    source: TeacherSource,
    *,
    max_length: int,
    cache: Path,
) -> Mapping[str, npt.NDArray[Any]]:
    tokenizer = load_tokenizer(source, max_length=max_length)
    num_texts = len(next(iter(texts.values()))[0])
    config = read_config(source)
    _check_fit(tokenizer, config, source, max_length=max_length, texts=num_texts)
    key = digest(
        {
            "version": _CACHE_VERSION,
            "texts": {name: digest_texts(each) for name, each in texts.items()},
            "tokenizer": tokenizer_digest(source),
            "library": version("tokenizers"),
            "max_length": max_length,
        }
    )
    return _made_once(cache / "tokens" / key, texts, tokenizer)


def _split(
    arrays: Mapping[str, npt.NDArray[Any]], name: str, labels: npt.NDArray[np.int64]
) -> TokenisedSplit:
    return TokenisedSplit(
        input_ids=arrays[f"{name}.input_ids"],
        token_type_ids=arrays[f"{name}.token_type_ids"],
        offsets=arrays[f"{name}.offsets"],
        labels=labels,
    )


def load_tokenizer(source: TeacherSource, *, max_length: int) -> "Tokenizer":
    """A teacher's tokenizer that cuts at `max_length` and never pads.

    Args:
        source: The teacher.
        max_length: Longest row in tokens, special tokens included.

    Raises:
        TeacherError: Its files are missing or damaged, or `max_length` leaves no room for text.
    """
    from tokenizers import Tokenizer

    folder = folder_of(source)
    name = tokenizer_vocabulary(folder)
    try:
        if name == "tokenizer.json":
            tokenizer = Tokenizer.from_file(str(folder / name))
        else:
            tokenizer = _from_vocabulary(folder)
    except Exception as error:
        raise _error(
            "teacher.model",
            f"the tokenizer in {folder} cannot be read: {error}",
            "Save it again beside the model with `save_pretrained`.",
        ) from error
    # A shipped file may bring settings of its own, such as padding everything to 128 tokens.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def _from_vocabulary(folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    special = {
        name: _content(config.get(f"{name}_token"), f"[{name.upper()}]")
        for name in ("unk", "sep", "pad", "cls", "mask")
    }
    words = models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token=special["unk"])
    tokenizer = Tokenizer(words)
    tokenizer.add_special_tokens(
        [word for word in special.values() if tokenizer.token_to_id(word) is not None]
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = tokenizer.token_to_id(special["cls"]), tokenizer.token_to_id(special["sep"])
    if first is None or last is None:
        raise ValueError(f"vocab.txt has no {special['cls']} or no {special['sep']}")
    tokenizer.post_processor = processors.BertProcessing(
        (special["sep"], last), (special["cls"], first)
    )
    return tokenizer


def _content(token: object, default: str) -> str:
    if isinstance(token, dict):
        return str(token.get("content", default))
    return str(token) if token else default


def _check_fit(
    tokenizer: "Tokenizer",
    config: dict[str, Any],
    source: TeacherSource,
    *,
    max_length: int,
    texts: int,
) -> None:
    special = tokenizer.num_special_tokens_to_add(is_pair=texts > 1)
    positions = config.get("max_position_embeddings")
    words, known = tokenizer.get_vocab_size(with_added_tokens=True), config.get("vocab_size")
    types = config.get("type_vocab_size")
    problems = []
    if max_length <= special:
        problems.append(
            Problem(
                "task.max_length",
                f"{max_length} leaves no room for text beside {special} special tokens",
                f"Write at least {special + 1}.",
            )
        )
    if positions is not None and max_length > positions:
        problems.append(
            Problem(
                "task.max_length",
                f"{max_length} exceeds the {positions} positions of `{source.model}`",
                f"Write at most {positions}.",
            )
        )
    if known is not None and words > known:
        problems.append(
            Problem(
                "teacher.model",
                f"the tokenizer of `{source.model}` knows {words:,} tokens and its model {known:,}",
                "Save the tokenizer that belongs to the model beside it.",
            )
        )
    if types is not None and texts > types:
        problems.append(
            Problem(
                "teacher.model",
                f"`{source.model}` cannot tell the first text from the second: its "
                f"`type_vocab_size` is {types}",
                "Choose another teacher, or one text column.",
            )
        )
    if problems:
        raise TeacherError(problems)


def _made_once(
    folder: Path, texts: Mapping[str, Sequence[tuple[str, ...]]], tokenizer: "Tokenizer"
) -> Mapping[str, npt.NDArray[Any]]:
    from filelock import FileLock

    if (arrays := _read(folder)) is not None:
        with suppress(OSError):
            # When it was used last, for whoever prunes.
            os.utime(folder)
        return arrays
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (arrays := _read(folder)) is not None:
            return arrays
        _make(folder, texts, tokenizer)
        if (arrays := _read(folder)) is None:
            raise OSError(f"{folder} does not read back as it was written")
        return arrays


def _read(folder: Path) -> Mapping[str, npt.NDArray[Any]] | None:
    """The arrays of a folder, or None if anything about it is not as its maker left it."""
    try:
        checksums: dict[str, str] = json.loads((folder / _MANIFEST).read_bytes())
        if any(_checksum(folder / name) != value for name, value in checksums.items()):
            return None
        return {
            name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r") for name in checksums
        }
    except (OSError, ValueError, AttributeError):
        return None


def _make(
    folder: Path, texts: Mapping[str, Sequence[tuple[str, ...]]], tokenizer: "Tokenizer"
) -> None:
    # Whoever made this one before was killed: the lock is ours.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for split, each in texts.items():
        for name, array in _tokens(each, tokenizer).items():
            np.save(partial / f"{split}.{name}.npy", array, allow_pickle=False)
    checksums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
    (partial / _MANIFEST).write_text(json.dumps(checksums), encoding="utf-8")
    # A damaged folder of this name is not believed by anyone; a rename needs it gone.
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _tokens(
    texts: Sequence[tuple[str, ...]], tokenizer: "Tokenizer"
) -> dict[str, npt.NDArray[Any]]:
    input_ids: list[npt.NDArray[np.int32]] = []
    token_type_ids: list[npt.NDArray[np.uint8]] = []
    lengths: list[int] = [0]
    for some in _batched(texts):
        encodings = tokenizer.encode_batch_fast(
            [text if len(text) > 1 else text[0] for text in some]
        )
        lengths += [len(encoding) for encoding in encodings]
        input_ids.append(
            np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
        )
        token_type_ids.append(
            np.fromiter(chain.from_iterable(encoding.type_ids for encoding in encodings), np.uint8)
        )
    return {
        "input_ids": np.concatenate(input_ids),
        "token_type_ids": np.concatenate(token_type_ids),
        "offsets": np.cumsum(lengths, dtype=np.int64),
    }


def _batched(texts: Sequence[tuple[str, ...]]) -> Iterator[Sequence[tuple[str, ...]]]:
    # Encodings are large objects; a few thousand of them fit where a whole data set's may not.
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        yield texts[start : start + _ROWS_AT_ONCE]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error(place: str, what: str, mend: str) -> TeacherError:
    return TeacherError([Problem(place, what, mend)])
