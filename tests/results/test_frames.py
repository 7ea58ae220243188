"""The frames of trials and teachers: each value from its own source."""

import json
import math
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdsweep import results
from kdsweep.results.columns import NUMBERS, TEXTS
from kdsweep.results.proposals import Proposal, write_proposal
from kdsweep.results.questions import DamagedPartsWarning
from kdsweep.results.schema import Attempt, PlanRow
from kdsweep.results.store import Store

T, A, B, C, D = (letter * 16 for letter in "f0123")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHAPE = {"layers": 3, "width": 384, "heads": 12, "feed_forward": None}


def allow() -> None:
    """The fence that lets everything pass."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "sweep")
    store.create({})
    return store


def planned(id: str, **fields: Any) -> PlanRow:
    defaults: dict[str, Any] = {
        "what": "trial",
        "group_id": "9" * 16,
        "axes": {"knowledge": "a", "seed": 0},
        "config_json": json.dumps({"shape": SHAPE}),
        "labels": (),
    }
    return PlanRow(id=id, **(defaults | fields))


def commit(store: Store, id: str, **fields: Any) -> None:
    defaults: dict[str, Any] = {
        "what": "trial",
        "group_id": "9" * 16,
        "epoch": 1,
        "number": 1,
        "status": "completed",
        "failure_class": None,
        "error": None,
        "started": START,
        "ended": START + timedelta(seconds=60),
        "config_json": "{}",
        "resumed_from": None,
        "resumed_from_step": 0,
        "values": {},
    }
    store.commit_attempt(Attempt(id=id, **(defaults | fields)), fence=allow)


def beat(store: Store, epoch: int, *running: str, **fields: Any) -> None:
    living = {"count": 1, "running": running, "host": socket.gethostname(), "pid": os.getpid()}
    (store.locks_folder / f"{epoch}.json").write_text("{}")
    (store.locks_folder / f"{epoch}.beat").write_text(json.dumps(living | fields))


def test_every_column_of_a_trial_holds_the_value_of_its_own_source(store: Store) -> None:
    # No two values are equal, so that a column with another's source shows.
    values: dict[str, Any] = {name: 1000.5 + n for n, name in enumerate(NUMBERS)}
    values |= {name: f"the {name}" for name in TEXTS}
    values |= {"select/f1": 0.125, "versions/torch": "2.9.1", "is_deterministic": True}
    values |= {
        "train/term/0/loss": 7.5,
        "train/term/1/loss": 8.5,
        "train/term/1/gradient_norm": 9.5,
    }
    axes = {"knowledge": "soft", "temperature": 2.5, "epochs": 31, "frozen": False, "seed": 32}
    store.write_plan(
        [
            planned(
                A,
                group_id=B,
                axes=axes,
                config_json=json.dumps({"shape": SHAPE | {"feed_forward": 1000}}),
                labels=("hard", "soft"),
            )
        ],
        epoch=1,
    )
    commit(store, A, epoch=2, number=3, status="interrupted", values={"latency_ms": -1.0})
    commit(
        store,
        A,
        epoch=4,
        number=5,
        started=START,
        ended=START + timedelta(minutes=2),
        resumed_from=(2, 3),
        resumed_from_step=77,
        values=values,
    )
    (row,) = results.load(store.folder).trials.to_dict("records")
    expected = {
        "trial_id": A,
        "group_id": B,
        "status": "completed",
        "failure_class": None,
        "error": None,
        **axes,
        "num_hidden_layers": 3,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1000,
        **{name: value for name, value in values.items() if "/term/" not in name},
        "train/term/hard/loss": 7.5,
        "train/term/soft/loss": 8.5,
        "train/term/soft/gradient_norm": 9.5,
        "attempts": 2,
        "attempt": "4-5",
        "parent_attempt": "2-3",
        "resumed_from_step": 77,
        "started": START,
        "ended": START + timedelta(minutes=2),
        "wall_seconds": 120.0,
    }
    assert {name: None if pd.isna(value) else value for name, value in row.items()} == expected


def test_every_column_of_a_teacher_holds_the_value_of_its_own_source(store: Store) -> None:
    config = {"teacher": {"model": "minilm"}, "task": {"name": "tweets"}}
    row = planned(T, what="teacher", axes={}, config_json=json.dumps(config))
    store.write_plan([row, planned(A)], epoch=1)
    commit(store, T, what="teacher", values={"report/accuracy": 0.9, "select/accuracy": 0.8})
    teachers = results.load(store.folder).teachers
    (found,) = teachers.to_dict("records")
    assert found["teacher_id"] == T
    assert (found["model"], found["task"], found["status"]) == ("minilm", "tweets", "completed")
    assert (found["select/accuracy"], found["report/accuracy"]) == (0.8, 0.9)
    assert (found["attempts"], found["wall_seconds"]) == (1, 60.0)


def test_the_shape_is_found_where_the_trial_stands_beside_its_task(store: Store) -> None:
    config = json.dumps({"task": {"name": "tweets"}, "trial": {"shape": SHAPE}})
    store.write_plan([planned(A, config_json=config)], epoch=1)
    trials = results.load(store.folder).trials
    shape = ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"]
    assert trials[shape].to_numpy().tolist() == [[3, 384, 12, 1536]]


def test_an_empty_sweep_has_frames_with_their_columns_and_types(store: Store) -> None:
    loaded = results.load(store.folder)
    trials = loaded.trials
    assert len(trials) == 0
    assert {"trial_id", "status", "failure_class", "num_hidden_layers", *NUMBERS, *TEXTS} <= set(
        trials.columns
    )
    assert {str(trials[name].dtype) for name in NUMBERS} == {"float64"}
    assert str(trials["ended"].dtype).startswith("datetime64")
    assert {"teacher_id", "model", "status", *NUMBERS} <= set(loaded.teachers.columns)


def test_planned_trials_stand_in_the_order_of_the_plan_before_they_are_tried(store: Store) -> None:
    store.write_plan([planned(id) for id in (C, A, B)], epoch=1)
    trials = results.load(store.folder).trials
    assert trials["trial_id"].tolist() == [C, A, B]
    assert trials["status"].tolist() == ["pending"] * 3
    assert trials["attempts"].tolist() == [0, 0, 0]
    assert trials["report/primary"].isna().all()


def test_labels_are_categories_in_the_order_of_the_grid_skipped_points_included(
    store: Store,
) -> None:
    def axes(matching: str | None) -> dict[str, Any]:
        return {"knowledge": "a", "matching": matching, "seed": 0}

    store.write_plan(
        [
            planned(A, axes=axes(None)),
            PlanRow("skipped", None, None, axes("uniform"), None, reason="too deep"),
            PlanRow("skipped", None, None, axes("never"), None, reason="too deep"),
            planned(B, axes=axes("last")),
            planned(C, axes=axes("uniform")),
        ],
        epoch=1,
    )
    trials = results.load(store.folder).trials
    assert trials["matching"].cat.categories.tolist() == ["uniform", "last"]
    assert trials.sort_values("matching")["trial_id"].tolist() == [C, B, A]


def test_a_failed_trial_tells_its_class_and_last_lines_until_it_is_tried_again(
    store: Store,
) -> None:
    store.write_plan([planned(A), planned(B)], epoch=1)
    for id in (A, B):
        commit(store, id, status="failed", failure_class="nan", error="step 3\nloss is nan")
    beat(store, 1, B)
    trials = results.load(store.folder).trials.set_index("trial_id")
    assert trials.loc[A, ["status", "failure_class", "error"]].tolist() == [
        "failed",
        "nan",
        "step 3\nloss is nan",
    ]
    assert trials.loc[B, "status"] == "running"
    assert trials.loc[B, ["failure_class", "error"]].isna().all()


def test_trials_of_a_failed_teacher_are_blocked(store: Store) -> None:
    teacher = planned(T, what="teacher", axes={})
    store.write_plan([teacher, planned(A, depends_on=(T,)), planned(B)], epoch=1)
    commit(
        store, T, what="teacher", status="failed", failure_class="error", error="under its floor"
    )
    loaded = results.load(store.folder)
    assert loaded.trials["status"].tolist() == ["blocked", "pending"]
    assert loaded.teachers["error"].tolist() == ["under its floor"]


def test_values_of_a_metric_that_is_nan_are_kept(store: Store) -> None:
    store.write_plan([planned(A)], epoch=1)
    commit(store, A, values={"report/accuracy": math.nan})
    trials = results.load(store.folder).trials
    assert "report/accuracy" in trials
    assert trials["report/accuracy"].isna().tolist() == [True]


def test_what_was_set_and_what_became_of_it_keep_apart(store: Store) -> None:
    store.write_plan([planned(A, axes={"precision": "auto", "seed": 0})], epoch=1)
    commit(store, A, values={"precision": "bf16"})
    trials = results.load(store.folder).trials
    assert trials[["precision", "precision/used"]].to_numpy().tolist() == [["auto", "bf16"]]


def test_trials_that_the_newest_plan_does_not_name_are_shown_on_request(store: Store) -> None:
    old = {"knowledge": "old", "depth": 3, "seed": 0}
    store.write_plan([planned(A, axes=old), planned(B, axes=old)], epoch=1)
    for id in (A, C):
        commit(store, id, values={"report/accuracy": 0.5}, config_json=json.dumps({"shape": SHAPE}))
    store.write_plan([planned(B, axes={"knowledge": "new", "seed": 1})], epoch=2)
    assert results.load(store.folder).trials["trial_id"].tolist() == [B]
    assert "depth" not in results.load(store.folder).trials
    loaded = results.load(store.folder, include_inactive=True)
    trials = loaded.trials
    # C is in no plan that can be read: what it was is known from its attempt.
    assert trials["trial_id"].tolist() == [B, A, C]
    assert trials["active"].tolist() == [True, False, False]
    assert trials["status"].tolist() == ["pending", "completed", "completed"]
    assert trials["knowledge"].astype("object").where(trials["knowledge"].notna(), "").tolist() == [
        "new",
        "old",
        "",
    ]
    assert trials["num_hidden_layers"].tolist() == [3, 3, 3]
    assert loaded.axes == ("knowledge", "seed", "depth")


def test_a_frame_may_be_changed_without_harm_to_later_answers(store: Store) -> None:
    store.write_plan([planned(A)], epoch=1)
    loaded = results.load(store.folder)
    frame = loaded.trials
    frame["status"] = "completed"
    assert loaded.trials["status"].tolist() == ["pending"]


@pytest.mark.parametrize(
    ("change", "running"),
    [
        ({}, True),
        ({"pid": 2**22 + 1}, False),
        ({"host": "another"}, True),
    ],
)
def test_only_a_living_launch_has_running_trials(
    store: Store, change: dict[str, Any], running: bool
) -> None:
    store.write_plan([planned(A)], epoch=1)
    beat(store, 1, A, **change)
    assert (results.load(store.folder).trials["status"] == "running").tolist() == [running]


def test_a_launch_elsewhere_that_is_long_silent_has_no_running_trials(store: Store) -> None:
    store.write_plan([planned(A)], epoch=1)
    beat(store, 1, A, host="another")
    long_ago = datetime.now(UTC).timestamp() - 3600
    os.utime(store.locks_folder / "1.beat", (long_ago, long_ago))
    assert results.load(store.folder).trials["status"].tolist() == ["pending"]


def test_only_the_newest_launch_counts_and_only_until_it_lets_go(store: Store) -> None:
    store.write_plan([planned(A), planned(B)], epoch=1)
    beat(store, 9, A)
    beat(store, 10, B)
    assert results.load(store.folder).trials["status"].tolist() == ["pending", "running"]
    (store.locks_folder / "11.json").write_text("{}")
    assert results.load(store.folder).trials["status"].tolist() == ["pending", "pending"]
    beat(store, 11, A)
    (store.locks_folder / "11.released").touch()
    assert results.load(store.folder).trials["status"].tolist() == ["pending", "pending"]


@pytest.mark.parametrize("content", ["", "[]", '{"count": 1}', "{"])
def test_a_beat_that_says_nothing_harms_nothing(store: Store, content: str) -> None:
    store.write_plan([planned(A)], epoch=1)
    beat(store, 1)
    (store.locks_folder / "1.beat").write_text(content)
    assert results.load(store.folder).trials["status"].tolist() == ["pending"]


def test_damaged_parts_are_warned_of_and_listed(store: Store) -> None:
    store.write_plan([planned(A), planned(B)], epoch=1)
    commit(store, A)
    (store.folder / "attempts" / f"{B}.1-1.parquet").write_bytes(b"")
    (store.folder / "sweep.json").write_text("{")
    with pytest.warns(DamagedPartsWarning, match="2 damaged files are left out"):
        loaded = results.load(store.folder)
    assert loaded.trials["status"].tolist() == ["completed", "pending"]
    assert [part.path for part in loaded.damaged] == ["sweep.json", f"attempts/{B}.1-1.parquet"]


def test_results_tell_what_they_hold(store: Store) -> None:
    store.write_plan([planned(A), planned(B)], epoch=1)
    commit(store, A)
    assert repr(results.load(store.folder)).endswith("sweep: 1 completed, 1 pending>")


def test_the_best_of_a_search_so_far_is_the_best_of_what_is_completed(store: Store) -> None:
    study = "5" * 16
    told = {"id": study, "arm": {}, "slots": 3, "metrics": ["select/primary"]}
    store.write_sweep({"studies": [told]})
    standing = {A: ("completed", 0.5), B: ("stopped", 0.9), C: ("completed", 0.6)}
    for slot, (id, (status, score)) in enumerate(standing.items()):
        write_proposal(
            store.folder, Proposal(study, slot, {}, {}, (), (), (id,)), [planned(id, group_id=id)]
        )
        commit(store, id, group_id=id, status=status, values={"select/primary": score})
    found = results.load(store.folder).search()
    assert found["select/primary"].tolist() == [0.5, 0.9, 0.6]
    assert found["best"].tolist() == [0.5, 0.5, 0.6]
