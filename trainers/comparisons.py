"""The loss of one term: features, their transforms, a distance, and what is averaged.

Adding a kind ends here: `docs/adding_a_kind.md` is the whole list.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from ..search_spaces.knowledge import (
    LEAST_ROWS,
    AnnealedMse,
    Attentions,
    Cc,
    Cka,
    Crd,
    Dist,
    Dkd,
    Gram,
    HardLabels,
    HiddenStates,
    Jsd,
    LayerRelations,
    MaskedLabels,
    MaskedLogits,
    Pkt,
    Plugin,
    Relations,
    Rkd,
    SampleTerm,
    SoftLogits,
    Sp,
    TokenSimilarity,
    WordRelations,
)
from ..search_spaces.matching import LayerPair
from ..search_spaces.resolution import RELATED, FeatureKind, ResolvedTerm, matches_layers
from ..search_spaces.schedules import Anneal, Confidence, Focal, FocalWeights
from .contrast import OF_LOGITS, Contrasting
from .distances import (
    cka_distance,
    cosine_distance,
    cross_entropy,
    dkd,
    huber,
    jsd,
    kl,
    pearson_distance,
    reverse_kl,
    squared_difference,
)
from .features import LOGITS, WORDS, Feature, Features
from .plugins import PluginFunction
from .reduction import Distances, reduce, reduce_squares
from .transforms import (
    attention_log_probabilities,
    attention_probabilities,
    both_real,
    centred_gram,
    clean,
    examples,
    first_token,
    gram,
    layer_angles,
    layer_relations,
    log_mean_of_heads,
    logarithm,
    mean_of_heads,
    mean_of_neighbouring_heads,
    mean_of_tokens,
    neighbours,
    row_angles,
    row_correlations,
    row_distances,
    row_probabilities,
    row_similarities,
    self_relations,
    standardise,
    sum_of_heads,
    token_similarity,
    unit,
    word_angles,
    word_relations,
)
from .transport import Transport, entropy

Project = Callable[[Tensor, LayerPair], Tensor]
"""A pair's learned map of the student's features; the identity where there is none."""


@dataclass(frozen=True)
class Compared:
    """What a term may look at: one batch of both models."""

    student: Features
    teacher: Features
    """Empty where no term reads a teacher."""
    labels: Tensor
    """Class indices, shape [B]."""
    token_mask: Tensor
    """Shape [B, L], True at real tokens."""
    progress: float
    """Share of the stage's steps that are done."""
    targets: Tensor | None = None
    """What hidden tokens were, shape [B, L], -100 at all others; None: none is hidden."""

    def pair(self, kind: FeatureKind, pair: LayerPair) -> tuple[Tensor, Tensor]:
        """One feature of a student's and a teacher's layer."""
        return self._sides(Feature(kind, pair.student), Feature(kind, pair.teacher))

    def logits(self) -> tuple[Tensor, Tensor]:
        """Both models' logits."""
        return self._sides(LOGITS, LOGITS)

    def student_logits(self) -> Tensor:
        """The student's logits, where there may be no teacher."""
        return clean("logits", self.student[LOGITS], self.token_mask)

    def words(self) -> tuple[Tensor, Tensor]:
        """Both models' logits over the vocabulary at the hidden tokens, [M, V]."""
        return self._sides(WORDS, WORDS)

    def student_words(self) -> tuple[Tensor, Tensor]:
        """The student's logits at the hidden tokens [M, V], and what these were [M]."""
        assert self.targets is not None, "no token is hidden"
        words = clean("words", self.student[WORDS], self.token_mask)
        return words, self.targets[self.targets >= 0]

    def _sides(self, ours: Feature, theirs: Feature) -> tuple[Tensor, Tensor]:
        return (
            clean(ours.kind, self.student[ours], self.token_mask),
            clean(theirs.kind, self.teacher[theirs].detach(), self.token_mask),
        )


class TermLoss(NamedTuple):
    """The loss of one term, without its weight."""

    loss: Tensor
    """Shape []; its formula is in the docstring of its kind."""
    entropy: Tensor | None = None
    """Of the shares in which layers teach, in nats, shape []; None where pairs are given."""


def _as_it_is(hidden: Tensor, _: LayerPair) -> Tensor:
    return hidden


class Own(NamedTuple):
    """What a term has for itself in a stage."""

    project: Project = _as_it_is
    """Its learned maps."""
    transport: Transport | None = None
    """State of a matching by flows."""
    contrast: Contrasting | None = None
    """The contrast of a batch's rows with remembered ones."""
    function: PluginFunction | None = None
    """A loss of the user's."""


NOTHING = Own()


def term_loss(resolved: ResolvedTerm, compared: Compared, own: Own = NOTHING) -> TermLoss:
    """A term's loss of one batch.

    Args:
        resolved: The term.
        compared: The batch.
        own: What the term has for itself.
    """
    term = resolved.term
    match term:
        case HardLabels():
            logits = compared.student_logits()
            smoothing = term.label_smoothing
            return TermLoss(F.cross_entropy(logits, compared.labels, label_smoothing=smoothing))
        case SoftLogits():
            return TermLoss(_soft_logits(term, compared))
        case MaskedLabels():
            words, true = compared.student_words()
            total = F.cross_entropy(words, true, reduction="sum")
            return TermLoss(total / max(1, len(true)))
        case MaskedLogits():
            return TermLoss(_masked_logits(term, *compared.words()))
        case LayerRelations():
            return TermLoss(_layer_relations(term, resolved.pairs, compared))
        case HiddenStates(matching="attention"):
            return _attended(term, resolved.pairs, compared, own.project)
        case HiddenStates(matching="combine"):
            return TermLoss(_combined(term, resolved.pairs, compared, own.project))
        case Crd(of="logits"):
            assert own.contrast is not None
            return TermLoss(own.contrast(*compared.logits(), OF_LOGITS))
        case Plugin(reads="logits"):
            assert own.function is not None
            return TermLoss(own.function(*compared.logits(), compared.token_mask))
        case _:
            pass
    if not matches_layers(term):
        assert isinstance(term, SampleTerm)
        return TermLoss(_rows(term, *compared.logits()))
    pairs = resolved.at(compared.progress)
    losses = torch.stack([_pair_loss(resolved, pair, compared, own) for pair in pairs])
    if (transport := own.transport) is not None:
        flow = transport.flow(losses.view(len(transport.student), len(transport.teacher)))
        return TermLoss((flow.flatten() * losses).sum(), entropy(flow.flatten()))
    return TermLoss(losses.sum() if term.reduce_layers == "sum" else losses.mean())


def _pair_loss(resolved: ResolvedTerm, pair: LayerPair, compared: Compared, own: Own) -> Tensor:
    mask, project = compared.token_mask, own.project
    match resolved.term:
        case HiddenStates() as term:
            return _hidden_states(term, pair, compared, project)
        case Gram():
            student, teacher = compared.pair("hidden_states", pair)
            # A bias must not fill the places of padding again.
            student = clean("hidden_states", project(student, pair), mask)
            return reduce_squares(gram(student, mask), gram(teacher, mask), "BHH", mask)
        case TokenSimilarity():
            student, teacher = map(token_similarity, compared.pair("hidden_states", pair))
            return reduce_squares(student, teacher, "BLK", mask)
        case Cka() as term:
            return _cka(*(_select(term.of, s, mask) for s in compared.pair("hidden_states", pair)))
        case Attentions(reads_means=True) as term:
            return _mean_attentions(term, *compared.pair("attention_means", pair), mask)
        case Attentions() as term:
            return _attentions(term, *compared.pair("attentions", pair), mask)
        case Relations() as term:
            assert resolved.relation_heads is not None
            return _relations(term, pair, compared, num_heads=resolved.relation_heads)
        case WordRelations() as term:
            return _word_relations(term, *compared.pair("hidden_states", pair), mask)
        case Rkd() | Sp() | Pkt() | Cc() as term:
            sides = compared.pair("hidden_states", pair)
            student, teacher = (_select(term.of, side, mask) for side in sides)
            return _rows(term, student, teacher)
        case Crd() as term:
            assert own.contrast is not None
            sides = compared.pair("hidden_states", pair)
            student, teacher = (_select(term.of, side, mask) for side in sides)
            return own.contrast(student, teacher, pair)
        case Plugin(reads=reads):
            assert own.function is not None
            student, teacher = compared.pair(reads, pair)
            # A bias must not fill the places of padding again.
            projected = clean(reads, project(student, pair), mask)
            return own.function(projected, teacher, mask, pair=pair)
        case _:
            raise AssertionError(f"{resolved.term.kind} compares no pair of layers")


def _select(of: str, hidden: Tensor, token_mask: Tensor) -> Tensor:
    match of:
        case "tokens":
            return examples(hidden, token_mask)
        case "cls":
            return first_token(hidden)
        case "mean":
            return mean_of_tokens(hidden, token_mask)
        case _:
            raise AssertionError(f"{of} stands for no row")


def _nothing(student: Tensor) -> Tensor:
    """The loss of a batch that is too small to have one; a gradient may pass through it."""
    return student.sum() * 0.0


# Response


def _soft_logits(term: SoftLogits, compared: Compared) -> Tensor:
    student, teacher = compared.logits()
    match term.distance:
        case "mse":
            return reduce_squares(student, teacher, "BC", compared.token_mask)
        case AnnealedMse(annealed_mse=steps):
            phi = annealing(steps, progress=compared.progress)
            return reduce_squares(student, phi * teacher, "BC", compared.token_mask, sums="C")
        case _:
            pass
    if term.standardise:
        student, teacher = standardise(student), standardise(teacher)
    temperature = temperatures(term, student, teacher, progress=compared.progress)
    values = _softened(term, student / temperature, teacher / temperature, compared.labels)
    squared = temperature.square().squeeze(-1) if term.temperature_squared else 1.0
    return _over_rows(squared * values, "B", compared)


def temperatures(term: SoftLogits, student: Tensor, teacher: Tensor, *, progress: float) -> Tensor:
    """What divides each row's logits, shape [B, 1]; no gradient flows through it."""
    assert term.temperature is not None
    base = torch.full_like(student[:, :1], term.temperature).detach()
    match term.temperature_schedule:
        case None:
            return base
        case Anneal(anneal=last):
            return base + progress * (last - term.temperature)
        case Focal(flsw=FocalWeights(beta=beta, gamma=gamma)):
            weights = cosine_distance(student, teacher).clamp_min(0) ** gamma
        case Confidence(cwsm=beta):
            weights = 1 / (F.softmax(student, dim=-1).amax(dim=-1) + 1e-3)
        case _:
            assert_never(term.temperature_schedule)
    weights = weights.detach().unsqueeze(-1)
    return (base + beta * (weights.mean() - weights)).clamp_min(term.temperature / 10)


def _softened(term: SoftLogits, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The distance of each row, shape [B]."""
    student_log, teacher_log = (F.log_softmax(side, dim=-1) for side in (student, teacher))
    match term.distance:
        case "kl":
            return kl(student_log, teacher_log)
        case "cross_entropy":
            return cross_entropy(student_log, teacher_log)
        case "reverse_kl":
            return reverse_kl(student_log, teacher_log)
        case Jsd(jsd=beta):
            return jsd(student_log, teacher_log, beta=beta)
        case Dkd(dkd=weights):
            return dkd(student, teacher, labels, target=weights.target, others=weights.others)
        case Dist(dist=weights):
            probabilities = student_log.exp(), teacher_log.exp()
            rows = pearson_distance(*probabilities, dim=-1)
            columns = pearson_distance(*probabilities, dim=0)
            return weights.rows * rows + weights.columns * columns.mean()
        case "mse" | AnnealedMse():
            raise AssertionError("raw logits are not softened")
        case _:
            assert_never(term.distance)


def _masked_logits(term: MaskedLogits, student: Tensor, teacher: Tensor) -> Tensor:
    assert term.temperature is not None
    logs = (F.log_softmax(side / term.temperature, dim=-1) for side in (student, teacher))
    squared = term.temperature**2 if term.temperature_squared else 1.0
    return squared * kl(*logs).sum() / max(1, len(student))


def annealing(steps: int, *, progress: float) -> float:
    """The share of the teacher's logits that is shown: from 1 / steps, in equal steps, to 1.

    References:
        Jafari et al., *Annealing Knowledge Distillation*, 2021, arXiv:2104.07163.
    """
    temperature = (1 - progress) * steps
    return 1 - (max(1, math.ceil(temperature)) - 1) / steps


def _over_rows(values: Tensor, axes: str, compared: Compared) -> Tensor:
    return reduce(Distances(values, axes), compared.token_mask)


# Hidden states


def _hidden_states(
    term: HiddenStates, pair: LayerPair, compared: Compared, project: Project
) -> Tensor:
    student, teacher = _vectors(term, pair, compared)
    return _between_vectors(term, project(student, pair), teacher, compared)


def _vectors(term: HiddenStates, pair: LayerPair, compared: Compared) -> tuple[Tensor, Tensor]:
    """What is compared of a pair: [B, L, H] of tokens, [B, H] of rows."""
    student, teacher = compared.pair("hidden_states", pair)
    if term.of == "tokens":
        return student, teacher
    return (
        _select(term.of, student, compared.token_mask),
        _select(term.of, teacher, compared.token_mask),
    )


def _between_vectors(
    term: HiddenStates, student: Tensor, teacher: Tensor, compared: Compared
) -> Tensor:
    axes = "BL" if term.of == "tokens" else "B"
    match term.distance:
        case "cosine":
            return _over_rows(cosine_distance(student, teacher), axes, compared)
        case "mse":
            if term.normalise:
                student, teacher = unit(student), unit(teacher)
            sums = "H" if term.reduce_features == "sum" else ""
            mask = compared.token_mask
            return reduce_squares(student, teacher, f"{axes}H", mask, sums=sums)
        case _:
            assert_never(term.distance)


def _attended(
    term: HiddenStates, pairs: Sequence[LayerPair], compared: Compared, project: Project
) -> TermLoss:
    """Each student block against the teacher blocks' sum, weighted by their products with it."""
    losses, entropies = [], []
    for _, of_student in groupby(pairs, key=lambda pair: pair.student):
        group = list(of_student)
        student = project(_vectors(term, group[0], compared)[0], group[0])
        teachers = torch.stack([_vectors(term, pair, compared)[1] for pair in group], dim=-2)
        shares = (student.unsqueeze(-2) * teachers).sum(dim=-1).softmax(dim=-1)
        target = (shares.unsqueeze(-1) * teachers).sum(dim=-2)
        losses.append(_between_vectors(term, student, target, compared))
        axes = "BL" if term.of == "tokens" else "B"
        entropies.append(_over_rows(entropy(shares.detach()), axes, compared))
    stacked = torch.stack(losses)
    loss = stacked.sum() if term.reduce_layers == "sum" else stacked.mean()
    return TermLoss(loss, torch.stack(entropies).mean())


def _combined(
    term: HiddenStates, pairs: Sequence[LayerPair], compared: Compared, project: Project
) -> Tensor:
    """All blocks of both sides, side by side."""
    student = {pair.student: _vectors(term, pair, compared)[0] for pair in pairs}
    teacher = {pair.teacher: _vectors(term, pair, compared)[1] for pair in pairs}
    ours = torch.cat(list(student.values()), dim=-1)
    theirs = torch.cat(list(teacher.values()), dim=-1)
    return _between_vectors(term, project(ours, pairs[0]), theirs, compared)


def _cka(student: Tensor, teacher: Tensor) -> Tensor:
    if len(student) < _LEAST_EXAMPLES:
        return _nothing(student)
    return cka_distance(centred_gram(student), centred_gram(teacher))


_LEAST_EXAMPLES = 4
"""Of the unbiased estimate, which divides by the number of examples less 3."""


# Attention


def _attentions(term: Attentions, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    num_groups = student.shape[1]
    if term.of == "scores":
        student = _map_scores(term, student, num_groups)
        teacher = _map_scores(term, teacher, num_groups)
    elif term.compared == "mse":
        student, teacher = (attention_probabilities(side, mask) for side in (student, teacher))
        if term.head_map == "grouped":
            student = mean_of_neighbouring_heads(student, num_groups=num_groups)
            teacher = mean_of_neighbouring_heads(teacher, num_groups=num_groups)
    if term.compared == "mse":
        return reduce_squares(student, teacher, "BALK", mask)
    student, teacher = (attention_log_probabilities(side, mask) for side in (student, teacher))
    if term.of == "probabilities" and term.head_map == "grouped":
        student = log_mean_of_heads(student, num_groups=num_groups)
        teacher = log_mean_of_heads(teacher, num_groups=num_groups)
    return _between_distributions(term, student, teacher, mask)


def _mean_attentions(term: Attentions, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Between probabilities that are averaged over heads, [B, 1, L, L]."""
    if term.compared == "mse":
        return reduce_squares(student, teacher, "BALK", mask)
    # Kept ones were rounded one by one, and have to be a distribution.
    teacher = F.normalize(teacher, p=1, dim=-1)
    return _between_distributions(term, logarithm(student), logarithm(teacher), mask)


def _between_distributions(
    term: Attentions, student_log: Tensor, teacher_log: Tensor, mask: Tensor
) -> Tensor:
    distance = kl if term.compared == "kl" else cross_entropy
    return reduce(Distances(distance(student_log, teacher_log), "BAL"), mask)


def _map_scores(term: Attentions, scores: Tensor, num_groups: int) -> Tensor:
    match term.head_map:
        case "equal":
            return scores
        case "mean":
            return mean_of_heads(scores)
        case "sum":
            return sum_of_heads(scores)
        case "grouped":
            return mean_of_neighbouring_heads(scores, num_groups=num_groups)
        case _:
            assert_never(term.head_map)


def _relations(term: Relations, pair: LayerPair, compared: Compared, *, num_heads: int) -> Tensor:
    mask = compared.token_mask
    losses = []
    for source in term.of:
        student, teacher = compared.pair(RELATED[source], pair)
        sides = (self_relations(side, mask, num_heads=num_heads) for side in (student, teacher))
        losses.append(reduce(Distances(kl(*sides), "BAL"), mask))
    return torch.stack(losses).sum()


# Tokens and layers among themselves


def _word_relations(term: WordRelations, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    match term.of:
        case "pairs":
            related = neighbours(mask, window=term.window)
            sides = (word_relations(side, related) for side in (student, teacher))
            return reduce(Distances(kl(*sides), "BL"), mask)
        case "angles":
            ours, offsets = word_angles(student, window=term.window)
            theirs, _ = word_angles(teacher, window=term.window)
            values = Distances(squared_difference(ours, theirs), "BLP")
            return reduce(values, mask, also=both_real(mask, offsets))
        case _:
            assert_never(term.of)


def _layer_relations(
    term: LayerRelations, pairs: Sequence[LayerPair], compared: Compared
) -> Tensor:
    both = [compared.pair("hidden_states", pair) for pair in pairs]
    sides = [torch.stack(side, dim=2) for side in zip(*both, strict=True)]
    match term.of:
        case "pairs":
            values = kl(*map(layer_relations, sides))
        case "angles":
            values = squared_difference(*map(layer_angles, sides))
        case _:
            assert_never(term.of)
    # Layers and triples of layers are averaged as features are: each has every token.
    return _over_rows(values, "BLH", compared)


# Rows among themselves


def _rows(term: SampleTerm, student: Tensor, teacher: Tensor) -> Tensor:
    if len(student) < LEAST_ROWS:
        return _nothing(student)
    match term:
        case Rkd(relation="distances"):
            return huber(row_distances(student), row_distances(teacher)).mean()
        case Rkd():
            return huber(row_angles(student), row_angles(teacher)).mean()
        case Sp():
            return squared_difference(row_similarities(student), row_similarities(teacher)).mean()
        case Pkt():
            return kl(row_probabilities(student), row_probabilities(teacher)).mean()
        case Cc(gamma=gamma):
            sides = (row_correlations(side, gamma=gamma) for side in (student, teacher))
            return squared_difference(*sides).mean()
        case _:
            assert_never(term)
