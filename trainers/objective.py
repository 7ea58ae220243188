"""The weighted sum of a stage's terms: what a student minimises.

A term is checked and resolved (layer pairs, projections) before anything is trained; the same
resolved list says which features are read, is written down with the trial, and computes the loss.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..search_spaces.errors import GridError, Problem
from ..search_spaces.knowledge import LayerTerm, Plugin, term_label
from ..search_spaces.matching import Emd, LayerPair
from ..search_spaces.resolution import (
    MisfitError,
    ResolvedTerm,
    Side,
    matches_layers,
    resolve_terms,
)
from ..search_spaces.schedules import Ratio, Threshold, followed, planned_factor
from ..search_spaces.trial import Stage, canonical_json, canonical_term
from .comparisons import Compared, Own, TermLoss, term_loss
from .contrast import Contrasting, Contrasts
from .features import Features, Needs, Sizes
from .language import LanguageHead
from .plugins import PluginFunction
from .projection import make_projection
from .settings import Precision
from .streams import generator
from .transport import Transport

_LEAST_LOSS = 1e-8
"""Below it a ratio to a loss, or to its gradient, means nothing."""


class TermLosses(NamedTuple):
    """The losses of one batch, each of shape []."""

    total: Tensor
    """The sum of the terms' losses times their weights."""
    by_term: tuple[TermLoss, ...]
    """The terms' losses without their weights, in the stage's order."""
    weights: Tensor
    """What each was multiplied with, shape [terms]; no gradient flows through it."""


class Objective(nn.Module):
    """A stage's terms as one function of two models' features; made by `build_objective`.

    Its only parameters are the learned projections, the maps of contrasts and a head for masked
    language modelling.
    """

    def __init__(
        self,
        terms: Sequence[ResolvedTerm],
        *,
        seed: int,
        num_rows: int | None = None,
        language_head: LanguageHead | None = None,
        plugins: Path | None = None,
    ) -> None:
        super().__init__()
        self.language_head = language_head
        """The student's; None where no token is hidden."""
        self.terms = tuple(terms)
        """In the stage's canonical order."""
        self.student_needs = _needs(self.terms, "student")
        self.teacher_needs = _needs(self.terms, "teacher")
        made = {str(n): _make_transport(term) for n, term in enumerate(self.terms)}
        self.transports = nn.ModuleDict({key: each for key, each in made.items() if each})
        """State of matchings by flows."""
        self.opened: Tensor
        """Whether a term that waits for another one's loss has begun, shape [terms]."""
        self.register_buffer("opened", torch.zeros(len(self.terms), dtype=torch.bool))
        self.scales: Tensor
        """What terms are scaled by for good, shape [terms]."""
        self.register_buffer("scales", torch.ones(len(self.terms)))
        self._functions = {
            index: PluginFunction(term.term, copies=plugins)
            for index, term in enumerate(self.terms)
            if isinstance(term.term, Plugin)
        }
        self._seed = seed
        self._now = self.terms
        self.begin_epoch(0)
        self.projections = nn.ModuleDict(
            {
                str(index): _make_projections(term, seed=seed)
                for index, term in enumerate(self.terms)
                if term.projection is not None
            }
        )
        self.contrasts = nn.ModuleDict(
            {
                str(index): _make_contrasts(term, num_rows=num_rows, seed=seed)
                for index, term in enumerate(self.terms)
                if term.contrast is not None
            }
        )
        """Maps and memories of contrastive terms."""

    def describe(self) -> list[dict[str, Any]]:
        """The resolved terms as JSON, in order."""
        return [{"index": index, **term.describe()} for index, term in enumerate(self.terms)]

    def begin_epoch(self, epoch: int) -> None:
        """Draw what is drawn anew in each epoch; a function of seed, term and epoch alone."""
        self._now = tuple(term.of_epoch(self._permute(term, epoch)) for term in self.terms)

    def _permute(self, resolved: ResolvedTerm, epoch: int) -> Callable[[int], list[int]]:
        content = canonical_json(canonical_term(resolved.term))
        stream = generator(self._seed, "matching", content, str(epoch))
        return lambda n: torch.randperm(n, generator=stream).tolist()

    def forward(
        self,
        student: Features,
        teacher: Features | None,
        *,
        labels: Tensor,
        attention_mask: Tensor,
        targets: Tensor | None = None,
        progress: float = 0.0,
        rows: Tensor | None = None,
        step: int = 0,
        precision: Precision = "fp32",
    ) -> TermLosses:
        """The losses of one batch; gradients flow into the student and the learned maps alone.

        Each call is a step: weights of flows move, and in training mode `remember` may take it up.

        Args:
            student: At least `student_needs`.
            teacher: At least `teacher_needs`, class by class in the student's order; None where
                no term reads a teacher.
            labels: Class indices, shape [B].
            attention_mask: Shape [B, L]; 0 is padding.
            targets: What hidden tokens were, shape [B, L], -100 at others; None: none is hidden.
            progress: Share of the stage's steps that are done, for what changes on the way.
            rows: Their numbers in train, on the CPU, shape [B]; only contrasts ask.
            step: Steps that are done, for what is drawn anew in each.
            precision: Of projections, which are maps as a model's are; not of what they must keep
                (`orthogonal`) and of no loss.
        """
        assert teacher is not None or not self.teacher_needs, "a term reads the teacher"
        compared = Compared(
            student, teacher or {}, labels, attention_mask.bool(), progress, targets
        )
        # Lower precision is for the models; their features are compared in float32.
        with torch.autocast(labels.device.type, enabled=False):
            losses = [
                term_loss(term, compared, self._own(index, rows, step=step, precision=precision))
                for index, term in enumerate(self._now)
            ]
        return self.weigh(losses, progress=progress)

    def _own(self, index: int, rows: Tensor | None, *, step: int, precision: Precision) -> Own:
        return Own(
            project=partial(self._project, index, precision),
            transport=self._transport(index),
            contrast=self._contrasting(index, rows, step=step),
            function=self._functions.get(index),
        )

    def remember(self) -> None:
        """Take the last batch up into the memories of contrasts: once a step, when it counts."""
        for contrasts in self.contrasts.values():
            assert isinstance(contrasts, Contrasts)
            contrasts.remember()

    def state_of_a_step(self) -> dict[str, Tensor]:
        """A copy of what a call changes, for `take_back`."""
        # Memories are large, and only `remember` changes them.
        return {
            name: buffer.clone()
            for name, buffer in self.named_buffers()
            if not name.endswith(".memory")
        }

    def take_back(self, state: Mapping[str, Tensor]) -> None:
        """Undo what calls have changed since `state_of_a_step`."""
        for name, buffer in self.named_buffers():
            if name in state:
                buffer.copy_(state[name])

    def _transport(self, index: int) -> Transport | None:
        if str(index) not in self.transports:
            return None
        found = self.transports[str(index)]
        assert isinstance(found, Transport)
        return found

    def _contrasting(self, index: int, rows: Tensor | None, *, step: int) -> Contrasting | None:
        if str(index) not in self.contrasts:
            return None
        found = self.contrasts[str(index)]
        assert isinstance(found, Contrasts)
        assert rows is not None, "a term remembers rows"
        return found.of_batch(rows, step=step)

    def weigh(self, losses: Sequence[TermLoss], *, progress: float) -> TermLosses:
        """The sum of one batch's losses."""
        stacked = torch.stack([each.loss for each in losses])
        weights = self._weights(stacked.detach(), progress)
        total = torch.where(weights > 0, weights * stacked, 0.0).sum()
        return TermLosses(total=total, by_term=tuple(losses), weights=weights)

    def equalise(self, norms: Sequence[float]) -> None:
        """Scale the terms that ask for it to the mean length of all terms' gradients.

        A term without a gradient keeps its factor of 1.

        Args:
            norms: Lengths of the gradients of the terms' losses, without weights, on parameters
                that all terms share.
        """
        mean = sum(norms) / len(norms)
        for index, (resolved, norm) in enumerate(zip(self.terms, norms, strict=True)):
            # A gradient that begins at nothing has no length that a factor could change.
            if resolved.term.scale == "gradient_norm" and norm > _LEAST_LOSS:
                self.scales[index] = mean / norm

    @property
    def equalises(self) -> bool:
        """Whether a term asks to be scaled."""
        return any(resolved.term.scale is not None for resolved in self.terms)

    def _weights(self, losses: Tensor, progress: float) -> Tensor:
        factors = [self._factor(index, losses, progress) for index in range(len(self.terms))]
        fixed = [resolved.term.weight for resolved in self.terms]
        return torch.stack(factors) * losses.new_tensor(fixed) * self.scales

    def _factor(self, index: int, losses: Tensor, progress: float) -> Tensor:
        schedule = self.terms[index].term.schedule
        match schedule:
            case None:
                return losses.new_ones(())
            case Threshold(once=below):
                self.opened[index] |= self._followed(index, losses) < below.loss
                return self.opened[index].to(losses.dtype)
            case Ratio():
                return self._followed(index, losses) / losses[index].clamp_min(_LEAST_LOSS)
            case _:
                return losses.new_tensor(planned_factor(schedule, progress=progress))

    def _followed(self, index: int, losses: Tensor) -> Tensor:
        kind = followed(self.terms[index].term.schedule)
        (other,) = (n for n, each in enumerate(self.terms) if n != index and each.term.kind == kind)
        return losses[other]

    def _project(self, index: int, precision: Precision, hidden: Tensor, pair: LayerPair) -> Tensor:
        resolved = self.terms[index]
        if resolved.projection is None:
            return hidden
        maps = self.projections[str(index)]
        assert isinstance(maps, nn.ModuleDict)
        # An orthogonal map is made of products, and rounded ones would make another.
        is_lower = precision == "bf16" and resolved.projection.kind != "orthogonal"
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=is_lower):
            projected: Tensor = maps[_map_key(resolved, pair)](hidden)
        return projected.to(hidden.dtype)


def build_objective(
    stage: Stage,
    *,
    student: Sizes,
    teacher: Sizes,
    seed: int,
    num_rows: int | None = None,
    language_head: LanguageHead | None = None,
    plugins: Path | None = None,
) -> Objective:
    """Check and resolve a stage's terms, load those of the user, and draw their learned maps.

    Args:
        stage: Its terms are complete and in canonical order.
        student: Sizes of the model that learns.
        teacher: Sizes of the model that teaches.
        seed: The trial's seed.
        num_rows: Rows that the stage trains on; only contrasts ask.
        language_head: The student's, where the stage hides tokens.
        plugins: A folder with the files of the user's losses, each as `<digest>.py`; where the
            grid found them, unless given.

    Raises:
        PluginError: A loss of the user's cannot be loaded.
        GridError: A term does not fit these two models; all such terms are named at once.
    """
    try:
        resolved = resolve_terms(stage.terms, student=student, teacher=teacher)
    except MisfitError as error:
        raise GridError(
            [Problem(f"terms.{each.field}", each.what, each.mend) for each in error.misfits]
        ) from None
    contrasting = [each for each in resolved if each.contrast is not None]
    if contrasting and num_rows == 1:
        what = "tells rows of train from each other, and there is one"
        places = [f"terms.{term_label(each.term)}" for each in contrasting]
        raise GridError([Problem(place, what, "Give the task more rows.") for place in places])
    return Objective(
        resolved, seed=seed, num_rows=num_rows, language_head=language_head, plugins=plugins
    )


def _make_projections(resolved: ResolvedTerm, *, seed: int) -> nn.ModuleDict:
    projection = resolved.projection
    assert projection is not None
    content = canonical_json(canonical_term(resolved.term))
    keys = dict.fromkeys(_map_key(resolved, pair) for pair in resolved.pairs)
    return nn.ModuleDict(
        {
            key: make_projection(
                projection.kind,
                projection.student_width,
                projection.teacher_width,
                generator=generator(seed, "projection", content, key),
            )
            for key in keys
        }
    )


def _make_contrasts(resolved: ResolvedTerm, *, num_rows: int | None, seed: int) -> Contrasts:
    assert num_rows is not None, "a term remembers rows"
    return Contrasts(resolved, num_rows=num_rows, seed=seed)


def _map_key(resolved: ResolvedTerm, pair: LayerPair) -> str:
    """The learned map of a pair; pairs that share a map share its key."""
    assert resolved.projection is not None
    assert isinstance(resolved.term, LayerTerm)
    if resolved.projection.is_shared or resolved.term.matching == "combine":
        return "shared"
    if resolved.term.matching == "attention":
        return str(pair.student)
    return f"{pair.teacher}-{pair.student}"


def _make_transport(resolved: ResolvedTerm) -> Transport | None:
    matching = resolved.term.matching if matches_layers(resolved.term) else None
    if not isinstance(matching, Emd):
        return None
    student, teacher = resolved.pairs[-1]
    return Transport(student, teacher, matching.emd)


def _needs(terms: Sequence[ResolvedTerm], side: Side) -> Needs:
    return frozenset(feature for term in terms for feature in term.reads(side))
