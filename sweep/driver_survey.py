"""Asks a Ray cluster what `survey` wants to know, in a process of its own, and says it as JSON.

Run as `python -m kdsweep.sweep.driver_survey door ADDRESS` or `... nodes JSON`.
"""

import json
import logging
import os
import sys
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .machines import GIB
from .survey import Asked, look

NODE_SECONDS = 60.0
"""How long the nodes may take, all at once: one may have to import torch from a cold disk."""


def main() -> None:
    """Answer one question on standard output."""
    match sys.argv[1:]:
        case ["door", address]:
            told = _door(address)
        case ["nodes", asked]:
            told = _nodes(asked)
        case words:
            raise SystemExit(f"{words}: no such question")
    print(json.dumps(told), flush=True)  # noqa: T201  (this is the answer)
    # Ray's threads may crash an interpreter that is torn down around them.
    os._exit(0)


def _door(address: str) -> dict[str, Any]:
    """Whether the cluster answers somebody who shows what this process's variables say."""
    try:
        gcs = GcsClient(address=canonicalize_bootstrap_address_or_die(address))
        gcs.internal_kv_keys(b"", b"session")
    except AuthenticationError:
        return {"opens": False}
    except (RayError, ConnectionError, RuntimeError) as error:
        return {"unreachable": _first_line(error)}
    return {"opens": True}


def _nodes(asked: str) -> dict[str, Any]:
    address = Asked.model_validate_json(asked).address
    # Ray itself would try for twenty seconds, and say nothing of the token.
    if (door := _door(address)) != {"opens": True}:
        return door
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        return {"unreachable": _first_line(error)}
    # A node without processors trains nothing: a head that only leads, or this very host.
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0)]
    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    answers = {
        node["NodeID"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(asked, node["NodeID"])
        for node in nodes
    }
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_SECONDS)
    return {"nodes": [_node(node, answers[node["NodeID"]]) for node in nodes]}


def _node(node: dict[str, Any], answer: "ray.ObjectRef[Any]") -> dict[str, Any]:
    seen, error = None, None
    try:
        seen = json.loads(ray.get(answer, timeout=0))
    except GetTimeoutError:
        error = f"it says nothing for {NODE_SECONDS:g} s"
    except RayError as raised:
        error = str(raised).strip().splitlines()[-1]
    resources = node["Resources"]
    return {
        "id": node["NodeID"],
        "name": f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
        "cpus": resources.get("CPU", 0),
        "gpus": resources.get("GPU", 0),
        "memory_gb": resources.get("memory", 0) / GIB,
        "seen": seen,
        "error": error,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


if __name__ == "__main__":
    # Nodes are to find these functions by the module's name.
    from kdsweep.sweep import driver_survey

    driver_survey.main()
