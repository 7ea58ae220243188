"""A grid is read without any framework."""

import subprocess
import sys
from pathlib import Path

HEAVY = ["torch", "ray", "pandas", "pyarrow", "transformers", "datasets", "scipy", "typer", "rich"]


def test_reading_and_expanding_a_grid_loads_no_framework() -> None:
    code = (
        "import sys; from pathlib import Path; from kdsweep.search_spaces import *;"
        "grid = read_grid(starter_grid(), file='g', base=Path());"
        "plan = expand(grid, ShippedFacts()); grid_schema();"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_bad_grid_is_refused_without_any_framework(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("nam: x\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from kdsweep.search_spaces import GridError, load_grid\n"
        f"try: load_grid(Path({str(path)!r}))\n"
        "except GridError as error: print(len(error.problems))\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4\n[]\n"
