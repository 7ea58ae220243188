"""One trial: its reports, and the same numbers wherever, whenever and however often it runs."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from world import SHORT, World

from kdsweep.search_spaces.errors import DataError
from kdsweep.search_spaces.initialisation import TeacherLayers
from kdsweep.search_spaces.knowledge import (
    Attentions,
    HardLabels,
    HiddenStates,
    Relations,
    Rkd,
    SoftLogits,
)
from kdsweep.search_spaces.matching import RandomSorted
from kdsweep.search_spaces.schedules import Below, Threshold
from kdsweep.search_spaces.shape import Shape, forward_flops_per_token
from kdsweep.search_spaces.training import Evaluate
from kdsweep.search_spaces.trial import Digests, Trial
from kdsweep.trainers import (
    Assets,
    CheckpointError,
    DivergedError,
    Finished,
    Interrupted,
    Report,
    Resolved,
    Row,
    Saving,
    Settings,
    train,
)
from kdsweep.trainers.errors import FrozenError
from kdsweep.trainers.features import Sizes
from kdsweep.trainers.objective import build_objective

HARD = HardLabels(kind="hard_labels")
SOFT = SoftLogits(kind="soft_logits", temperature=2.0)
HIDDEN = HiddenStates(kind="hidden_states", matching="uniform")
ATTENTION = Attentions(kind="attentions", matching="last", head_map="mean")
WAITING = Relations(
    kind="relations",
    heads=4,
    matching=RandomSorted(random_sorted=1),
    schedule=Threshold(once=Below(kind="hidden_states", loss=0.9)),
)
SCALED = Rkd(kind="rkd", matching="top", scale="gradient_norm")
EVERYTHING = (HARD, SOFT, HIDDEN, ATTENTION, WAITING, SCALED)
STEPS = 16
LONG = SHORT.model_copy(update={"epochs": 6, "learning_rate": 1e-2, "evaluate": Evaluate(times=12)})
"""Enough to learn the task before the last evaluation."""
ONE_EPOCH = SHORT.model_copy(update={"epochs": 1})
WIDE = Shape(layers=2, width=32, heads=4, feed_forward=64)
"""Of the teacher's width."""

MEASURED = ("seconds", "latency_ms", "peak_memory_mb", "resumed_from_step")
"""Columns that say how a trial ran, not what came out."""


def assets_of(world: World, **settings: Any) -> Assets:
    return Assets(Settings(**settings), world.cache)


def run(
    world: World, trial: Trial, *, assets: Assets | None = None, **keywords: Any
) -> list[Report]:
    assets = assets or assets_of(world)
    return list(train(trial, teacher=world.prepared, assets=assets, **keywords))


def numbers(reports: Iterable[Report]) -> dict[str, Any]:
    """Everything of a trial that must be the same each time, to the last bit."""
    rows, values, predictions = [], {}, {}
    for report in reports:
        match report:
            case Row():
                rows.append([report.step, steady(report.values)])
            case Finished():
                values = steady(report.values)
                predictions = {
                    f"{split}/{which}": hashlib.sha256(getattr(part, which).tobytes()).hexdigest()
                    for split in ("select", "report")
                    for part in [getattr(report.predictions, split)]
                    for which in ("last", "best")
                }
    return {"rows": rows, "values": values, "predictions": predictions}


def steady(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if not name.startswith(MEASURED)}


def finished(reports: list[Report]) -> Finished:
    last = reports[-1]
    assert isinstance(last, Finished)
    return last


def first_row(reports: list[Report]) -> Row:
    return next(report for report in reports if isinstance(report, Row))


@pytest.fixture(scope="module")
def trial(world: World) -> Trial:
    return world.trial(*EVERYTHING)


@pytest.fixture(scope="module")
def warm(world: World) -> Assets:
    """Assets for which the teacher has run, so that `stop` is asked before steps alone."""
    return assets_of(world)


@pytest.fixture(scope="module")
def undisturbed(world: World, trial: Trial, warm: Assets) -> list[Report]:
    return run(world, trial, assets=warm)


def after(num_calls: int) -> Callable[[], bool]:
    """A `stop` that becomes true when it was asked so many times."""
    calls = itertools.count()
    return lambda: next(calls) >= num_calls


def test_reports_begin_with_what_was_resolved_and_end_with_what_came_out(
    undisturbed: list[Report],
) -> None:
    first, *rows, last = undisturbed
    assert isinstance(first, Resolved)
    assert isinstance(last, Finished)
    assert [row.step for row in rows if isinstance(row, Row)] == list(range(1, STEPS + 1))
    assert last.step == STEPS


def test_what_was_resolved_says_all_of_it_as_json(undisturbed: list[Report]) -> None:
    first = undisturbed[0]
    assert isinstance(first, Resolved)
    values = json.loads(json.dumps(first.values))
    assert values["steps"] == STEPS
    assert [term["index"] for term in values["terms"]] == list(range(len(EVERYTHING)))
    assert {term["kind"]: term["pairs"] for term in values["terms"]} == {
        "attentions": [[2, 1], [3, 2]],
        "hard_labels": [],
        "hidden_states": [[2, 1], [3, 2]],
        "relations": [[1, 1], [2, 1]],
        "rkd": [[3, 2]],
        "soft_logits": [],
    }
    [projection] = [term["projection"] for term in values["terms"] if term["projection"]]
    assert projection == [16, 32]
    assert values["features"] == "cached as fp32"


def test_the_last_report_has_every_column(undisturbed: list[Report], trial: Trial) -> None:
    values = finished(undisturbed).values
    metrics = [
        *(f"select/{m}{s}" for m in ("primary", "accuracy") for s in ("", "/best", "/best_step")),
        *(f"report/{m}{s}" for m in ("primary", "accuracy") for s in ("", "/at_best")),
        *(f"teacher/{s}/{m}" for s in ("select", "report") for m in ("primary", "accuracy")),
        *(f"train/term/{index}/loss" for index in range(len(EVERYTHING))),
        *(f"seconds/{phase}" for phase in ("start", "data", "teacher", "student", "evaluate")),
        *("report/teacher_agreement", "train/loss", "parameters", "parameters/embeddings"),
        *("parameters/encoder", "flops_per_token", "latency_ms", "peak_memory_mb"),
        *("primary_metric", "teacher_weights", "features", "precision", "device", "threads"),
        *("resumed_from_step", *(f"train/term/{index}/scale" for index in range(len(EVERYTHING)))),
    ]
    assert set(metrics) <= values.keys()
    assert not [name for name in metrics if values[name] is None]
    # The closed form at the longest row of the task.
    assert values["flops_per_token"] == forward_flops_per_token(trial.shape, sequence_length=16)


def test_gradient_norms_are_measured_at_the_first_step_and_at_evaluations(
    undisturbed: list[Report],
) -> None:
    rows = {row.step: row.values for row in undisturbed if isinstance(row, Row)}
    measured = [step for step, values in rows.items() if "train/term/0/gradient_norm" in values]
    evaluated = [step for step, values in rows.items() if "select/accuracy" in values]
    assert evaluated == [6, 11, 16]
    assert measured == [1, *evaluated]
    assert all(rows[1][f"train/term/{index}/gradient_norm"] > 0 for index in range(len(EVERYTHING)))


def test_the_loss_is_the_weighted_sum_of_its_terms(world: World) -> None:
    half = HardLabels(kind="hard_labels", weight=0.5)
    for row in run(world, world.trial(half, HIDDEN, training=ONE_EPOCH))[1:-1]:
        assert isinstance(row, Row)
        expected = 0.5 * row.values["train/term/0/loss"] + row.values["train/term/1/loss"]
        assert row.values["train/loss"] == pytest.approx(expected)


def test_students_learn(world: World, warm: Assets) -> None:
    reports = run(world, world.trial(*EVERYTHING, training=LONG), assets=warm)
    assert finished(reports).values["report/accuracy"] > 0.9
    assert finished(reports).values["train/loss"] < 0.2 * first_row(reports).values["train/loss"]


OTHER_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import test_loop
from kdsweep.search_spaces.trial import Trial
from kdsweep.trainers import Assets, Settings, train
trial = Trial.model_validate_json(sys.stdin.read())
assets = Assets(Settings(), Path(sys.argv[3]))
reports = train(trial, teacher=Path(sys.argv[2]), assets=assets)
print(test_loop.json.dumps(test_loop.numbers(reports)))
"""


def test_another_process_gets_the_same_numbers(
    world: World, trial: Trial, undisturbed: list[Report], tmp_path: Path
) -> None:
    # A cache of its own, so that nothing but the trial is shared.
    arguments = [str(Path(__file__).parent), str(world.prepared), str(tmp_path / "cache")]
    other = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, *arguments],
        input=trial.model_dump_json(),
        capture_output=True,
        text=True,
    )
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout) == json.loads(json.dumps(numbers(undisturbed)))


def test_a_lane_that_trained_other_trials_before_gets_the_same_numbers(
    world: World, trial: Trial, undisturbed: list[Report]
) -> None:
    assets = assets_of(world)
    before = world.trial(HARD, SOFT, shape=Shape(layers=1, width=24, heads=3), seed=5)
    run(world, before, assets=assets)
    torch.rand(1000)
    assert numbers(run(world, trial, assets=assets)) == numbers(undisturbed)


@pytest.mark.parametrize("step", [1, 5, 6, 8, 15])
def test_a_trial_resumed_from_a_step_gets_the_same_numbers(
    world: World, trial: Trial, undisturbed: list[Report], warm: Assets, tmp_path: Path, step: int
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    before = run(world, trial, assets=warm, checkpoints=first, stop=after(step))
    assert before[-1] == Interrupted(step)
    rest = run(world, trial, assets=warm, checkpoints=second, resume_from=first)
    assert finished(rest).values["resumed_from_step"] == step
    # Earlier rows are the earlier attempt's.
    assert numbers([*before, *rest]) == numbers(undisturbed)


def test_a_trial_interrupted_at_every_step_gets_the_same_numbers(
    world: World, trial: Trial, undisturbed: list[Report], warm: Assets, tmp_path: Path
) -> None:
    folders = {"checkpoints": tmp_path, "resume_from": tmp_path}
    reports: list[Report] = []
    while not (reports and isinstance(reports[-1], Finished)):
        reports += run(world, trial, assets=warm, **folders, stop=after(1))
    assert sum(isinstance(report, Interrupted) for report in reports) == STEPS - 1
    assert numbers(reports) == numbers(undisturbed)


def test_how_often_checkpoints_are_written_changes_no_number(
    world: World, trial: Trial, undisturbed: list[Report], tmp_path: Path
) -> None:
    often = run(world, trial, assets=assets_of(world, checkpoint_seconds=0), checkpoints=tmp_path)
    assert [report.step for report in often if isinstance(report, Saving)] == list(range(1, STEPS))
    assert numbers(often) == numbers(undisturbed)


def test_history_comes_before_the_checkpoint_that_covers_it(
    world: World, trial: Trial, tmp_path: Path
) -> None:
    row = 0
    assets = assets_of(world, checkpoint_seconds=0)
    for report in train(trial, teacher=world.prepared, assets=assets, checkpoints=tmp_path):
        match report:
            case Row(step=step):
                row = step
            case Saving(step=step):
                assert row == step
                assert not (tmp_path / f"step-00-{step:09}").exists()


def test_a_trial_stopped_at_once_has_nothing_to_resume(
    world: World, trial: Trial, tmp_path: Path
) -> None:
    reports = run(world, trial, checkpoints=tmp_path, stop=after(0))
    assert reports[-1] == Interrupted(0)
    assert list(tmp_path.iterdir()) == []


def test_another_trials_checkpoint_is_refused(
    world: World, trial: Trial, undisturbed: list[Report], warm: Assets, tmp_path: Path
) -> None:
    run(world, trial, assets=warm, checkpoints=tmp_path, stop=after(2))
    with pytest.raises(CheckpointError):
        run(world, world.trial(*EVERYTHING, seed=1), resume_from=tmp_path)


def test_closing_the_generator_leaves_no_temporary_file_and_the_callers_surroundings(
    world: World, trial: Trial, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assets = assets_of(world, checkpoint_seconds=0, threads=1 if threads > 1 else 2)
    reports = train(trial, teacher=world.prepared, assets=assets, checkpoints=tmp_path)
    for report in reports:
        if report == Saving(7):
            break
    reports.close()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(4), expected)
    assert not list(tmp_path.glob(".*"))


def test_random_numbers_drawn_between_reports_do_not_reach_the_training(
    world: World, trial: Trial, undisturbed: list[Report]
) -> None:
    reports = []
    for report in train(trial, teacher=world.prepared, assets=assets_of(world)):
        torch.manual_seed(1)
        torch.rand(7)
        reports.append(report)
    assert numbers(reports) == numbers(undisturbed)


def test_a_loss_that_is_not_finite_ends_the_trial(world: World) -> None:
    wild = SHORT.model_copy(update={"learning_rate": 1e30, "gradient_clipping": None})
    with pytest.raises(DivergedError, match=r"is .*n.* at step \d+; learning_rate is 1e\+30"):
        run(world, world.trial(HARD, HIDDEN, training=wild))


def test_hard_labels_alone_run_no_teacher(world: World) -> None:
    assets = assets_of(world)
    reports = run(world, world.trial(HARD, training=ONE_EPOCH), assets=assets)
    assert finished(reports).values["features"] == "none"
    assert finished(reports).values["report/teacher_agreement"] is not None
    assert not assets._teachers


def test_the_teacher_runs_online_where_its_outputs_do_not_fit(
    world: World, trial: Trial, undisturbed: list[Report]
) -> None:
    online = run(world, trial, assets=assets_of(world, features_gb=1e-6))
    assert finished(online).values["features"] == "online"
    for mine, kept in zip(online[1:-1], undisturbed[1:-1], strict=True):
        assert isinstance(mine, Row)
        assert isinstance(kept, Row)
        # Sums differ with the batch's composition, and the differences grow from step to step.
        assert mine.values["train/loss"] == pytest.approx(kept.values["train/loss"], rel=1e-3)


def test_bf16_trains_and_is_scored_in_fp32(world: World, trial: Trial) -> None:
    reports = run(world, trial, assets=assets_of(world, precision="bf16"))
    values = finished(reports).values
    assert values["precision"] == "bf16"
    assert all(
        torch.tensor(list(row.values.values())).isfinite().all()
        for row in reports
        if isinstance(row, Row)
    )


@pytest.mark.parametrize("source", ["fine_tuned", "pretrained"])
def test_a_student_may_start_from_teacher_layers(
    world: World, source: Literal["fine_tuned", "pretrained"]
) -> None:
    start = TeacherLayers(teacher_layers="uniform", from_=source)
    trial = world.trial(HARD, training=ONE_EPOCH, shape=WIDE, initialisation=start)
    random = world.trial(HARD, training=ONE_EPOCH, shape=WIDE)
    assert numbers(run(world, trial)) != numbers(run(world, random))


def test_the_student_that_is_saved_is_the_one_chosen_on_select(
    world: World, tmp_path: Path
) -> None:
    trial = world.trial(HARD, training=LONG)
    reports = run(world, trial)
    last = finished(reports)
    scores = {
        row.step: row.values["select/accuracy"]
        for row in reports
        if isinstance(row, Row) and "select/accuracy" in row.values
    }
    # The first of equals.
    best = max(scores, key=lambda step: scores[step])
    assert last.values["select/accuracy/best_step"] == best < last.step
    last.save_student(tmp_path / "student")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.id2label == {0: "bad", 1: "good"}
    data = assets_of(world).task(trial.task).data
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    text = tokenizer(data.report.texts[3][0], return_tensors="pt")
    logits = student(**text).logits[0]
    expected = torch.from_numpy(last.predictions.report.best[3])
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(expected, torch.from_numpy(last.predictions.report.last[3]))


def test_rows_that_changed_since_the_plan_are_refused(world: World, trial: Trial) -> None:
    with pytest.raises(DataError, match="has changed since it was planned"):
        run(world, trial, digests=Digests(task="0" * 64, teacher="0" * 64))


def test_a_notebook_may_leave_the_teacher_to_the_trial(
    world: World, trial: Trial, undisturbed: list[Report]
) -> None:
    reports = list(train(trial, assets=assets_of(world)))
    assert numbers(reports) == numbers(undisturbed)


def test_a_teacher_of_noise_changes_every_term_that_reads_it_and_is_found_out(
    world: World, trial: Trial, undisturbed: list[Report]
) -> None:
    assets, reports = assets_of(world, features_gb=0), []
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in assets.teacher(world.prepared).model.parameters():
            parameter.normal_(std=0.1, generator=noise)
    with pytest.raises(FrozenError, match="changed while it taught"):
        for report in train(trial, teacher=world.prepared, assets=assets):
            reports.append(report)
    resolved = undisturbed[0]
    assert isinstance(resolved, Resolved)
    kinds = {term["kind"]: f"train/term/{term['index']}/loss" for term in resolved.values["terms"]}
    before, noisy = first_row(undisturbed).values, first_row(reports).values
    assert {kind for kind, loss in kinds.items() if before[loss] == noisy[loss]} == {"hard_labels"}


def test_projections_are_optimised_clipped_together_with_the_student_and_saved(
    world: World, warm: Assets, tmp_path: Path
) -> None:
    clipped = SHORT.model_copy(update={"gradient_clipping": 1e-3})
    trial = world.trial(HARD, HIDDEN, training=clipped)
    run(world, trial, assets=warm, checkpoints=tmp_path, stop=after(1))
    folder = tmp_path / "step-00-000000001"
    saved, optimiser = (load_file(folder / f"{n}.safetensors") for n in ("objective", "optimiser"))
    # A first moment of AdamW is a tenth of the first gradient.
    gradients = {key: 10 * t for key, t in optimiser.items() if key.endswith("exp_avg")}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    # The teacher is 32 wide, the student 16, and nothing else of either is such a matrix.
    maps = [gradient for gradient in gradients.values() if gradient.shape == (32, 16)]
    assert len(maps) == 2
    assert all(gradient.norm() > 0.01 * norm for gradient in maps)
    student, teacher = (
        Sizes(num_hidden_layers=n, hidden_size=width, num_attention_heads=heads, num_labels=2)
        for n, width, heads in ((2, 16, 2), (3, 32, 4))
    )
    drawn = build_objective(trial.stages[0], student=student, teacher=teacher, seed=0)
    weights = {name for name, _ in drawn.named_parameters()}
    assert len(weights) == 4
    assert not [name for name in weights if torch.equal(saved[name], drawn.state_dict()[name])]


def test_two_stages_follow_each_other_and_resume_in_the_second(
    world: World, tmp_path: Path
) -> None:
    (first,) = world.trial(HIDDEN, training=ONE_EPOCH).stages
    whole = world.trial(HARD, training=ONE_EPOCH)
    trial = whole.model_copy(update={"stages": (first, *whole.stages)})
    assets = assets_of(world)
    expected = numbers(run(world, trial, assets=assets))
    assert [step for step, _ in expected["rows"]] == list(range(1, STEPS + 1))
    before = run(world, trial, assets=assets, checkpoints=tmp_path, stop=after(11))
    assert before[-1] == Interrupted(11)
    rest = run(world, trial, assets=assets, resume_from=tmp_path)
    assert numbers([*before, *rest]) == expected
