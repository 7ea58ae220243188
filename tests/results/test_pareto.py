"""The best compromises: which groups no other beats."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep import results
from kdsweep.results.columns import QuestionError, UnknownColumnError
from kdsweep.results.query import non_dominated
from kdsweep.results.schema import Attempt, PlanRow
from kdsweep.results.store import Store

# group: quality of its two seeds, parameters, latency
GROUPS: dict[int, tuple[tuple[float, float], float, float]] = {
    0: ((0.70, 0.80), 100.0, 4.0),  # mean 0.75: on the front
    1: ((0.90, 0.50), 100.0, 1.0),  # mean 0.70, no smaller than 0: beaten, but the fastest
    2: ((0.80, 0.80), 200.0, 4.0),  # on the front
    3: ((0.80, 0.80), 200.0, 5.0),  # equal to 2 in quality and size: on the front with it
    4: ((0.60, 0.60), 150.0, 4.0),  # beaten by 0
}


@pytest.fixture
def loaded(tmp_path: Path) -> results.Results:
    """Five groups of two seeds, and a trial whose size nobody measured."""
    store = Store(tmp_path / "sweep")
    store.create({})
    rows, moment = [], datetime(2026, 1, 1, tzinfo=UTC)
    for group, (scores, parameters, latency) in GROUPS.items():
        for seed, quality in enumerate(scores):
            id = f"{2 * group + seed:016x}"
            rows.append(
                PlanRow("trial", id, f"{100 + group:016x}", {"g": group, "seed": seed}, "{}")
            )
            values = {
                "select/primary": quality,
                "report/primary": quality - 0.1,
                "parameters": parameters,
                "latency_ms": latency,
            }
            commit(store, id, values, moment)
    rows.append(PlanRow("trial", f"{99:016x}", f"{199:016x}", {"g": 9, "seed": 0}, "{}"))
    commit(store, f"{99:016x}", {"select/primary": 0.99}, moment)
    store.write_plan(rows, epoch=1)
    return results.load(store.folder)


def commit(store: Store, id: str, values: dict[str, float], moment: datetime) -> None:
    row = Attempt(
        id=id,
        what="trial",
        group_id=None,
        epoch=1,
        number=1,
        status="completed",
        failure_class=None,
        error=None,
        started=moment,
        ended=moment,
        config_json="{}",
        resumed_from=None,
        resumed_from_step=0,
        values=values,
    )
    store.commit_attempt(row, fence=lambda: None)


def test_the_front_compares_means_over_seeds_and_keeps_ties(loaded: results.Results) -> None:
    front = loaded.pareto()
    assert list(front["g"]) == [2, 3, 0]
    assert list(front["select/primary"]) == pytest.approx([0.8, 0.8, 0.75])
    assert list(front["report/primary"]) == pytest.approx([0.7, 0.7, 0.65])
    assert list(front["seeds"]) == [2, 2, 2]
    assert front.attrs["left_out"] == {"completed, without parameters": 1}


def test_another_cost_has_another_front(loaded: results.Results) -> None:
    assert list(loaded.pareto(["primary", "latency_ms"])["g"]) == [2, 1]
    assert list(loaded.pareto(["primary", "parameters", "latency_ms"])["g"]) == [2, 0, 1]


@pytest.mark.parametrize(
    ("metrics", "error", "said"),
    [
        (["primary"], QuestionError, "between two metrics or more"),
        (["primary", "select/primary"], QuestionError, "between two metrics or more"),
        (["primary", "report/primary"], QuestionError, "nobody can say what is better"),
        (["primary", "paramters"], UnknownColumnError, "Did you mean 'parameters'"),
    ],
)
def test_a_compromise_that_is_none_is_refused(
    loaded: results.Results, metrics: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        loaded.pareto(metrics)


def test_a_sweep_without_a_search_proposed_nothing(loaded: results.Results) -> None:
    assert loaded.search().empty


@given(
    st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.tuples(*[st.integers(0, 4).map(float)] * width), min_size=1, max_size=30
        )
    )
)
def test_the_front_is_what_its_definition_says(points: list[tuple[float, ...]]) -> None:
    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    expected = [not any(beats(one, point) for one in points) for point in points]
    assert list(non_dominated(np.array(points))) == expected
