"""Real trials on a cluster of three nodes, one of which dies while another comes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_table import fault
from ray_cluster import credentials, ray_cluster
from toy import wait_for
from world import TASK

from kdsweep import results

GRID = {
    "name": "two-hundred",
    "task": TASK,
    "teacher": {
        "model": "./teacher",
        "fine_tune": {"epochs": 4, "learning_rate": 5e-3, "batch_size": 16},
    },
    "axes": {
        "knowledge": ["hard_labels", ["hard_labels", "soft_logits"]],
        "shape": [
            {"layers": 1, "width": 16, "heads": 2},
            {"layers": 2, "width": 16, "heads": 2},
        ],
        "training.learning_rate": [1e-3, 2e-3, 3e-3, 5e-3, 1e-2],
        "seed": list(range(10)),
    },
    "training": {"epochs": 1, "batch_size": 32, "evaluate": {"times": 2}},
    "resources": {"memory_gb": 1, "when": [{"if": {"shape.layers": 2}, "memory_gb": 1.5}]},
    "keep": {"students": "none"},
}


@pytest.mark.slow
@fault(5, "200 real trials, a node killed after 40 and one added after 80", "all completed")
def test_two_hundred_real_trials_while_nodes_go_and_come(toy_files: Path, tmp_path: Path) -> None:
    for path in toy_files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "grid.yaml").write_text(json.dumps(GRID))
    home, store = tmp_path / "home", tmp_path / "runs" / "two-hundred"
    environment = {"KDSWEEP_CACHE_DIR": str(tmp_path / "cache"), "NO_COLOR": "1"}

    def completed() -> int:
        return len(list(store.glob("attempts/*.parquet"))) if store.exists() else 0

    began = time.monotonic()
    with (
        ray_cluster(1, 1, 1, home=home, **environment) as nodes,
        (tmp_path / "said.txt").open("w") as said,
    ):
        launch = subprocess.Popen(
            [
                *(sys.executable, "-m", "kdsweep.sweep"),
                *("launch", "grid.yaml", "--address", nodes.address),
            ],
            cwd=tmp_path,
            env={**os.environ, **environment, **credentials(home)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        wait_for(lambda: completed() > 40 or launch.poll() is not None, seconds=1800)
        nodes.remove(1)
        wait_for(lambda: completed() > 80 or launch.poll() is not None, seconds=1800)
        nodes.add(1)
        assert launch.wait() == 0, (tmp_path / "said.txt").read_text()
    trials = results.load(store).trials
    assert list(trials["status"]) == ["completed"] * 200
    failed = results.load(store).failures()
    assert set(failed["failure_class"]) <= {"worker_lost"}
    sys.stderr.write(f"200 trials in {time.monotonic() - began:.0f} s, {len(failed)} attempts lost")
