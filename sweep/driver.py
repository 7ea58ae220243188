"""The one module that knows Ray: a process that turns work into Tune trials, wave after wave.

Run as `python -m kdsweep.sweep.driver IN OUT LANE SCRATCH`, with two file descriptors, the module
that trains and a folder for Tune's own files; `ray_executor` is the other end, and says which work
there is. Tune is a disposable engine here. It is told one piece of work when a lane is free, its
trials never raise, its own state on disk is never read again. What it would do alone with a kill, a
full disk or a second launch is listed in DESIGN.md.
"""

import contextlib
import json
import logging
import os
import queue
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray import tune
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.exceptions import AuthenticationError
from ray.tune.search import Searcher

from ..results.store import Store
from ..search_spaces.resources import Request
from .address import check_reachable
from .errors import ClusterUnreachableError
from .failpoints import Place, failpoint
from .lane_process import LaneProcess
from .lock import drain_request
from .machines import GIB, Machine, this_machine, unplaced
from .ray_executor import TOKEN, end_processes
from .survey import why_unusable
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
    # How much is pending is ours to say: see `Places`.
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


class Supervisor:
    """The launch, as its driver sees it."""

    def __init__(self, heard: int, said: int, *, scratch: str) -> None:
        self._said = os.fdopen(said, "wb")
        self._scratch = scratch
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
        shutil.rmtree(self._scratch, ignore_errors=True)
        os._exit(1)


class LaneTrainable(tune.Trainable):
    """An actor that supervises one lane; every ending of a trial is a result, never an error."""

    _lane: LaneProcess
    _work: Work
    _drained: bool
    _refused: str | None
    """Why the work is given back, as JSON, for Tune flattens dictionaries. Nothing is written where
    nobody would find it; and of an actor that raised, Ray's own files alone would say why."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start a lane and give it its first work, unless this node cannot do any."""
        self._lane = LaneProcess((sys.executable, "-m", config["lane"]))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Give the same lane its next work: imports, teacher and data stay."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Look after the lane for a moment."""
        if self._refused is None:
            with self._giving_back():
                return self._poll()
        return {"step": 0, "refused": self._refused, "done": True}

    def _poll(self) -> dict[str, Any]:
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
        store, epoch = self._work.store, self._work.epoch
        lock = Store(store).locks_folder / f"{epoch:06d}.json"
        self._refused = None
        with self._giving_back():
            if (why := why_unusable(store, lock, kdsweep=config["kdsweep"])) is not None:
                self._refused = json.dumps({"class": "environment", "why": why})
                return
            failpoint("lane", self._work.id)
            self._lane.begin(self._work)

    @contextlib.contextmanager
    def _giving_back(self) -> Iterator[None]:
        """What raises in here gives the work back; the next one begins with a new lane."""
        try:
            yield
        except Exception as error:
            logging.exception("a lane cannot be served")
            # A person has to mend what is missing or forbidden; anything else may pass.
            is_lasting = isinstance(error, FileNotFoundError | PermissionError)
            [told, *_] = f"{type(error).__name__}: {error}".splitlines()
            why = f"node {socket.gethostname()} cannot serve its lane: {told}"
            failure_class = "environment" if is_lasting else "worker_lost"
            self._refused = json.dumps({"class": failure_class, "why": why})
            self._lane.close()


@contextlib.contextmanager
def _called_by_tune(place: Place, trial_id: str) -> Iterator[None]:
    """Ends this process where a hook raises: Tune would lose a slot and sleep for minutes.

    A driver that is dead is replaced at once.
    """
    try:
        failpoint(place, trial_id)
        yield
    except Exception:
        logging.exception("a hook that Ray Tune called has raised")
        # It may have raised because the launch is gone; then nobody else ends them.
        end_processes(os.environ[TOKEN], but=os.getpid())
        os._exit(1)


class AskingSearcher(Searcher):
    """Tells Tune the next piece of work when a lane is free, and the supervisor what came back."""

    def __init__(self, supervisor: Supervisor, places: "Places", lane: str) -> None:
        super().__init__(metric="step", mode="max")
        self._supervisor = supervisor
        self._places = places
        self._fixed = {"lane": lane, "kdsweep": version("kdsweep")}

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
        with _called_by_tune("ask", trial_id):
            if not self._places.are_free():
                # To wait while nothing runs would make Tune sleep for minutes without a heartbeat.
                return None if self._places.taken else str(Searcher.FINISHED)
            match self._supervisor.ask(wants=trial_id):
                case {"work": work}:
                    self._places.take(trial_id, Work.model_validate_json(work))
                    return {"work": work, **self._fixed}
                case {"wait": _}:
                    return None
                case _:
                    return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a lane has said."""
        with _called_by_tune("tell", trial_id):
            self._pass_on(trial_id, result)

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  (Tune's signature)
    ) -> None:
        """Tell how an attempt ended; one without an outcome lost its actor."""
        with _called_by_tune("tell", trial_id):
            self._places.leave(trial_id)
            told = {} if error or result is None else result
            self._pass_on(trial_id, told)
            refused = json.loads(told.get("refused", "null"))
            self._supervisor.tell(ended=trial_id, outcome=told.get("outcome"), refused=refused)

    def _pass_on(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if messages := json.loads(result.get("heard", "[]")):
            self._supervisor.tell(heard=trial_id, messages=messages)

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is never restored from."""

    def restore(self, checkpoint_path: str) -> None:
        """Tune's own state is never restored from."""


class Places:
    """Where work can go: the nodes of a cluster as they come and go, and what they hold."""

    def __init__(self, *, most: int | None, is_growing: bool) -> None:
        """Look at the nodes.

        Args:
            most: At most so many at once; None: as many as there is room for.
            is_growing: Whether one more than there is room for may wait. A cluster that scales
                itself sees by it that a node is wanted.
        """
        self._most = most
        self._is_growing = is_growing
        self._machines: tuple[Machine, ...] = ()
        self._looked = float("-inf")
        self._known: tuple[object, bool] | None = None
        self.taken: dict[str, Request] = {}

    def machines(self) -> tuple[Machine, ...]:
        """The nodes that are alive, at most `LOOK_SECONDS` ago."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._machines = tuple(sorted(map(_machine, _alive()), key=lambda each: each.name))
            self._looked = time.monotonic()
        return self._machines

    def are_free(self) -> bool:
        """Whether there is a place for one more piece of work."""
        now = (self.machines(), frozenset(self.taken))
        if self._known is None or self._known[0] != now:
            self._known = (now, self._have_room())
        return self._known[1]

    def take(self, trial_id: str, work: Work) -> None:
        """Note that work was given away."""
        self.taken[trial_id] = asked_by(work, self.machines())

    def leave(self, trial_id: str) -> None:
        """Note that it has ended."""
        self.taken.pop(trial_id, None)

    def _have_room(self) -> bool:
        if not self._machines or len(self.taken) >= (self._most or sys.maxsize):
            return False
        held = list(self.taken.values())
        # What the next one asks for is not known yet; if it is more, it waits for its place.
        least = [] if self._is_growing or not held else [min(held, key=_size)]
        return unplaced([*held, *least], self._machines) == 0


def asked_by(work: Work, machines: Sequence[Machine]) -> Request:
    """What a piece of work asks of a node.

    A teacher is prepared with more threads than a trial has; where no node has as many processors,
    it would wait for ever.
    """
    most = int(max((machine.cpus for machine in machines), default=work.threads))
    return work.resources.model_copy(update={"cpus": max(1, min(work.threads, most))})


def _size(request: Request) -> tuple[float, float, int]:
    return request.gpus, request.memory_gb, request.cpus


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]


def _machine(node: Mapping[str, Any]) -> Machine:
    has = node["Resources"]
    return Machine(
        name=node["NodeID"],
        cpus=has["CPU"],
        gpus=has.get("GPU", 0),
        memory_gb=has.get("memory", 0) / GIB,
    )


def main() -> None:
    """Serve one launch until it says that its agenda is over."""
    heard, said, lane, scratch = sys.argv[1:]
    supervisor = Supervisor(int(heard), int(said), scratch=scratch)
    asked = supervisor.answer()
    address = asked["address"]
    try:
        with _ray(address):
            threading.Thread(target=_leave_with_the_cluster, daemon=True).start()
            supervisor.tell(up=True)
            places = Places(most=asked["max_concurrent"], is_growing=address != "local")
            going = True
            while going:
                while not places.machines():
                    # They may come back; `_leave_with_the_cluster` knows when nothing does.
                    time.sleep(LOOK_SECONDS)
                _wave(AskingSearcher(supervisor, places, lane), places, scratch=scratch)
                places.taken.clear()
                going = "go" in supervisor.ask(wave="over")
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


def _wave(searcher: AskingSearcher, places: Places, *, scratch: str) -> None:
    tune.Tuner(
        tune.with_resources(LaneTrainable, _Placement(places.machines())),
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="wave",
            storage_path=scratch,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()


@dataclass(frozen=True)
class _Placement:
    """What a piece of work asks of the cluster, in Ray's terms."""

    machines: tuple[Machine, ...]

    def __call__(self, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        asked = asked_by(Work.model_validate_json(config["work"]), self.machines)
        bundle = {"CPU": asked.cpus, "GPU": asked.gpus, "memory": asked.memory_gb * GIB}
        return tune.PlacementGroupFactory([{name: n for name, n in bundle.items() if n}])


@contextlib.contextmanager
def _ray(address: str) -> Iterator[None]:
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        machine = this_machine()
        options |= {
            "include_dashboard": False,
            # What requests were compared with; Ray would count the memory that is free just now.
            "num_cpus": machine.cpus,
            "num_gpus": machine.gpus,
            "_memory": int(machine.memory_gb * GIB),
            "object_store_memory": 128 * 2**20,
        }
    try:
        # Without an explicit address Ray joins any cluster it finds on this machine, even a dead
        # one.
        with _unreachable(address):
            if address != "local":
                check_reachable(canonicalize_bootstrap_address_or_die(address))
            ray.init(address=address, **options)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _unreachable(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, AuthenticationError) as error:
        # Also an OSError, which would be taken for a full disk.
        message = f"no Ray cluster answers at {address}: {error}"
        raise ClusterUnreachableError(message) from error


if __name__ == "__main__":
    # Actors are to find these classes by the module's name.
    from kdsweep.sweep import driver

    driver.main()
