"""Our losses beside those of two other toolkits: where they agree, and what theirs do otherwise.

TextBrewer 0.2.1.post1 (`textbrewer.losses`) runs here, on the same random features with padding.

torchdistill 1.1.5 (`torchdistill/losses/mid_level.py`) requires torchvision and torch 2.12, so its
values are written down. They were computed on torch 2.13.0 by each test's class, of the student's
logits ROWS and the teacher's logits TARGETS, with LABELS where the test says so. Its `CRDLoss` has
none without negatives of the caller's: it fills `self.probs`, and its draw reads `self.prob`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics.pairwise import cosine_similarity
from terms import (
    ATTENTIONS,
    HIDDEN,
    LABELS,
    MODEL,
    SOFT,
    loss,
    pad,
    parse,
    random_features,
    token_mask,
)
from textbrewer.losses import (
    att_ce_loss,
    att_ce_mean_loss,
    att_mse_loss,
    att_mse_sum_loss,
    cos_loss,
    fsp_loss,
    hid_mse_loss,
    kd_ce_loss,
    kd_mse_loss,
    mmd_loss,
    pkd_loss,
)
from textbrewer.presets import PROJ_MAP
from torch import Tensor

from kdsweep.search_spaces.resolution import Feature, FeatureKind, resolve_term
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.trainers.comparisons import Compared, Own, term_loss
from kdsweep.trainers.features import LOGITS, Features
from kdsweep.trainers.transforms import attention_log_probabilities

Loss = Callable[[Features, Features], Tensor]

STUDENT = random_features(seed=1)
TEACHER = random_features(seed=2)
MASK = token_mask()
EVERY_TOKEN = torch.ones_like(MASK)

SUMMED = {"reduce_layers": "sum"}
"""TextBrewer adds its matches up."""
COSINE = HIDDEN | {"distance": "cosine"}
GRAM = {"kind": "gram", "matching": "first"}
SIMILARITY = {"kind": "token_similarity", "matching": "first"}
SCORE_CE = ATTENTIONS | {"distance": "cross_entropy"}


def ours(term: dict[str, Any]) -> float:
    return loss(term, STUDENT, TEACHER).item()


def over_layers(kind: FeatureKind, of: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The sum over the three layers that `first` pairs."""

    def summed(student: Features, teacher: Features) -> Tensor:
        places = [Feature(kind, layer) for layer in (1, 2, 3)]
        return torch.stack([of(student[place], teacher[place]) for place in places]).sum()

    return summed


def value_and_gradient(of: Loss) -> tuple[Tensor, dict[Feature, Tensor]]:
    student = {feature: tensor.clone().requires_grad_() for feature, tensor in STUDENT.items()}
    value = of(student, TEACHER)
    value.backward()
    return value.detach(), {f: t.grad for f, t in student.items() if t.grad is not None}


def with_every_token(term: dict[str, Any]) -> float:
    """Our loss as if padding were tokens."""
    resolved = resolve_term(parse(term), student=MODEL, teacher=MODEL)
    compared = Compared(STUDENT, TEACHER, LABELS, EVERY_TOKEN, 0.0)
    return term_loss(resolved, compared).loss.item()


def probabilities(scores: Tensor) -> Tensor:
    return attention_log_probabilities(scores, MASK).exp()


def additively_masked(scores: Tensor) -> Tensor:
    """Scores as BERT's mask leaves them: -10000 where padding is involved."""
    return scores.masked_fill(~(MASK[:, None, :, None] & MASK[:, None, None, :]), -1e4)


# TextBrewer, where it agrees

AGREES: dict[str, tuple[dict[str, Any], Loss]] = {
    "kd_ce_loss": (
        SOFT | {"distance": "cross_entropy", "temperature_squared": False},
        lambda s, t: kd_ce_loss(s[LOGITS], t[LOGITS], 2.0),
    ),
    "kd_mse_loss": (
        {"kind": "soft_logits", "distance": "mse"},
        lambda s, t: kd_mse_loss(s[LOGITS], t[LOGITS]),
    ),
    "hid_mse_loss": (
        HIDDEN | SUMMED,
        over_layers("hidden_states", lambda s, t: hid_mse_loss(s, t, MASK)),
    ),
    "cos_loss": (COSINE | SUMMED, over_layers("hidden_states", lambda s, t: cos_loss(s, t, MASK))),
    "pkd_loss": (
        HIDDEN | {"of": "cls", "normalise": True, "reduce_features": "sum"} | SUMMED,
        over_layers("hidden_states", pkd_loss),
    ),
    "fsp_loss of a layer with itself": (
        GRAM | SUMMED,
        over_layers("hidden_states", lambda s, t: fsp_loss([s, s], [t, t], MASK)),
    ),
    "att_mse_loss of scores": (
        ATTENTIONS | SUMMED,
        over_layers("attentions", lambda s, t: att_mse_loss(s, t, MASK)),
    ),
    "att_mse_loss of probabilities": (
        ATTENTIONS | {"of": "probabilities", "distance": "mse"} | SUMMED,
        over_layers(
            "attentions", lambda s, t: att_mse_loss(probabilities(s), probabilities(t), MASK)
        ),
    ),
    "att_mse_sum_loss": (
        ATTENTIONS | {"head_map": "sum"} | SUMMED,
        over_layers("attentions", lambda s, t: att_mse_sum_loss(s, t, MASK)),
    ),
    "att_ce_loss of additively masked scores": (
        SCORE_CE | SUMMED,
        over_layers(
            "attentions",
            lambda s, t: att_ce_loss(additively_masked(s), additively_masked(t), MASK),
        ),
    ),
    "att_ce_mean_loss of additively masked scores": (
        SCORE_CE | {"head_map": "mean"} | SUMMED,
        over_layers(
            "attentions",
            lambda s, t: att_ce_mean_loss(additively_masked(s), additively_masked(t), MASK),
        ),
    ),
}
"""Our term and TextBrewer's function."""


@pytest.mark.parametrize("name", AGREES)
def test_loss_and_gradient_equal_textbrewers(name: str) -> None:
    term, theirs = AGREES[name]
    found, gradient = value_and_gradient(lambda s, t: loss(term, s, t))
    expected, their_gradient = value_and_gradient(theirs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", PROJ_MAP)
@pytest.mark.parametrize(
    ("term", "theirs"),
    [
        (HIDDEN, hid_mse_loss),
        (COSINE, cos_loss),
        (GRAM, lambda s, t, mask: fsp_loss([s, s], [t, t], mask)),
    ],
    ids=["hid_mse_loss", "cos_loss", "fsp_loss"],
)
def test_losses_through_textbrewers_projections_equal_textbrewers(
    term: dict[str, Any], theirs: Callable[..., Tensor], form: str
) -> None:
    wide = Sizes(num_hidden_layers=3, hidden_size=10, num_attention_heads=2, num_labels=4)
    teacher = random_features(seed=3, sizes=wide)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        project = PROJ_MAP[form](6, 10)
    torch.nn.init.constant_(project.get_submodule("" if form == "linear" else "0").bias, 0.5)
    resolved = resolve_term(parse(term | SUMMED), student=MODEL, teacher=wide)
    compared = Compared(STUDENT, teacher, LABELS, MASK, 0.0)
    found = term_loss(resolved, compared, Own(lambda hidden, _: project(hidden))).loss
    projected = over_layers("hidden_states", lambda s, t: theirs(project(s), t, MASK))
    torch.testing.assert_close(found, projected(STUDENT, teacher), rtol=1e-5, atol=0)


def test_the_sum_of_unlike_numbers_of_heads_equals_textbrewers_att_mse_sum_loss() -> None:
    many = Sizes(num_hidden_layers=3, hidden_size=6, num_attention_heads=3, num_labels=4)
    teacher = random_features(seed=3, sizes=many)
    term = ATTENTIONS | {"head_map": "sum"} | SUMMED
    found = loss(term, STUDENT, teacher, sizes=(MODEL, many))
    theirs = over_layers("attentions", lambda s, t: att_mse_sum_loss(s, t, MASK))
    torch.testing.assert_close(found, theirs(STUDENT, teacher), rtol=1e-5, atol=0)


# TextBrewer, where it does otherwise


@pytest.mark.parametrize("temperature", [2.0, 8.0])
def test_textbrewers_kd_ce_loss_lacks_the_squared_temperature(temperature: float) -> None:
    theirs = kd_ce_loss(STUDENT[LOGITS], TEACHER[LOGITS], temperature).item()
    found = ours(SOFT | {"distance": "cross_entropy", "temperature": temperature})
    assert found == pytest.approx(temperature**2 * theirs, rel=1e-5)


def test_textbrewers_kd_ce_loss_has_the_teachers_entropy_as_its_floor_and_kl_has_none() -> None:
    student, teacher = STUDENT[LOGITS], TEACHER[LOGITS]
    above_the_floor = kd_ce_loss(student, teacher, 2.0) - kd_ce_loss(teacher, teacher, 2.0)
    assert ours(SOFT) == pytest.approx(4 * above_the_floor.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 8.0])
def test_textbrewers_kd_mse_loss_falls_with_the_squared_temperature(temperature: float) -> None:
    theirs = kd_mse_loss(STUDENT[LOGITS], TEACHER[LOGITS], temperature).item()
    found = ours({"kind": "soft_logits", "distance": "mse", "temperature": temperature})
    assert theirs == pytest.approx(found / temperature**2, rel=1e-5)


@pytest.mark.parametrize(
    ("term", "theirs"),
    [
        (HIDDEN, hid_mse_loss),
        (COSINE, cos_loss),
        (GRAM, lambda s, t: fsp_loss([s, s], [t, t])),
        (SIMILARITY, lambda s, t: mmd_loss([s, s], [t, t])),
    ],
    ids=["hid_mse_loss", "cos_loss", "fsp_loss", "mmd_loss"],
)
def test_without_a_mask_textbrewer_compares_padding_too(
    term: dict[str, Any], theirs: Callable[[Tensor, Tensor], Tensor]
) -> None:
    found = over_layers("hidden_states", theirs)(STUDENT, TEACHER).item()
    assert found == pytest.approx(with_every_token(term | SUMMED), rel=1e-5)
    assert found != pytest.approx(ours(term | SUMMED), rel=0.01)


MULTIPLIES_BY_ITS_MASK: dict[str, tuple[FeatureKind, Callable[[Tensor, Tensor], Tensor]]] = {
    "hid_mse_loss": ("hidden_states", lambda s, t: hid_mse_loss(s, t, MASK)),
    "fsp_loss": ("hidden_states", lambda s, t: fsp_loss([s, s], [t, t], MASK)),
    "mmd_loss": ("hidden_states", lambda s, t: mmd_loss([s, s], [t, t], MASK)),
    "att_mse_loss": ("attentions", lambda s, t: att_mse_loss(s, t, MASK)),
    "att_mse_sum_loss": ("attentions", lambda s, t: att_mse_sum_loss(s, t, MASK)),
    "att_ce_loss": ("attentions", lambda s, t: att_ce_loss(s, t, MASK)),
    "att_ce_mean_loss": ("attentions", lambda s, t: att_ce_mean_loss(s, t, MASK)),
}


@pytest.mark.parametrize("garbage", [math.nan, -math.inf])
@pytest.mark.parametrize("name", MULTIPLIES_BY_ITS_MASK)
def test_textbrewers_masks_multiply_and_so_nan_or_minus_infinity_at_padding_spreads(
    name: str, garbage: float
) -> None:
    kind, theirs = MULTIPLIES_BY_ITS_MASK[name]
    student, teacher = (pad(side, to=5, garbage=garbage) for side in (STUDENT, TEACHER))
    assert over_layers(kind, theirs)(student, teacher).isnan()


def test_textbrewers_cos_loss_selects_tokens_and_so_nan_at_padding_stays_there() -> None:
    student, teacher = (pad(side, to=5, garbage=math.nan) for side in (STUDENT, TEACHER))
    theirs = over_layers("hidden_states", lambda s, t: cos_loss(s, t, MASK))(student, teacher)
    assert theirs.item() == pytest.approx(ours(COSINE | SUMMED), rel=1e-5)


def test_textbrewers_pkd_loss_of_a_zero_vector_is_nan() -> None:
    place = Feature("hidden_states", 1)
    student = STUDENT | {place: STUDENT[place].clone().index_fill_(0, torch.tensor(0), 0.0)}
    term = HIDDEN | {"of": "cls", "normalise": True, "matching": {"pairs": [[1, 1]]}}
    assert pkd_loss(student[place], TEACHER[place]).isnan()
    assert loss(term, student, TEACHER).isfinite()


@pytest.mark.parametrize("length", [5, 9])
def test_textbrewers_mmd_loss_divides_by_the_padded_length_where_it_has_a_mask(
    length: int,
) -> None:
    # By the width, 6, without one: see above. More padding makes the same rows count less.
    student, teacher = (pad(side, to=length, garbage=0.0) for side in (STUDENT, TEACHER))
    mask = token_mask(length)
    theirs = over_layers("hidden_states", lambda s, t: mmd_loss([s, s], [t, t], mask))
    expected = ours(SIMILARITY | SUMMED) * (6 / length) ** 2
    assert theirs(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_textbrewers_att_mse_loss_without_a_mask_drops_half_of_the_scores() -> None:
    # All entries of -0.001 and less are set to 0, on either side by itself.
    place = Feature("attentions", 1)
    student, teacher = STUDENT[place], TEACHER[place]
    theirs = att_mse_loss(student, teacher).item()
    assert (student <= -1e-3).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert theirs == pytest.approx((student.relu() - teacher.relu()).square().mean().item())
    assert theirs < 0.5 * with_every_token(ATTENTIONS | {"matching": {"pairs": [[1, 1]]}})


def test_textbrewers_att_mse_loss_without_a_mask_calls_unlike_negative_scores_equal() -> None:
    place = Feature("attentions", 1)
    student, teacher = ({place: -side[place].abs() - 0.01} for side in (STUDENT, TEACHER))
    assert att_mse_loss(student[place], teacher[place]).item() == 0
    assert loss(ATTENTIONS | {"matching": {"pairs": [[1, 1]]}}, student, teacher).item() > 1


def test_textbrewers_att_ce_loss_without_a_mask_falls_below_the_teachers_entropy() -> None:
    # It leaves out the teacher's probability wherever its score is -0.001 or less.
    scores = TEACHER[Feature("attentions", 1)]
    floor = scipy.stats.entropy(scipy.special.softmax(scores.double(), axis=-1), axis=-1).mean()
    kept = torch.where(scores <= -1e-3, 0.0, scores.softmax(dim=-1))
    expected = -(kept * scores.log_softmax(dim=-1)).sum(dim=-1).mean().item()
    assert att_ce_loss(scores, scores).item() == pytest.approx(expected, rel=1e-5)
    assert expected < 0.9 * floor


@pytest.mark.parametrize(
    ("theirs", "head_map"), [(att_ce_loss, "equal"), (att_ce_mean_loss, "mean")]
)
def test_textbrewers_attention_cross_entropies_depend_on_what_padding_holds(
    theirs: Callable[..., Tensor], head_map: str
) -> None:
    # Their mask leaves the keys of padding in both softmaxes' denominators.
    def with_padding(garbage: float) -> float:
        student, teacher = (pad(side, to=5, garbage=garbage) for side in (STUDENT, TEACHER))
        return over_layers("attentions", lambda s, t: theirs(s, t, MASK))(student, teacher).item()

    expected = ours(SCORE_CE | {"head_map": head_map} | SUMMED)
    assert with_padding(-1e4) == pytest.approx(expected, rel=1e-5)
    assert with_padding(0.0) != pytest.approx(expected, rel=0.01)
    assert with_padding(100.0) < 0.6 * expected


def test_textbrewers_att_ce_loss_of_probabilities_is_a_softmax_of_a_softmax() -> None:
    # The log of the number of keys, nearly, whatever the student attends to.
    student, teacher, other = (
        side[Feature("attentions", 1)].softmax(dim=-1)
        for side in (STUDENT, TEACHER, random_features(seed=3))
    )
    values = [att_ce_loss(each, teacher, EVERY_TOKEN).item() for each in (student, teacher, other)]
    assert values == pytest.approx([math.log(5)] * 3, rel=0.06)
    true = [-(teacher * each.log()).sum(dim=-1).mean().item() for each in (student, teacher)]
    assert true[0] > 4 * true[1]


# torchdistill, where it agrees

ROWS = torch.tensor(
    [
        [1.5, -0.5, 0.25, -2.0],
        [-1.0, 0.75, 2.5, -0.25],
        [0.5, 3.0, -1.5, 1.0],
        [-2.25, 1.25, 0, 0.5],
    ]
)
"""The student's logits; the rows' labels are `LABELS`."""
TARGETS = torch.tensor(
    [
        [3.0, -1.0, -0.5, 0.5],
        [-0.75, -1.5, 1.0, 2.0],
        [1.25, 2.0, 0.5, -2.5],
        [0.25, -0.5, -1.75, 1.5],
    ]
)
"""The teacher's."""


def of_rows(term: dict[str, Any], rows: Tensor = ROWS, targets: Tensor = TARGETS) -> float:
    return loss(term, {LOGITS: rows}, {LOGITS: targets}).item()


def test_half_labels_and_half_kl_equal_torchdistills_kdloss() -> None:
    """`KDLoss(temperature=2.0, alpha=0.5)` with labels."""
    found = of_rows({"kind": "hard_labels"}), of_rows(SOFT)
    assert 0.5 * sum(found) == pytest.approx(1.0900804996490479, rel=1e-5)


def test_correlations_equal_torchdistills_distloss() -> None:
    """`DISTLoss(beta=1.0, gamma=2.0, tau=2.0)`."""
    term = SOFT | {"distance": {"dist": {"rows": 1.0, "columns": 2.0}}}
    assert of_rows(term) == pytest.approx(5.047946929931641, rel=1e-5)


def test_distances_of_rows_equal_torchdistills_rkdloss_but_for_its_zeros() -> None:
    """`RKDLoss(dist_factor=1.0, angle_factor=0.0, reduction="mean")`.

    Its mean counts every row with itself too: of 16 pairs 12 have a distance.
    """
    found = of_rows({"kind": "rkd", "of": "logits"})
    assert found * 12 / 16 == pytest.approx(0.02144111879169941, rel=1e-5)


def test_angles_of_rows_equal_torchdistills_rkdloss_but_for_its_zeros() -> None:
    """`RKDLoss(dist_factor=0.0, angle_factor=1.0, reduction="mean")`.

    Its mean counts triples with a row twice: of 64 triples 24 have an angle that may differ.
    """
    found = of_rows({"kind": "rkd", "relation": "angles", "of": "logits"})
    assert found * 24 / 64 == pytest.approx(0.022181108593940735, rel=1e-5)


# torchdistill, where it does otherwise


def test_torchdistills_kdloss_without_labels_lacks_the_squared_temperature() -> None:
    """`KDLoss(temperature=2.0, alpha=0.0)`; so does `SKDInstanceLoss(temperature=2.0)`."""
    found = of_rows(SOFT | {"temperature_squared": False})
    assert found == pytest.approx(0.28580009937286377, rel=1e-5)


def test_torchdistills_kdloss_that_reduces_to_a_mean_divides_by_the_classes_too() -> None:
    """`KDLoss(temperature=2.0, alpha=0.5, reduction="mean")` with labels: torch's `KLDivLoss`."""
    found = of_rows({"kind": "hard_labels"}) + of_rows(SOFT) / 4
    assert 0.5 * found == pytest.approx(0.6613802909851074, rel=1e-5)


def test_torchdistills_kdloss_softens_the_logits_of_tokens_over_the_tokens() -> None:
    """`KDLoss(temperature=2.0, alpha=0.0)` of one row of four tokens, `ROWS[None]`."""
    term = SOFT | {"temperature_squared": False}
    over_tokens = 4 * of_rows(term, ROWS.T, TARGETS.T)
    assert over_tokens == pytest.approx(0.711326003074646, rel=1e-5)
    assert over_tokens != pytest.approx(4 * of_rows(term), rel=0.1)


def test_torchdistills_logitstdkdloss_divides_by_the_deviation_of_a_sample() -> None:
    """`LogitStdKDLoss(temperature=2.0, alpha=0.0)`.

    With C classes its temperature acts as if it were sqrt(C / (C - 1)) times as high.
    """
    term = SOFT | {"standardise": True, "temperature_squared": False}
    theirs = 0.12785246968269348
    assert of_rows(term | {"temperature": 2 * math.sqrt(4 / 3)}) == pytest.approx(theirs, rel=1e-5)
    assert of_rows(term) > 1.2 * theirs


def similarities(rows: Tensor, *, order: int) -> Tensor:
    products = rows @ rows.T
    return products / torch.linalg.vector_norm(products, ord=order, dim=1, keepdim=True)


def test_torchdistills_spkdloss_brings_sums_of_magnitudes_to_one_instead_of_lengths() -> None:
    """`SPKDLoss(reduction="batchmean")`: its `normalize(products, 1)` passes 1 as the order p.

    Tung and Mori, 2019, divide each row by its Euclidean length.
    """

    def expected(order: int) -> float:
        difference = similarities(ROWS, order=order) - similarities(TARGETS, order=order)
        return difference.square().mean().item()

    assert expected(1) == pytest.approx(0.07870303839445114, rel=1e-5)
    assert expected(2) == pytest.approx(of_rows({"kind": "sp", "of": "logits"}), rel=1e-5)


def test_torchdistills_pktloss_lets_a_row_pick_itself_and_divides_by_the_rows_twice() -> None:
    """`PKTLoss()`: the mean is over pairs of rows, and a row with itself is one."""

    def picks(rows: Tensor) -> np.ndarray:
        likeness = (1 + cosine_similarity(rows.double().numpy())) / 2
        return likeness / likeness.sum(axis=1, keepdims=True)

    with_itself = scipy.stats.entropy(picks(TARGETS), picks(ROWS), axis=1).mean()
    assert with_itself / 4 == pytest.approx(0.05300205945968628, rel=1e-5)
    assert of_rows({"kind": "pkt", "of": "logits"}) > 1.2 * with_itself


def test_torchdistills_cckdloss_takes_no_square_and_a_taylor_series_of_few_terms() -> None:
    """`CCKDLoss` with a Gaussian kernel of gamma 0.4, by `max_p`, and `reduction="batchmean"`.

    Of ROWS and TARGETS with rows of length 1; it does not bring them to that length itself.
    """
    found = of_rows({"kind": "cc", "of": "logits"})
    theirs = {2: 0.044028520584106445, 3: 0.04641243815422058, 20: 0.046137481927871704}
    as_a_mean_of_squares = {terms: (4 * value) ** 2 for terms, value in theirs.items()}
    assert as_a_mean_of_squares[20] == pytest.approx(found, rel=1e-5)
    assert as_a_mean_of_squares[3] == pytest.approx(found, rel=0.02)
    assert as_a_mean_of_squares[2] == pytest.approx(0.91 * found, rel=0.01)


def test_torchdistills_fsploss_adds_lengths_of_columns_where_ours_is_a_mean_of_squares() -> None:
    """`FSPLoss` of one pair with both ends in one feature map: four channels, five equal places.

    The map is `rows[:, :, None, None].expand(4, 4, 5, 1)`.
    """
    narrow = Sizes(num_hidden_layers=1, hidden_size=4, num_attention_heads=1, num_labels=4)
    student, teacher = (
        {Feature("hidden_states", 1): rows[:, None].expand(4, 5, 4)} for rows in (ROWS, TARGETS)
    )
    found = loss(GRAM, student, teacher, sizes=(narrow, narrow)).item()
    products = [np.einsum("bi,bj->bij", rows, rows) for rows in (ROWS.numpy(), TARGETS.numpy())]
    difference = products[0] - products[1]
    assert found == pytest.approx(np.square(difference).mean(), rel=1e-5)
    their_sum = np.linalg.norm(difference, axis=1).sum() / 4
    assert their_sum == pytest.approx(22.319297790527344, rel=1e-5)
