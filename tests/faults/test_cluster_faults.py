"""Nodes come and go, the head dies, and what is asked for is nowhere."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from fault_table import fault
from ray_cluster import RayCluster, credentials, ray_cluster
from toy import TOKEN, Toy, wait_for

slow = pytest.mark.slow

LEFT = "exit 75, resumed on a new one"


def start(toy: Toy, at: RayCluster, home: Path, *words: str | Path) -> "subprocess.Popen[str]":
    command = words or ("launch", "grid.yaml")
    return toy.start(*command, "--quiet", "--address", at.address, **credentials(home))


def of(toy: Toy) -> Mapping[str, str]:
    """What makes a cluster's lanes those of the sweep."""
    return {"KDSWEEP_CACHE_DIR": str(toy.cache), TOKEN: toy.token}


@fault(5, "a node is added, and one lost, in mid-sweep", "the new one is used, nothing is lost")
def test_a_node_is_added_and_one_is_lost(toy: Toy, reference: pd.DataFrame) -> None:
    home, held = toy.folder / "home", toy.folder / "held"
    id = reference.index[5]
    point = f"checkpoint=hang:{id}:{held}"
    with ray_cluster(1, home=home, KDSWEEP_FAILPOINT=point, **of(toy)) as nodes:
        launch = start(toy, nodes, home)
        wait_for(held.exists)
        # The only node there was now stands still in the middle of a trial.
        nodes.add(1)
        wait_for(lambda: len(toy.completed()) == len(reference))
        before = toy.completed()
        assert id not in before
        nodes.remove(0)
        assert launch.wait() == 0, toy.said
    toy.check(reference, before)
    assert toy.failures() == ["worker_lost"]


@slow
@pytest.mark.parametrize(
    "ends",
    [
        pytest.param("behead", marks=fault(6, "the head is killed", LEFT)),
        pytest.param("end", marks=fault(7, "the whole cluster is stopped", LEFT)),
    ],
)
def test_the_head_is_lost(toy: Toy, reference: pd.DataFrame, ends: str) -> None:
    home, held = toy.folder / "home", toy.folder / "held"
    point = f"checkpoint=hang:{reference.index[5]}:{held}"
    with ray_cluster(1, home=home, KDSWEEP_FAILPOINT=point, **of(toy)) as nodes:
        launch = start(toy, nodes, home)
        wait_for(held.exists)
        before = toy.completed()
        nodes.behead() if ends == "behead" else nodes.end()
        assert launch.wait() == 75, toy.said
    with ray_cluster(2, home=home, **of(toy)) as others:
        assert start(toy, others, home, "resume", toy.store).wait() == 0, toy.said
    toy.check(reference, before)


@fault(26, "more memory is asked for than there is", "refused before anything is spent")
def test_memory_that_is_nowhere(toy: Toy) -> None:
    toy.write_grid(resources={"memory_gb": 10**6, "cpus": 10**4})
    for words in (("plan", "grid.yaml"), ("launch", "grid.yaml")):
        assert toy.run(*words) == 2
        assert "resources.cpus: a trial asks for 10000 cpus, and this machine has" in toy.said
        assert "resources.memory_gb: a trial asks for 1e+06 GB of memory" in toy.said
    assert not toy.store.exists()
    # Where they will run is asked when they are launched.
    assert toy.run("plan", "grid.yaml", "--address", "10.0.0.1:6379") == 0
