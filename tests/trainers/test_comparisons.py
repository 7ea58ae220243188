"""Every term against another library or a loop over unpadded samples, and what holds of all."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.metrics
import sklearn.preprocessing
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from terms import (
    ATTENTIONS,
    CONTRAST_TERMS,
    EVERY_TERM,
    HIDDEN,
    LABELS,
    LANGUAGE_TERMS,
    LAYER_TERMS,
    LENGTHS,
    MODEL,
    NUM_ROWS,
    RELATIONS,
    ROWS,
    SAMPLE_TERMS,
    SOFT,
    contrasts,
    loss,
    pad,
    parse,
    random_features,
    token_mask,
)
from torch import Tensor

from kdsweep.search_spaces.knowledge import TERM_CLASSES, SoftLogits, kind_of
from kdsweep.search_spaces.resolution import Feature, FeatureKind, resolve_term
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.search_spaces.trial import canonical_json, canonical_term
from kdsweep.trainers.comparisons import Compared, annealing, temperatures, term_loss
from kdsweep.trainers.contrast import draw_negatives
from kdsweep.trainers.features import Features
from kdsweep.trainers.streams import generator
from kdsweep.trainers.transforms import attention_log_probabilities, clean

Array = npt.NDArray[np.float64]

STUDENT = random_features(seed=1)
TEACHER = random_features(seed=2)
GARBAGE = [math.nan, math.inf, -math.inf, 1e38, -7.0]

every_term = pytest.mark.parametrize("name", EVERY_TERM)


def array(features: Features, kind: FeatureKind, layer: int = 0) -> Array:
    return features[Feature(kind, layer)].double().numpy()


def softmax(values: Array) -> Array:
    return np.asarray(scipy.special.softmax(values, axis=-1))


def both(kind: FeatureKind, layer: int = 0) -> tuple[Array, Array]:
    return array(STUDENT, kind, layer), array(TEACHER, kind, layer)


def soft(temperature: float = 2.0) -> tuple[Array, Array]:
    student, teacher = both("logits")
    return softmax(student / temperature), softmax(teacher / temperature)


def mean_over_layers(of_layer: Callable[[int], float]) -> float:
    return float(np.mean([of_layer(layer) for layer in (1, 2, 3)]))


def value(term: dict[str, Any], **options: Any) -> float:
    return loss(term, STUDENT, TEACHER, **options).item()


# Response


def hard_labels() -> float:
    probabilities = softmax(array(STUDENT, "logits"))
    return sklearn.metrics.log_loss(LABELS.numpy(), probabilities, labels=[0, 1, 2, 3])


def label_smoothing() -> float:
    logs = scipy.special.log_softmax(array(STUDENT, "logits"), axis=1)
    target = 0.9 * np.eye(4)[LABELS.numpy()] + 0.1 / 4
    return float(-(target * logs).sum(axis=1).mean())


def kl() -> float:
    student, teacher = soft()
    return float(4 * scipy.stats.entropy(teacher, student, axis=1).mean())


def cross_entropy() -> float:
    return kl() + float(4 * scipy.stats.entropy(soft()[1], axis=1).mean())


def reverse_kl() -> float:
    student, teacher = soft()
    return float(4 * scipy.stats.entropy(student, teacher, axis=1).mean())


def jsd() -> float:
    student, teacher = soft()
    mixture = 0.3 * teacher + 0.7 * student
    teachers = scipy.stats.entropy(teacher, mixture, axis=1)
    students = scipy.stats.entropy(student, mixture, axis=1)
    return float(4 * (0.3 * teachers + 0.7 * students).mean())


def logit_mse() -> float:
    student, teacher = both("logits")
    return float(sklearn.metrics.mean_squared_error(teacher, student))


def annealed_mse() -> float:
    # At the beginning a seventh of the teacher's logits is shown.
    student, teacher = both("logits")
    return float(np.square(student - teacher / 7).sum(axis=1).mean())


def dkd() -> float:
    rows = []
    for student, teacher, label in zip(*soft(), LABELS.tolist(), strict=True):
        binary = [[side[label], 1 - side[label]] for side in (teacher, student)]
        rest = [np.delete(side, label) / (1 - side[label]) for side in (teacher, student)]
        rows.append(scipy.stats.entropy(*binary) + 8 * scipy.stats.entropy(*rest))
    return float(4 * np.mean(rows))


def dist() -> float:
    student, teacher = soft()
    rows = [1 - scipy.stats.pearsonr(s, t).statistic for s, t in zip(student, teacher, strict=True)]
    columns = [
        1 - scipy.stats.pearsonr(s, t).statistic for s, t in zip(student.T, teacher.T, strict=True)
    ]
    return float(4 * (np.mean(rows) + 2 * np.mean(columns)))


def standardise() -> float:
    student, teacher = (softmax(scipy.stats.zscore(z, axis=1) / 2) for z in both("logits"))
    return float(4 * scipy.stats.entropy(teacher, student, axis=1).mean())


# Hidden states


def tokens(features: Features, layer: int) -> list[Array]:
    """The real tokens of each row."""
    hidden = array(features, "hidden_states", layer)
    return [row[:length] for row, length in zip(hidden, LENGTHS, strict=True)]


def rows_of(layer: int) -> list[tuple[Array, Array]]:
    return list(zip(tokens(STUDENT, layer), tokens(TEACHER, layer), strict=True))


def hidden_mse() -> float:
    return mean_over_layers(
        lambda layer: float(np.concatenate([np.square(s - t) for s, t in rows_of(layer)]).mean())
    )


def hidden_cosine() -> float:
    return mean_over_layers(
        lambda layer: float(
            np.mean(
                [
                    scipy.spatial.distance.cosine(a, b)
                    for s, t in rows_of(layer)
                    for a, b in zip(s, t, strict=True)
                ]
            )
        )
    )


def pkd() -> float:
    def of_layer(layer: int) -> float:
        student, teacher = (
            sklearn.preprocessing.normalize(each[:, 0]) for each in both("hidden_states", layer)
        )
        return float(np.square(student - teacher).sum(axis=1).mean())

    return mean_over_layers(of_layer)


def cls_cosine() -> float:
    return mean_over_layers(
        lambda layer: float(
            np.mean([scipy.spatial.distance.cosine(s[0], t[0]) for s, t in rows_of(layer)])
        )
    )


def mean_mse() -> float:
    return mean_over_layers(
        lambda layer: float(
            np.mean([np.square(s.mean(0) - t.mean(0)).mean() for s, t in rows_of(layer)])
        )
    )


def embedding() -> float:
    return float(np.concatenate([np.square(s - t) for s, t in rows_of(0)]).mean())


def gram() -> float:
    return mean_over_layers(
        lambda layer: float(
            np.mean([np.square((s.T @ s - t.T @ t) / len(s)).mean() for s, t in rows_of(layer)])
        )
    )


def token_similarity() -> float:
    return mean_over_layers(
        lambda layer: float(
            np.concatenate(
                [np.square((s @ s.T - t @ t.T) / 6).ravel() for s, t in rows_of(layer)]
            ).mean()
        )
    )


def hsic(first: Array, second: Array) -> float:
    """Song et al., 2012, JMLR 13, equation 5."""
    n = len(first)
    k, m = (x @ x.T * (1 - np.eye(n)) for x in (first, second))
    ones = np.ones(n)
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (ones @ k @ m @ ones)
    return float((np.trace(k @ m) + middle - last) / (n * (n - 3)))


def _cka(student: Array, teacher: Array) -> float:
    return 1 - hsic(student, teacher) / math.sqrt(hsic(student, student) * hsic(teacher, teacher))


def cka() -> float:
    return mean_over_layers(
        lambda layer: _cka(
            np.concatenate(tokens(STUDENT, layer)), np.concatenate(tokens(TEACHER, layer))
        )
    )


def cka_of_rows() -> float:
    return mean_over_layers(
        lambda layer: _cka(
            *(
                np.stack([row.mean(0) for row in tokens(features, layer)])
                for features in (STUDENT, TEACHER)
            )
        )
    )


# Tokens and layers among themselves


def word_pairs() -> float:
    def divergences(student: Array, teacher: Array) -> list[float]:
        found = []
        for i in range(len(student)):
            near = [j for j in range(len(student)) if abs(i - j) <= 2]
            ours, theirs = (
                softmax(cosine_similarity(x[[i]], x[near])[0]) for x in (student, teacher)
            )
            found.append(float(scipy.stats.entropy(theirs, ours)))
        return found

    return mean_over_layers(
        lambda layer: float(np.mean([d for s, t in rows_of(layer) for d in divergences(s, t)]))
    )


def cosine_of_angle(a: Array, at: Array, b: Array) -> float:
    return 1 - float(scipy.spatial.distance.cosine(a - at, b - at))


def word_angles() -> float:
    def squares(student: Array, teacher: Array) -> list[float]:
        found = []
        for i in range(len(student)):
            near = [j for j in range(len(student)) if 0 < abs(i - j) <= 2]
            for j, k in itertools.combinations(near, 2):
                ours, theirs = (cosine_of_angle(x[j], x[i], x[k]) for x in (student, teacher))
                found.append((ours - theirs) ** 2)
        return found

    return mean_over_layers(
        lambda layer: float(np.mean([d for s, t in rows_of(layer) for d in squares(s, t)]))
    )


def paths(features: Features) -> list[Array]:
    """Of each real token, its vectors in the three layers."""
    layers = [np.concatenate(tokens(features, layer)) for layer in (1, 2, 3)]
    return list(np.stack(layers, axis=1))


def layer_pairs() -> float:
    divergences = [
        scipy.stats.entropy(
            softmax(cosine_similarity(theirs)), softmax(cosine_similarity(ours)), axis=1
        )
        for ours, theirs in zip(paths(STUDENT), paths(TEACHER), strict=True)
    ]
    return float(np.mean(divergences))


def layer_angles() -> float:
    squares = [
        (cosine_of_angle(*ours) - cosine_of_angle(*theirs)) ** 2
        for ours, theirs in zip(paths(STUDENT), paths(TEACHER), strict=True)
    ]
    return float(np.mean(squares))


# Attention


def maps(features: Features, layer: int) -> list[Array]:
    """Scores of each row's real tokens, by head."""
    scores = array(features, "attentions", layer)
    return [row[:, :n, :n] for row, n in zip(scores, LENGTHS, strict=True)]


def over_maps(compare: Callable[[Array, Array], Array]) -> float:
    """Mean over heads and positions, then over layers."""
    return mean_over_layers(
        lambda layer: float(
            np.concatenate(
                [
                    compare(s, t).ravel()
                    for s, t in zip(maps(STUDENT, layer), maps(TEACHER, layer), strict=True)
                ]
            ).mean()
        )
    )


def relative_entropy(student: Array, teacher: Array) -> Array:
    return np.asarray(scipy.stats.entropy(teacher, student, axis=-1))


def relative_cross_entropy(student: Array, teacher: Array) -> Array:
    return relative_entropy(student, teacher) + scipy.stats.entropy(teacher, axis=-1)


def score_mse() -> float:
    return over_maps(lambda s, t: np.square(s - t))


def score_mse_of_mean() -> float:
    return over_maps(lambda s, t: np.square(s.mean(0) - t.mean(0)))


def score_mse_of_sum() -> float:
    return over_maps(lambda s, t: np.square(s.sum(0) - t.sum(0)))


def score_cross_entropy_of_mean() -> float:
    return over_maps(lambda s, t: relative_cross_entropy(softmax(s.mean(0)), softmax(t.mean(0))))


def attention_kl() -> float:
    return over_maps(lambda s, t: relative_entropy(softmax(s), softmax(t)))


def attention_kl_of_mean() -> float:
    return over_maps(lambda s, t: relative_entropy(softmax(s).mean(0), softmax(t).mean(0)))


def attention_cross_entropy_of_mean() -> float:
    return over_maps(lambda s, t: relative_cross_entropy(softmax(s).mean(0), softmax(t).mean(0)))


def attention_mse_of_mean() -> float:
    return over_maps(lambda s, t: np.square(softmax(s).mean(0) - softmax(t).mean(0)))


def attention_cross_entropy() -> float:
    return over_maps(lambda s, t: relative_cross_entropy(softmax(s), softmax(t)))


def attention_mse() -> float:
    return over_maps(lambda s, t: np.square(softmax(s) - softmax(t)))


def relation(kinds: list[FeatureKind], heads: int) -> float:
    """Self-relations of unpadded rows, one head at a time."""

    def of_layer(layer: int) -> float:
        total = 0.0
        for kind in kinds:
            divergences = []
            for s, t, n in zip(*both(kind, layer), LENGTHS, strict=True):
                for head in np.split(np.arange(6), heads):
                    ours, theirs = (
                        softmax(x[:n, head] @ x[:n, head].T / math.sqrt(6 / heads)) for x in (s, t)
                    )
                    divergences.append(relative_entropy(ours, theirs))
            total += float(np.concatenate(divergences).mean())
        return total

    return mean_over_layers(of_layer)


def relations() -> float:
    return relation(["queries", "keys", "values"], heads=2)


def value_relation() -> float:
    return relation(["values"], heads=2)


def relation_heads() -> float:
    return relation(["queries", "keys", "values"], heads=3)


# Rows among themselves


def first_tokens(layer: int) -> tuple[Array, Array]:
    student, teacher = both("hidden_states", layer)
    return student[:, 0], teacher[:, 0]


def huber(difference: Array) -> float:
    return float(np.mean(scipy.special.huber(1.0, difference)))


def _distances(student: Array, teacher: Array) -> float:
    ours, theirs = (scipy.spatial.distance.pdist(x) for x in (student, teacher))
    return huber(ours / ours.mean() - theirs / theirs.mean())


def rkd_distances() -> float:
    return mean_over_layers(lambda layer: _distances(*first_tokens(layer)))


def rkd_of_logits() -> float:
    return _distances(*both("logits"))


def rkd_angles() -> float:
    def angles(x: Array) -> Array:
        triples = [
            (i, j, k)
            for j in range(4)
            for i, k in itertools.combinations(range(4), 2)
            if j not in (i, k)
        ]
        return np.array([cosine_of_angle(x[i], x[j], x[k]) for i, j, k in triples])

    def of_layer(layer: int) -> float:
        student, teacher = first_tokens(layer)
        return huber(angles(student) - angles(teacher))

    return mean_over_layers(of_layer)


def sp() -> float:
    def of_layer(layer: int) -> float:
        ours, theirs = (sklearn.preprocessing.normalize(x @ x.T) for x in first_tokens(layer))
        return float(np.linalg.norm(ours - theirs) ** 2 / 4**2)

    return mean_over_layers(of_layer)


def pkt() -> float:
    def probabilities(x: Array) -> Array:
        likeness = (1 + cosine_similarity(x)) / 2
        others = [np.delete(row, i) for i, row in enumerate(likeness)]
        return np.stack([each / each.sum() for each in others])

    def of_layer(layer: int) -> float:
        ours, theirs = (
            probabilities(np.stack([row.mean(0) for row in tokens(features, layer)]))
            for features in (STUDENT, TEACHER)
        )
        return float(relative_entropy(ours, theirs).mean())

    return mean_over_layers(of_layer)


def cc() -> float:
    def of_layer(layer: int) -> float:
        ours, theirs = (
            rbf_kernel(sklearn.preprocessing.normalize(x), gamma=0.4) for x in first_tokens(layer)
        )
        return float(np.square(ours - theirs).mean())

    return mean_over_layers(of_layer)


# Contrast


def contrasted(name: str, student: Features, teacher: Features) -> float:
    """The paper's loss row by row, of the maps and memories of `terms.contrasts`.

    Tian, Krishnan and Isola, 2020: h = P / (P + N / M) of M rows and N negatives, where P is
    exp(a . m / tau) / Z, and Z is M times the mean over the first batch, as in their code.
    """
    resolved = resolve_term(parse(EVERY_TERM[name]), student=MODEL, teacher=MODEL)
    stream = generator(0, "negatives", canonical_json(canonical_term(resolved.term)), "1")
    negatives = draw_negatives(ROWS, 3, num_rows=NUM_ROWS, stream=stream).tolist()
    of_pairs = []
    for key, pair in contrasts(resolved).double().pairs.items():
        total = 0.0
        for features, own, other in (
            (student, pair.student, pair.teacher),
            (teacher, pair.teacher, pair.student),
        ):
            weight, bias, memory = (
                tensor.detach().numpy() for tensor in (own.map.weight, own.map.bias, other.memory)
            )
            z = NUM_ROWS * math.exp(own.level)
            vectors = stand_for_rows(EVERY_TERM[name].get("of", "cls"), features, int(key[0]))
            for vector, row, others in zip(vectors, ROWS.tolist(), negatives, strict=True):
                mapped = weight @ vector + bias
                p = np.exp(memory @ mapped / np.linalg.norm(mapped) / 0.07) / z
                h = p / (p + 3 / NUM_ROWS)
                total -= math.log(h[row]) + sum(math.log(1 - h[each]) for each in others)
        of_pairs.append(total / len(ROWS))
    return float(np.mean(of_pairs))


def stand_for_rows(of: str, features: Features, layer: int) -> Array:
    if of == "logits":
        return array(features, "logits")
    rows = tokens(features, layer)
    return np.stack([row[0] if of == "cls" else row.mean(axis=0) for row in rows])


def crd() -> float:
    return contrasted("crd", STUDENT, TEACHER)


def crd_of_mean() -> float:
    return contrasted("crd_of_mean", STUDENT, TEACHER)


def crd_of_logits() -> float:
    return contrasted("crd_of_logits", STUDENT, TEACHER)


# Hidden tokens


def masked_labels() -> float:
    # What stood at the three hidden places, row after row: words 6, 2 and 0 of seven.
    probabilities = softmax(array(STUDENT, "words"))
    return sklearn.metrics.log_loss([6, 2, 0], probabilities, labels=range(7))


def masked_logits() -> float:
    student, teacher = (softmax(array(side, "words") / 2) for side in (STUDENT, TEACHER))
    return float(4 * scipy.stats.entropy(teacher, student, axis=1).mean())


INDEPENDENT: dict[str, Callable[[], float]] = {
    function.__name__: function
    for function in (
        *(hard_labels, label_smoothing, kl, cross_entropy, reverse_kl, jsd, logit_mse),
        *(annealed_mse, dkd, dist, standardise),
        *(hidden_mse, hidden_cosine, pkd, cls_cosine, mean_mse, embedding, gram),
        *(token_similarity, cka, cka_of_rows, word_pairs, word_angles, layer_pairs, layer_angles),
        *(score_mse, score_mse_of_mean, score_mse_of_sum, score_cross_entropy_of_mean),
        *(attention_kl, attention_kl_of_mean, attention_cross_entropy, attention_mse),
        *(attention_cross_entropy_of_mean, attention_mse_of_mean),
        *(relations, value_relation, relation_heads),
        *(rkd_distances, rkd_angles, rkd_of_logits, sp, pkt, cc),
        *(crd, crd_of_mean, crd_of_logits),
        *(masked_labels, masked_logits),
    )
}


@every_term
def test_a_loss_equals_another_librarys_over_unpadded_samples(name: str) -> None:
    assert value(EVERY_TERM[name]) == pytest.approx(INDEPENDENT[name](), rel=2e-5)


def test_a_student_that_looks_elsewhere_has_a_finite_gradient_of_mean_attention() -> None:
    # Every head gives the one key the teacher looks at exp(-200), which float32 does not hold.
    term = {"kind": "attentions", "of": "probabilities", "head_map": "mean"}
    place = Feature("attention_means", 1)
    one_key = torch.zeros(4, 1, 5, 5)
    one_key[..., 0] = 1.0
    scores = torch.zeros(4, 2, 5, 5)
    scores[..., 1] = 200.0
    scores.requires_grad_()
    student = scores.softmax(dim=-1).mean(dim=1, keepdim=True)
    found = loss(
        term | {"matching": {"pairs": [[1, 1]]}}, {place: student}, {place: one_key}, length=5
    )
    (100 * found).backward()
    assert found.item() == pytest.approx(30 * math.log(10), rel=1e-3)
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


def test_rounded_means_of_heads_are_a_distribution_again() -> None:
    # fp16 rounds each probability; what no longer sums to 1 would give equals a KL below 0.
    term = {"kind": "attentions", "of": "probabilities", "head_map": "mean"}
    place = Feature("attention_means", 1)
    means = TEACHER[place]
    rounded = means.half().float() * 1.0002
    found = loss(term | {"matching": {"pairs": [[1, 1]]}}, {place: means}, {place: rounded})
    assert abs(found.item()) < 1e-7


# By hand


def test_kl_by_hand() -> None:
    # Teacher (1/4, 3/4), student (1/2, 1/2): 1/4 ln(1/2) + 3/4 ln(3/2)
    logits = Feature("logits", 0)
    student = {logits: torch.zeros(4, 2)}
    teacher = {logits: torch.tensor([[0.0, math.log(3)]] * 4)}
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert loss(SOFT | {"temperature": 1.0}, student, teacher).item() == pytest.approx(expected)


def test_hidden_mse_by_hand_is_a_mean_over_the_batchs_tokens_and_not_over_rows() -> None:
    # One token differs by (3, 1), three tokens by (1, 1): (5 + 1 + 1 + 1) / 4, not (5 + 1) / 2
    place = Feature("hidden_states", 1)
    student = {place: torch.tensor([[[3.0, 1.0], [9.0, 9.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])}
    teacher = {place: torch.zeros(2, 3, 2)}
    mask = torch.tensor([[True, False, False], [True, True, True]])
    narrow = Sizes(num_hidden_layers=1, hidden_size=2, num_attention_heads=1, num_labels=2)
    resolved = resolve_term(parse(HIDDEN), student=narrow, teacher=narrow)
    compared = Compared(student, teacher, torch.tensor([0, 1]), mask, 0.0)
    assert term_loss(resolved, compared).loss.item() == pytest.approx(2.0)


def test_annealing_shows_more_of_the_teacher_in_equal_steps() -> None:
    # Jafari et al., 2021: T_max = 7, from a seventh to all of the logits.
    shown = [annealing(7, progress=step / 14) for step in range(15)]
    assert shown[0] == pytest.approx(1 / 7)
    assert shown[-1] == 1
    assert sorted(shown) == shown
    assert sorted(set(shown)) == pytest.approx([n / 7 for n in range(1, 8)])


def test_kl_is_target_knowledge_plus_the_rest_weighted_by_the_teachers_doubt() -> None:
    # Zhao et al., 2022: KL = TCKD + (1 - p_T[y]) NCKD, here for rows that share p_T[y].
    teacher = {Feature("logits", 0): torch.tensor([[2.0, 1.0, 0.0, -1.0]] * 4)}
    doubt = float(1 - softmax(array(teacher, "logits") / 2)[0, 0])
    term = SOFT | {"distance": {"dkd": {"target": 1.0, "others": doubt}}}
    labels = torch.zeros(4, dtype=torch.int64)
    resolved = resolve_term(parse(term), student=MODEL, teacher=MODEL)
    compared = Compared(STUDENT, teacher, labels, token_mask(), 0.0)
    decoupled = term_loss(resolved, compared).loss
    assert decoupled.item() == pytest.approx(loss(SOFT, STUDENT, teacher).item(), rel=1e-6)


def test_half_a_jsd_is_the_square_of_scipys_distance() -> None:
    student, teacher = soft()
    expected = 4 * np.mean(scipy.spatial.distance.jensenshannon(teacher, student, axis=1) ** 2)
    assert value(SOFT | {"distance": {"jsd": 0.5}}) == pytest.approx(expected, rel=1e-5)


def test_cka_of_independent_representations_is_near_zero_and_of_rotated_ones_one() -> None:
    wide = Sizes(num_hidden_layers=1, hidden_size=64, num_attention_heads=1, num_labels=4)
    place, term = Feature("hidden_states", 1), parse({"kind": "cka", "matching": "first"})
    stream = torch.Generator().manual_seed(0)
    one, other = (torch.randn(10, 8, 64, generator=stream) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=stream)).Q
    mask = torch.ones(10, 8, dtype=torch.bool)

    def distance(student: Tensor, teacher: Tensor) -> float:
        compared = Compared({place: student}, {place: teacher}, LABELS, mask, 0.0)
        resolved = resolve_term(term, student=wide, teacher=wide)
        return term_loss(resolved, compared).loss.item()

    # The biased estimate would call 80 examples of 64 independent features alike by about a half.
    assert distance(one, other) == pytest.approx(1, abs=0.1)
    assert distance(one, 3 * one @ rotation + 5) == pytest.approx(0, abs=1e-4)


# Temperatures


def row_temperatures(term: dict[str, Any], *, progress: float = 0.0) -> list[float]:
    parsed = parse(SOFT | term)
    assert isinstance(parsed, SoftLogits)
    logits = Feature("logits", 0)
    found = temperatures(parsed, STUDENT[logits], TEACHER[logits], progress=progress)
    return found.squeeze(-1).tolist()


def test_a_temperature_is_annealed_linearly_over_the_stage() -> None:
    term = {"temperature_schedule": {"anneal": 1.0}}
    assert row_temperatures(term, progress=0.0) == [2.0] * 4
    assert row_temperatures(term, progress=0.25) == [1.75] * 4


def test_a_focal_temperature_is_lower_where_student_and_teacher_differ() -> None:
    # The formula of the `flsw` scheduler of TextBrewer with beta 1 and gamma 2.
    term = {"temperature_schedule": {"flsw": {"beta": 1.0, "gamma": 2.0}}}
    weights = np.array(
        [scipy.spatial.distance.cosine(s, t) ** 2 for s, t in zip(*both("logits"), strict=True)]
    )
    expected = np.maximum(2 + weights.mean() - weights, 0.2)
    assert row_temperatures(term) == pytest.approx(expected, rel=1e-5)


def test_a_confident_row_is_softened_more() -> None:
    # The formula of the `cwsm` scheduler of TextBrewer with beta one half.
    weights = 1 / (softmax(array(STUDENT, "logits")).max(axis=1) + 1e-3)
    expected = 2 + 0.5 * (weights.mean() - weights)
    found = row_temperatures({"temperature_schedule": {"cwsm": 0.5}})
    assert found == pytest.approx(expected, rel=1e-5)


def test_each_row_is_softened_by_its_own_temperature() -> None:
    term = {"temperature_schedule": {"cwsm": 0.5}}
    student, teacher = both("logits")
    rows = [
        at**2 * scipy.stats.entropy(softmax(t / at), softmax(s / at))
        for s, t, at in zip(student, teacher, row_temperatures(term), strict=True)
    ]
    assert value(SOFT | term) == pytest.approx(np.mean(rows), rel=1e-5)


# A student that equals its teacher

NOT_ZERO_AT_THE_TEACHER: dict[str, Callable[[], float]] = {
    "hard_labels": hard_labels,
    "label_smoothing": label_smoothing,
    "cross_entropy": lambda: float(4 * scipy.stats.entropy(soft()[0], axis=1).mean()),
    "annealed_mse": lambda: float(np.square(array(STUDENT, "logits") * 6 / 7).sum(axis=1).mean()),
    "attention_cross_entropy": lambda: over_maps(
        lambda s, _: np.asarray(scipy.stats.entropy(softmax(s), axis=-1))
    ),
    "attention_cross_entropy_of_mean": lambda: over_maps(
        lambda s, _: np.asarray(scipy.stats.entropy(softmax(s).mean(0), axis=-1))
    ),
    "score_cross_entropy_of_mean": lambda: over_maps(
        lambda s, _: np.asarray(scipy.stats.entropy(softmax(s.mean(0)), axis=-1))
    ),
    "masked_labels": masked_labels,
    **{name: partial(contrasted, name, STUDENT, STUDENT) for name in CONTRAST_TERMS},
}
"""Losses with a floor: the entropy of the teacher, the labels, what is not yet shown of it, or what
is remembered of the rows."""


@every_term
def test_a_student_that_equals_its_teacher_has_the_least_loss(name: str) -> None:
    expected = NOT_ZERO_AT_THE_TEACHER.get(name, lambda: 0.0)()
    same = loss(EVERY_TERM[name], STUDENT, STUDENT).item()
    assert same == pytest.approx(expected, abs=2e-6, rel=1e-5)


@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4), st.floats(0.25, 20))
@pytest.mark.parametrize("distance", ["kl", "reverse_kl", {"jsd": 0.2}, {"dkd": {}}])
def test_a_divergence_is_never_negative(
    distance: object, values: list[float], temperature: float
) -> None:
    student, teacher = torch.tensor(values).view(2, 1, 2)
    features = [{Feature("logits", 0): side.expand(4, 2)} for side in (student, teacher)]
    term = SOFT | {"distance": distance, "temperature": temperature}
    resolved = resolve_term(parse(term), student=MODEL, teacher=MODEL)
    compared = Compared(*features, LABELS % 2, token_mask(), 0.0)
    assert term_loss(resolved, compared).loss.item() >= -1e-3


# Padding


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", LAYER_TERMS)
def test_padding_changes_neither_loss_nor_gradient_whatever_it_holds(
    name: str, garbage: float
) -> None:
    expected, gradient = loss_and_gradient(name, STUDENT, TEACHER, length=5)
    padded = (pad(side, to=9, garbage=garbage) for side in (STUDENT, TEACHER))
    found, padded_gradient = loss_and_gradient(name, *padded, length=9)
    assert found == pytest.approx(expected, rel=1e-5)
    for feature, tensor in pad(gradient, to=9, garbage=0.0).items():
        torch.testing.assert_close(padded_gradient[feature], tensor, atol=1e-6, rtol=1e-4)


def loss_and_gradient(
    name: str, student: Features, teacher: Features, *, length: int
) -> tuple[float, Features]:
    resolved = resolve_term(parse(EVERY_TERM[name]), student=MODEL, teacher=MODEL)
    read = {feature: student[feature].clone() for feature in resolved.reads("student")}
    for tensor in read.values():
        tensor.requires_grad_()
    of_term = loss(EVERY_TERM[name], read, teacher, length=length)
    of_term.backward()
    return of_term.item(), {f: t.grad for f, t in read.items() if t.grad is not None}


def test_attention_probabilities_sum_to_one_over_the_real_keys() -> None:
    scores = pad(STUDENT, to=7, garbage=math.nan)[Feature("attentions", 1)]
    logs = attention_log_probabilities(clean("attentions", scores, token_mask(7)), token_mask(7))
    assert bool(logs.isfinite().all())
    for row, n in enumerate(LENGTHS):
        sums = logs[row, :, :n, :n].exp().sum(dim=-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


# Rows


@pytest.mark.parametrize("name", [*SAMPLE_TERMS, "cka_of_rows"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_too_small_for_relations_has_a_loss_of_zero_and_a_gradient(
    name: str, rows: int
) -> None:
    term = parse(EVERY_TERM[name])
    resolved = resolve_term(term, student=MODEL, teacher=MODEL)
    sides = [{f: t[:rows].requires_grad_() for f, t in s.items()} for s in (STUDENT, TEACHER)]
    compared = Compared(*sides, LABELS[:rows], token_mask()[:rows], 0.0)
    of_term = term_loss(resolved, compared).loss
    of_term.backward()
    assert of_term.item() == 0


# Gradients


@every_term
def test_the_gradient_reaches_the_student_and_never_the_teacher(name: str) -> None:
    teacher = {feature: tensor.clone().requires_grad_() for feature, tensor in TEACHER.items()}
    _, gradient = loss_and_gradient(name, STUDENT, teacher, length=5)
    assert all(tensor.grad is None for tensor in teacher.values())
    resolved = resolve_term(parse(EVERY_TERM[name]), student=MODEL, teacher=MODEL)
    assert gradient.keys() == resolved.reads("student")
    assert all(tensor.abs().sum() > 0 for tensor in gradient.values())


WITHOUT_A_TEACHER = {"hard_labels", "label_smoothing", "masked_labels"}


@pytest.mark.parametrize("name", sorted(EVERY_TERM.keys() - WITHOUT_A_TEACHER))
def test_a_teacher_of_noise_gives_another_loss(name: str) -> None:
    noise = random_features(seed=9)
    losses = [loss(EVERY_TERM[name], STUDENT, teacher).item() for teacher in (TEACHER, noise)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@every_term
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    resolved = resolve_term(parse(EVERY_TERM[name]), student=MODEL, teacher=MODEL)
    student, teacher = (
        {feature: tensor.double() for feature, tensor in side.items()}
        for side in (STUDENT, TEACHER)
    )
    read = sorted(resolved.reads("student"))

    def of(*tensors: Tensor) -> Tensor:
        return loss(EVERY_TERM[name], student | dict(zip(read, tensors, strict=True)), teacher)

    inputs = [student[feature].clone().requires_grad_() for feature in read]
    assert torch.autograd.gradcheck(of, inputs, fast_mode=True)


@pytest.mark.parametrize("distance", ["kl", "cross_entropy", "reverse_kl", {"jsd": 0.5}])
@pytest.mark.parametrize("temperature", [2.0, 4.0, 16.0])
def test_the_squared_temperature_keeps_the_gradients_size(
    distance: object, temperature: float
) -> None:
    # Without the square it would fall to 1 / temperature**2, below 0.004 at 16.
    def size(at: float, *, squared: bool = True) -> float:
        logits = Feature("logits", 0)
        student = {logits: STUDENT[logits].clone().requires_grad_()}
        term = SOFT | {"distance": distance, "temperature": at, "temperature_squared": squared}
        loss(term, student, TEACHER).backward()
        gradient = student[logits].grad
        assert gradient is not None
        return gradient.norm().item()

    assert 0.4 < size(temperature) / size(1.0) < 2.5
    assert size(temperature, squared=False) == pytest.approx(size(temperature) / temperature**2)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_term
def test_losses_of_low_precision_features_are_computed_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    low = [{f: t.to(dtype) for f, t in side.items()} for side in (STUDENT, TEACHER)]
    high = [{f: t.float() for f, t in side.items()} for side in low]
    found = loss(EVERY_TERM[name], *low)
    assert found.dtype == torch.float32
    assert found.item() == loss(EVERY_TERM[name], *high).item()


@every_term
def test_large_bfloat16_features_give_finite_losses_and_gradients(name: str) -> None:
    student = {f: (1e4 * t).bfloat16() for f, t in STUDENT.items()}
    teacher = {f: (-1e4 * t).bfloat16() for f, t in TEACHER.items()}
    found, gradient = loss_and_gradient(name, student, teacher, length=5)
    assert math.isfinite(found)
    assert all(bool(tensor.isfinite().all()) for tensor in gradient.values())


# Heads and widths that differ


def test_heads_in_groups_are_compared_with_the_means_of_the_teachers_neighbours() -> None:
    many = Sizes(num_hidden_layers=3, hidden_size=6, num_attention_heads=6, num_labels=4)
    teacher = random_features(seed=3, sizes=many)
    grouped = loss(ATTENTIONS | {"head_map": "grouped"}, STUDENT, teacher, sizes=(MODEL, many))
    means = teacher | {
        feature: tensor.view(4, 2, 3, 5, 5).mean(dim=2)
        for feature, tensor in teacher.items()
        if feature.kind == "attentions"
    }
    assert grouped.item() == pytest.approx(loss(ATTENTIONS, STUDENT, means).item(), rel=1e-6)


def test_relation_heads_relate_models_of_unlike_widths_and_heads() -> None:
    wide = Sizes(num_hidden_layers=3, hidden_size=12, num_attention_heads=4, num_labels=4)
    teacher = random_features(seed=3, sizes=wide)
    term = RELATIONS | {"heads": 3, "of": ["q"]}
    found = loss(term, STUDENT, teacher, sizes=(MODEL, wide)).item()

    def relations_of(x: Array, n: int) -> list[Array]:
        return [
            softmax(part[:n] @ part[:n].T / math.sqrt(part.shape[1]))
            for part in np.split(x, 3, axis=1)
        ]

    def of_layer(layer: int) -> float:
        ours, theirs = array(STUDENT, "queries", layer), array(teacher, "queries", layer)
        return float(
            np.concatenate(
                [
                    relative_entropy(a, b)
                    for s, t, n in zip(ours, theirs, LENGTHS, strict=True)
                    for a, b in zip(relations_of(s, n), relations_of(t, n), strict=True)
                ]
            ).mean()
        )

    assert found == pytest.approx(mean_over_layers(of_layer), rel=1e-5)


RELATED_LAYERS = {"layer_pairs", "layer_angles"}
"""Terms that take all layers together."""

WIDTHS_MAY_DIFFER = [
    *("token_similarity", "cka", "word_pairs", "word_angles", "layer_pairs", "layer_angles"),
    *("rkd_distances", "rkd_angles", "sp", "pkt", "cc", "crd", "crd_of_mean"),
]


def test_a_batch_without_hidden_tokens_has_a_loss_of_zero_and_a_gradient() -> None:
    for term in LANGUAGE_TERMS.values():
        words = torch.zeros(0, 7, requires_grad=True)
        side = {Feature("words", 0): words}
        resolved = resolve_term(parse(term), student=MODEL, teacher=MODEL)
        none = torch.full((4, 5), -100)
        compared = Compared(side, side, LABELS, token_mask(), 0.0, none)
        found = term_loss(resolved, compared).loss
        found.backward()
        assert found.item() == 0


@pytest.mark.parametrize("name", WIDTHS_MAY_DIFFER)
def test_relations_within_a_model_need_no_projection(name: str) -> None:
    wide = Sizes(num_hidden_layers=3, hidden_size=10, num_attention_heads=2, num_labels=4)
    teacher = random_features(seed=3, sizes=wide)
    found = loss(EVERY_TERM[name], STUDENT, teacher, sizes=(MODEL, wide))
    assert found.item() > 0


NOT_SUMMED = {"rkd_of_logits"} | RELATED_LAYERS | CONTRAST_TERMS.keys()
"""No layers, or all together; another contrast, also one that is summed, draws other maps."""


@pytest.mark.parametrize("name", sorted(LAYER_TERMS.keys() - NOT_SUMMED))
def test_layers_are_summed_where_a_published_recipe_sums_them(name: str) -> None:
    term = EVERY_TERM[name]
    num_pairs = len(resolve_term(parse(term), student=MODEL, teacher=MODEL).pairs)
    summed = value(term | {"reduce_layers": "sum"})
    assert summed == pytest.approx(num_pairs * value(term), rel=1e-5)


def test_every_term_has_an_independent_value_and_every_kind_a_term() -> None:
    assert INDEPENDENT.keys() == EVERY_TERM.keys()
    kinds = {term["kind"] for term in EVERY_TERM.values()}
    # What a plugin computes is its author's.
    assert kinds == {kind_of(each) for each in TERM_CLASSES} - {"plugin"}
