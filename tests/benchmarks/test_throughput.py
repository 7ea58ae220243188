"""What `throughput` computes of what it measured, and that the ways by hand train the same."""

import pytest
import torch
from pydantic import TypeAdapter
from throughput import Cell, Swept, equivalence, mean_rows, speedups
from transformers import BertConfig, BertForSequenceClassification
from tweets import ATTENTIONS, KNOWLEDGE

from kdsweep.search_spaces.knowledge import Term
from kdsweep.search_spaces.training import Training
from kdsweep.search_spaces.trial import make_stage
from kdsweep.trainers.bert import read_features, sizes
from kdsweep.trainers.objective import build_objective

CELL = Cell("2x128", "logits")


def swept(seconds: float, *, lanes: int = 2, once: float = 10.0, report: float = 0.5) -> Swept:
    """Two lanes that begin together and take equally long for three trials each."""
    ended = [once + wave * seconds for wave in (1, 2, 3) for _ in range(lanes)]
    return Swept(lanes, ended[-1], ended, [report + n / 100 for n in range(len(ended))])


def test_the_pace_of_a_sweep_leaves_out_what_is_paid_once() -> None:
    made = swept(8.0, once=10.0)
    assert made.trial_seconds == pytest.approx(4.0)
    assert made.once_seconds == pytest.approx(10.0)
    assert made.whole_seconds == pytest.approx((10 + 3 * 8) / 6)


def test_a_speedup_is_the_time_of_a_trial_beside_ours() -> None:
    turn = {"naive": swept(30.0), "tuned": swept(6.0), "kdsweep": swept(3.0)}
    found = speedups(turn)
    assert found["/naive"] == pytest.approx(10.0)
    assert found["/tuned"] == pytest.approx(2.0)
    assert found["whole /tuned"] == pytest.approx((10 + 18) / (10 + 9))


def test_means_over_shapes_are_geometric() -> None:
    def turn(naive: float) -> dict[str, Swept]:
        return {"naive": swept(naive), "tuned": swept(1.0), "kdsweep": swept(1.0)}

    turns = {Cell("2x128", "logits"): [turn(2.0)], Cell("3x384", "logits"): [turn(8.0)]}
    [row] = mean_rows(turns)
    assert row["/naive"].median == pytest.approx(4.0)


@pytest.mark.parametrize(("shift", "is_equivalent"), [(0.0, True), (0.01, True), (0.02, False)])
def test_equal_students_are_equivalent_and_worse_ones_are_not(
    shift: float, is_equivalent: bool
) -> None:
    noise = [0.002, -0.002, 0.001, -0.001, 0.003, -0.003]
    ours = Swept(2, 1.0, [1.0] * 6, [0.6 - shift + each for each in noise])
    theirs = Swept(2, 1.0, [1.0] * 6, [0.6] * 6)
    found = equivalence({CELL: [{"kdsweep": ours, "naive": theirs}]}, "naive")
    assert found["difference"] == pytest.approx(-shift)
    assert found["equivalent"] is is_equivalent


def test_few_points_that_scatter_prove_nothing() -> None:
    ours = Swept(2, 1.0, [1.0] * 2, [0.65, 0.55])
    theirs = Swept(2, 1.0, [1.0] * 2, [0.6, 0.6])
    found = equivalence({CELL: [{"kdsweep": ours, "naive": theirs}]}, "naive")
    assert found["difference"] == pytest.approx(0.0)
    assert found["equivalent"] is False


def bert(*, layers: int, width: int, heads: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=50,
        num_labels=3,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        attn_implementation="eager",
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config).eval()


@pytest.mark.slow  # Imports Ray.
@pytest.mark.parametrize("kind", KNOWLEDGE)
def test_the_objective_by_hand_is_that_of_the_grid(kind: str) -> None:
    from naive_tune import Terms

    torch.manual_seed(0)
    student, teacher = bert(layers=2, width=16, heads=2), bert(layers=6, width=24, heads=4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = {
        "input_ids": torch.randint(0, 50, (2, 5)) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros(2, 5, dtype=torch.int64),
    }
    labels = torch.tensor([0, 2])
    by_hand = Terms({"knowledge": KNOWLEDGE[kind]}, student.config, teacher.config)
    ours = student(**batch, **by_hand.asks)
    loss = by_hand(ours, teacher(**batch, **by_hand.asks), labels, mask)

    defaults = {
        "hard_labels": {},
        "soft_logits": {"temperature": 2.0},
        "hidden_states": {"matching": "uniform"},
        "attentions": {**ATTENTIONS, "matching": "uniform"},
    }
    terms = [
        TypeAdapter(Term).validate_python({"kind": name, **defaults[name]})
        for name in KNOWLEDGE[kind]
    ]
    objective = build_objective(
        make_stage(tuple(terms), Training()),
        student=sizes(student),
        teacher=sizes(teacher),
        seed=0,
    )
    maps = dict(zip(objective.projections.parameters(), by_hand.parameters(), strict=True))
    for theirs, own in maps.items():
        theirs.data.copy_(own.data)
    expected = objective(
        read_features(student, **batch, needs=objective.student_needs),
        read_features(teacher, **batch, needs=objective.teacher_needs),
        labels=labels,
        attention_mask=mask,
    )
    assert loss.item() == pytest.approx(expected.total.item(), rel=1e-5)
