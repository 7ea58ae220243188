"""Importing the package costs nothing until something is asked of it."""

import subprocess
import sys

from kdsweep import results


def test_importing_results_loads_neither_pandas_nor_pyarrow() -> None:
    code = (
        "import sys, kdsweep.results; print([m for m in ('pandas', 'pyarrow') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert dir(results) == ["Results", "Store", "load"]
    assert [getattr(results, name).__name__ for name in dir(results)] == dir(results)
    assert not hasattr(results, "nothing")
