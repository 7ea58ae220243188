"""An actor of Ray's whose lane cannot be served: its work comes back with the reason."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kdsweep.sweep.work import Work

driver = pytest.importorskip("kdsweep.sweep.driver")


@pytest.fixture
def config(work: Work) -> dict[str, Any]:
    """What an actor is told of the preparation of the tiny grid's teacher."""
    return {"work": work.model_dump_json(), "lane": "toy_lane", "kdsweep": version("kdsweep")}


def refused(result: dict[str, Any]) -> tuple[str, str]:
    """The class and the reason with which an actor gave its work back."""
    assert result["done"]
    assert "outcome" not in result
    told = json.loads(result["refused"])
    return told["class"], told["why"]


def test_what_may_pass_is_tried_again(
    config: dict[str, Any], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSWEEP_FAILPOINT", f"lane=raise:{work.id}")
    actor = driver.LaneTrainable(config)
    failure_class, why = refused(actor.step())
    assert failure_class == "worker_lost"
    assert f"cannot serve its lane: RuntimeError: failpoint lane of {work.id}" in why


def test_what_is_missing_has_to_be_mended_and_then_the_actor_goes_on(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    actor = driver.LaneTrainable(config)
    failure_class, why = refused(actor.step())
    assert failure_class == "environment"
    assert "FileNotFoundError" in why
    monkeypatch.setattr(actor._lane, "_command", (python, "-c", "input()"))
    assert actor.reset_config(config)
    assert actor._refused is None
    actor.cleanup()


def test_a_lane_that_speaks_no_json_gives_its_work_back_and_is_ended(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "babbling.py").write_text(
        "import os, sys, time\nos.write(int(sys.argv[1]), b'no JSON\\n')\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    actor = driver.LaneTrainable(config | {"lane": "babbling"})
    results = [actor.step()]
    while not results[-1]["done"]:
        results.append(actor.step())
    failure_class, why = refused(results[-1])
    assert failure_class == "worker_lost"
    assert "JSONDecodeError" in why
    assert actor._lane._process is None
