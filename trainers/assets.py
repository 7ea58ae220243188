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

from ..search_spaces.trial import canonical_json
from .batches import Split
from .feature_cache import FeatureCache, KeptSource
from .feature_layout import Layout, Type, feature_bytes, feature_type
from .features import Needs
from .frozen import (
    FrozenTeacher,
    TeacherRecord,
    load_classifier,
    load_teacher,
)
from .language import LanguageHead, Vocabulary, teachers_language_head
from .outputs import CanonicalPass, Kept, Online, TeacherOutputs
from .rows import digest_texts
from .settings import Precision, Settings
from .sources import folder_of, weights_content
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


@dataclass(frozen=True)
class Keeping:
    """What of a source is kept where a stage reads what is kept."""

    features: Needs
    """All that one pass computes."""
    is_compact: bool

    def type_of(self, needs: Needs) -> Type:
        """The roughest type of what a stage reads."""
        return min(feature_type(feature, is_compact=self.is_compact) for feature in needs)


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

    def __init__(self, settings: Settings, cache: Path | None = None) -> None:
        self.settings = settings
        self._cache = cache or cache_folder()
        self._tasks: _Recent[LoadedTask] = _Recent(_TASKS)
        self._tokens: _Recent[Tokens] = _Recent(_TASKS)
        self._teachers: _Recent[FrozenTeacher] = _Recent(_MODELS)
        self._texts: _Recent[LoadedText] = _Recent(_TASKS)
        self._vocabularies: _Recent[Vocabulary] = _Recent(_MODELS)
        self._language_heads: _Recent[LanguageHead] = _Recent(_MODELS)
        self._features = FeatureCache(self._cache / "features", settings)
        self._sources: _Recent[KeptSource] = _Recent(_TASKS)

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
                _place_of(which), lambda: load_teacher(which, device=self.settings.device)
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

    def check_unchanged(self, which: Path | TeacherSource) -> None:
        """Compare the weights of a teacher that has taught here with those at its start.

        Raises:
            FrozenError: Something wrote to a weight.
        """
        if (teacher := self._teachers.get(_place_of(which))) is not None:
            teacher.check_unchanged()

    def keeps(
        self, source: str, needs: Needs, *, sizes: Sizes, rows: Split, precision: Precision
    ) -> Keeping | None:
        """What is kept for a stage; None: its teacher runs on every batch.

        Args:
            source: The key of what it reads.
            needs: Which features of it.
            sizes: The teacher's.
            rows: What the stage trains on.
            precision: Of the stage.
        """
        if self.settings.features is None:
            layout = Layout(rows.lengths.numpy())
            size = sum(
                feature_bytes(feature, sizes=sizes, layout=layout, type="fp32") for feature in needs
            )
            fits = size <= self.settings.features_gb * _GB
            return Keeping(needs, is_compact=False) if fits else None
        for choice in self.settings.features:
            if choice.source == source and choice.keeps(needs):
                return Keeping(frozenset(choice.kept), is_compact=precision == "bf16")
        return None

    def outputs(
        self,
        teacher: Path | TeacherSource,
        rows: Split,
        *,
        source: str,
        task: str,
        pad_token_id: int,
        needs: Needs,
        sizes: Sizes,
        precision: Precision,
        stop: Callable[[], bool],
    ) -> TeacherOutputs:
        """A teacher's outputs over what a stage trains on, kept or not.

        Args:
            teacher: Who teaches.
            rows: What the stage trains on.
            source: The key of the two.
            task: What people call the rows.
            pad_token_id: Of the tokens.
            needs: What the stage reads.
            sizes: The teacher's.
            precision: Of the stage.
            stop: Looked at before every batch of a pass over the rows.

        Raises:
            StoppedError: `stop` became true during the pass.
            InputError: There is no room for what is to be kept, on the disk or in memory.
        """
        keeping = self.keeps(source, needs, sizes=sizes, rows=rows, precision=precision)
        if keeping is None:
            return Online(self.teacher(teacher).model, needs, precision)

        def find() -> KeptSource:
            layout = Layout(rows.lengths.numpy())
            run = CanonicalPass(
                teacher=lambda: self.teacher(teacher).model,
                split=rows,
                layout=layout,
                pad_token_id=pad_token_id,
                device=torch.device(self.settings.device),
                precision=precision,
                stop=stop,
            )
            about = {"teacher": _name_of(teacher), "task": task, "precision": precision}
            weights = weights_content(teacher if isinstance(teacher, Path) else folder_of(teacher))
            return self._features.source(run, weights=weights, about=about)

        kept = self._sources.get_or_make((_place_of(teacher), source), find)
        vectors = self._features.vectors(
            kept,
            needs,
            keeping.features,
            sizes=sizes,
            is_compact=keeping.is_compact,
            stop=stop,
        )
        return Kept(vectors, kept.places, kept.held, kept.seconds_a_row(needs))


def _place_of(teacher: Path | TeacherSource) -> Hashable:
    """What tells the weights of one teacher from those of another."""
    return TeacherRecord.read(teacher).weights if isinstance(teacher, Path) else teacher


def _name_of(teacher: Path | TeacherSource) -> str:
    return TeacherRecord.read(teacher).model if isinstance(teacher, Path) else teacher.model
