"""What one process keeps from trial to trial: tasks, tokens, teachers and what teachers said.

Nothing here decides a number. Whether a trial reads kept outputs or runs its teacher is a matter
of sizes and settings, not of what happens to be in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..search_spaces.trial import canonical_json
from .batches import Split
from .features import Feature, Needs
from .frozen import FrozenTeacher, TeacherRecord, load_classifier, load_teacher
from .outputs import (
    Kept,
    Online,
    TeacherOutputs,
    canonical_pass,
    feature_bytes,
    square_offsets,
)
from .settings import Precision, Settings
from .sources import folder_of
from .tasks import TaskData, load_task, task_digest
from .tokens import cache_folder, tokenise

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

    from ..search_spaces.task import Task
    from .features import Sizes
    from .sources import TeacherSource

_GB = 10**9
_TASKS = 4
_MODELS = 2

_T = TypeVar("_T")


@dataclass(frozen=True)
class LoadedTask:
    """A task's rows and their digest."""

    data: TaskData
    digest: str


@dataclass(frozen=True)
class Tokens:
    """A task's three splits, tokenised, in memory."""

    train: Split
    select: Split
    report: Split
    pad_token_id: int


class _Recent(OrderedDict[Hashable, _T]):
    """The last few things that were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def get_or_make(self, key: Hashable, make: Callable[[], _T]) -> _T:
        if key not in self:
            self[key] = make()
        self.move_to_end(key)
        while len(self) > self._size:
            self.popitem(last=False)
        return self[key]


class Assets:
    """Made once a process, and given to every trial."""

    def __init__(
        self, settings: Settings, cache: Path | None = None, *, hint: Needs = frozenset()
    ) -> None:
        self.settings = settings
        self.hint = hint
        """What the trials to come read of their teacher: kept in one pass as far as it fits."""
        self._cache = cache or cache_folder()
        self._tasks: _Recent[LoadedTask] = _Recent(_TASKS)
        self._tokens: _Recent[Tokens] = _Recent(_TASKS)
        self._teachers: _Recent[FrozenTeacher] = _Recent(_MODELS)
        self._pretrained: _Recent[BertForSequenceClassification] = _Recent(1)
        self._kept: OrderedDict[tuple[Hashable, Feature], Tensor] = OrderedDict()

    def task(self, task: Task) -> LoadedTask:
        """A task's rows."""

        def load() -> LoadedTask:
            data = load_task(task)
            return LoadedTask(data=data, digest=task_digest(data, task))

        return self._tasks.get_or_make(canonical_json(task.model_dump(mode="json")), load)

    def tokens(self, loaded: LoadedTask, source: TeacherSource, *, max_length: int) -> Tokens:
        """A task's rows as the teacher's tokens."""

        def load() -> Tokens:
            task = tokenise(loaded.data, source, max_length=max_length, cache=self._cache)
            return Tokens(
                train=Split.of(task.train),
                select=Split.of(task.select),
                report=Split.of(task.report),
                pad_token_id=task.pad_token_id,
            )

        return self._tokens.get_or_make((loaded.digest, source, max_length), load)

    def teacher(self, folder: Path) -> FrozenTeacher:
        """A prepared teacher."""
        return self._teachers.get_or_make(
            TeacherRecord.read(folder).weights,
            lambda: load_teacher(folder, device=self.settings.device),
        )

    def pretrained(self, source: TeacherSource) -> BertForSequenceClassification:
        """A teacher before its fine-tuning; its head means nothing."""

        def load() -> BertForSequenceClassification:
            model, _ = load_classifier(folder_of(source), may_lack=("classifier", "bert.pooler"))
            return model

        return self._pretrained.get_or_make(source, load)

    def keeps(self, needs: Needs, *, sizes: Sizes, lengths: Tensor) -> bool:
        """Whether a trial reads kept outputs; else the teacher runs on every batch."""
        size = _size(needs, sizes=sizes, lengths=lengths)
        return size <= self.settings.features_gb * _GB

    def outputs(
        self,
        folder: Path,
        task_digest: str,
        tokens: Tokens,
        *,
        needs: Needs,
        sizes: Sizes,
        precision: Precision,
        stop: Callable[[], bool],
    ) -> TeacherOutputs:
        """The prepared teacher's outputs over train, kept or not.

        Raises:
            StoppedError: `stop` became true during the pass over train.
        """
        if not self.keeps(needs, sizes=sizes, lengths=tokens.train.lengths):
            return Online(self.teacher(folder).model, needs, precision)
        place = (TeacherRecord.read(folder).weights, task_digest, precision)
        if any((place, feature) not in self._kept for feature in needs):
            self._run_teacher(place, folder, tokens, needs, sizes, precision, stop)
        kept = {}
        for feature in sorted(needs):
            self._kept.move_to_end((place, feature))
            kept[feature] = self._kept[place, feature]
        return Kept(kept, tokens.train.offsets, square_offsets(tokens.train.offsets))

    def _run_teacher(
        self,
        place: Hashable,
        folder: Path,
        tokens: Tokens,
        needs: Needs,
        sizes: Sizes,
        precision: Precision,
        stop: Callable[[], bool],
    ) -> None:
        lengths = tokens.train.lengths
        hinted = needs | _within(self.hint, sizes)
        wanted = hinted if self.keeps(hinted, sizes=sizes, lengths=lengths) else needs
        for feature in sorted(needs):
            if (place, feature) in self._kept:
                self._kept.move_to_end((place, feature))
        missing = frozenset(f for f in wanted if (place, f) not in self._kept)
        room = 2 * self.settings.features_gb * _GB - _size(missing, sizes=sizes, lengths=lengths)
        while self._kept and self._kept_bytes() > room:
            self._kept.popitem(last=False)
        made = canonical_pass(
            self.teacher(folder).model,
            tokens.train,
            missing,
            sizes=sizes,
            pad_token_id=tokens.pad_token_id,
            device=torch.device(self.settings.device),
            precision=precision,
            stop=stop,
        )
        self._kept.update({(place, feature): tensor for feature, tensor in made.items()})

    def _kept_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())


def _within(needs: Needs, sizes: Sizes) -> Needs:
    """Of a need, the layers that a model has."""
    return frozenset(feature for feature in needs if feature.layer <= sizes.num_hidden_layers)


def _size(features: Needs, *, sizes: Sizes, lengths: Tensor) -> int:
    return sum(feature_bytes(feature, sizes=sizes, lengths=lengths) for feature in features)
