"""What a teacher says about the rows of a stage: asked for each batch, or once and kept.

Kept outputs come from one canonical pass (rows in the order of their lengths, fixed batches), so
that they are the same in every lane whichever trial wanted them first. Of each row the tokens
alone are kept, packed one row after the other in the order of that pass:

* logits [N, C];
* hidden states, queries, keys or values of a layer [sum of L, H];
* attention scores of a block [sum of L * L, A], heads last, so that one pair of tokens is one
  stretch of memory; of their probabilities' mean over heads [sum of L * L, 1].

N rows, L tokens of a row, H width, A heads, C classes.

They are kept in fp32, bit for bit what the teacher gives on a batch of that pass; beside training
in bf16, all but logits as fp16: it rounds by 2**-11 of a number at most (below 2**-14, by 2**-25),
an eighth of what bf16 rounds by itself. A feature with a number beyond 65,504 stays in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, assert_never

import numpy as np
import torch
from torch import Tensor

from .batches import collate, padded_index
from .errors import StoppedError
from .feature_files import Overflows, Part, Ran
from .feature_layout import Entry, Layout, axis_of
from .features import Feature, Features, Needs
from .forward import forward

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from .batches import Batch, Split
    from .file_lock import Held
    from .language import LanguageHead
    from .settings import Precision


class TeacherOutputs(Protocol):
    """Where the objective gets the teacher's side from."""

    def features(self, batch: Batch) -> Features:
        """The teacher's outputs for a batch of them, on the batch's device."""
        ...


@dataclass(frozen=True)
class Online:
    """The teacher runs on every batch."""

    teacher: nn.Module
    needs: Needs
    precision: Precision
    language_head: LanguageHead | None = None

    @torch.no_grad()
    def features(self, batch: Batch) -> Features:
        """The outputs of one forward pass."""
        return forward(
            self.teacher,
            batch,
            self.needs,
            precision=self.precision,
            language_head=self.language_head,
            is_whole=True,
        )


@dataclass(frozen=True)
class Places:
    """Where what is kept of each row of a split lies, by the row's number; all of shape [N]."""

    lengths: Tensor
    rows: Tensor
    """The row's place in the canonical order."""
    tokens: Tensor
    """Where its tokens start."""
    pairs: Tensor
    """Where its pairs of tokens start."""

    @classmethod
    def of(cls, split: Split, layout: Layout) -> Places:
        """For the rows of a split whose layout this is."""
        rows = torch.empty(len(split), dtype=torch.int64)
        rows[torch.from_numpy(layout.order)] = torch.arange(len(split))
        starts = {axis: torch.from_numpy(each) for axis, each in layout.offsets.items()}
        return cls(split.lengths, rows, starts["tokens"][rows], starts["pairs"][rows])


@dataclass(frozen=True)
class Kept:
    """The teacher has run once."""

    kept: Mapping[Feature, Tensor]
    """Packed; of files they are views, for reading only."""
    places: Places
    held: Held | None = None
    """Keeps the files, where there are any, from being pruned."""
    seconds_a_row: float | None = None
    """What the teacher took for it; None where nobody measured it."""

    def spared(self, batch: Batch) -> float | None:
        """Seconds that the teacher would take for a batch; None where nobody knows."""
        return None if self.seconds_a_row is None else self.seconds_a_row * len(batch.rows)

    def features(self, batch: Batch) -> Features:
        """What is kept of the batch's rows, in fp32; padding repeats a row's first token."""
        device = batch.labels.device
        return {
            feature: _onto(self._gather(feature, batch.rows), device).float()
            for feature in self.kept
        }

    def _gather(self, feature: Feature, rows: Tensor) -> Tensor:
        packed, places = self.kept[feature], self.places
        axis = axis_of(feature)
        match axis:
            case "rows":
                return packed[places.rows[rows]]
            case "tokens":
                index, _ = padded_index(places.tokens[rows], places.lengths[rows])
            case "pairs":
                index = _pair_index(places.pairs[rows], places.lengths[rows])
            case _:
                assert_never(axis)
        found = packed.index_select(0, index.flatten()).view(*index.shape, -1)
        return found if axis == "tokens" else found.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class CanonicalPass:
    """A teacher over the batches of the canonical order."""

    teacher: Callable[[], nn.Module]
    """Loads it, if need be."""
    split: Split
    layout: Layout
    pad_token_id: int
    device: torch.device
    precision: Precision
    stop: Callable[[], bool]

    @torch.no_grad()
    def __call__(self, start: int, end: int, *, entries: Sequence[Entry]) -> Ran:
        """The vectors of a batch, a stretch of the order.

        Raises:
            StoppedError: `stop` became true before.
        """
        if self.stop():
            raise StoppedError
        rows = torch.from_numpy(self.layout.order[start:end])
        batch = collate(self.split, rows, pad_token_id=self.pad_token_id)
        needs = frozenset(entry.feature for entry in entries)
        teacher, there = self.teacher(), batch.to(self.device)
        self._wait()
        began = perf_counter()
        # Whole, since an entry is found by what decides its bits, and others may be there already.
        outputs = forward(teacher, there, needs, precision=self.precision, is_whole=True)
        self._wait()
        seconds = perf_counter() - began
        mask = batch.attention_mask.bool().to(self.device)
        found: Part = {}
        for entry in entries:
            vectors = _packed(entry, outputs[entry.feature], mask).float().cpu().numpy()
            with np.errstate(over="ignore"):
                rounded = np.ascontiguousarray(vectors, dtype=entry.dtype)
            if not (np.isinf(rounded) & np.isfinite(vectors)).any():
                found[entry] = rounded
        return Ran(found, seconds)

    def _wait(self) -> None:
        """Until the device has done what it was asked for, so that a clock tells its time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def kept_in_memory(
    run: CanonicalPass, entries: Sequence[Entry]
) -> tuple[dict[Entry, npt.NDArray[Any] | Overflows], float]:
    """All vectors of some entries, of this process alone, and the teacher's seconds."""
    layout = run.layout
    seconds = 0.0
    kept: dict[Entry, npt.NDArray[Any] | Overflows] = {
        entry: np.empty((layout.size(entry.axis), entry.width), dtype=entry.dtype)
        for entry in entries
    }
    for shard in range(len(layout.shards)):
        for start, end in layout.batches(shard):
            part, took = run(start, end, entries=entries)
            seconds += took
            for entry, whole in kept.items():
                if isinstance(whole, Overflows):
                    continue
                if entry not in part:
                    kept[entry] = Overflows()
                    continue
                offsets = layout.offsets[entry.axis]
                whole[offsets[start] : offsets[end]] = part[entry]
    return kept, seconds


def _packed(entry: Entry, output: Tensor, mask: Tensor) -> Tensor:
    """The vectors at tokens that are no padding, row after row."""
    match entry.axis:
        case "rows":
            return output
        case "tokens":
            return output[mask]
        case "pairs":
            return output.permute(0, 2, 3, 1)[mask[:, :, None] & mask[:, None, :]]


def _pair_index(starts: Tensor, lengths: Tensor) -> Tensor:
    """Where the pairs of tokens lie, [B, L, L]; with padding, at the row's first pair."""
    position = torch.arange(int(lengths.max()))
    mask = position < lengths[:, None]
    within = position[:, None] * lengths[:, None, None] + position
    return starts[:, None, None] + within * (mask[:, :, None] & mask[:, None, :])


def _onto(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return tensor
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
