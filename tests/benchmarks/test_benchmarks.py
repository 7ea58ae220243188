"""What the benchmarks print, and that they run on the real code at their smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdsweep.search_spaces.embedded import embedded_data_file, embedded_model_folder

ROOT = Path(__file__).parents[2]

needs_demo = pytest.mark.skipif(
    embedded_model_folder("minilm-l6-h384") is None or embedded_data_file("tweets") is None,
    reason="the embedded teacher and data are not installed (pip install '.[demo]')",
)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the teacher of the benchmarks stays from one to the next."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.slow
@pytest.mark.parametrize(
    "bench",
    [
        "startup",
        "plan",
        "store",
        "orchestration",
        pytest.param("throughput", marks=needs_demo),
        pytest.param("limit", marks=needs_demo),
        pytest.param("scaling", marks=needs_demo),
        pytest.param("memory", marks=needs_demo),
        pytest.param("features", marks=needs_demo),
    ],
)
def test_a_benchmark_prints_a_table_and_then_ratio_spread_and_machine(
    bench: str, kept: Path
) -> None:
    said = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{bench}.py"), "tiny"],
        env=os.environ | {"KDSWEEP_CACHE_DIR": str(kept)},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    *table, line = said.stdout.splitlines()
    assert table
    assert not [row for row in table if row.startswith("{")]
    told = json.loads(line)
    assert told["bench"] == bench
    assert told["machine"]["cores"] >= 1
    assert told["rows"]
    assert told["ratio"]
    for name, median in told["ratio"].items():
        low, high = told["spread"][name]
        assert low <= median <= high, name


def test_every_benchmark_of_make_bench_is_tested() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [line] = [line for line in makefile.splitlines() if line.startswith("BENCHES :=")]
    run_by_make = set(line.removeprefix("BENCHES :=").split())
    [parametrised] = [
        mark
        for mark in test_a_benchmark_prints_a_table_and_then_ratio_spread_and_machine.pytestmark
        if mark.name == "parametrize"
    ]
    tested = {each if isinstance(each, str) else each.values[0] for each in parametrised.args[1]}
    assert tested == run_by_make
