"""What planned work asks of its host, from the grid to what a lane is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdsweep.results.schema import PlanRow
from kdsweep.results.store import Store
from kdsweep.search_spaces import expand, load_grid
from kdsweep.search_spaces.grid import Grid
from kdsweep.search_spaces.resources import Request
from kdsweep.sweep.dispatch import Dispatch
from kdsweep.sweep.pinned import new_sweep, pin
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows, request_of, requests_of

WriteGrid = Callable[..., Path]

SHAPES = [{"layers": n, "width": 16, "heads": 2} for n in (1, 2)]
LARGER = {"if": {"shape.layers": 2}, "memory_gb": 2, "timeout_minutes": 5}


@pytest.fixture
def planned(write_grid: WriteGrid) -> Callable[..., tuple[Grid, tuple[PlanRow, ...]]]:
    def plan(**resources: Any) -> tuple[Grid, tuple[PlanRow, ...]]:
        axes = {"seed": [0, 1], "shape": SHAPES, "knowledge": ["hard_labels", "soft_logits"]}
        grid = load_grid(write_grid(axes=axes, resources={"memory_gb": 1, **resources}))
        content = Content()
        return grid, plan_rows(expand(grid, ContentFacts(content)), content)

    return plan


def test_trials_of_equal_requests_run_one_after_another_and_the_same_trials_as_without_rules(
    planned: Callable[..., tuple[Grid, tuple[PlanRow, ...]]],
) -> None:
    grid, rows = planned(when=[LARGER])
    trials = [row for row in rows if row.what == "trial"]
    asked = [request_of(row, grid.resources).memory_gb for row in trials]
    assert asked == [1, 1, 1, 1, 2, 2, 2, 2]
    _, without = planned()
    assert {row.id for row in trials} == {row.id for row in without if row.what == "trial"}


def test_a_plan_makes_the_requests_of_its_rules_and_of_its_teachers(
    planned: Callable[..., tuple[Grid, tuple[PlanRow, ...]]],
) -> None:
    grid, rows = planned(when=[LARGER])
    common, larger = Request(memory_gb=1), Request(memory_gb=2, timeout_minutes=5)
    assert requests_of(rows, grid.resources) == {common, larger}
    # Every trial is larger, and the teacher asks as all do.
    grid, rows = planned(when=[{**LARGER, "if": {"shape.layers": {"ge": 1}}}])
    assert requests_of(rows, grid.resources) == {common, larger}
    grid, rows = planned()
    assert requests_of(rows, grid.resources) == {common}


def test_work_carries_its_request_and_its_own_limit(
    planned: Callable[..., tuple[Grid, tuple[PlanRow, ...]]], tmp_path: Path
) -> None:
    grid, rows = planned(when=[LARGER])
    store = Store(tmp_path / "store")
    store.create(new_sweep(grid))
    work = {str(row.id): row for row in rows}
    dispatch = Dispatch(store, grid, work, pin(grid), epoch=1)
    given = [dispatch(id) for id in work]
    assert [(w.what, w.resources.memory_gb, w.timeout_seconds) for w in given] == [
        ("teacher", 1, 3600),
        *[("trial", 1, 3600)] * 4,
        *[("trial", 2, 300)] * 4,
    ]
