"""From the stages of a plan to the features of their teachers that its sweep keeps."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..search_spaces.expansion import Plan, PlannedTrial
from ..search_spaces.facts import ModelFacts, read_config
from ..search_spaces.feature_choice import (
    Needs,
    Reading,
    Source,
    SourceChoice,
    choose,
    source_keys,
)
from ..search_spaces.grid import Grid
from ..search_spaces.knowledge import hides_tokens
from ..search_spaces.resolution import MisfitError, resolve_term, uses_teacher
from ..search_spaces.shape import Shape, forward_flops_per_token
from ..search_spaces.sizes import Sizes, trial_sizes
from ..search_spaces.trial import Digests, Stage, Trial
from ..trainers.feature_layout import Layout, feature_bytes, feature_type
from ..trainers.settings import Precision
from ..trainers.sources import folder_of
from ..trainers.texts import name_of_rows, unlabelled_texts
from ..trainers.tokens import cache_folder, tokenise, tokenise_texts
from .planning import Begun, Content, Trained
from .words import count, size

GB = 10**9


class Stages(NamedTuple):
    """Stages of a plan that read the same of one source, whose teacher would run in each step."""

    source: str
    needs: Needs


class About(NamedTuple):
    """What is said of a source to people."""

    teacher: str
    rows: str
    precision: Precision


@dataclass(frozen=True)
class FeaturePlan:
    """What a sweep keeps of its teachers' outputs, and who reads it."""

    budget_bytes: float
    choices: tuple[SourceChoice, ...]
    sources: dict[str, Source]
    about: dict[str, About]
    readers: dict[Stages, tuple[str, ...]]
    """Ids of trials, and of stages that several begin with; empty ones where none is known."""

    @property
    def kept_bytes(self) -> int:
        """Of what the stages of this plan's trials read from files."""
        return sum(
            self.sources[choice.source].sizes[feature]
            for choice in self.choices
            if choice.source in self.sources
            for feature in choice.kept
            if feature in self.sources[choice.source].sizes
        )

    def is_kept(self, stages: Stages) -> bool:
        """Whether these stages read what is kept."""
        return any(
            choice.source == stages.source and choice.keeps(stages.needs) for choice in self.choices
        )

    @property
    def num_kept(self) -> int:
        """Stages that read what is kept."""
        return sum(len(ids) for stages, ids in self.readers.items() if self.is_kept(stages))

    @property
    def num_online(self) -> int:
        """Stages whose teacher runs in each of their steps."""
        return sum(map(len, self.readers.values())) - self.num_kept

    def as_json(self) -> dict[str, Any]:
        """For `plan --json`."""
        return {
            "budget_bytes": self.budget_bytes,
            "bytes": self.kept_bytes,
            "kept": [
                {
                    "source": choice.source,
                    **self.about[choice.source]._asdict(),
                    "features": [
                        {
                            "kind": feature.kind,
                            "layer": feature.layer,
                            "bytes": self.sources[choice.source].sizes.get(feature),
                        }
                        for feature in choice.kept
                    ],
                }
                for choice in self.choices
                if choice.kept and choice.source in self.about
            ],
            "stages": [
                {
                    "source": stages.source,
                    "reads": [list(feature) for feature in sorted(stages.needs)],
                    "from": "files" if self.is_kept(stages) else "teacher",
                    "stages": len(ids),
                    "ids": [id for id in ids if id],
                }
                for stages, ids in self.readers.items()
            ],
        }

    def lines(self) -> Iterator[str]:
        """For a person."""
        if not self.readers:
            return
        online = f"; in {self.num_online} the teacher runs in every step"
        yield (
            f"features: {size(self.kept_bytes)} (at most {size(self.budget_bytes)}) on each host "
            f"for {count(self.num_kept, 'stage')} of trials{online if self.num_online else ''}"
        )
        for choice in self.choices:
            if choice.kept and choice.source in self.about:
                about = self.about[choice.source]
                names = named(choice.kept)
                yield f"  kept: {names} of {about.teacher} over {about.rows} ({about.precision})"
        for stages, ids in self.readers.items():
            if not self.is_kept(stages):
                about = self.about[stages.source]
                bytes = sum(self.sources[stages.source].sizes[each] for each in stages.needs)
                yield (
                    f"  online: {named(stages.needs)} of {about.teacher} over {about.rows} "
                    f"({size(bytes)}), in {count(len(ids), 'stage')}"
                )


def named(features: Iterable[Any]) -> str:
    """Features as people read them: `logits, hidden_states 2 4 6`."""
    layers: defaultdict[str, list[str]] = defaultdict(list)
    for feature in sorted(features):
        layers[feature.kind].append("" if feature.kind == "logits" else f" {feature.layer}")
    return ", ".join(kind + "".join(each) for kind, each in layers.items())


class Measured(NamedTuple):
    """Rows and the teacher that reads them."""

    layout: Layout
    sizes: Sizes
    model: ModelFacts


class Measures:
    """Lengths of rows and sizes of teachers, each read once. Rows are tokenised for it."""

    def __init__(self, content: Content) -> None:
        """Read nothing yet.

        Args:
            content: Whose rows and teachers.
        """
        self._content = content
        self._measured: dict[tuple[str, str, int], Measured] = {}

    def read_all(self, plan: Plan, begun: Begun | None) -> None:
        """Read everything that a plan takes, since it may last.

        Raises:
            TeacherError: A tokenizer is missing or does not fit, or its model is out of reach.
        """
        # Equal parts of a plan's trials are one object.
        different = {
            (id(trial.task), id(trial.teacher), id(trial.stages), each.digests): each
            for each in self.trained(plan.trials, begun)
            for trial in [each.planned.trial]
        }
        for each in different.values():
            for stage, rows in _reading(each._replace(stages=slice(None))):
                self.measure(each.planned.trial, stage, each.digests, rows)

    def trained(self, trials: Sequence[PlannedTrial], begun: Begun | None) -> list[Trained]:
        """What is trained; where no id is known, each trial with all of its stages."""
        if begun is not None:
            return [*begun.shared(), *begun.trials()]
        return [Trained("", t, self._content.of_trial(t.trial), slice(None)) for t in trials]

    def measure(self, trial: Trial, stage: Stage, digests: Digests, rows: str) -> Measured:
        """Of one stage, whose rows have this digest."""
        key = digests.teacher, rows, trial.task.max_length
        if key not in self._measured:
            data, _ = self._content.task(trial.task)
            source = self._content.teacher(trial.teacher)
            common: dict[str, Any] = {
                "max_length": trial.task.max_length,
                "cache": cache_folder(),
            }
            tokens = (
                tokenise(data, source, **common).train
                if stage.data == "task"
                else tokenise_texts(unlabelled_texts(data, stage.data), source, **common)
            )
            model = read_config(folder_of(source) / "config.json")
            assert model is not None, "a teacher that was located has a whole config"
            _, sizes = trial_sizes(trial.shape, model, num_labels=len(data.classes))
            self._measured[key] = Measured(Layout(np.diff(tokens.offsets)), sizes, model)
        return self._measured[key]


def _reading(trained: Trained) -> Iterator[tuple[Stage, str]]:
    """The stages whose teacher says the same in every step, with the digests of their rows."""
    texts = iter(trained.digests.texts)
    stages = trained.planned.trial.stages
    rows = [trained.digests.task if stage.data == "task" else next(texts) for stage in stages]
    for stage, digest in list(zip(stages, rows, strict=True))[trained.stages]:
        if not hides_tokens(stage.terms) and any(map(uses_teacher, stage.terms)):
            yield stage, digest


def plan_features(
    grid: Grid,
    plan: Plan,
    measures: Measures,
    begun: Begun | None,
    *,
    precision: Precision,
    choices: Sequence[SourceChoice] = (),
    before: Sequence[PlannedTrial] = (),
) -> FeaturePlan:
    """Decide what is kept for stages of which nothing is decided yet.

    Args:
        grid: Says how much may be kept.
        plan: All of its trials.
        measures: Of what they read.
        begun: How they begin; None where no id is known.
        precision: What `auto` is.
        choices: What was decided before, and stands.
        before: Trials that were proposed since, and ran by these choices alone.
    """
    read = _Readings(measures, precision, choices)
    passes: defaultdict[Stages, float] = defaultdict(float)
    readers: defaultdict[Stages, list[str]] = defaultdict(list)
    for each in measures.trained(plan.trials, begun):
        for stages, number in read.of(each):
            passes[stages] += number
            readers[stages].append(each.id)
    proposed = measures.trained(before, None)
    ran = {stages for each in proposed for stages, _ in read.of(each)}
    budget = grid.cache_budget_gb * GB
    return FeaturePlan(
        budget_bytes=budget,
        choices=decide(choices, passes, read.sources, ran=ran, budget=budget),
        sources=read.sources,
        about=read.about,
        readers={stages: tuple(ids) for stages, ids in readers.items()},
    )


def decide(
    choices: Sequence[SourceChoice],
    passes: dict[Stages, float],
    sources: dict[str, Source],
    *,
    ran: Iterable[Stages],
    budget: float,
) -> tuple[SourceChoice, ...]:
    """Choices that say of all stages whether they read what is kept.

    What was decided stays: a stage that was to run online does so although all that it reads comes
    to be kept for others.

    Args:
        choices: What was decided before.
        passes: How often the teacher would run over all rows for all stages alike.
        sources: All that is read.
        ran: Stages that ran by these choices alone.
        budget: Bytes.
    """
    kept = {choice.source: frozenset(choice.kept) for choice in choices}
    online = {
        Stages(choice.source, frozenset(needs)) for choice in choices for needs in choice.online
    } | {stages for stages in ran if not stages.needs <= kept.get(stages.source, frozenset())}
    open_ = {stages: number for stages, number in passes.items() if stages not in online}
    chosen = choose(
        sources,
        [Reading(*stages, number) for stages, number in open_.items()],
        budget=budget,
        kept={source: features for source, features in kept.items() if source in sources},
    )
    kept = {
        source: kept.get(source, frozenset()) | chosen.get(source, frozenset())
        for source in {**kept, **chosen, **{stages.source: 0 for stages in passes}}
    }
    online |= {stages for stages in open_ if not stages.needs <= kept[stages.source]}
    return tuple(
        SourceChoice(
            source=source,
            kept=tuple(sorted(features)),
            online=tuple(sorted(tuple(sorted(s.needs)) for s in online if s.source == source)),
        )
        for source, features in sorted(kept.items())
    )


class _Readings:
    """Sources by their keys, and what stages read of them."""

    def __init__(
        self, measures: Measures, precision: Precision, choices: Sequence[SourceChoice]
    ) -> None:
        self._measures = measures
        self._precision: Precision = precision
        self._kept = {choice.source: frozenset(choice.kept) for choice in choices}
        self._read: dict[tuple[Any, ...], list[tuple[Stages, float]]] = {}
        self.sources: dict[str, Source] = {}
        self.about: dict[str, About] = {}

    def of(self, trained: Trained) -> list[tuple[Stages, float]]:
        """What each stage reads, and how often the teacher would run over all rows for it."""
        trial = trained.planned.trial
        # Equal parts of a plan's trials are one object.
        parts = map(id, (trial.task, trial.teacher, trial.shape, trial.stages))
        key = (*parts, trained.digests, trained.stages.start, trained.stages.stop)
        if key not in self._read:
            self._read[key] = list(self._stages(trained))
        return self._read[key]

    def _stages(self, trained: Trained) -> Iterator[tuple[Stages, float]]:
        trial = trained.planned.trial
        keys = source_keys(trial, trained.digests, precision=self._precision)
        by_stage = dict(zip(map(id, trial.stages), keys, strict=True))
        for stage, rows in _reading(trained):
            key = by_stage[id(stage)]
            measured = self._measures.measure(trial, stage, trained.digests, rows)
            if needs := _needs(trial, stage, measured.model):
                self._add(key, trial, stage, needs, measured)
                num_rows = measured.layout.size("rows")
                yield Stages(key, needs), _passes(stage, num_rows=num_rows)

    def _add(self, key: str, trial: Trial, stage: Stage, needs: Needs, measured: Measured) -> None:
        layout, sizes, model = measured
        own = stage.training.precision
        precision: Precision = self._precision if own == "auto" else own
        known = self.sources[key].sizes if key in self.sources else {}
        new = (needs | self._kept.get(key, frozenset())) - known.keys()
        found = {
            feature: feature_bytes(
                feature,
                sizes=sizes,
                layout=layout,
                type=feature_type(feature, is_compact=precision == "bf16"),
            )
            for feature in new
        }
        self.sources[key] = Source(flops=_pass_flops(model, layout), sizes={**known, **found})
        rows = name_of_rows(trial.task, stage.data)
        folder = Path(trial.teacher.model)
        teacher = folder.name if folder.is_absolute() else trial.teacher.model
        self.about[key] = About(teacher, rows, precision)


def _needs(trial: Trial, stage: Stage, model: ModelFacts) -> Needs:
    student, teacher = trial_sizes(trial.shape, model, num_labels=None)
    try:
        return frozenset(
            feature
            for term in stage.terms
            for feature in resolve_term(term, student=student, teacher=teacher).reads("teacher")
        )
    except MisfitError:
        # The trial will say so itself.
        return frozenset()


def _passes(stage: Stage, *, num_rows: int) -> float:
    training = stage.training
    if training.total_steps is None:
        return float(training.epochs)
    return training.total_steps * training.batch_size / num_rows


def _pass_flops(model: ModelFacts, layout: Layout) -> float:
    shape = Shape(
        layers=model.num_hidden_layers,
        width=model.hidden_size,
        heads=model.num_attention_heads,
        feed_forward=model.intermediate_size,
    )
    tokens, rows = layout.size("tokens"), layout.size("rows")
    return float(forward_flops_per_token(shape, sequence_length=tokens // rows) * tokens)
