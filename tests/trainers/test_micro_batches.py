"""A batch in parts has the gradient of the whole batch, and a trial goes on where memory ends."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from dropped import dropped_by_heads
from terms import EVERY_TERM, parse
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from world import SHORT, World

from kdsweep.search_spaces.knowledge import Term, hides_tokens
from kdsweep.search_spaces.training import Evaluate, Training
from kdsweep.search_spaces.trial import Digests, Trial, first_stages, make_stage, stage_id
from kdsweep.sweep.failures import failure_of
from kdsweep.trainers import Assets, Finished, Interrupted, Report, Row, Settings, train
from kdsweep.trainers.batches import Batch
from kdsweep.trainers.bert import sizes
from kdsweep.trainers.dropout import set_dropout
from kdsweep.trainers.errors import BatchMemoryError
from kdsweep.trainers.features import Feature, Features
from kdsweep.trainers.forward import forward
from kdsweep.trainers.frozen import TeacherRecord
from kdsweep.trainers.language import make_language_head
from kdsweep.trainers.micro_batches import CachedFeatures, join, split
from kdsweep.trainers.objective import Objective, TermLosses, build_objective
from kdsweep.trainers.optim import gradient_norms
from kdsweep.trainers.seen_tokens import SeenEmbedding

LENGTHS = (7, 7, 2, 5, 6)
NUMBERS = {1: 5, 2: 3, 3: 2}
"""Parts of five rows, by the rows of a part."""
PROJECTED = {
    "hidden_mse", "hidden_cosine", "pkd", "cls_cosine", "mean_mse", "embedding", "gram"
}  # fmt: skip
"""Terms that need a learned map between models of unlike widths."""
MORE_TERMS: Mapping[str, dict[str, Any]] = {
    "emd": {"kind": "hidden_states", "matching": {"emd": "adaptive"}},
    "attention": {"kind": "hidden_states", "matching": "attention"},
    "combine": {"kind": "hidden_states", "matching": "combine"},
}


def bert(*, layers: int, width: int, seed: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=60,
        max_position_embeddings=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        num_labels=4,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config).eval()


def batch() -> Batch:
    stream = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, 60, mask.shape, generator=stream) * mask
    # Two hidden tokens in the first row, one in the third, none in the others.
    targets = torch.full_like(ids, -100)
    for place in ((0, 1), (0, 3), (2, 0)):
        targets[place] = ids[place]
    return Batch(
        rows=torch.arange(len(LENGTHS)),
        input_ids=ids,
        attention_mask=mask.long(),
        token_type_ids=torch.zeros_like(ids),
        labels=torch.tensor([0, 3, 1, 1, 2]),
        targets=targets,
    )


class Models:
    """A student in training, its frozen teacher, and an objective of one term."""

    def __init__(self, term: dict[str, Any], *, dropout: float) -> None:
        self.student = bert(layers=3, width=24, seed=1).train()
        self.masks = set_dropout(self.student, dropout, device=torch.device("cpu"))
        self.teacher = bert(layers=4, width=36, seed=2)
        self.objective: Objective = build_objective(
            make_stage((parse(term),), Training()),
            student=sizes(self.student),
            teacher=sizes(self.teacher),
            seed=0,
            num_rows=len(LENGTHS),
            language_head=(
                make_language_head(self.student.config, seed=1)
                if hides_tokens([parse(term)])
                else None
            ),
        )

    def run(self, part: Batch, number: int = 0) -> Features:
        self.masks.begin(number)
        return forward(
            self.student,
            part,
            self.objective.student_needs,
            precision="fp32",
            language_head=self.objective.language_head,
        )

    def losses(self, student: Features) -> TermLosses:
        whole = batch()
        with torch.no_grad():
            needs = self.objective.teacher_needs
            head = make_language_head(self.teacher.config, seed=2)
            teacher = forward(self.teacher, whole, needs, precision="fp32", language_head=head)
        found: TermLosses = self.objective(
            student,
            teacher,
            labels=whole.labels,
            attention_mask=whole.attention_mask,
            targets=whole.targets,
            rows=whole.rows,
        )
        return found

    def gradients(self) -> dict[str, Tensor]:
        """Of every parameter that has one, projections included."""
        named = [*self.student.named_parameters(), *self.objective.named_parameters()]
        return {name: p.grad for name, p in named if p.grad is not None}


def with_a_graph_over_all(models: Models, parts: Sequence[Batch]) -> dict[Feature, Tensor]:
    """The features of parts that ran one after the other, with one graph over all of them."""
    seen = [models.run(part, number) for number, part in enumerate(parts)]
    return {feature: torch.cat([each[feature] for each in seen]) for feature in seen[0]}


def check_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """To the accuracy of fp32 sums, relative to the longest gradient."""
    assert found.keys() == expected.keys()
    longest = max(gradient.norm().item() for gradient in expected.values())
    assert longest > 1e-4
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm().item() <= 1e-5 * longest, name


@pytest.mark.parametrize("name", [*EVERY_TERM, *MORE_TERMS])
def test_parts_of_one_two_and_three_rows_give_the_gradient_of_the_whole_batch(name: str) -> None:
    term = {**EVERY_TERM, **MORE_TERMS}[name]
    whole = Models(term, dropout=0.0)
    losses = whole.losses(whole.run(batch()))
    backbone = list(whole.student.bert.parameters())
    norms = gradient_norms([losses.total], backbone)
    losses.total.backward()
    expected = whole.gradients()
    assert len(list(whole.objective.parameters())) > 0 or name not in {*PROJECTED, *MORE_TERMS}
    for number in NUMBERS.values():
        parted = Models(term, dropout=0.0)
        cached = CachedFeatures(parted.run, split(batch(), number))
        found = parted.losses(cached.features)
        assert found.total.item() == pytest.approx(losses.total.item(), rel=1e-5, abs=1e-7)
        mine = cached.gradient_norms([found.total], list(parted.student.bert.parameters()))
        assert mine == pytest.approx(norms, rel=1e-4)
        found.total.backward()
        cached.backward()
        check_equal(parted.gradients(), expected)


@pytest.mark.parametrize("name", [*EVERY_TERM, *MORE_TERMS])
def test_a_part_drops_the_same_in_both_of_its_runs(name: str) -> None:
    term = {**EVERY_TERM, **MORE_TERMS}[name]
    parts = split(batch(), NUMBERS[2])
    whole, parted = Models(term, dropout=0.3), Models(term, dropout=0.3)
    whole.losses(with_a_graph_over_all(whole, parts)).total.backward()
    cached = CachedFeatures(parted.run, parts)
    losses = parted.losses(cached.features)
    cached.gradient_norms([losses.total], list(parted.student.bert.parameters()))
    losses.total.backward()
    cached.backward()
    check_equal(parted.gradients(), whole.gradients())


def test_features_run_in_parts_are_leaves_without_the_graph_of_their_parts() -> None:
    models = Models(EVERY_TERM["score_mse"], dropout=0.1)
    cached = CachedFeatures(models.run, split(batch(), 2))
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in cached.features.values())
    assert cached.features.keys() == models.objective.student_needs


def test_parts_are_the_rows_of_the_batch_in_order_and_padded_like_it() -> None:
    for rows, number in NUMBERS.items():
        parts = split(batch(), number)
        assert [len(part.rows) for part in parts][:-1] == [rows] * (number - 1)
        assert torch.equal(torch.cat([part.input_ids for part in parts]), batch().input_ids)
        assert torch.cat([part.labels for part in parts]).tolist() == batch().labels.tolist()
    # Four parts of five rows are three: no part may be larger than that of a smaller number.
    assert [len(part.rows) for part in split(batch(), 4)] == [2, 2, 1]
    assert len(split(batch(), 64)) == 5


def test_joined_features_are_those_of_all_rows() -> None:
    feature, other = Feature("logits", 0), Feature("hidden_states", 1)
    parts = [{feature: torch.full((n, 2), float(n)), other: torch.zeros(n)} for n in (1, 2)]
    joined = join(parts)
    assert joined[feature].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert joined[other].shape == (3,)


# Ranks


SHARED = ("hidden_mse", "rkd_distances")
"""A mean over all tokens through a projection, and a term that relates rows."""
RANK = """
import sys
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
import torch.distributed as distributed
import test_micro_batches as tests
store = distributed.FileStore(str(folder / "store"), 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
found = {name: tests.gradients_of_rank(name, rank) for name in tests.SHARED}
torch.save(found, folder / f"{rank}.pt")
distributed.destroy_process_group()
"""


def gradients_of_rank(name: str, rank: int) -> dict[str, Tensor]:
    """The gradients that a rank ends with: its rows run here, in parts; all rows are compared."""
    from torch import distributed

    models = Models(EVERY_TERM[name], dropout=0.0)
    halves = split(batch(), 2)
    cached = CachedFeatures(models.run, split(halves[rank], 2))
    gathered: list[Any] = [None, None]
    distributed.all_gather_object(gathered, {f: t.detach() for f, t in cached.features.items()})
    gathered[rank] = cached.features
    models.losses(join(gathered)).total.backward()
    cached.backward()
    # A projection has looked at all rows already, on both ranks.
    for _, parameter in models.student.named_parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
    return models.gradients()


def test_two_ranks_that_share_a_batch_end_with_the_gradient_of_the_whole_batch(
    tmp_path: Path,
) -> None:
    here = Path(__file__).parent
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path), str(rank), str(here), str(here.parent)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        _, said = process.communicate()
        assert process.returncode == 0, said
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in SHARED:
            whole = Models(EVERY_TERM[name], dropout=0.0)
            whole.losses(whole.run(batch())).total.backward()
            check_equal(found[name], whole.gradients())


# Trials


SMOOTH = SHORT.model_copy(update={"dropout": 0.0, "evaluate": Evaluate(times=1)})
TERMS = [
    {"kind": "hard_labels"},
    {"kind": "hidden_states", "matching": {"emd": "adaptive"}},
    {"kind": "rkd", "matching": "top", "scale": "gradient_norm"},
    {
        "kind": "attentions",
        "matching": "last",
        "head_map": "mean",
        "schedule": {"once": {"kind": "hidden_states", "loss": 0.95}},
    },
]
"""State that decides later steps (flows, a scale, an opened term), a projection, coupled rows."""
Place = Literal["forward", "backward"]
TOLERANCE = 1e-3
"""Relative: AdamW divides by gradients, and makes of a sum's last bit a step's third digit."""
MEASURED = ("seconds", "latency_ms", "peak_memory_mb", "resumed_from_step")


@contextmanager
def memory_for(
    tokens: int, *, place: Place = "forward", of_teacher: bool = False
) -> Iterator[list[int]]:
    """Let a student that trains, or its teacher, run out of memory in batches of more tokens.

    Yields the rows of each batch that was too large, so far.
    """
    failed: list[int] = []

    def run_out(too_many: int) -> None:
        failed.append(too_many)
        raise torch.OutOfMemoryError(f"out of memory at {too_many} rows")

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        is_of_words = isinstance(module, nn.Embedding | SeenEmbedding) and module.padding_idx == 0
        if not is_of_words or output[..., 0].numel() <= tokens:
            return
        is_teacher = output.shape[-1] == 32
        if place == "backward" and output.requires_grad:
            output.register_hook(lambda gradient: run_out(len(gradient)))
        elif place == "forward" and (is_teacher if of_teacher else module.training):
            run_out(len(output))

    with nn.modules.module.register_module_forward_hook(watch):
        yield failed


def trial_of(world: World, training: Training = SMOOTH, terms: Sequence[Any] = TERMS) -> Trial:
    parsed: list[Term] = [parse(term) for term in terms]
    return world.trial(*parsed, training=training)


def run(world: World, trial: Trial, *, features_gb: float = 2.0, **options: Any) -> list[Report]:
    assets = Assets(Settings(features_gb=features_gb), world.cache)
    return list(train(trial, teacher=world.prepared, assets=assets, **options))


def numbers(reports: Sequence[Report]) -> list[dict[str, float | int | str | None]]:
    """All that a trial reported which does not say how it ran."""
    return [
        {name: value for name, value in report.values.items() if not name.startswith(MEASURED)}
        for report in reports
        if isinstance(report, Row | Finished)
    ]


def after(step: int) -> Callable[[], bool]:
    calls = iter(range(10**6))
    return lambda: next(calls) >= step


def check_alike(found: Sequence[Report], expected: Sequence[Report]) -> None:
    for mine, theirs in zip(numbers(found), numbers(expected), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, float) and name != "micro_batches":
                assert mine[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-5), name


def finished(reports: Sequence[Report]) -> Mapping[str, Any]:
    assert isinstance(reports[-1], Finished)
    return reports[-1].values


@pytest.fixture(scope="module")
def undisturbed(world: World) -> list[Report]:
    """Of batches of 16 rows and 8 to 13 tokens."""
    with memory_for(16 * 13) as failed:
        reports = run(world, trial_of(world))
    assert not failed
    assert finished(reports)["micro_batches"] == 1
    return reports


@pytest.mark.parametrize(
    ("place", "tokens", "expected"),
    [
        # Whole, in halves and in quarters, once; what then fits stays.
        ("forward", 60, [16, 8]),
        ("backward", 60, [16, 8]),
        # Not before the sixth step are 16 rows 13 tokens long.
        ("backward", 16 * 12, [16]),
    ],
)
def test_a_trial_that_runs_out_of_memory_ends_with_the_numbers_of_one_that_did_not(
    world: World, undisturbed: list[Report], place: Place, tokens: int, expected: list[int]
) -> None:
    with memory_for(tokens, place=place) as failed:
        found = run(world, trial_of(world))
    assert failed == expected
    assert finished(found)["micro_batches"] == 2 ** len(expected)
    check_alike(found, undisturbed)


def test_what_a_failed_try_drew_does_not_count(world: World) -> None:
    trial = trial_of(world, SHORT)
    assert SHORT.dropout > 0
    # Memory ends before anything is dropped, or after everything is.
    with memory_for(60, place="forward"):
        early = run(world, trial)
    with memory_for(60, place="backward"):
        late = run(world, trial)
    assert numbers(early) == numbers(late)


def test_each_part_of_a_batch_drops_others(world: World) -> None:
    with memory_for(60), dropped_by_heads() as found:
        reports = run(world, trial_of(world, SHORT))
    # 16 steps in quarters, but for a last part or two; each runs at least twice and drops the same.
    assert finished(reports)["micro_batches"] == 4
    assert 3 * 16 < len(set(found)) <= 4 * 16
    assert len(found) >= 2 * len(set(found))


def test_a_trial_in_parts_goes_on_with_the_same_bits_and_does_not_try_the_whole_batch_again(
    world: World, tmp_path: Path
) -> None:
    trial = trial_of(world, SHORT)
    with memory_for(60) as failed:
        expected = run(world, trial)
        before = run(world, trial, checkpoints=tmp_path, stop=after(9))
        failed.clear()
        rest = run(world, trial, resume_from=tmp_path)
    assert isinstance(before[-1], Interrupted)
    assert not failed
    assert numbers([*before, *rest]) == numbers(expected)


def test_a_later_stage_begins_with_the_parts_that_the_stage_before_needed(world: World) -> None:
    (first,) = trial_of(world, terms=TERMS[1:2]).stages
    last = trial_of(world, terms=TERMS[:1])
    trial = last.model_copy(update={"stages": (first, *last.stages)})
    with memory_for(8 * 13) as failed:
        reports = run(world, trial)
    assert failed == [16]
    assert finished(reports)["micro_batches"] == 2


def test_a_stage_that_others_trained_passes_its_parts_on_too(world: World, tmp_path: Path) -> None:
    (first,) = trial_of(world, SHORT, TERMS[1:2]).stages
    last = trial_of(world, SHORT, TERMS[:1])
    trial = last.model_copy(update={"stages": (first, *last.stages)})
    teacher = TeacherRecord.read(world.prepared).digest
    digests = Digests(Assets(Settings(), world.cache).task(world.task).digest, teacher)
    begin = tmp_path / stage_id(trial, digests, num_stages=1)
    with memory_for(8 * 13):
        whole = run(world, trial)
        begun = run(world, first_stages(trial, 1), into=begin)
    # Where the last stage began with whole batches, which now fit, it would drop others.
    rest = run(world, trial, begin=begin)
    assert numbers([*begun[:-1], *rest]) == numbers(whole)


def test_a_teacher_that_runs_online_runs_in_parts_too(world: World) -> None:
    trial = trial_of(world)
    expected = run(world, trial, features_gb=1e-6)
    with memory_for(8 * 13, of_teacher=True) as failed:
        found = run(world, trial, features_gb=1e-6)
    assert finished(found)["features"] == "online"
    assert failed == [16]
    assert finished(found)["micro_batches"] == 2
    check_alike(found, expected)


def test_a_row_that_does_not_fit_alone_fails_as_out_of_memory(world: World) -> None:
    with memory_for(0) as failed, pytest.raises(BatchMemoryError) as caught:
        run(world, trial_of(world))
    assert failed == [16, 8, 4, 2, 1]
    failure = failure_of(caught.value)
    assert failure.failure_class == "out_of_memory"
    assert failure.evidence == {"micro_batches": 16}
    assert "out of memory at 1 rows" in failure.error


def test_the_cpus_own_error_counts_as_out_of_memory_and_no_other_error_does() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert failure_of(caught.value).failure_class == "out_of_memory"
    assert failure_of(MemoryError()).failure_class == "out_of_memory"
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert failure_of(caught.value).failure_class == "error"


def test_another_error_is_not_tried_again(world: World) -> None:
    def fail(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Embedding) and module.training:
            raise RuntimeError("something else")

    hook = nn.modules.module.register_module_forward_hook(fail)
    with hook, pytest.raises(RuntimeError, match="something else"):
        run(world, trial_of(world))
