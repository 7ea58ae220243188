"""Stages with data, a teacher and steps of their own, and what trials begin with, trained once."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from world import SHORT, WORDS, World

from kdsweep.search_spaces import Digests, ShippedFacts, expand, read_grid, stage_id, trial_id
from kdsweep.search_spaces.errors import DataError
from kdsweep.search_spaces.training import LanguageHead
from kdsweep.search_spaces.trial import Trial, first_stages
from kdsweep.trainers import (
    Assets,
    CheckpointError,
    Finished,
    Interrupted,
    Resolved,
    Row,
    Settings,
    prepare_teacher,
    train,
)

SHAPE = {"layers": 2, "width": 16, "heads": 4}
Report = Any


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 81 sentences of four words that three words make."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("\n".join(map(" ".join, itertools.product(WORDS[:3], repeat=4))))
    return file


@pytest.fixture(scope="module")
def talking(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world with a teacher that has learned to guess hidden tokens."""
    teacher = world.teacher.model_copy(
        update={"language_head": LanguageHead(steps=12, batch_size=16, learning_rate=5e-3)}
    )
    prepared = tmp_path_factory.mktemp("talking") / "teacher"
    assets = Assets(Settings(), world.cache)
    for _ in prepare_teacher(teacher, world.task, into=prepared, assets=assets):
        pass
    return World(task=world.task, teacher=teacher, prepared=prepared, cache=world.cache)


def planned(world: World, *stages: Mapping[str, Any], **training: object) -> Trial:
    grid = {
        "name": "stages",
        "task": json.loads(world.task.model_dump_json(exclude_defaults=True)),
        "teacher": json.loads(world.teacher.model_dump_json(exclude_defaults=True)),
        "training": {"batch_size": 16, "learning_rate": 3e-3, "evaluate": {"times": 2}, **training},
        "axes": {"knowledge": [{"label": "staged", "stages": list(stages)}], "shape": [SHAPE]},
    }
    plan = expand(read_grid(json.dumps(grid), file="grid.yaml", base=Path()), ShippedFacts())
    assert [skipped.reason for skipped in plan.skipped] == []
    [planned] = plan.trials
    return planned.trial


def stage(name: str, *terms: Any, **keys: Any) -> dict[str, Any]:
    return {"name": name, "terms": list(terms), **keys}


def run(world: World, trial: Trial, **options: Any) -> list[Report]:
    assets = options.pop("assets", None) or Assets(Settings(checkpoint_seconds=0), world.cache)
    return list(train(trial, teacher=world.prepared, assets=assets, **options))


def rows(reports: list[Report]) -> list[dict[str, float]]:
    """What was logged, without times."""
    return [
        {"step": report.step, **{k: v for k, v in report.values.items() if k != "seconds"}}
        for report in reports
        if isinstance(report, Row)
    ]


def outcome(reports: list[Report]) -> dict[str, Any]:
    """Everything that a trial ends with and that does not depend on how it was run."""
    last = reports[-1]
    assert isinstance(last, Finished)
    left_out = ("seconds", "latency", "peak", "resumed_from_step")
    values = {k: v for k, v in last.values.items() if not k.startswith(left_out)}
    assert last.predictions is not None
    return {"values": values, "logits": last.predictions.report.last.tolist()}


HARD = stage("task", "hard_labels", training={"epochs": 1})


# Data


def test_a_stage_on_local_text_learns_to_guess_hidden_tokens(world: World, corpus: Path) -> None:
    general = stage("general", "masked_labels", data={"text": str(corpus)}, training={"epochs": 15})
    reports = run(world, planned(world, general, HARD))
    losses = [row["train/term/0/loss"] for row in rows(reports) if "train/term/0/loss" in row]
    # 81 lines are 6 steps an epoch. A guess among the vocabulary's 45 words costs log 45 = 3.8
    # nats, one among the three that occur log 3 = 1.1.
    assert len(losses) == 90
    assert losses[0] == pytest.approx(math.log(45), abs=0.1)
    assert losses[-1] == pytest.approx(math.log(3), abs=0.3)
    assert isinstance(reports[-1], Finished)


def test_unlabelled_rows_go_beyond_the_limit_of_train(world: World) -> None:
    task = world.task.model_copy(
        update={"limit": world.task.limit.model_copy(update={"train": 32})}
    )
    few = World(task=task, teacher=world.teacher, prepared=world.prepared, cache=world.cache)
    distil = stage("distil", "hidden_states", data="unlabelled", training={"epochs": 1})
    # Of 150 rows 30 are carved for select: 120, where the limit leaves 32.
    assets = Assets(Settings(), few.cache)
    reports = list(train(planned(few, distil, HARD), assets=assets))
    resolved = reports[0]
    assert isinstance(resolved, Resolved)
    assert resolved.values["steps"] == 8 + 2


def test_a_stage_before_the_head_means_anything_does_not_read_select(world: World) -> None:
    reports = run(world, planned(world, stage("inner", "hidden_states"), HARD))
    first = [row for row in rows(reports) if row["step"] <= 24]
    second = [row for row in rows(reports) if row["step"] > 24]
    assert not [name for row in first for name in row if name.startswith("select/")]
    assert [row["step"] for row in second if "select/accuracy" in row] == [28, 32]


def test_a_text_that_changed_since_the_plan_is_refused(world: World, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w1 w2 w3\nw4 w5 w6\n")
    general = stage("general", "masked_labels", data={"text": str(text)})
    reports = train(planned(world, general, HARD), teacher=world.prepared)
    assert isinstance(next(reports), Resolved)
    reports.close()
    for texts in (("0" * 64,), ()):
        digests = Digests(*_digests_of(world), texts=texts)
        with pytest.raises(DataError, match="a stage's text: has changed since it was planned"):
            run(world, planned(world, general, HARD), digests=digests)


def _digests_of(world: World) -> tuple[str, str]:
    record = json.loads((world.prepared / "teacher.json").read_text())
    return Assets(Settings(), world.cache).task(world.task).digest, record["digest"]


# Teachers


def test_the_pretrained_teacher_is_another_than_the_one_that_knows_the_task(world: World) -> None:
    def first_loss(**keys: Any) -> float:
        inner = stage("inner", "hidden_states", training={"epochs": 1, "dropout": 0}, **keys)
        return rows(run(world, planned(world, inner, HARD)))[0]["train/loss"]

    assert first_loss(teacher="pretrained") != first_loss(teacher="fine_tuned") == first_loss()


def test_a_trial_whose_stages_read_the_pretrained_teacher_alone_prepares_none(
    world: World,
) -> None:
    inner = stage("inner", "hidden_states", teacher="pretrained", training={"epochs": 1})
    reports = list(train(planned(world, inner, HARD), assets=Assets(Settings(), world.cache)))
    last = reports[-1]
    assert isinstance(last, Finished)
    assert last.values["teacher_weights"] is None


def test_a_teacher_gets_a_language_head_that_guesses_better_than_at_first(talking: World) -> None:
    assert (talking.prepared / "language_head.safetensors").is_file()
    assert not list(talking.prepared.parent.glob("*-language-head"))
    general = stage(
        "general", "masked_logits", teacher="pretrained", training={"epochs": 6, "dropout": 0}
    )
    reports = run(talking, planned(talking, general, HARD))
    losses = [row["train/term/0/loss"] for row in rows(reports) if "train/term/0/loss" in row]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-8:]) < sum(losses[:8])


def test_a_preparation_that_is_stopped_goes_on_with_the_same_teacher(
    talking: World, tmp_path: Path
) -> None:
    """Stopped in its language head, and again in its fine-tuning."""
    from safetensors.torch import load_file

    steps: list[int] = []
    checkpoints = tmp_path / "checkpoints"
    assets = Assets(Settings(checkpoint_seconds=0), talking.cache)
    for limit in (6, 20, 10**6):
        steps.clear()
        last = None
        for last in prepare_teacher(
            talking.teacher,
            talking.task,
            into=tmp_path / "teacher",
            assets=assets,
            checkpoints=checkpoints,
            resume_from=checkpoints,
            stop=lambda limit=limit: bool(steps) and steps[-1] >= limit,
        ):
            if isinstance(last, Row):
                steps.append(last.step)
        assert isinstance(last, Finished if limit == 10**6 else Interrupted)
    for name in ("model.safetensors", "language_head.safetensors"):
        made, whole = load_file(tmp_path / "teacher" / name), load_file(talking.prepared / name)
        assert made.keys() == whole.keys()
        assert all(made[key].equal(whole[key]) for key in whole)


def test_heads_beside_equal_weights_are_told_apart(
    world: World, talking: World, tmp_path: Path
) -> None:
    """The fine-tuning does not see the head, so two teachers may differ in it alone."""
    less = LanguageHead(steps=1, batch_size=16, learning_rate=5e-3)
    teacher = world.teacher.model_copy(update={"language_head": less})
    other = World(task=world.task, teacher=teacher, prepared=tmp_path / "t", cache=world.cache)
    assets = Assets(Settings(), world.cache)
    for _ in prepare_teacher(teacher, world.task, into=other.prepared, assets=assets):
        pass
    general = stage("general", "masked_logits", teacher="pretrained", training={"epochs": 1})
    first, second = (
        rows(run(each, planned(each, general, HARD), assets=assets))[0]["train/loss"]
        for each in (talking, other)
    )
    assert first != second == rows(run(other, planned(other, general, HARD)))[0]["train/loss"]


def test_what_a_teacher_said_of_a_text_is_not_kept_for_another_length(world: World) -> None:
    """The digest of a text is of its passages before they are cut."""
    task = world.task.model_copy(update={"max_length": 8})
    short = World(task=task, teacher=world.teacher, prepared=world.prepared, cache=world.cache)
    inner = stage(
        "inner", "hidden_states", data="unlabelled", teacher="pretrained", training={"epochs": 1}
    )
    assets = Assets(Settings(), world.cache)
    for each in (world, short):
        found = list(train(planned(each, inner, HARD), assets=assets))
        alone = list(train(planned(each, inner, HARD), assets=Assets(Settings(), world.cache)))
        assert rows(found) == rows(alone)


# Steps


def test_shares_divide_the_total_steps(world: World) -> None:
    inner = stage("inner", "hidden_states", share=0.3)
    trial = planned(world, inner, stage("task", "hard_labels"), total_steps=10)
    reports = run(world, trial)
    of_stages = [{name for name in row if "/term/" in name} for row in rows(reports)]
    assert ["train/term/0/loss" in names for names in of_stages] == [True] * 3 + [False] * 7


# What several trials begin with


STAGES = (
    stage("general", "masked_labels", data="unlabelled", training={"epochs": 1}),
    stage("inner", "hidden_states", training={"epochs": 1}),
    HARD,
)


@pytest.mark.parametrize("num_stages", [1, 2])
def test_a_trial_that_begins_with_trained_stages_ends_as_if_it_had_trained_them(
    num_stages: int, world: World, tmp_path: Path
) -> None:
    trial = planned(world, *STAGES)
    whole = run(world, trial)
    digests = Digests(*_digests_of(world), texts=_texts(world, trial))
    folder = tmp_path / stage_id(trial, digests, num_stages=num_stages)
    begun = run(world, first_stages(trial, num_stages), into=folder)
    rest = run(world, trial, begin=folder)
    assert outcome(rest) == outcome(whole)
    assert rows(begun) + rows(rest) == rows(whole)


def test_stages_that_were_trained_are_reported_again_and_others_refused(
    world: World, tmp_path: Path
) -> None:
    trial = planned(world, *STAGES)
    digests = Digests(*_digests_of(world), texts=_texts(world, trial))
    folder = tmp_path / stage_id(trial, digests, num_stages=1)
    first = run(world, first_stages(trial, 1), into=folder)
    [again] = run(world, first_stages(trial, 1), into=folder)
    assert isinstance(again, Finished)
    assert again.step == first[-1].step == 8
    other = planned(world, STAGES[0], HARD).model_copy(update={"seed": 1})
    with pytest.raises(CheckpointError, match="is not what this trial begins with"):
        run(world, other, begin=folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\0" * 8)
    with pytest.raises(CheckpointError, match="as they were written"):
        run(world, trial, begin=folder)


def _texts(world: World, trial: Trial) -> tuple[str, ...]:
    from kdsweep.sweep.planning import Content

    return Content().texts(trial)


@pytest.mark.parametrize("step", [3, 12, 20])
def test_stages_go_on_from_the_middle_of_each_with_the_same_numbers(
    step: int, talking: World, tmp_path: Path
) -> None:
    language = stage(
        "general",
        "masked_labels",
        "masked_logits",
        data="unlabelled",
        teacher="pretrained",
        training={"epochs": 1},
    )
    trial = planned(talking, language, *STAGES[1:])
    whole = run(talking, trial)
    seen: list[Report] = []

    def stop() -> bool:
        return any(isinstance(each, Row) and each.step >= step for each in seen)

    assets = Assets(Settings(checkpoint_seconds=0), talking.cache)
    options: dict[str, Any] = {"teacher": talking.prepared, "assets": assets}
    for report in train(trial, checkpoints=tmp_path, stop=stop, **options):
        seen.append(report)
    assert isinstance(seen[-1], Interrupted)
    rest = run(talking, trial, resume_from=tmp_path)
    assert outcome(rest) == outcome(whole)
    assert rows(seen) + rows(rest) == rows(whole)


def test_a_student_of_hidden_tokens_is_exported_without_their_head(
    world: World, corpus: Path, tmp_path: Path
) -> None:
    general = stage("general", "masked_labels", data={"text": str(corpus)})
    last = run(world, planned(world, general, HARD))[-1]
    assert isinstance(last, Finished)
    last.save_student(tmp_path / "student")
    model, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "student", output_loading_info=True
    )
    assert not any(told.values())
    assert model.num_labels == 2
    assert torch.isfinite(model.classifier.weight).all()


def test_ids_of_stages_are_of_what_comes_before_them_alone(world: World) -> None:
    one = planned(world, *STAGES)
    other = planned(world, *STAGES[:2], stage("task", "soft_logits", training={"epochs": 1}))
    digests = Digests("a" * 64, "b" * 64, texts=("c" * 64,))
    assert trial_id(one, digests) != trial_id(other, digests)
    for number in (1, 2):
        first, second = (stage_id(each, digests, num_stages=number) for each in (one, other))
        assert first == second
    assert stage_id(one, digests, num_stages=1) != stage_id(one, digests, num_stages=2)
    assert SHORT.total_steps is None
