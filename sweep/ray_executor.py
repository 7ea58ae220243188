"""The one module that knows Ray: an agenda becomes Tune trials, and actors supervise lanes.

Tune is a disposable engine here. It is told ids as they become ready, its trials never raise, its
own state on disk is never read again. What it would do alone with a kill, a full disk or a second
launch is listed in DESIGN.md.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
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
from .agenda import Agenda
from .errors import ClusterUnreachableError
from .executors import MakeWork, Settle
from .lane_process import LaneProcess
from .lock import drain_request
from .work import Outcome, Work, fail

log = logging.getLogger("kdsweep")

POLL_SECONDS = 0.5
WAVE = 1000
"""Trials of one Tuner; Tune keeps every trial it ever saw in memory."""

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


class LaneTrainable(tune.Trainable):
    """An actor that supervises one lane; every ending of a trial is a result, never an error."""

    _lane: LaneProcess
    _work: Work
    _drained: bool

    def setup(self, config: dict[str, Any]) -> None:
        """Start a lane and give it its first work."""
        self._lane = LaneProcess()
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
        result: dict[str, Any] = {"step": self._lane.step, "done": outcome is not None}
        if outcome is not None:
            # Tune flattens dictionaries on their way.
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


class AgendaSearcher(Searcher):
    """Tells Tune the next piece of work when a lane is free; books what comes back."""

    def __init__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle) -> None:
        super().__init__(metric="step", mode="max")
        self._agenda = agenda
        self._make_work = make_work
        self._settle = settle
        self._given: dict[str, Work] = {}
        self._count = 0
        self.error: Exception | None = None

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
        if self._count >= WAVE or self.error is not None:
            return str(Searcher.FINISHED)
        with self._caught():
            id = self._agenda.take()
            if id is None:
                # None while nothing runs would make Tune sleep for minutes without a heartbeat.
                over = self._agenda.is_over or self._agenda.is_draining
                return str(Searcher.FINISHED) if over else None
            self._count += 1
            self._given[trial_id] = work = self._make_work(id)
            return {"work": work.model_dump_json()}
        return str(Searcher.FINISHED)

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  (Tune's signature)
    ) -> None:
        """Book an attempt that ended; one without an outcome lost its actor."""
        if (work := self._given.pop(trial_id, None)) is None:
            return
        with self._caught():
            told = None if error else (result or {}).get("outcome")
            outcome = (
                Outcome.model_validate_json(told)
                if told
                else fail(work, "worker_lost", "the actor that supervised the lane was lost")
            )
            self._settle(work, outcome)

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        """Keep an error of ours for the end of the wave: Tune would lose a slot to it and hang."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised again by the executor)
            self.error = self.error or error
            self._agenda.drain()

    def lost(self) -> Iterator[Work]:
        """Work that Tune never told the end of, as after an abort."""
        while self._given:
            yield self._given.popitem()[1]

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is never restored from."""

    def restore(self, checkpoint_path: str) -> None:
        """Tune's own state is never restored from."""


@dataclass
class RayExecutor:
    """Runs an agenda on a Ray cluster: a local one of its own unless an address is given."""

    resources: Resources
    address: str = "local"
    max_concurrent: int | None = None
    is_up: bool = False

    def is_lost(self) -> bool:
        """Whether no node of the cluster answers any more."""
        if not self.is_up:
            return False
        try:
            return not any(node["Alive"] for node in ray.nodes())
        except Exception:  # noqa: BLE001  (whatever Ray raises, the cluster does not answer)
            return self.is_up

    def __call__(self, agenda: Agenda, *, make_work: MakeWork, settle: Settle) -> None:
        """Return once the agenda is over, wave after wave."""
        with _ray(self.address), tempfile.TemporaryDirectory(prefix="kdsweep-tune-") as scratch:
            slots = _slots(self.resources, self.max_concurrent)
            self.is_up = True
            trainable = tune.with_resources(LaneTrainable, _Request(self.resources, _most_cpus()))
            while not agenda.is_over:
                searcher = AgendaSearcher(agenda, make_work=make_work, settle=settle)
                _wave(trainable, searcher, slots=slots, scratch=Path(scratch))
                if searcher.error is not None:
                    raise searcher.error
                for work in searcher.lost():
                    settle(work, fail(work, "worker_lost", "Ray Tune lost sight of this attempt"))
            self.is_up = False


def _wave(
    trainable: type[tune.Trainable], searcher: AgendaSearcher, *, slots: int, scratch: Path
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
            storage_path=str(scratch),
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
