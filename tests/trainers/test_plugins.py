"""A loss of the user's own beside the built-in ones, and what it has to be."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from terms import LABELS, LENGTHS, MODEL, pad, parse, random_features, token_mask

from kdsweep.search_spaces.errors import PluginError
from kdsweep.search_spaces.knowledge import Plugin
from kdsweep.search_spaces.resolution import Feature
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.search_spaces.training import Training
from kdsweep.search_spaces.trial import make_stage
from kdsweep.trainers.features import Features
from kdsweep.trainers.objective import build_objective

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_loss.py"
SOURCE = (
    EXAMPLE.read_text()
    + """
import torch

calls = []


def logit_l1(student, teacher, token_mask):
    return (student - teacher).abs().mean()


def score_mse(student, teacher, token_mask):
    real = (token_mask[:, :, None] & token_mask[:, None, :])[:, None]
    return ((student - teacher) ** 2).sum() / (real.sum() * student.shape[1])


def over_padding(student, teacher, token_mask):
    return (student - teacher).abs().mean()


def of_rows(student, teacher, token_mask):
    return (student - teacher).abs().mean(dim=(1, 2))


def whole(student, teacher, token_mask):
    return token_mask.sum()


def a_number(student, teacher, token_mask):
    return (student - teacher).abs().mean().item()


def not_finite(student, teacher, token_mask):
    return (student.sum() * 0).log() * 0


def detached(student, teacher, token_mask):
    return (student.detach() - teacher)[:, 0].abs().mean()


def of_the_teacher(student, teacher, token_mask):
    return teacher[:, 0].mean() * torch.ones((), requires_grad=True)


def root_of_zero(student, teacher, token_mask):
    length = ((student - teacher) ** 2).sum(-1).sqrt()
    return (length * token_mask).sum() / token_mask.sum()


def at_random(student, teacher, token_mask):
    return (student[:, 0] * torch.rand(())).mean()


def with_state(student, teacher, token_mask):
    calls.append(1)
    return student[:, 0].mean() * len(calls)


def in_place(student, teacher, token_mask):
    return student.sub_(teacher)[:, 0].abs().mean()


def raises(student, teacher, token_mask):
    return student @ teacher


def later(student, teacher, token_mask):
    calls.append(1)
    return student[:, 0].mean() if len(calls) < 4 else student[:, 0]
"""
)
STUDENT, TEACHER = random_features(seed=1), random_features(seed=2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_loss.py"
    path.write_text(SOURCE)
    return path


def term_of(file: Path, function: str, **fields: Any) -> Plugin:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    loss = {"file": str(file), "digest": digest, "function": function}
    data = {"kind": "plugin", "loss": loss, "reads": "hidden_states"}
    term = parse(data | {"matching": {"pairs": [[3, 3]]}} | fields)
    assert isinstance(term, Plugin)
    return term


def loss_of(
    term: Plugin,
    student: Features = STUDENT,
    teacher: Features = TEACHER,
    *,
    length: int = 5,
    sizes: Sizes = MODEL,
    plugins: Path | None = None,
) -> torch.Tensor:
    stage = make_stage((term,), Training())
    objective = build_objective(stage, student=MODEL, teacher=sizes, seed=0, plugins=plugins)
    losses = objective(student, teacher, labels=LABELS, attention_mask=token_mask(length))
    return torch.as_tensor(losses.by_term[0].loss)


def test_a_loss_equals_the_same_by_hand_over_unpadded_rows(file: Path) -> None:
    def pooled(features: Features) -> np.ndarray[Any, Any]:
        hidden = features[Feature("hidden_states", 3)].double().numpy()
        return np.stack([row[:n].mean(axis=0) for row, n in zip(hidden, LENGTHS, strict=True)])

    distance = np.abs(pooled(STUDENT) - pooled(TEACHER))
    assert loss_of(term_of(file, "pooled_l1")).item() == pytest.approx(distance.mean(), rel=1e-5)
    squared = term_of(file, "pooled_l1", settings={"power": 2})
    assert loss_of(squared).item() == pytest.approx((distance**2).mean(), rel=1e-5)


def test_logits_and_attentions_are_read_by_the_same_signature(file: Path) -> None:
    ours, theirs = (side[Feature("logits", 0)] for side in (STUDENT, TEACHER))
    by_hand = (ours - theirs).abs().mean().item()
    found = loss_of(term_of(file, "logit_l1", reads="logits"))
    assert found.item() == pytest.approx(by_hand, rel=1e-6)
    ours, theirs = (side[Feature("attentions", 3)] for side in (STUDENT, TEACHER))
    squares = [((ours - theirs)[row, :, :n, :n] ** 2).flatten() for row, n in enumerate(LENGTHS)]
    found = loss_of(term_of(file, "score_mse", reads="attentions"))
    assert found.item() == pytest.approx(torch.cat(squares).mean().item(), rel=1e-5)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e38])
def test_what_models_leave_in_padding_reaches_neither_loss_nor_gradient(
    file: Path, garbage: float
) -> None:
    term = term_of(file, "pooled_l1")
    student = pad(STUDENT, to=9, garbage=garbage)
    top = student[Feature("hidden_states", 3)].requires_grad_()
    found = loss_of(term, student, pad(TEACHER, to=9, garbage=garbage), length=9)
    assert found.item() == pytest.approx(loss_of(term).item(), rel=1e-6)
    found.backward()
    assert top.grad is not None
    assert bool(top.grad.isfinite().all())


def test_the_bias_of_a_projection_fills_no_padding(file: Path) -> None:
    wide = Sizes(num_hidden_layers=3, hidden_size=8, num_attention_heads=2, num_labels=4)
    teacher = random_features(seed=3, sizes=wide)
    sums = file.with_name("sums.py")
    sums.write_text("def f(student, teacher, token_mask): return student.sum() / token_mask.sum()")
    term = term_of(sums, "f", projection="linear")
    stage = make_stage((term,), Training())
    objective = build_objective(stage, student=MODEL, teacher=wide, seed=0)
    [linear] = [each for each in objective.modules() if isinstance(each, torch.nn.Linear)]
    torch.nn.init.ones_(linear.bias)
    hidden = STUDENT[Feature("hidden_states", 3)]
    by_hand = linear(hidden[token_mask()]).sum().item() / sum(LENGTHS)
    found = objective(STUDENT, teacher, labels=LABELS, attention_mask=token_mask())
    assert found.total.item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("function", "what", "mend"),
    [
        ("over_padding", "depends on padding: ", "Average over real tokens alone"),
        ("of_rows", "gives [4] of torch.float32, not a scalar", "Reduce it to one number"),
        ("whole", "gives [] of torch.int64, not a scalar", "Reduce it to one number"),
        ("a_number", "gives float, not a tensor", "Return a tensor of shape []"),
        ("not_finite", "gives nan, given student [4, 5, 6]", "mask before a division"),
        ("detached", "has no gradient to the student", "no `detach`"),
        ("of_the_teacher", "has no gradient to the student", "no `detach`"),
        ("root_of_zero", "has a gradient that is not finite", "mask before a division, a root"),
        ("at_random", "gives two losses for one batch", "Draw no random numbers"),
        ("with_state", "gives two losses for one batch", "keep no state"),
        ("in_place", "changes a tensor that it is given", "Make new ones"),
    ],
)
def test_what_is_no_loss_is_refused_on_the_first_batch(
    file: Path, function: str, what: str, mend: str
) -> None:
    line = SOURCE.splitlines().index(f"def {function}(student, teacher, token_mask):") + 1
    with pytest.raises(PluginError) as found:
        loss_of(term_of(file, function))
    told = str(found.value)
    assert told.startswith(f"{file}:{line}: {function}: {what}")
    assert mend in told


def test_an_exception_inside_keeps_its_class_and_names_file_line_and_shapes(file: Path) -> None:
    line = SOURCE.splitlines().index("    return student @ teacher") + 1
    with pytest.raises(RuntimeError) as found:
        loss_of(term_of(file, "raises"))
    [note] = found.value.__notes__
    assert note.startswith(f"{file}:{line}: the plugin was given student [4, 5, 6], teacher [4, 5,")


def test_the_look_at_the_first_batch_draws_no_random_numbers(file: Path) -> None:
    torch.manual_seed(7)
    loss_of(term_of(file, "pooled_l1"))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_a_batch_that_is_not_finite_already_is_no_fault_of_the_loss(file: Path) -> None:
    diverged = STUDENT | {Feature("hidden_states", 3): torch.full((4, 5, 6), torch.nan)}
    assert loss_of(term_of(file, "pooled_l1"), diverged).isnan()


def test_only_the_content_that_was_planned_is_executed(file: Path, tmp_path: Path) -> None:
    term = term_of(file, "pooled_l1")
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / f"{term.loss.digest}.py").write_text(SOURCE)
    trap = tmp_path / "executed"
    file.write_text(f"open({str(trap)!r}, 'w')\n{SOURCE}")
    with pytest.raises(PluginError, match="has changed since the plan was made"):
        loss_of(term)
    assert not trap.exists()
    assert loss_of(term, plugins=copies).item() > 0
    [copy] = copies.iterdir()
    copy.write_bytes(file.read_bytes())
    with pytest.raises(PluginError, match=f"{copy}: the file has changed"):
        loss_of(term, plugins=copies)
    assert not trap.exists()
    file.unlink()
    with pytest.raises(PluginError, match="cannot be read: No such file"):
        loss_of(term)


def test_each_trial_has_the_file_to_itself(file: Path) -> None:
    # Three calls look at the first batch; a fourth would be another trial's.
    for _ in range(2):
        assert loss_of(term_of(file, "later")).shape == ()
