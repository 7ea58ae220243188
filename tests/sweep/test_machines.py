"""Whether what trials ask for can be had, and how much of it at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces.resources import Request
from kdsweep.sweep.machines import Machine, this_machine, unmet, unplaced

SMALL = Machine("small", cpus=4, gpus=0, memory_gb=16)
LARGE = Machine("large", cpus=8, gpus=1, memory_gb=32)


def test_what_some_machine_has_is_no_problem() -> None:
    asked = [Request(cpus=8, gpus=1, memory_gb=32), Request(cpus=4)]
    assert unmet(asked, [SMALL, LARGE]) == []


def test_of_each_kind_the_largest_request_is_told_and_all_kinds_at_once() -> None:
    asked = [Request(cpus=9, memory_gb=40), Request(gpus=0.5, memory_gb=64)]
    told = unmet(asked, [SMALL])
    assert [(problem.path, problem.what) for problem in told] == [
        ("resources.cpus", "a trial asks for 9 cpus, and small has 4"),
        ("resources.gpus", "a trial asks for 0.5 GPUs, and small has 0"),
        ("resources.memory_gb", "a trial asks for 64 GB of memory, and small has 16"),
    ]
    assert all("--address" in problem.mend for problem in told)
    [problem] = unmet([Request(cpus=9)], [SMALL, LARGE])
    assert problem.what == "a trial asks for 9 cpus, and large has 8, the most of any node"


def test_amounts_that_are_there_on_different_machines_are_not_there_at_once() -> None:
    machines = [Machine("gpu", cpus=4, gpus=1, memory_gb=8), SMALL]
    [problem] = unmet([Request(gpus=1, memory_gb=16)], machines)
    assert "1 cpus, 1 GPUs and 16 GB of memory at once" in problem.what


def test_a_cluster_without_nodes_meets_nothing() -> None:
    assert {problem.path for problem in unmet([Request(gpus=1)], [])} == {
        "resources.cpus",
        "resources.gpus",
        "resources.memory_gb",
    }


@pytest.mark.parametrize(
    ("asked", "waiting"),
    [
        ([Request(cpus=2, memory_gb=1)] * 6, 0),
        ([Request(cpus=2, memory_gb=1)] * 7, 1),
        # Memory, not processors: one on the small machine, two on the large one.
        ([Request(memory_gb=16)] * 5, 2),
        # Ten tenths of a GPU are one.
        ([Request(cpus=1, gpus=0.1, memory_gb=1)] * 8, 0),
        ([Request(cpus=1, gpus=0.5, memory_gb=1)] * 3, 1),
        # A large one finds its place although small ones were there first.
        ([*[Request(cpus=1, memory_gb=1)] * 4, Request(cpus=8, gpus=1, memory_gb=1)], 0),
    ],
)
def test_requests_that_do_not_fit_beside_each_other_wait(
    asked: list[Request], waiting: int
) -> None:
    assert unplaced(asked, [SMALL, LARGE]) == waiting


def test_tenths_of_a_gpu_add_up_to_a_whole_one() -> None:
    machine = Machine("m", cpus=16, gpus=1, memory_gb=100)
    assert unplaced([Request(gpus=0.1, memory_gb=1)] * 10, [machine]) == 0
    assert unplaced([Request(gpus=0.1, memory_gb=1)] * 11, [machine]) == 1


REQUESTS = st.builds(
    Request,
    cpus=st.integers(1, 4),
    gpus=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    memory_gb=st.sampled_from([0.5, 1.0, 2.0]),
)


@given(st.lists(REQUESTS, max_size=12))
def test_what_is_placed_is_within_what_there_is(asked: list[Request]) -> None:
    machines = [SMALL, LARGE]
    waiting = unplaced(asked, machines)
    assert 0 <= waiting <= len(asked)
    assert unplaced(asked, []) == len(asked)
    assert unplaced(asked, machines * 12) <= waiting
    if waiting == 0:
        assert sum(r.cpus for r in asked) <= 12
        assert sum(r.gpus for r in asked) <= 1


def test_this_machine_has_processors_and_memory() -> None:
    here = this_machine()
    assert here.cpus >= 1
    assert here.memory_gb > 0.5
    assert unmet([Request(cpus=1, memory_gb=0.5)], [here]) == []
