"""Masked language modelling: which tokens are hidden, and the head that guesses them.

B rows, L tokens, M hidden tokens of a batch, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from ..search_spaces.errors import Problem, TeacherError
from .sources import TeacherSource, folder_of, weight_files
from .streams import generator
from .student import INITIAL_STD
from .tokens import NO_LABEL, load_tokenizer

if TYPE_CHECKING:
    from .batches import Batch

HIDDEN_SHARE = 0.15
"""Of a row's tokens, special ones apart."""

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the hidden tokens: behind the mask token, and behind a random one; the rest stays."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PREFIX = "cls.predictions."

LANGUAGE_HEAD = "language_head.safetensors"
"""In a prepared teacher's folder, where one was trained."""


@dataclass(frozen=True)
class Vocabulary:
    """What hiding a token takes."""

    size: int
    mask_token_id: int
    special: Tensor
    """Ids of tokens that are never hidden, int64."""

    @classmethod
    def of(cls, source: TeacherSource) -> Vocabulary:
        """A tokenizer's.

        Raises:
            TeacherError: It has no mask token.
        """
        tokenizer = load_tokenizer(source, max_length=len(_SPECIAL))
        ids = {word: tokenizer.token_to_id(word) for word in _SPECIAL}
        mask = ids["[MASK]"]
        if mask is None:
            what = f"the tokenizer of `{source.model}` has no token `[MASK]`"
            raise TeacherError([Problem("teacher.model", what, "Choose another teacher.")])
        known = [id for id in ids.values() if id is not None]
        return cls(tokenizer.get_vocab_size(), mask, torch.tensor(known))


def hide_tokens(batch: Batch, vocabulary: Vocabulary, *, stream: torch.Generator) -> Batch:
    """The batch with some tokens hidden, and with what they were as `targets`, on the CPU.

    Of each row at least one token is hidden, special ones apart.

    References:
        Devlin et al., *BERT*, 2019, arXiv:1810.04805, appendix A.1.
    """
    ids = batch.input_ids
    may_hide = (batch.attention_mask > 0) & ~torch.isin(ids, vocabulary.special)
    candidates = may_hide.sum(dim=1, keepdim=True)
    wanted = (HIDDEN_SHARE * candidates).round().clamp_min(1).minimum(candidates)
    # A row's tokens in random order; those that may not be hidden come last.
    draws = torch.rand(ids.shape, generator=stream).masked_fill(~may_hide, torch.inf)
    is_hidden = draws.argsort(dim=1).argsort(dim=1) < wanted
    fate = torch.rand(ids.shape, generator=stream)
    others = torch.randint(vocabulary.size, ids.shape, generator=stream)
    is_masked = is_hidden & (fate < MASKED_SHARE)
    is_random = is_hidden & ~is_masked & (fate < MASKED_SHARE + RANDOM_SHARE)
    shown = ids.masked_fill(is_masked, vocabulary.mask_token_id)
    return replace(
        batch,
        input_ids=torch.where(is_random, others, shown),
        targets=ids.masked_fill(~is_hidden, NO_LABEL),
    )


class LanguageHead(nn.Module):
    """From the hidden states of the last block to logits over the vocabulary."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Logits [M, V] of hidden states [M, H]; the word embeddings [V, H] are the output map."""
        return F.linear(self.transform(hidden), embeddings, self.bias)


def make_language_head(config: BertConfig, *, seed: int) -> LanguageHead:
    """A head with random weights: N(0, 0.02), biases 0; the global random stream is untouched."""
    with torch.random.fork_rng(devices=[]):
        head = LanguageHead(config)
    dense = head.transform.dense
    stream = generator(seed, "language_head", "transform.dense.weight")
    nn.init.normal_(dense.weight, std=INITIAL_STD, generator=stream)
    nn.init.zeros_(dense.bias)
    return head


def teachers_language_head(source: TeacherSource, prepared: Path) -> LanguageHead:
    """The head of a pre-trained teacher: one that was trained, else that of its checkpoint.

    Args:
        source: The checkpoint.
        prepared: The prepared teacher's folder.

    Raises:
        TeacherError: There is neither, or the checkpoint's has an output map of its own.
    """
    config = BertConfig.from_pretrained(folder_of(source))
    head = LanguageHead(config)
    trained = prepared / LANGUAGE_HEAD
    found = load_file(trained) if trained.is_file() else _saved_head(folder_of(source))
    if found.keys() != head.state_dict().keys() or not config.tie_word_embeddings:
        raise TeacherError(
            [
                Problem(
                    "teacher.model",
                    f"`{source.model}` has no head for masked language modelling that shares the "
                    "word embeddings",
                    "Train one with `language_head: {}` under `teacher`.",
                )
            ]
        )
    head.load_state_dict(found)
    return head.requires_grad_(requires_grad=False)


def _saved_head(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
            found |= {name.removeprefix(_PREFIX): tensors.get_tensor(name) for name in names}
    # The output map is the word embeddings; its bias goes by two names.
    found.pop("decoder.weight", None)
    if (bias := found.pop("decoder.bias", None)) is not None:
        found.setdefault("bias", bias)
    return found


def save_language_head(head: LanguageHead, folder: Path) -> None:
    """Beside a prepared teacher."""
    tensors = {name: tensor.contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, folder / LANGUAGE_HEAD)
