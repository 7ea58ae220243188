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
from .frozen import (
    FrozenTeacher,
    TeacherRecord,
    load_classifier,
    load_teacher,
)
from .language import LanguageHead, Vocabulary, teachers_language_head
from .outputs import (
    Kept,
    Online,
    TeacherOutputs,
    canonical_pass,
    feature_bytes,
    square_offsets,
)
from .rows import digest_texts
from .settings import Precision, Settings
from .sources import folder_of
from .tasks import TaskData, load_task, task_digest
from .texts import unlabelled_texts
from .tokens import cache_folder, tokenise, tokenise_texts

if TYPE_CHECKING:
    from ..search_spaces.task import Task
    from ..search_spaces.texts import Unlabelled
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


@dataclass(frozen=True)
class LoadedText:
    """What a stage trains on in place of the task's rows, and its digest."""

    rows: Split
    digest: str


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
        self._texts: _Recent[LoadedText] = _Recent(_TASKS)
        self._vocabularies: _Recent[Vocabulary] = _Recent(_MODELS)
        self._language_heads: _Recent[LanguageHead] = _Recent(_MODELS)
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

    def text(
        self, loaded: LoadedTask, wanted: Unlabelled, source: TeacherSource, *, max_length: int
    ) -> LoadedText:
        """Text without labels as the teacher's tokens."""

        def load() -> LoadedText:
            texts = unlabelled_texts(loaded.data, wanted)
            tokens = tokenise_texts(texts, source, max_length=max_length, cache=self._cache)
            return LoadedText(Split.of(tokens), digest_texts(texts))

        # By the task itself: its digest does not say which rows its limit left out.
        return self._texts.get_or_make((loaded, wanted, source, max_length), load)

    def vocabulary(self, source: TeacherSource) -> Vocabulary:
        """What hiding tokens takes."""
        return self._vocabularies.get_or_make(source, lambda: Vocabulary.of(source))

    def teacher(self, which: Path | TeacherSource) -> FrozenTeacher:
        """A prepared teacher by its folder, or one before its fine-tuning by its files.

        The head of the latter means nothing.
        """
        if isinstance(which, Path):
            return self._teachers.get_or_make(
                _weights_of(which), lambda: load_teacher(which, device=self.settings.device)
            )

        def load() -> FrozenTeacher:
            model, _ = load_classifier(folder_of(which), may_lack=("classifier", "bert.pooler"))
            return FrozenTeacher(model).to(self.settings.device)

        return self._teachers.get_or_make(which, load)

    def language_head(self, source: TeacherSource, prepared: Path) -> LanguageHead:
        """The pre-trained teacher's head for masked language modelling.

        Args:
            source: The checkpoint, which may have one.
            prepared: The prepared teacher's folder, which may have one that was trained.
        """
        device = torch.device(self.settings.device)

        def load() -> LanguageHead:
            return teachers_language_head(source, prepared).to(device)

        # Other heads may lie beside the same weights: the fine-tuning does not see them.
        which = TeacherRecord.read(prepared).digest
        return self._language_heads.get_or_make((source, which), load)

    def keeps(self, needs: Needs, *, sizes: Sizes, lengths: Tensor) -> bool:
        """Whether a trial reads kept outputs; else the teacher runs on every batch."""
        size = _size(needs, sizes=sizes, lengths=lengths)
        return size <= self.settings.features_gb * _GB

    def outputs(
        self,
        teacher: Path | TeacherSource,
        rows: Split,
        *,
        rows_digest: str,
        pad_token_id: int,
        needs: Needs,
        sizes: Sizes,
        precision: Precision,
        stop: Callable[[], bool],
    ) -> TeacherOutputs:
        """A teacher's outputs over what a stage trains on, kept or not.

        Raises:
            StoppedError: `stop` became true during the pass over the rows.
        """
        if not self.keeps(needs, sizes=sizes, lengths=rows.lengths):
            return Online(self.teacher(teacher).model, needs, precision)
        place = (_weights_of(teacher), rows_digest, precision)
        if any((place, feature) not in self._kept for feature in needs):
            self._run_teacher(
                place, teacher, rows, needs, sizes=sizes, pad_token_id=pad_token_id, stop=stop
            )
        kept = {}
        for feature in sorted(needs):
            self._kept.move_to_end((place, feature))
            kept[feature] = self._kept[place, feature]
        return Kept(kept, rows.offsets, square_offsets(rows.offsets))

    def _run_teacher(
        self,
        place: tuple[Hashable, str, Precision],
        teacher: Path | TeacherSource,
        rows: Split,
        needs: Needs,
        *,
        sizes: Sizes,
        pad_token_id: int,
        stop: Callable[[], bool],
    ) -> None:
        lengths = rows.lengths
        # What trials to come read of the one that is prepared; others serve few.
        hinted = needs | (_within(self.hint, sizes) if isinstance(teacher, Path) else frozenset())
        wanted = hinted if self.keeps(hinted, sizes=sizes, lengths=lengths) else needs
        for feature in sorted(needs):
            if (place, feature) in self._kept:
                self._kept.move_to_end((place, feature))
        missing = frozenset(f for f in wanted if (place, f) not in self._kept)
        room = 2 * self.settings.features_gb * _GB - _size(missing, sizes=sizes, lengths=lengths)
        while self._kept and self._kept_bytes() > room:
            self._kept.popitem(last=False)
        made = canonical_pass(
            self.teacher(teacher).model,
            rows,
            missing,
            sizes=sizes,
            pad_token_id=pad_token_id,
            device=torch.device(self.settings.device),
            precision=place[-1],
            stop=stop,
        )
        self._kept.update({(place, feature): tensor for feature, tensor in made.items()})

    def _kept_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())


def _weights_of(teacher: Path | TeacherSource) -> Hashable:
    """What tells the weights of one teacher from those of another."""
    return TeacherRecord.read(teacher).weights if isinstance(teacher, Path) else teacher


def _within(needs: Needs, sizes: Sizes) -> Needs:
    """Of a need, the layers that a model has."""
    return frozenset(feature for feature in needs if feature.layer <= sizes.num_hidden_layers)


def _size(features: Needs, *, sizes: Sizes, lengths: Tensor) -> int:
    return sum(feature_bytes(feature, sizes=sizes, lengths=lengths) for feature in features)
