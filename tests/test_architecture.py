"""What the house must never become."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("results", "search_spaces", "sweep", "trainers")
HEAVY = ("torch", "ray", "transformers", "datasets", "pandas", "pyarrow")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(said.stdout.split())


def test_search_spaces_load_neither_torch_nor_ray_nor_pandas() -> None:
    assert not loaded_by("import kdsweep.search_spaces") & set(HEAVY)


@pytest.mark.parametrize("package", ["kdsweep.results", "kdsweep.trainers", "kdsweep.sweep.cli"])
def test_a_package_loads_nothing_heavy_before_it_is_asked(package: str) -> None:
    assert not loaded_by(f"import {package}") & set(HEAVY)


def test_results_are_read_without_torch_and_ray() -> None:
    assert not loaded_by("from kdsweep.results import load") & {"torch", "ray", "transformers"}


def test_every_folder_is_packaged_and_no_generic_name_is_installed() -> None:
    packaging = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packaging["packages"] == [f"kdsweep.{name}" for name in PACKAGES]
    assert packaging["package-dir"] == {f"kdsweep.{name}": name for name in PACKAGES}
    for name in PACKAGES:
        assert not [path for path in (ROOT / name).rglob("__init__.py") if path.parent.name != name]


def test_only_drivers_name_ray() -> None:
    naming = [
        path.name
        for name in PACKAGES
        for path in (ROOT / name).glob("*.py")
        if any(
            line.startswith(("import ray", "from ray")) for line in path.read_text().splitlines()
        )
    ]
    assert sorted(naming) == ["driver.py", "driver_survey.py"]
