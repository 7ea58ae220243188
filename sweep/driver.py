"""The one module that knows Ray: a process that turns work into Tune trials, wave after wave.

Run as `python -m kdsweep.sweep.driver IN OUT LANE`, with two file descriptors and the module that
trains; `ray_executor` is the other end, and says which work there is. Tune is a disposable engine
here. It is told one piece of work when a lane is free, its trials never raise, its own state on
disk is never read again. What it would do alone with a kill, a full disk or a second launch is
listed in DESIGN.md.
"""

import contextlib
import json
import logging
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.tune.search import Searcher

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.grid import Resources
from .errors import ClusterUnreachableError
from .lane_process import LaneProcess
from .lock import drain_request
from .ray_executor import TOKEN, as_refusal, end_processes
from .work import Work

POLL_SECONDS = 1.0
"""How long an actor waits for its lane; what the lane says ends the wait."""

LOOK_SECONDS = 2.0
"""Between looks whether the cluster is still there."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TQDM": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "30",
    # Tune's snapshots are never restored from; each one costs as much as all trials so far.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


class Supervisor:
    """The launch, as its driver sees it."""

    def __init__(self, heard: int, said: int) -> None:
        self._said = os.fdopen(said, "wb")
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, args=(os.fdopen(heard, "rb"),), daemon=True).start()

    def tell(self, **message: Any) -> None:
        """Say something that needs no answer."""
        self._said.write(json.dumps(message).encode() + b"\n")
        self._said.flush()

    def ask(self, **message: Any) -> dict[str, Any]:
        """Say something and wait for the answer."""
        self.tell(**message)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for what the supervisor says."""
        return self._answers.get()

    def _listen(self, lines: Iterator[bytes]) -> None:
        for line in lines:
            self._answers.put(json.loads(line))
        # The launch is gone: nobody is left to be told an outcome, and a newer one may train this.
        end_processes(os.environ[TOKEN], but=os.getpid())
        os._exit(1)


class LaneTrainable(tune.Trainable):
    """An actor that supervises one lane; every ending of a trial is a result, never an error."""

    _lane: LaneProcess
    _work: Work
    _drained: bool

    def setup(self, config: dict[str, Any]) -> None:
        """Start a lane and give it its first work."""
        self._lane = LaneProcess((sys.executable, "-m", config["lane"]))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Give the same lane its next work: imports, teacher and data stay."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Look after the lane for a moment."""
        if not self._drained and self._drain_request.exists():
            self._drained = True
            self._lane.drain()
        outcome = self._lane.poll(POLL_SECONDS)
        # Tune flattens dictionaries on their way.
        result: dict[str, Any] = {
            "step": self._lane.step,
            "heard": json.dumps(self._lane.heard()),
            "done": outcome is not None,
        }
        if outcome is not None:
            result["outcome"] = outcome.model_dump_json()
        return result

    def cleanup(self) -> None:
        """End the lane with everything it started."""
        self._lane.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._work = Work.model_validate_json(config["work"])
        self._drain_request = drain_request(Store(self._work.store).locks_folder, self._work.epoch)
        self._drained = False
        self._lane.begin(self._work)


class AskingSearcher(Searcher):
    """Tells Tune the next piece of work when a lane is free, and the supervisor what came back."""

    def __init__(self, supervisor: Supervisor, lane: str) -> None:
        super().__init__(metric="step", mode="max")
        self._supervisor = supervisor
        self._lane = lane

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its own configuration into a file that nobody reads."""
        return {}

    def set_search_properties(self, *_: object, **__: object) -> bool:
        """Nothing here depends on a metric."""
        return True

    # Searcher.FINISHED is a string, which its own signature does not say.
    def suggest(  # type: ignore[override]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next work, None while what runs may still release some, or the end of this wave."""
        match self._supervisor.ask(wants=trial_id):
            case {"work": work}:
                return {"work": work, "lane": self._lane}
            case {"wait": _}:
                return None
            case _:
                return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a lane has said."""
        self._pass_on(trial_id, result)

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  (Tune's signature)
    ) -> None:
        """Tell how an attempt ended; one without an outcome lost its actor."""
        told = {} if error or result is None else result
        self._pass_on(trial_id, told)
        self._supervisor.tell(ended=trial_id, outcome=told.get("outcome"))

    def _pass_on(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if messages := json.loads(result.get("heard", "[]")):
            self._supervisor.tell(heard=trial_id, messages=messages)

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is never restored from."""

    def restore(self, checkpoint_path: str) -> None:
        """Tune's own state is never restored from."""


def main() -> None:
    """Serve one launch until it says that its agenda is over."""
    heard, said, lane = sys.argv[1:]
    supervisor = Supervisor(int(heard), int(said))
    asked = supervisor.answer()
    resources = Resources.model_validate(asked["resources"])
    try:
        with _ray(asked["address"]), tempfile.TemporaryDirectory(prefix="kdsweep-tune-") as scratch:
            slots = _slots(resources, asked["max_concurrent"])
            threading.Thread(target=_leave_with_the_cluster, daemon=True).start()
            supervisor.tell(up=slots)
            trainable = tune.with_resources(LaneTrainable, _Request(resources, _most_cpus()))
            going = True
            while going:
                _wave(trainable, AskingSearcher(supervisor, lane), slots=slots, scratch=scratch)
                going = "go" in supervisor.ask(wave="over")
    except InputError as error:
        supervisor.tell(**as_refusal(error))
    except ClusterUnreachableError as error:
        supervisor.tell(unreachable=str(error))
    # Ray's threads may crash an interpreter that is torn down around them.
    os._exit(0)


def _leave_with_the_cluster() -> None:
    """Without any node nothing will ever be settled, and Tune would wait for it."""
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            is_there = any(node["Alive"] for node in ray.nodes())
        except Exception:
            logging.exception("the cluster does not answer")
            is_there = False
        if not is_there:
            os._exit(1)


def _wave(
    trainable: type[tune.Trainable], searcher: AskingSearcher, *, slots: int, scratch: str
) -> None:
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="wave",
            storage_path=scratch,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()


@dataclass(frozen=True)
class _Request:
    """What a piece of work asks of the cluster."""

    resources: Resources
    most_cpus: int
    """Of one node: a request beyond it would wait for ever."""

    def __call__(self, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        work = Work.model_validate_json(config["work"])
        bundle = {
            "CPU": min(work.threads, self.most_cpus),
            "GPU": self.resources.gpus,
            "memory": self.resources.memory_gb * 2**30,
        }
        return tune.PlacementGroupFactory([{name: n for name, n in bundle.items() if n}])


def _most_cpus() -> int:
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return int(max(nodes, default=1))


def _slots(resources: Resources, max_concurrent: int | None) -> int:
    """How many lanes the cluster bears at once.

    Raises:
        InputError: One trial asks for more than the whole cluster has, so it would wait for ever.
    """
    need = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory_gb * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = sum(
        min(int(node.get(kind, 0) / amount) for kind, amount in need.items() if amount)
        for node in nodes
    )
    if slots:
        return min(slots, max_concurrent or slots)
    most = {kind: max(node.get(kind, 0) for node in nodes) for kind in need}
    raise InputError(
        [
            Problem(
                "resources",
                f"a trial asks for {resources.cpus} cpus, {resources.gpus:g} gpus and "
                f"{resources.memory_gb:g} GB, and no node of the cluster has that; the most that "
                f"any has is {most['CPU']:g}, {most['GPU']:g} and {most['memory'] / 2**30:.3g} GB",
                "Ask for less, or launch on a larger cluster with `--address`.",
            )
        ]
    )


@contextlib.contextmanager
def _ray(address: str) -> Iterator[None]:
    os.environ.update(ENVIRONMENT)
    # This variable names code to import into the driver.
    os.environ.pop("RAY_TUNE_CALLBACKS", None)
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "include_dashboard": False,
            "num_cpus": psutil.cpu_count(),
            "object_store_memory": 128 * 2**20,
        }
    try:
        # Without an explicit address Ray joins any cluster it finds on this machine, even a dead
        # one.
        with _unreachable(address):
            ray.init(address=address, **options)
        _make_private(Path.home() / ".ray" / "auth_token")
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _unreachable(address: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        # Also an OSError, which would be taken for a full disk.
        message = f"no Ray cluster answers at {address}: {error}"
        raise ClusterUnreachableError(message) from error


def _make_private(token: Path) -> None:
    # Ray writes its token with the default umask; whoever reads it may run code on the cluster.
    with contextlib.suppress(FileNotFoundError):
        token.chmod(0o600)


if __name__ == "__main__":
    # Actors are to find these classes by the module's name.
    from kdsweep.sweep import driver

    driver.main()
