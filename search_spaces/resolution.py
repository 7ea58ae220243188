"""A term meets two models of known sizes: which layers and features it reads, and what misfits.

Pure integers, so that a plan refuses what a trainer would.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeGuard, assert_never, get_args

from .knowledge import (
    VECTORS,
    Attentions,
    Cc,
    Cka,
    Crd,
    Dist,
    Gram,
    HardLabels,
    HiddenStates,
    LayerRelations,
    LayerTerm,
    MaskedLabels,
    MaskedLogits,
    Pkt,
    Plugin,
    Projection,
    Relations,
    RelationSource,
    Rkd,
    SoftLogits,
    Sp,
    Term,
    TokenSimilarity,
    WordRelations,
    inert_fields,
    term_label,
)
from .knowledge import FeatureKind as FeatureKind
from .matching import (
    Emd,
    LayerPair,
    MatchingError,
    Pairs,
    Progressive,
    RandomSorted,
    SoftRule,
    drawn_pairs,
    possible_pairs,
)
from .schedules import followed
from .sizes import Sizes

Side = Literal["student", "teacher"]


class Feature(NamedTuple):
    """One output of a model."""

    kind: FeatureKind
    layer: int
    """Blocks are counted from 1; 0 is the embedding output, and stands for logits and words."""


LOGITS = Feature("logits", 0)
WORDS = Feature("words", 0)


class Misfit(NamedTuple):
    """Why a term cannot stand in a stage of two models."""

    rule: str
    field: str
    """Of the term; beside its label, once that is known."""
    what: str
    mend: str


class MisfitError(ValueError):
    """Terms do not fit two models or each other."""

    def __init__(self, misfits: tuple[Misfit, ...]) -> None:
        self.misfits = misfits
        super().__init__("; ".join(f"{each.field} {each.what}" for each in misfits))


@dataclass(frozen=True)
class ResolvedProjection:
    """The learned maps of a term."""

    kind: Projection
    student_width: int
    teacher_width: int
    is_shared: bool


@dataclass(frozen=True)
class ResolvedContrast:
    """The learned maps of a term that contrasts rows, one a side."""

    student_width: int | None
    """None while it is the number of classes and that is not known."""
    teacher_width: int | None
    dimension: int


@dataclass(frozen=True)
class ResolvedTerm:
    """A term for two models of known sizes; nothing is left to decide."""

    term: Term
    pairs: tuple[LayerPair, ...]
    """The layers that are compared, in some epoch at least; empty where a term compares none."""
    num_teacher_layers: int
    projection: ResolvedProjection | None
    """None where there is no learned map."""
    relation_heads: int | None
    """Heads into which both models' vectors are split; None where none are."""
    contrast: ResolvedContrast | None
    """None where no rows are remembered."""

    def reads(self, side: Side) -> frozenset[Feature]:
        """The features of one model that the term reads."""
        kinds = _kinds_read(self.term, side)
        if not matches_layers(self.term):
            return frozenset(Feature(kind, 0) for kind in kinds)
        layers = {getattr(pair, side) for pair in self.pairs}
        return frozenset(Feature(kind, layer) for kind in kinds for layer in layers)

    def of_epoch(self, permute: Callable[[int], Sequence[int]]) -> Self:
        """The term with the pairs of one epoch; itself, where they are the same in all.

        Args:
            permute: Gives the numbers from 0 to n - 1 in an order of this epoch's own.
        """
        matching = self.term.matching if matches_layers(self.term) else None
        if not isinstance(matching, RandomSorted):
            return self
        k = max(pair.student for pair in self.pairs)
        pairs = drawn_pairs(k, num_teacher_layers=self.num_teacher_layers, permute=permute)
        return replace(self, pairs=pairs)

    def at(self, progress: float) -> tuple[LayerPair, ...]:
        """The pairs that are trained when this share of the stage's steps is done."""
        matching = self.term.matching if matches_layers(self.term) else None
        if not isinstance(matching, Progressive):
            return self.pairs
        unlocked = min(len(self.pairs), 1 + int(progress * len(self.pairs)))
        return self.pairs[:unlocked] if matching.keep == "all" else self.pairs[unlocked - 1 :][:1]

    def describe(self) -> dict[str, Any]:
        """Everything that acts, as JSON; pairs are [teacher, student] as in a grid."""
        left_out = {"kind", "label", "weight", "matching", *inert_fields(self.term)}
        projection, contrast = self.projection, self.contrast
        return {
            "label": term_label(self.term),
            "kind": self.term.kind,
            "weight": self.term.weight,
            "settings": self.term.model_dump(mode="json", exclude=left_out, exclude_none=True),
            "pairs": [[pair.teacher, pair.student] for pair in self.pairs],
            "projection": projection and [projection.student_width, projection.teacher_width],
            **({} if self.relation_heads is None else {"relation_heads": self.relation_heads}),
            **({} if contrast is None else {"maps": _ins_and_outs(contrast)}),
        }


def _ins_and_outs(contrast: ResolvedContrast) -> list[list[int | None]]:
    """The widths of the student's map and of the teacher's."""
    widths = (contrast.student_width, contrast.teacher_width)
    return [[width, contrast.dimension] for width in widths]


def resolve_term(term: Term, *, student: Sizes, teacher: Sizes) -> ResolvedTerm:
    """A complete term for two models.

    Raises:
        MisfitError: It does not fit them; says everything that is in the way.
    """
    pairs: tuple[LayerPair, ...] = ()
    misfits: list[Misfit] = []
    if matches_layers(term):
        try:
            pairs = _pairs(term, student=student, teacher=teacher)
        except MatchingError as error:
            mend = "Choose another matching or shape."
            misfits.append(Misfit("matching", "matching", str(error), mend))
        if not isinstance(term, HiddenStates) and term.matching in get_args(SoftRule):
            what = f"is `{term.matching}`, which is for `hidden_states` alone"
            misfits.append(Misfit("matching", "matching", what, "Choose another matching."))
        if isinstance(term, LayerRelations) and isinstance(
            term.matching, Emd | Progressive | RandomSorted
        ):
            what = "has to give the same layers in every step"
            misfits.append(Misfit("matching", "matching", what, "Choose a fixed rule."))
    misfits += _misfits(term, pairs, student=student, teacher=teacher)
    if misfits:
        raise MisfitError(tuple(misfits))
    return ResolvedTerm(
        term,
        pairs,
        teacher.num_hidden_layers,
        _projection(term, student=student, teacher=teacher),
        (term.heads or student.num_attention_heads) if isinstance(term, Relations) else None,
        _contrast(term, student=student, teacher=teacher) if isinstance(term, Crd) else None,
    )


def resolve_terms(
    terms: Sequence[Term], *, student: Sizes, teacher: Sizes
) -> tuple[ResolvedTerm, ...]:
    """The complete terms of a stage for two models.

    Raises:
        MisfitError: Some do not fit; fields are named with the labels of their terms.
    """
    resolved: list[ResolvedTerm] = []
    misfits: list[Misfit] = []
    for term in terms:
        found = [*_schedule_misfits(term, terms)]
        try:
            resolved.append(resolve_term(term, student=student, teacher=teacher))
        except MisfitError as error:
            found += error.misfits
        label = term_label(term)
        misfits += [each._replace(field=f"{label}.{each.field}") for each in found]
    if misfits:
        raise MisfitError(tuple(misfits))
    return tuple(resolved)


def _schedule_misfits(term: Term, terms: Sequence[Term]) -> Iterator[Misfit]:
    kind = followed(term.schedule)
    if kind is None:
        return
    number = sum(other.kind == kind for other in terms if other is not term)
    if term.kind == kind or number != 1:
        yield Misfit(
            "schedule",
            "schedule",
            f"follows `{kind}`, and beside it the stage has {number} terms of this kind",
            "Name the kind of exactly one other term.",
        )


def matches_layers(term: Term) -> TypeGuard[LayerTerm]:
    """Whether a term compares layers; those that may compare logits instead do not always."""
    return isinstance(term, LayerTerm) and "matching" not in inert_fields(term)


def uses_teacher(term: Term) -> bool:
    """Whether a term reads the teacher's outputs."""
    return bool(_kinds_read(term, "teacher"))


def reads_teachers_answers(term: Term) -> bool:
    """Whether a term reads the teacher's logits, which mean nothing before it knows the task."""
    return "logits" in _kinds_read(term, "teacher")


def trains_head(term: Term) -> bool:
    """Whether a term's gradient reaches the student's classifier."""
    return "logits" in _kinds_read(term, "student")


def _pairs(term: LayerTerm, *, student: Sizes, teacher: Sizes) -> tuple[LayerPair, ...]:
    if term.matching is None:
        raise MatchingError("is missing: name a rule, such as `uniform`")
    pairs = possible_pairs(
        term.matching,
        num_teacher_layers=teacher.num_hidden_layers,
        num_student_layers=student.num_hidden_layers,
    )
    if not _reads_attention(term):
        return pairs
    blocks = tuple(pair for pair in pairs if 0 not in pair)
    # Rules that begin at the embedding mean the blocks alone where they match attention.
    if not blocks or (len(blocks) < len(pairs) and isinstance(term.matching, Pairs)):
        raise MatchingError("names layer 0, the embedding, which has no attention")
    return blocks


def _reads_attention(term: LayerTerm) -> bool:
    match term:
        case Attentions() | Relations():
            return True
        case Plugin(reads=reads):
            return reads != "hidden_states"
        case _:
            return False


RELATED: Mapping[RelationSource, FeatureKind] = {"q": "queries", "k": "keys", "v": "values"}
"""The feature that a relation relates with itself."""


def _kinds_read(term: Term, side: Side) -> tuple[FeatureKind, ...]:
    match term:
        case HardLabels():
            return ("logits",) if side == "student" else ()
        case SoftLogits():
            return ("logits",)
        case MaskedLabels():
            return ("words",) if side == "student" else ()
        case MaskedLogits():
            return ("words",)
        case Rkd() | Sp() | Pkt() | Cc() | Crd() if term.of == "logits":
            return ("logits",)
        case HiddenStates() | Gram() | TokenSimilarity() | Cka():
            return ("hidden_states",)
        case WordRelations() | LayerRelations() | Rkd() | Sp() | Pkt() | Cc() | Crd():
            return ("hidden_states",)
        case Attentions(reads_means=True):
            return ("attention_means",)
        case Attentions():
            return ("attentions",)
        case Relations(of=of):
            return tuple(RELATED[source] for source in of)
        case Plugin(reads=reads):
            return (reads,)
        case _:
            assert_never(term)


def _projection(term: Term, *, student: Sizes, teacher: Sizes) -> ResolvedProjection | None:
    match term:
        case HiddenStates() | Gram():
            ours, theirs = _widths(term, student=student, teacher=teacher)
            if term.projection == "none" or ours == theirs:
                return None
            return ResolvedProjection(term.projection, ours, theirs, term.share_projection)
        case Plugin(reads=reads) if reads in VECTORS:
            ours, theirs = student.hidden_size, teacher.hidden_size
            if term.projection == "none" or ours == theirs:
                return None
            return ResolvedProjection(term.projection, ours, theirs, is_shared=False)
        case _:
            return None


def _contrast(term: Crd, *, student: Sizes, teacher: Sizes) -> ResolvedContrast:
    if term.of == "logits":
        return ResolvedContrast(student.num_labels, teacher.num_labels, term.dimension)
    return ResolvedContrast(student.hidden_size, teacher.hidden_size, term.dimension)


def _widths(term: HiddenStates | Gram, *, student: Sizes, teacher: Sizes) -> tuple[int, int]:
    """Of the vectors that are compared."""
    if term.matching != "combine":
        return student.hidden_size, teacher.hidden_size
    return (
        student.num_hidden_layers * student.hidden_size,
        teacher.num_hidden_layers * teacher.hidden_size,
    )


def _misfits(
    term: Term, pairs: tuple[LayerPair, ...], *, student: Sizes, teacher: Sizes
) -> Iterator[Misfit]:
    match term:
        case SoftLogits():
            yield from _soft_misfits(term, student=student, teacher=teacher)
        case HiddenStates() | Gram():
            yield from _width_misfits(term, student=student, teacher=teacher)
        case Attentions():
            yield from _attention_misfits(term, student=student, teacher=teacher)
        case Relations():
            yield from _relation_misfits(term, student=student, teacher=teacher)
        case LayerRelations():
            yield from _layer_relation_misfits(term, pairs)
        case Plugin(projection="orthogonal", reads=reads) if reads in VECTORS:
            yield from _orthogonal_misfits(student.hidden_size, teacher.hidden_size)
        case HardLabels():
            if student.num_labels is not None and student.num_labels < 2:
                yield _one_class("kind")
        case MaskedLogits():
            yield from _temperature_misfits(term)
        case TokenSimilarity() | Cka() | WordRelations() | Rkd() | Sp() | Pkt() | Cc() | Crd():
            return
        case MaskedLabels() | Plugin():
            return
        case _:
            assert_never(term)


def _one_class(field: str) -> Misfit:
    return Misfit("classes", field, "needs two classes; the task has one", "Use `distance: mse`.")


def _temperature_misfits(term: SoftLogits | MaskedLogits) -> Iterator[Misfit]:
    if term.temperature is None:
        yield Misfit("temperature", "temperature", "is missing", "Give a number above 0.")


def _soft_misfits(term: SoftLogits, *, student: Sizes, teacher: Sizes) -> Iterator[Misfit]:
    if term.is_softened:
        yield from _temperature_misfits(term)
    if None in (student.num_labels, teacher.num_labels):
        return
    if student.num_labels != teacher.num_labels:
        yield Misfit(
            "classes",
            "distance",
            f"compares {student.num_labels} classes of the student with {teacher.num_labels} of "
            "the teacher",
            "Use a teacher of this task.",
        )
    if not term.is_softened:
        return
    if student.num_labels == 1:
        yield _one_class("distance")
    if student.num_labels == 2 and term.standardise:
        yield Misfit(
            "classes",
            "standardise",
            "leaves no gradient with two classes: every standardised row is (1, -1) or (-1, 1)",
            "Leave it out.",
        )
    if student.num_labels == 2 and isinstance(term.distance, Dist) and term.distance.dist.rows:
        yield Misfit(
            "classes",
            "distance",
            "correlates the classes of a row, and two values correlate by 1 or -1: no gradient",
            "Write `{dist: {rows: 0}}`, or another distance.",
        )


def _width_misfits(
    term: HiddenStates | Gram, *, student: Sizes, teacher: Sizes
) -> Iterator[Misfit]:
    ours, theirs = _widths(term, student=student, teacher=teacher)
    if term.projection == "none" and ours != theirs:
        yield Misfit(
            "width",
            "projection",
            f"is `none`, but the student is {ours} wide and the teacher {theirs}",
            "Write `projection: linear`, or give the student the teacher's width.",
        )
    if term.projection == "orthogonal":
        yield from _orthogonal_misfits(ours, theirs)


def _orthogonal_misfits(ours: int, theirs: int) -> Iterator[Misfit]:
    if ours > theirs:
        yield Misfit(
            "width",
            "projection",
            f"is `orthogonal`: {ours} columns cannot be orthonormal in {theirs} dimensions",
            "Write `projection: linear`.",
        )


def _attention_misfits(term: Attentions, *, student: Sizes, teacher: Sizes) -> Iterator[Misfit]:
    ours, theirs = student.num_attention_heads, teacher.num_attention_heads
    if term.of == "probabilities" and term.head_map == "sum":
        yield Misfit(
            "heads",
            "head_map",
            "is `sum`, and a sum of probabilities is no distribution",
            "Write `head_map: mean`.",
        )
    if term.head_map == "equal" and ours != theirs:
        yield Misfit(
            "heads",
            "head_map",
            f"is `equal`, but the student has {ours} heads and the teacher {theirs}",
            "Write `head_map: mean`, or give the student the teacher's heads.",
        )
    if term.head_map == "grouped" and theirs % ours:
        yield Misfit(
            "heads",
            "head_map",
            f"is `grouped`, and the teacher's {theirs} heads do not fall into {ours} equal groups",
            "Write `head_map: mean`, or another number of heads.",
        )


def _relation_misfits(term: Relations, *, student: Sizes, teacher: Sizes) -> Iterator[Misfit]:
    if term.heads is None:
        ours, theirs = student.num_attention_heads, teacher.num_attention_heads
        if ours != theirs:
            yield Misfit(
                "heads",
                "heads",
                f"is not said, and the student has {ours} heads and the teacher {theirs}",
                "Write `heads: N` with an N that divides both widths.",
            )
        return
    widths = {"student": student.hidden_size, "teacher": teacher.hidden_size}
    for side, width in widths.items():
        if width % term.heads:
            yield Misfit(
                "heads",
                "heads",
                f"is {term.heads}, which does not divide the {side}'s width {width}",
                f"Write a divisor of {math.gcd(*widths.values())}.",
            )


def _layer_relation_misfits(term: LayerRelations, pairs: tuple[LayerPair, ...]) -> Iterator[Misfit]:
    least = 3 if term.of == "angles" else 2
    if pairs and len(pairs) < least:
        yield Misfit(
            "matching",
            "matching",
            f"gives {len(pairs)} pair of layers, and {term.of} need {least}",
            "Choose a matching of more layers, or a deeper student.",
        )
