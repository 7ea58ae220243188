"""The published recipes and points of the whole language, trained on a tiny task."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from terms import EVERY_TERM
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from world import World

from kdsweep.search_spaces import ShippedFacts, expand, read_grid
from kdsweep.search_spaces.matching import RULES
from kdsweep.search_spaces.recipes import RECIPES
from kdsweep.search_spaces.trial import Trial
from kdsweep.sweep.planning import Content, ContentFacts
from kdsweep.trainers import Assets, Finished, Interrupted, Row, Settings, train

SHAPE = {"layers": 3, "width": 16, "heads": 4}
CRD = {
    "label": "crd",
    "terms": ["hard_labels", {"kind": "crd", "negatives": 20, "matching": "last"}],
}
EVERY = [*RECIPES, pytest.param(CRD, id="crd")]


def planned(world: World, knowledge: str | dict[str, Any], **training: object) -> list[Trial]:
    """The trials of one value of knowledge, planned as a grid would."""
    assert world.task.files is not None
    grid = {
        "name": "recipes",
        "task": {
            "files": {"train": world.task.files.train, "report": world.task.files.report},
            "text": ["text"],
            "max_length": 16,
            "select": {"from": "train", "fraction": 0.2},
            "report": "report",
        },
        "teacher": json.loads(world.teacher.model_dump_json()),
        "training": {"batch_size": 16, "learning_rate": 3e-3, "epochs": 2, **training},
        "axes": {
            "knowledge": [knowledge],
            "shape": [SHAPE],
            # The tiny models' widths of 16 and 32 have no 48 relation heads.
            **({"terms.relations.heads": [8]} if knowledge == "minilmv2" else {}),
        },
    }
    plan = expand(read_grid(json.dumps(grid), file="grid.yaml", base=Path()), ShippedFacts())
    assert [skipped.reason for skipped in plan.skipped] == []
    return [each.trial for each in plan.trials]


def run(world: World, trial: Trial, **options: Any) -> list[Any]:
    assets = Assets(Settings(checkpoint_seconds=0), world.cache)
    return list(train(trial, teacher=world.prepared, assets=assets, **options))


def losses(reports: list[Any]) -> list[Mapping[str, float]]:
    return [report.values for report in reports if isinstance(report, Row)]


def logits_on_report(last: Finished) -> list[list[float]]:
    """Of the weights chosen on select."""
    assert last.predictions is not None
    logits: list[list[float]] = last.predictions.report.best.tolist()
    return logits


@pytest.mark.parametrize("knowledge", EVERY)
def test_knowledge_trains_to_finite_losses_that_fall(
    knowledge: str | dict[str, Any], world: World
) -> None:
    [trial] = planned(world, knowledge, epochs=6)
    reports = run(world, trial)
    rows = losses(reports)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    terms = {key for row in rows for key in row if key.endswith("/loss") and "term" in key}
    assert len(terms) == sum(len(stage.terms) for stage in trial.stages)
    assert isinstance(reports[-1], Finished)
    # An epoch is 8 steps; single batches differ by the lengths of their rows.
    falls = [
        np.mean(values[-8:]) < np.mean(values[:8])
        for term in terms
        for values in [[row[term] for row in rows if term in row]]
    ]
    assert sum(falls) >= len(falls) / 2


@pytest.mark.parametrize("knowledge", EVERY)
def test_knowledge_goes_on_from_the_middle_of_each_stage_with_the_same_numbers(
    knowledge: str | dict[str, Any], world: World, tmp_path: Path
) -> None:
    [trial] = planned(world, knowledge)
    whole = run(world, trial)
    steps = whole[-1].step
    for stop_at in (steps // 4, 3 * steps // 4):
        folder = tmp_path / str(stop_at)
        assert isinstance(run_until(stop_at, world, trial, checkpoints=folder)[-1], Interrupted)
        resumed = run(world, trial, resume_from=folder)
        assert steady(losses(resumed)) == steady(
            [r.values for r in whole if isinstance(r, Row) and r.step > stop_at]
        )
        assert logits_on_report(resumed[-1]) == logits_on_report(whole[-1])


def test_a_step_moves_both_maps_and_what_is_remembered_of_its_rows(
    world: World, tmp_path: Path
) -> None:
    [trial] = planned(world, CRD)
    remembered = []
    for step in (4, 5):
        run_until(step, world, trial, checkpoints=tmp_path / str(step))
        # The last two checkpoints stay, and there is one a step.
        folders = sorted((tmp_path / str(step)).iterdir())
        before, after = (load_file(folder / "objective.safetensors") for folder in folders)
        moved = []
        for side in ("student", "teacher"):
            memory, weight = (f"contrasts.0.pairs.3-3.{side}.{n}" for n in ("memory", "map.weight"))
            assert before[memory].shape == (120, 128)
            assert not torch.equal(before[weight], after[weight])
            differs = (before[memory] != after[memory]).any(dim=1)
            moved.append(set(differs.nonzero().flatten().tolist()))
        assert moved[0] == moved[1]
        remembered.append(moved[0])
    # Seven batches of an epoch have 16 rows and one has 8.
    assert sorted(map(len, remembered)) in ([16, 16], [8, 16])
    assert not remembered[0] & remembered[1]


def test_a_stage_has_the_dropout_that_it_says(world: World) -> None:
    def stages(dropout: float) -> dict[str, Any]:
        second = {"name": "b", "terms": ["soft_logits"], "training": {"dropout": dropout}}
        return {"label": "two", "stages": [{"name": "a", "terms": ["hard_labels"]}, second]}

    by_dropout = []
    for dropout in (0.0, 0.5):
        [trial] = planned(world, stages(dropout))
        by_dropout.append([row["train/loss"] for row in losses(run(world, trial))])
    none, half = by_dropout
    # Two epochs of 8 steps a stage.
    assert none[:16] == half[:16]
    assert none[16:] != half[16:]


def run_until(step: int, world: World, trial: Trial, **options: Any) -> list[Any]:
    """The reports of a trial that is asked to leave after a step."""
    reports: list[Any] = []

    def stop() -> bool:
        return any(isinstance(each, Row) and each.step >= step for each in reports)

    assets = Assets(Settings(checkpoint_seconds=0), world.cache)
    for report in train(trial, teacher=world.prepared, assets=assets, stop=stop, **options):
        reports.append(report)
    return reports


def steady(rows: list[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("knowledge", EVERY)
def test_a_student_reloads_in_plain_transformers_with_its_logits_and_without_learned_maps(
    knowledge: str | dict[str, Any], world: World, tmp_path: Path
) -> None:
    [trial] = planned(world, knowledge)
    last = run(world, trial)[-1]
    assert isinstance(last, Finished)
    last.save_student(tmp_path / "student")
    model, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "student", output_loading_info=True
    )
    assert not any(told.values())
    # Contrasts, their memories and projections are none of the student's.
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"bert", "classifier"}
    assert model.config.num_hidden_layers == SHAPE["layers"]
    told_by = (world.prepared, tmp_path / "student")
    teachers, students = ((folder / "tokenizer.json").read_bytes() for folder in told_by)
    assert students == teachers
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    texts = Assets(Settings()).task(trial.task).data.report.texts
    with torch.no_grad():
        # One by one: the trial's batches are padded, and these are not.
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for (text,) in texts]
    np.testing.assert_allclose(torch.stack(logits), logits_on_report(last), rtol=0, atol=1e-5)


# The whole language

MATCHINGS = st.sampled_from(
    [
        *RULES,
        *({"first_k": 2}, {"last_k": 2}, {"top_minus": 1}, {"random_sorted": 2}),
        *({"emd": "adaptive"}, {"progressive": "last"}, {"reverse": "first"}),
        {"pairs": [[2, -1], [1, 1]]},
    ]
)
SCHEDULES = st.sampled_from(
    [None, None, {"linear_up": 0.5}, {"cosine": 1.0}, {"gate": [0.2, 0.9]}, {"linear_down": 1.0}]
)


@pytest.fixture(scope="module")
def facts() -> ContentFacts:
    """What a launch knows of task and teacher, read once."""
    return ContentFacts(Content())


@st.composite
def terms(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Some terms of every kind, with random settings, each under a label of its own."""
    names = draw(st.lists(st.sampled_from(list(EVERY_TERM)), min_size=1, max_size=3, unique=True))
    drawn = []
    for name in names:
        term = dict(EVERY_TERM[name], label=name)
        if "matching" in term:
            term["matching"] = draw(MATCHINGS)
        if "heads" in term:
            term["heads"] = draw(st.sampled_from([2, 3, 8]))
        if schedule := draw(SCHEDULES):
            term["schedule"] = schedule
        if draw(st.booleans()):
            term["scale"] = "gradient_norm"
        drawn.append(term)
    return drawn


@given(
    drawn=terms(),
    width=st.sampled_from([16, 32]),
    heads=st.sampled_from([2, 4]),
    layers=st.integers(1, 3),
    batch_size=st.sampled_from([2, 16]),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_point_of_the_language_trains_or_is_refused_with_a_reason(
    world: World,
    facts: ContentFacts,
    drawn: list[dict[str, Any]],
    width: int,
    heads: int,
    layers: int,
    batch_size: int,
) -> None:
    grid = {
        "name": "any",
        "task": json.loads(world.task.model_dump_json(exclude_defaults=True)),
        "teacher": json.loads(world.teacher.model_dump_json()),
        "training": {"batch_size": batch_size, "epochs": 1, "evaluate": {"times": 1}},
        "axes": {
            "knowledge": [{"label": "drawn", "terms": drawn}],
            "shape": [{"layers": layers, "width": width, "heads": heads}],
        },
    }
    plan = expand(read_grid(json.dumps(grid), file="grid.yaml", base=Path()), facts)
    if not plan.trials:
        assert all(skipped.reason for skipped in plan.skipped)
        return
    rows = losses(run_until(3, world, plan.trials[0].trial))
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for value in row.values())
