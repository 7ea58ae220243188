"""Questions about completed trials; every expected number is worked out by hand."""

import json
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsweep import results
from kdsweep.results.columns import QuestionError, UnknownColumnError
from kdsweep.results.failures import fingerprint
from kdsweep.results.leaderboard import leaderboard, teacher_rows
from kdsweep.results.schema import Attempt, PlanRow
from kdsweep.results.status import summary, work_left
from kdsweep.results.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
TEACHER = "f" * 16

# group, knowledge, matching, temperature, seed, select, select/best, report, report/at_best
MEASURED: list[tuple[int, str, str | None, float, int, float, float, float, float]] = [
    (0, "hard", None, 2.0, 0, 0.60, 0.70, 0.50, 0.55),
    (0, "hard", None, 2.0, 1, 0.62, 0.64, 0.54, 0.56),
    (1, "soft", "uniform", 2.0, 0, 0.80, 0.81, 0.70, 0.71),
    (1, "soft", "uniform", 2.0, 1, 0.70, 0.90, 0.80, 0.72),
    (2, "soft", "last", 2.0, 0, 0.78, 0.79, 0.90, 0.91),
    (2, "soft", "last", 2.0, 1, 0.76, 0.77, 0.94, 0.95),
]


def allow() -> None:
    """The fence that lets everything pass."""


def identity(number: int) -> str:
    return f"{number:016x}"


def planned(number: int, group: int, *axes: Any) -> PlanRow:
    names = ("knowledge", "matching", "temperature", "seed")
    return PlanRow(
        "trial",
        identity(number),
        identity(100 + group),
        dict(zip(names, axes, strict=True)),
        "{}",
        depends_on=(TEACHER,),
    )


def commit(store: Store, id: str, **fields: Any) -> None:
    defaults: dict[str, Any] = {
        "what": "trial",
        "group_id": None,
        "epoch": 1,
        "number": 1,
        "status": "completed",
        "failure_class": None,
        "error": None,
        "started": START,
        "ended": START + timedelta(minutes=1),
        "config_json": "{}",
        "resumed_from": None,
        "resumed_from_step": 0,
        "values": {},
    }
    store.commit_attempt(Attempt(id=id, **(defaults | fields)), fence=allow)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six completed trials, one failed, one pending, one completed without a report."""
    store = Store(tmp_path / "sweep")
    store.create({})
    rows = [PlanRow("teacher", TEACHER, None, {}, '{"teacher": {"model": "minilm"}}')]
    for number, (group, knowledge, matching, temperature, seed, *_) in enumerate(MEASURED):
        rows.append(planned(number, group, knowledge, matching, temperature, seed))
    rows.append(planned(6, 3, "features", "last", 2.0, 0))
    rows.append(planned(7, 4, "soft", "last", 2.0, 2))
    rows.append(planned(8, 5, "hard", None, 2.0, 2))
    store.write_plan(rows, epoch=1)
    for number, (*_, select, best, report, at_best) in enumerate(MEASURED):
        values: dict[str, Any] = {}
        for metric in ("accuracy", "primary"):
            values |= {f"select/{metric}": select, f"select/{metric}/best": best}
            values |= {f"report/{metric}": report, f"report/{metric}/at_best": at_best}
        values |= {"parameters": 1000.0 * (number + 1), "latency_ms": number / 2}
        commit(store, identity(number), values=values)
    error = "Traceback\nValueError: 3 rows of 0x7f3a are bad"
    commit(store, identity(6), status="failed", failure_class="error", error=error)
    commit(store, identity(8), values={"select/accuracy": 0.1, "select/primary": 0.1})
    commit(store, TEACHER, what="teacher", values={"select/primary": 0.9, "report/primary": 0.95})
    return store


@pytest.fixture
def loaded(store: Store) -> results.Results:
    return results.load(store.folder)


LEFT_OUT = {"pending": 1, "failed": 1, "completed, without report/accuracy": 1}


def test_a_mean_counts_each_configuration_once_whatever_its_seeds(loaded: results.Results) -> None:
    # soft: the means over seeds are 0.75 and 0.92; their mean 0.835, their deviation
    # 0.17/sqrt(2) = 0.1202082; t(0.975, 1) = 12.7062047 (Student's table), and so the half width
    # is 12.7062047 * 0.1202082/sqrt(2) = 1.0800274.
    frame = loaded.agg("accuracy", by="knowledge").set_index("knowledge")
    assert frame.columns.tolist() == ["n", "trials", "mean", "sd", "lo", "hi"]
    assert frame.index.tolist() == ["hard", "soft"]
    assert frame.loc["soft"].tolist() == pytest.approx(
        [2, 4, 0.835, 0.1202082, 0.835 - 1.0800274, 0.835 + 1.0800274], abs=1e-6
    )
    assert frame.loc["hard", ["n", "trials", "mean"]].tolist() == pytest.approx([1, 2, 0.52])
    assert frame.loc["hard", ["sd", "lo", "hi"]].isna().all()


def test_a_mean_of_trials_counts_each_trial(loaded: results.Results) -> None:
    # hard: 0.50 and 0.54: deviation 0.02*sqrt(2); half width 12.7062047 * 0.02 = 0.2541241.
    frame = loaded.agg("accuracy", by=["knowledge"], over_seeds=False).set_index("knowledge")
    assert frame.loc["hard"].tolist() == pytest.approx(
        [2, 2, 0.52, 0.02 * math.sqrt(2), 0.2658759, 0.7741241], abs=1e-6
    )
    assert frame.loc["soft", ["n", "mean"]].tolist() == pytest.approx([4, 0.835])


def test_equal_values_have_an_interval_of_no_width(loaded: results.Results) -> None:
    frame = loaded.agg("temperature", by="knowledge", over_seeds=False).set_index("knowledge")
    assert frame.loc["soft", ["mean", "sd", "lo", "hi"]].tolist() == [2.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "mean"),
    [
        ({"metric": "accuracy"}, 0.52),
        ({"metric": "primary"}, 0.52),
        ({"metric": "report/accuracy"}, 0.52),
        ({"metric": "accuracy", "which": "best"}, 0.555),
        ({"metric": "report/accuracy", "which": "best"}, 0.555),
        ({"metric": "accuracy", "split": "select"}, (0.60 + 0.62 + 0.1) / 3),
        ({"metric": "select/accuracy"}, (0.60 + 0.62 + 0.1) / 3),
        ({"metric": "accuracy", "split": "select", "which": "best"}, 0.67),
        ({"metric": "select/accuracy", "which": "best"}, 0.67),
        ({"metric": "latency_ms"}, 0.25),
    ],
)
def test_last_and_best_select_and_report_are_told_apart(
    loaded: results.Results, arguments: dict[str, Any], mean: float
) -> None:
    frame = loaded.agg(by="knowledge", over_seeds=False, **arguments).set_index("knowledge")
    assert frame.loc["hard", "mean"] == pytest.approx(mean)


def test_answers_say_what_they_left_out(loaded: results.Results) -> None:
    assert loaded.agg("accuracy", by="knowledge").attrs["left_out"] == LEFT_OUT
    assert loaded.pivot("knowledge", "matching", "accuracy").attrs["left_out"] == LEFT_OUT
    assert loaded.best("accuracy").attrs["left_out"] == {"pending": 1, "failed": 1}
    assert loaded.agg("latency_ms", by="status").attrs["left_out"] == {
        "pending": 1,
        "failed": 1,
        "completed, without latency_ms": 1,
    }


def test_a_pivot_shows_empty_cells_and_axes_that_do_not_act(loaded: results.Results) -> None:
    means = loaded.pivot("knowledge", "matching", "accuracy")
    assert means.index.tolist() == ["hard", "soft", "features"]
    assert means.columns.tolist() == ["uniform", "last", "-"]
    nothing = -1.0
    assert means.fillna(nothing).to_numpy().tolist() == [
        [nothing, nothing, pytest.approx(0.52)],
        [pytest.approx(0.75), pytest.approx(0.92), nothing],
        [nothing, nothing, nothing],
    ]
    counts = loaded.pivot("knowledge", "matching", "accuracy", counts=True, over_seeds=False)
    assert counts.to_numpy().tolist() == [[0, 0, 2], [2, 2, 0], [0, 0, 0]]


def test_a_pivot_over_numbers_sorts_them(loaded: results.Results) -> None:
    frame = loaded.pivot("seed", "knowledge", "accuracy")
    assert frame.index.tolist() == [0, 1, 2]
    assert frame.loc[1, "soft"] == pytest.approx(0.87)


def test_the_best_trial_is_chosen_on_select_and_shown_on_report(loaded: results.Results) -> None:
    frame = loaded.best("accuracy")
    assert frame.columns.tolist() == [
        "trial_id",
        "group_id",
        "knowledge",
        "matching",
        "temperature",
        "seed",
        "select/accuracy",
        "report/accuracy",
    ]
    assert frame["trial_id"].tolist() == [identity(2)]
    assert frame[["select/accuracy", "report/accuracy"]].to_numpy().tolist() == [[0.80, 0.70]]


def test_the_best_weights_on_the_way_are_another_choice(loaded: results.Results) -> None:
    frame = loaded.best("accuracy", select="best")
    assert frame["trial_id"].tolist() == [identity(3)]
    assert frame[["select/accuracy/best", "report/accuracy/at_best"]].to_numpy().tolist() == [
        [0.90, 0.72]
    ]


def test_the_best_group_has_the_highest_mean_over_seeds(loaded: results.Results) -> None:
    # Means on select: hard 0.61, uniform 0.75, last 0.77; deviation of 0.90 and 0.94.
    frame = loaded.best(over="seeds")
    assert frame["group_id"].tolist() == [identity(102)]
    assert frame[["seeds", "select/primary", "report/primary"]].to_numpy().tolist() == [
        [2, pytest.approx(0.77), pytest.approx(0.92)]
    ]
    assert frame["report/primary/sd"].tolist() == pytest.approx([0.02 * math.sqrt(2)])
    assert "seed" not in frame


def test_the_best_of_each_and_the_best_few(loaded: results.Results) -> None:
    frame = loaded.best("accuracy", by="knowledge", n=2)
    assert frame[["knowledge", "trial_id"]].to_numpy().tolist() == [
        ["hard", identity(1)],
        ["hard", identity(0)],
        ["soft", identity(2)],
        ["soft", identity(4)],
    ]
    groups = loaded.best("accuracy", ["knowledge", "matching"], over="seeds")
    assert groups[["knowledge", "matching"]].to_numpy().tolist() == [
        ["hard", "-"],
        ["soft", "uniform"],
        ["soft", "last"],
    ]


def test_choosing_on_report_is_refused(loaded: results.Results) -> None:
    with pytest.raises(ValueError, match=r"choices read select.* write 'accuracy'"):
        loaded.best("report/accuracy")
    with pytest.raises(ValueError, match="contradict"):
        loaded.best(by="seed", over="seeds")


def test_an_unknown_column_is_answered_with_what_is_near(loaded: results.Results) -> None:
    with pytest.raises(UnknownColumnError, match="Did you mean 'accuracy'") as caught:
        loaded.agg("acuracy", by="knowledge")
    assert isinstance(caught.value, KeyError)
    assert "There are: trial_id, group_id" in str(caught.value)
    with pytest.raises(UnknownColumnError, match="'knowlege'"):
        loaded.pivot("knowlege", "seed")
    with pytest.raises(UnknownColumnError, match="no column 'latency_ms/best'"):
        loaded.agg("latency_ms", by="knowledge", which="best")
    with pytest.raises(UnknownColumnError, match="no column 'select/latency_ms'"):
        loaded.best("latency_ms")


def test_before_the_first_result_answers_are_empty_and_have_their_columns(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    store.create({})
    store.write_plan([planned(0, 0, "soft", "last", 2.0, 0)], epoch=1)
    loaded = results.load(store.folder)
    frame = loaded.agg("accuracy", by=["knowledge", "matching"])
    assert frame.columns.tolist() == [
        *("knowledge", "matching", "n", "trials", "mean", "sd", "lo", "hi")
    ]
    assert len(frame) == 0
    assert frame.attrs["left_out"] == {"pending": 1}
    assert loaded.best("accuracy").columns.tolist()[-2:] == ["select/accuracy", "report/accuracy"]
    assert loaded.pivot("knowledge", "matching").shape == (1, 1)
    assert loaded.failures().columns.tolist()[:3] == ["failure_class", "fingerprint", "count"]
    assert leaderboard(loaded).columns.tolist()[-2:] == ["parameters", "latency_ms"]


def test_failures_are_counted_by_class_and_by_what_they_have_in_common(store: Store) -> None:
    errors = {
        6: "Traceback\nValueError: 4 rows of 0x55ac are bad",
        7: "ValueError: row 3 has no label",
    }
    for number, error in errors.items():
        commit(
            store,
            identity(number),
            number=2,
            status="failed",
            failure_class="error",
            error=error,
            ended=START + timedelta(minutes=number),
        )
    store.write_plan(
        [*store.read_plan(), planned(9, 6, "soft", "last", 4.0, 0)],
        epoch=2,
    )
    commit(
        store,
        identity(9),
        status="failed",
        failure_class="error",
        error="other\nValueError: 5 rows of 0x1 are bad",
        ended=START + timedelta(minutes=9),
    )
    frame = results.load(store.folder).failures()
    assert frame[["failure_class", "count", "what", "first", "error"]].to_numpy().tolist() == [
        ["error", 2, "trial", identity(6), errors[6]],
        ["error", 1, "trial", identity(7), errors[7]],
    ]


def test_errors_that_differ_in_numbers_and_addresses_share_a_fingerprint() -> None:
    first = fingerprint("x\nRuntimeError: size 12 at 0x7fab, trial 0123456789abcdef, loss 1e-4  \n")
    assert first == fingerprint("RuntimeError: size 9 at 0x1, trial fedcba9876543210, loss 0.5")
    assert first != fingerprint("RuntimeError: shape 9 at 0x1, trial fedcba9876543210, loss 0.5")
    assert fingerprint("") == fingerprint("\n")


def test_what_mends_an_error_does_not_tell_it_apart() -> None:
    mend = "\n    Re-plan: launch the grid again."
    assert fingerprint(f"task: has changed{mend}") != fingerprint(f"teacher: has changed{mend}")


def test_the_leaderboard_ranks_groups_and_drops_axes_that_do_not_vary(
    loaded: results.Results,
) -> None:
    frame = leaderboard(loaded, 2)
    assert frame.columns.tolist() == [
        "group_id",
        "knowledge",
        "matching",
        "seeds",
        "select/primary",
        "report/primary",
        "report/primary/sd",
        "parameters",
        "latency_ms",
    ]
    # Groups 2 (trials 4 and 5) and 1 (trials 2 and 3).
    assert frame.drop(columns="group_id").to_numpy().tolist() == [
        [
            "soft",
            "last",
            2,
            pytest.approx(0.77),
            pytest.approx(0.92),
            pytest.approx(0.02 * math.sqrt(2)),
            5500.0,
            2.25,
        ],
        [
            "soft",
            "uniform",
            2,
            pytest.approx(0.75),
            pytest.approx(0.75),
            pytest.approx(0.05 * math.sqrt(2)),
            3500.0,
            1.25,
        ],
    ]
    assert len(leaderboard(loaded)) == 4


def test_the_teacher_stands_beside_the_leaderboard(loaded: results.Results) -> None:
    (row,) = teacher_rows(loaded).to_dict("records")
    assert (row["model"], row["select/primary"], row["report/primary"]) == ("minilm", 0.9, 0.95)


def test_the_status_counts_and_estimates_from_the_newest_launch(store: Store) -> None:
    store.write_plan(
        [*store.read_plan(), *(planned(n, n, "soft", "last", 4.0, 0) for n in (10, 11, 12))],
        epoch=2,
    )
    # Two trials in the three minutes of the second launch: 40 an hour, and three are left.
    for number, minute in ((10, 61), (11, 63)):
        commit(
            store,
            identity(number),
            epoch=2,
            started=START + timedelta(minutes=60),
            ended=START + timedelta(minutes=minute),
        )
    found = summary(store)
    assert dict(found.counts) == {
        "completed": 9,
        "stopped": 0,
        "failed": 1,
        "running": 0,
        "pending": 2,
        "blocked": 0,
    }
    assert found.teachers["completed"] == 1
    assert dict(found.failed_by_class) == {"error": 1}
    assert found.trials_per_hour == pytest.approx(40)
    assert found.seconds_left == pytest.approx(2 * 90)
    assert (found.name, found.running, found.damaged) == ("sweep", (), 0)


def test_the_status_tells_what_a_living_launch_lets_wait(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    store.create({})
    told = {
        "count": 1,
        "running": [],
        "num_waiting": 2,
        "seconds_until_retry": 3600.0,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    (store.locks_folder / "000001.json").write_text("{}")
    beat = store.locks_folder / "000001.beat"
    beat.write_text(json.dumps(told))
    written = time.time() - 20.0
    os.utime(beat, (written, written))
    found = summary(store)
    assert found.num_waiting == 2
    assert found.seconds_until_retry is not None
    # What has passed since the beat was written has been waited already.
    assert 0 <= found.seconds_until_retry <= 3580.0
    (store.locks_folder / "000001.released").touch()
    assert (summary(store).num_waiting, summary(store).seconds_until_retry) == (0, None)


def test_what_is_left_takes_as_much_longer_as_it_has_more_operations(store: Store) -> None:
    rows = [planned(n, n, "soft", "last", 4.0, 0) for n in (10, 11, 12)]
    sizes = zip(rows, (1e9, 3e9, 8e9), strict=True)
    store.write_plan([replace(row, flops=flops) for row, flops in sizes], epoch=2)
    for number, minute in ((10, 61), (11, 64)):
        commit(
            store,
            identity(number),
            epoch=2,
            started=START + timedelta(minutes=60),
            ended=START + timedelta(minutes=minute),
        )
    # 4e9 operations took four minutes, and 8e9 are left.
    assert summary(store).seconds_left == pytest.approx(8 * 60)


def test_where_operations_are_not_all_known_trials_count_alike() -> None:
    assert work_left("ab", "cde", {}) == 1.5
    assert work_left("ab", "cde", dict.fromkeys("abcd", 1e9)) == 1.5
    assert work_left("ab", "cde", dict.fromkeys("abcd", 1e9) | {"e": 6e9}) == 4


def test_the_status_of_a_new_sweep_knows_no_rate(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    store.create({})
    found = summary(store)
    assert (found.trials_per_hour, found.seconds_left) == (None, None)
    assert sum(found.counts.values()) == 0


def test_predictions_are_those_of_the_attempt_that_counts(store: Store) -> None:
    rows, labels = np.array([0, 1]), np.array([1, 0])
    for number in (1, 2):
        logits = np.full((2, 2), number, dtype=np.float32)
        store.write_predictions(identity(0), 1, number, "report", rows, labels, logits)
    loaded = results.load(store.folder)
    frame = loaded.predictions(identity(0))
    assert frame.columns.tolist() == ["row", "label", "logit/0", "logit/1"]
    assert frame["logit/1"].tolist() == [1.0, 1.0]
    with pytest.raises(FileNotFoundError):
        loaded.predictions(identity(1))
    with pytest.raises(FileNotFoundError, match="no finished attempt"):
        loaded.predictions(identity(7))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.best(over="sedes"), "over='sedes': did you mean 'seeds'"),
        (lambda r: r.best(select="bets"), "select='bets': did you mean 'best'"),
        (lambda r: r.agg("accuracy", "knowledge", which="zz"), "choose 'last' or 'best'"),
        (lambda r: r.pivot("knowledge", "matching", split="reprot"), "did you mean 'report'"),
        (lambda r: r.agg("status", "knowledge"), "'status' holds no numbers"),
        (lambda r: r.pivot("knowledge", "knowledge"), "name two different ones"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(
    loaded: results.Results, ask: Callable[[results.Results], object], message: str
) -> None:
    with pytest.raises(QuestionError, match=message):
        ask(loaded)


def test_a_task_of_local_files_is_called_by_its_rows_to_train_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "sweep")
    store.create({})
    config = '{"task": {"name": null, "files": {"train": "/data/reviews.csv"}}}'
    store.write_plan([PlanRow("teacher", TEACHER, None, {}, config)], epoch=1)
    assert results.load(store.folder).teachers["task"].tolist() == ["reviews"]
