"""The weighted sum of a stage's terms: what a student minimises.

A term is checked and resolved (layer pairs, projections) before anything is trained; the same
resolved list says which features are read, is written down with the trial, and computes the loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from ..search_spaces.errors import GridError, Problem
from ..search_spaces.knowledge import (
    Attentions,
    HardLabels,
    HiddenStates,
    LayerTerm,
    SoftLogits,
    Term,
    term_label,
)
from ..search_spaces.matching import LayerPair, MatchingError, layer_pairs
from ..search_spaces.trial import Stage, canonical_json, canonical_term
from .features import Features, Needs, Sizes
from .losses import (
    attention_log_probabilities,
    attention_probability_kl,
    attention_score_mse,
    hard_label_loss,
    hidden_state_cosine,
    hidden_state_mse,
    mean_of_head_log_probabilities,
    mean_of_heads,
    soft_logit_kl,
    soft_logit_mse,
    zero_padding,
)
from .projection import make_projection
from .streams import generator


class TermLosses(NamedTuple):
    """The losses of one batch, each of shape []."""

    total: Tensor
    """The sum of the terms' losses times their weights."""
    by_term: tuple[Tensor, ...]
    """The terms' losses without their weights, in the stage's order."""


@dataclass(frozen=True)
class ResolvedTerm:
    """A term for two models of known sizes; nothing is left to decide."""

    index: int
    """Its place in the stage's canonical order."""
    term: Term
    pairs: tuple[LayerPair, ...]
    """The layers that are compared; empty where a term compares none."""
    projection: tuple[int, int] | None
    """Student and teacher width of each pair's learned map; None where there is no map."""

    def describe(self) -> dict[str, Any]:
        """Everything that acts, as JSON; pairs are [teacher, student] as in a grid."""
        settings = self.term.model_dump(
            mode="json", exclude={"kind", "label", "weight", "matching"}, exclude_none=True
        )
        return {
            "index": self.index,
            "label": term_label(self.term),
            "kind": self.term.kind,
            "weight": self.term.weight,
            "settings": settings,
            "pairs": [[pair.teacher, pair.student] for pair in self.pairs],
            "projection": None if self.projection is None else list(self.projection),
        }


class Objective(nn.Module):
    """A stage's terms as one function of two models' features; made by `build_objective`.

    Its only parameters are the learned projections.
    """

    def __init__(self, terms: Sequence[ResolvedTerm], *, seed: int) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.student_needs = _needs(self.terms, side="student")
        self.teacher_needs = _needs(self.terms, side="teacher")
        self.projections = nn.ModuleDict(
            {
                str(term.index): _make_projections(term, seed=seed)
                for term in self.terms
                if term.projection is not None
            }
        )

    def describe(self) -> list[dict[str, Any]]:
        """The resolved terms as JSON, in order."""
        return [term.describe() for term in self.terms]

    def forward(
        self,
        student: Features,
        teacher: Features | None,
        *,
        labels: Tensor,
        attention_mask: Tensor,
    ) -> TermLosses:
        """The losses of one batch; gradients flow into the student and the projections alone.

        Args:
            student: At least `student_needs`.
            teacher: At least `teacher_needs`, class by class in the student's order; None where
                no term reads a teacher.
            labels: Class indices, shape [B].
            attention_mask: Shape [B, L]; 0 is padding.
        """
        token_mask = attention_mask.bool()
        # Lower precision is for the models; their features are compared in float32.
        with torch.autocast(labels.device.type, enabled=False):
            losses = [self._loss(term, student, teacher, labels, token_mask) for term in self.terms]
            weighted = [
                term.term.weight * loss for term, loss in zip(self.terms, losses, strict=True)
            ]
            return TermLosses(total=torch.stack(weighted).sum(), by_term=tuple(losses))

    def _loss(
        self,
        resolved: ResolvedTerm,
        student: Features,
        teacher: Features | None,
        labels: Tensor,
        token_mask: Tensor,
    ) -> Tensor:
        match resolved.term:
            case HardLabels():
                return hard_label_loss(_logits(student), labels)
            case SoftLogits() as term:
                return _soft_logit_loss(term, _logits(student), _logits(teacher))
            case HiddenStates() as term:
                return _mean(
                    _hidden_state_loss(
                        term,
                        self._project(
                            resolved, pair, student.hidden_states[pair.student], token_mask
                        ),
                        _given(teacher).hidden_states[pair.teacher],
                        token_mask,
                    )
                    for pair in resolved.pairs
                )
            case Attentions() as term:
                return _mean(
                    _attention_loss(
                        term,
                        student.attentions[pair.student],
                        _given(teacher).attentions[pair.teacher],
                        token_mask,
                    )
                    for pair in resolved.pairs
                )
            case _:
                assert_never(resolved.term)

    def _project(
        self, resolved: ResolvedTerm, pair: LayerPair, hidden_state: Tensor, token_mask: Tensor
    ) -> Tensor:
        if resolved.projection is None:
            return hidden_state
        maps = self.projections[str(resolved.index)]
        assert isinstance(maps, nn.ModuleDict)
        # The gradient of a weight multiplies by its input: what padding holds must not be in it.
        projected: Tensor = maps[_pair_key(pair)](zero_padding(hidden_state.float(), token_mask))
        return projected


def build_objective(stage: Stage, *, student: Sizes, teacher: Sizes, seed: int) -> Objective:
    """Check and resolve a stage's terms, and draw their projections.

    Args:
        stage: Its terms are complete and in canonical order.
        student: Sizes of the model that learns.
        teacher: Sizes of the model that teaches.
        seed: The trial's seed.

    Raises:
        GridError: A term does not fit these two models; all such terms are named at once.
    """
    problems: list[Problem] = []
    resolved = []
    for index, term in enumerate(stage.terms):
        pairs, found = _pairs(term, student=student, teacher=teacher)
        problems += [*found, *_misfits(term, pairs, student=student, teacher=teacher)]
        projection = _projection(term, student=student, teacher=teacher)
        resolved.append(ResolvedTerm(index=index, term=term, pairs=pairs, projection=projection))
    if problems:
        raise GridError(problems)
    return Objective(resolved, seed=seed)


def _pairs(
    term: Term, *, student: Sizes, teacher: Sizes
) -> tuple[tuple[LayerPair, ...], list[Problem]]:
    match term:
        case HardLabels() | SoftLogits():
            return (), []
        case HiddenStates() | Attentions():
            return _matched(term, student=student, teacher=teacher)
        case _:
            assert_never(term)


def _matched(
    term: LayerTerm, *, student: Sizes, teacher: Sizes
) -> tuple[tuple[LayerPair, ...], list[Problem]]:
    if term.matching is None:
        return (), [_problem(term, "matching", "is missing", "Name a rule, such as `uniform`.")]
    try:
        pairs = layer_pairs(
            term.matching,
            num_teacher_layers=teacher.num_hidden_layers,
            num_student_layers=student.num_hidden_layers,
        )
    except MatchingError as error:
        return (), [_problem(term, "matching", str(error), "Choose another matching or shape.")]
    return pairs, []


def _misfits(
    term: Term, pairs: tuple[LayerPair, ...], *, student: Sizes, teacher: Sizes
) -> Iterator[Problem]:
    match term:
        case HardLabels():
            return
        case SoftLogits(distance=distance, temperature=temperature):
            if distance == "kl" and temperature is None:
                yield _problem(term, "temperature", "is missing", "Give a number above 0.")
            if student.num_labels != teacher.num_labels:
                yield _problem(
                    term,
                    "distance",
                    f"compares {student.num_labels} classes of the student with "
                    f"{teacher.num_labels} of the teacher",
                    "Use a teacher of this task.",
                )
        case HiddenStates(projection=projection):
            if projection == "none" and student.hidden_size != teacher.hidden_size:
                yield _problem(
                    term,
                    "projection",
                    f"is `none`, but the student is {student.hidden_size} wide and the teacher "
                    f"{teacher.hidden_size}",
                    "Write `projection: linear`, or give the student the teacher's width.",
                )
        case Attentions(head_map=head_map):
            if head_map == "equal" and student.num_attention_heads != teacher.num_attention_heads:
                yield _problem(
                    term,
                    "head_map",
                    f"is `equal`, but the student has {student.num_attention_heads} heads and the "
                    f"teacher {teacher.num_attention_heads}",
                    "Write `head_map: mean`, or give the student the teacher's heads.",
                )
            if any(0 in pair for pair in pairs):
                yield _problem(
                    term,
                    "matching",
                    "names layer 0, the embedding, which has no attention",
                    "Name blocks, counted from 1.",
                )
        case _:
            assert_never(term)


def _problem(term: Term, field: str, what: str, mend: str) -> Problem:
    return Problem(path=f"terms.{term_label(term)}.{field}", what=what, mend=mend)


def _projection(term: Term, *, student: Sizes, teacher: Sizes) -> tuple[int, int] | None:
    match term:
        case HiddenStates(projection="linear") if student.hidden_size != teacher.hidden_size:
            return student.hidden_size, teacher.hidden_size
        case HardLabels() | SoftLogits() | HiddenStates() | Attentions():
            return None
        case _:
            assert_never(term)


def _make_projections(resolved: ResolvedTerm, *, seed: int) -> nn.ModuleDict:
    assert resolved.projection is not None
    content = canonical_json(canonical_term(resolved.term))
    return nn.ModuleDict(
        {
            _pair_key(pair): make_projection(
                *resolved.projection,
                generator=generator(seed, "projection", content, _pair_key(pair)),
            )
            for pair in resolved.pairs
        }
    )


def _pair_key(pair: LayerPair) -> str:
    return f"{pair.teacher}-{pair.student}"


def _needs(terms: Sequence[ResolvedTerm], *, side: Literal["student", "teacher"]) -> Needs:
    needs = Needs()
    for resolved in terms:
        layers = frozenset(getattr(pair, side) for pair in resolved.pairs)
        match resolved.term:
            case HardLabels():
                needs |= Needs(logits=side == "student")
            case SoftLogits():
                needs |= Needs(logits=True)
            case HiddenStates():
                needs |= Needs(hidden_states=layers)
            case Attentions():
                needs |= Needs(attentions=layers)
            case _:
                assert_never(resolved.term)
    return needs


def _given(features: Features | None) -> Features:
    assert features is not None, "a term reads the teacher, but its features were not given"
    return features


def _logits(features: Features | None) -> Tensor:
    logits = _given(features).logits
    assert logits is not None, "a term reads logits, but they were not given"
    return logits


def _mean(losses: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _soft_logit_loss(term: SoftLogits, student: Tensor, teacher: Tensor) -> Tensor:
    match term.distance:
        case "kl":
            assert term.temperature is not None
            return soft_logit_kl(student, teacher, temperature=term.temperature)
        case "mse":
            return soft_logit_mse(student, teacher)
        case _:
            assert_never(term.distance)


def _hidden_state_loss(
    term: HiddenStates, student: Tensor, teacher: Tensor, token_mask: Tensor
) -> Tensor:
    match term.distance:
        case "mse":
            return hidden_state_mse(student, teacher, token_mask)
        case "cosine":
            return hidden_state_cosine(student, teacher, token_mask)
        case _:
            assert_never(term.distance)


def _attention_loss(
    term: Attentions, student: Tensor, teacher: Tensor, token_mask: Tensor
) -> Tensor:
    averages = term.head_map == "mean"
    match term.of:
        case "scores":
            if averages:
                student, teacher = mean_of_heads(student), mean_of_heads(teacher)
            return attention_score_mse(student, teacher, token_mask)
        case "probabilities":
            student = attention_log_probabilities(student, token_mask)
            teacher = attention_log_probabilities(teacher, token_mask)
            if averages:
                student = mean_of_head_log_probabilities(student)
                teacher = mean_of_head_log_probabilities(teacher)
            return attention_probability_kl(student, teacher, token_mask)
        case _:
            assert_never(term.of)
