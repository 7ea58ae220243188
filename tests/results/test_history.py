"""A trial has one curve, whatever interrupted it."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from kdsweep import results
from kdsweep.results.columns import UnknownColumnError, UnknownTrialError
from kdsweep.results.questions import DamagedPartsWarning
from kdsweep.results.schema import Attempt, AttemptStatus, PlanRow
from kdsweep.results.store import Store

A, B = "a" * 16, "b" * 16
START = datetime(2026, 1, 1, tzinfo=UTC)


def allow() -> None:
    """The fence that lets everything pass."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return planned_store(tmp_path)


def planned_store(folder: Path) -> Store:
    store = Store(folder / "sweep")
    store.create({})
    labels = {A: ("hard", "soft"), B: ("soft",)}
    store.write_plan(
        [
            PlanRow("trial", id, id, {"knowledge": "x", "seed": 0}, "{}", labels[id])
            for id in (A, B)
        ],
        epoch=1,
    )
    return store


def end(
    store: Store, id: str, epoch: int, number: int, status: AttemptStatus, **fields: Any
) -> None:
    defaults: dict[str, Any] = {"resumed_from": None, "resumed_from_step": 0, "values": {}}
    attempt = Attempt(
        id=id,
        what="trial",
        group_id=id,
        epoch=epoch,
        number=number,
        status=status,
        failure_class=None,
        error=None,
        started=START,
        ended=START + timedelta(minutes=epoch),
        config_json="{}",
        **(defaults | fields),
    )
    store.commit_attempt(attempt, fence=allow)


def steps(frame: pd.DataFrame, metric: str = "loss") -> list[tuple[int, float]]:
    return list(zip(frame["step"].tolist(), frame[metric].tolist(), strict=True))


def test_every_flush_makes_one_part_and_nothing_makes_none(store: Store) -> None:
    history = store.open_history(A, 1, 1)
    history.flush()
    history.close()
    assert list((store.folder / "history").iterdir()) == []
    history.append(1, {"loss": 0.5})
    history.flush()
    history.append(2, {"loss": 0.25})
    history.append(3, {"loss": 0.125})
    history.close()
    history.close()
    names = sorted(path.name for path in (store.folder / "history").iterdir())
    assert names == [f"{A}.1-1.1.parquet", f"{A}.1-1.2.parquet"]
    assert steps(results.load(store.folder).history(A)) == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_numbers_are_float64_split_into_bytes_and_compressed(store: Store) -> None:
    history = store.open_history(A, 1, 1)
    history.append(1, {"loss": 0.5})
    history.close()
    column = pq.ParquetFile(store.folder / "history" / f"{A}.1-1.1.parquet").metadata.row_group(0)
    loss = column.column(1)
    assert (loss.physical_type, loss.compression) == ("DOUBLE", "ZSTD")
    assert "BYTE_STREAM_SPLIT" in loss.encodings


def test_what_was_logged_as_nan_is_kept_and_differs_from_what_was_not_logged(store: Store) -> None:
    history = store.open_history(A, 1, 1)
    history.append(1, {"loss": math.nan})
    history.append(2, {"accuracy": 0.5})
    history.close()
    loaded = results.load(store.folder)
    assert loaded.history(metrics="loss")["step"].tolist() == [1]
    long = loaded.history(long=True)
    assert long[["metric", "step"]].to_numpy().tolist() == [["loss", 1], ["accuracy", 2]]
    assert math.isnan(long["value"][0])


def test_two_reports_of_one_step_make_one_row(store: Store) -> None:
    history = store.open_history(A, 1, 1)
    history.append(1, {"loss": 1.0})
    history.append(1, {"accuracy": 0.5})
    history.flush()
    history.append(1, {"learning_rate": 0.1})
    history.append(2, {"loss": 2.0})
    history.close()
    frame = results.load(store.folder).history(A)
    assert frame.columns.tolist() == ["trial_id", "step", "loss", "accuracy", "learning_rate"]
    assert frame.loc[0].tolist() == [A, 1, 1.0, 0.5, 0.1]
    assert frame["step"].tolist() == [1, 2]


def test_a_resumed_trial_has_no_hole_and_no_double_step(store: Store) -> None:
    first = store.open_history(A, 1, 1)
    for step in range(1, 8):
        first.append(step, {"loss": 10.0 + step})
    first.close()
    end(store, A, 1, 1, "interrupted")
    second = store.open_history(A, 2, 1, resumed_from=(1, 1), resumed_from_step=4)
    for step in range(5, 10):
        second.append(step, {"loss": 20.0 + step})
    second.close()
    end(store, A, 2, 1, "completed", resumed_from=(1, 1), resumed_from_step=4)
    assert steps(results.load(store.folder).history(A)) == [
        (1, 11.0),
        (2, 12.0),
        (3, 13.0),
        (4, 14.0),
        (5, 25.0),
        (6, 26.0),
        (7, 27.0),
        (8, 28.0),
        (9, 29.0),
    ]


def test_attempts_that_led_nowhere_are_not_part_of_the_curve(store: Store) -> None:
    for epoch, status in ((1, "failed"), (2, "completed"), (3, "failed")):
        history = store.open_history(A, epoch, 1)
        history.append(1, {"loss": float(epoch)})
        history.close()
        end(store, A, epoch, 1, status)
    assert steps(results.load(store.folder).history(A)) == [(1, 2.0)]


def test_ancestors_are_found_though_they_were_killed_before_they_logged(store: Store) -> None:
    first = store.open_history(A, 1, 1)
    first.append(1, {"loss": 1.0})
    first.append(2, {"loss": 2.0})
    first.flush()
    # Resumed at step 1; a checkpoint at step 1 again, and killed: no row, and nothing committed.
    store.open_history(A, 2, 1, resumed_from=(1, 1), resumed_from_step=1).flush()
    third = store.open_history(A, 3, 1, resumed_from=(2, 1), resumed_from_step=1)
    third.append(2, {"loss": 32.0})
    third.close()
    assert steps(results.load(store.folder).history(A)) == [(1, 1.0), (2, 32.0)]


def test_a_running_trial_shows_its_unfinished_attempt(store: Store) -> None:
    old = store.open_history(A, 1, 1)
    old.append(1, {"loss": 1.0})
    old.close()
    end(store, A, 1, 1, "failed")
    new = store.open_history(A, 1, 2)
    new.append(1, {"loss": 2.0})
    new.flush()
    assert steps(results.load(store.folder).history(A)) == [(1, 2.0)]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_however_often_a_trial_is_killed_its_curve_is_that_of_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = planned_store(tmp_path_factory.mktemp("store"))
    last_step = 12
    origin: tuple[int, int] | None = None
    start = 0
    for epoch in range(1, data.draw(st.integers(1, 4), "attempts") + 1):
        history = store.open_history(A, epoch, 1, resumed_from=origin, resumed_from_step=start)
        saved: int | None = None
        killed_at = data.draw(st.integers(start, last_step), "killed after")
        for step in range(start + 1, killed_at + 1):
            history.append(step, {"loss": step / 7})
            if data.draw(st.booleans(), "checkpoint"):
                history.flush()
                saved = step
        if saved is not None:
            origin, start = (epoch, 1), saved
    final = store.open_history(A, 9, 1, resumed_from=origin, resumed_from_step=start)
    for step in range(start + 1, last_step + 1):
        final.append(step, {"loss": step / 7})
    final.close()
    end(store, A, 9, 1, "completed", resumed_from=origin, resumed_from_step=start)
    found = steps(results.load(store.folder).history(A))
    assert found == [(step, step / 7) for step in range(1, last_step + 1)]


def test_attempts_that_name_each_other_as_parents_end_the_search(store: Store) -> None:
    for number, parent in ((1, (1, 2)), (2, (1, 1))):
        history = store.open_history(A, 1, number, resumed_from=parent, resumed_from_step=5)
        history.append(number, {"loss": float(number)})
        history.close()
    assert steps(results.load(store.folder).history(A)) == [(1, 1.0), (2, 2.0)]


def test_terms_are_named_by_their_labels(store: Store) -> None:
    for id, loss in ((A, 1.0), (B, 2.0)):
        history = store.open_history(id, 1, 1)
        history.append(1, {"train/term/0/loss": loss, "train/term/1/loss": 10 * loss})
        history.close()
    frame = results.load(store.folder).history().set_index("trial_id")
    hard, soft = "train/term/hard/loss", "train/term/soft/loss"
    assert (frame[hard][A], frame[soft][A]) == (1.0, 10.0)
    # B has one term; what an index without a label means, nobody can say.
    assert (frame[soft][B], frame["train/term/1/loss"][B]) == (2.0, 20.0)
    assert math.isnan(frame[hard][B])


@pytest.fixture
def logged(store: Store) -> results.Results:
    history = store.open_history(A, 1, 1)
    for step in range(1, 8):
        history.append(step, {"loss": float(step)} | ({"accuracy": 0.5} if step % 3 == 0 else {}))
    history.close()
    history = store.open_history(B, 1, 1)
    history.append(1, {"loss": 100.0})
    history.close()
    return results.load(store.folder)


def test_every_so_many_rows_and_the_last_of_each_trial(logged: results.Results) -> None:
    frame = logged.history(metrics="loss", every=3)
    assert frame[["trial_id", "step"]].to_numpy().tolist() == [[A, 3], [A, 6], [A, 7], [B, 1]]


def test_rows_without_the_metric_are_left_out_before_they_are_counted(
    logged: results.Results,
) -> None:
    frame = logged.history(metrics=["accuracy"])
    assert frame.columns.tolist() == ["trial_id", "step", "accuracy"]
    assert frame["step"].tolist() == [3, 6]
    assert logged.history(metrics="accuracy", every=2)["step"].tolist() == [6]


def test_a_metric_or_trial_that_is_not_there_is_named_with_what_is_near(
    logged: results.Results,
) -> None:
    with pytest.raises(UnknownColumnError, match="Did you mean 'loss'"):
        logged.history(metrics="los")
    with pytest.raises(UnknownTrialError, match=f"did you mean {A}"):
        logged.history(A[:-1])
    with pytest.raises(ValueError, match="every=0"):
        logged.history(every=0)


def test_the_history_of_nothing_has_its_columns(store: Store) -> None:
    loaded = results.load(store.folder)
    assert loaded.history().columns.tolist() == ["trial_id", "step"]
    assert loaded.history(metrics="loss").columns.tolist() == ["trial_id", "step", "loss"]
    long = loaded.history(long=True)
    assert long.columns.tolist() == ["trial_id", "metric", "step", "value"]
    assert (len(long), str(long["value"].dtype)) == (0, "float64")


def test_a_damaged_part_is_reported_and_the_rest_is_read(
    store: Store, logged: results.Results
) -> None:
    (store.folder / "history" / f"{A}.1-1.1.parquet").write_bytes(b"PAR1")
    with pytest.warns(DamagedPartsWarning, match=rf"history/{A}.1-1.1.parquet"):
        frame = logged.history()
    assert frame["trial_id"].tolist() == [B]


def test_the_name_of_the_step_column_is_taken(store: Store) -> None:
    with pytest.raises(ValueError, match="'step' is the name"):
        store.open_history(A, 1, 1).append(1, {"step": 1.0})
