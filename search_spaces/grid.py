"""A grid: everything a sweep's file says, as typed and frozen values."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticOmit
from pydantic_core.core_schema import AnySchema, any_schema

from .early_stopping import Asha
from .plugins import PluginFile
from .predicate import ExcludeRule, OrderRule, WhenRule
from .resources import Request, ResourceRule
from .search import GridSearch, Search
from .sections import Sections
from .spec import Count, Name, NonNegative, Positive, Spec, Tries
from .task import Task, Teacher
from .training import Training
from .values import AxisMapping


class _Checked:
    """Marks a field that the reader has checked: no part of pydantic's checks or schema."""

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> AnySchema:
        """Accepts what it is given."""
        del source, handler
        return any_schema()

    def __get_pydantic_json_schema__(self, core: object, handler: object) -> dict[str, Any]:
        """Leaves the field out."""
        del core, handler
        raise PydanticOmit


class Resources(Request):
    """What one trial takes; by `when`, some trials something else."""

    when: Annotated[tuple[ResourceRule, ...], _Checked()] = ()
    """Other amounts for some points; a later rule wins."""

    @property
    def common(self) -> Request:
        """What a trial takes where no rule says otherwise."""
        return Request.model_validate(self.model_dump(exclude={"when"}))


class Retries(Spec):
    """How often a trial is tried again, by the class of its failure.

    A plain number stands for the classes that a trial itself causes and that may pass by
    themselves: `error`, `timeout`, `stalled` and `signal`; the others keep their defaults. Each
    class counts alone: a lost worker uses up nothing of what an error may.
    """

    error: Tries = 1
    """An exception in the trial."""
    nan: Tries = 0
    """A loss that is not finite; the next attempt would see the same numbers."""
    out_of_memory: Tries = 3
    """Memory of the GPU, even with one row of a batch at a time, or of the host."""
    timeout: Tries = 1
    """Longer than `resources.timeout_minutes`."""
    stalled: Tries = 1
    """No step for `resources.stall_minutes`."""
    signal: Tries = 2
    """The lane crashed or was killed."""
    worker_lost: Tries = 10
    """The worker or its host went away."""
    preempted: Tries = 100
    """The host asked the lane to leave (SIGTERM); the next attempt goes on from its checkpoint."""
    environment: Tries = 0
    """Files, packages or devices; a person has to mend it."""
    cancelled: Tries = 0
    """A person asked that it end."""

    def allowed(self, failure_class: str) -> int:
        """How many retries a failure of this class has; an unknown class counts as `error`."""
        tries: int = getattr(self, failure_class, self.error)
        return tries


def _by_class(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return dict.fromkeys(("error", "timeout", "stalled", "signal"), value)
    return value


class Keep(Spec):
    """What stays in the store beside metrics and history."""

    students: Literal["all", "best_per_group", "none"] = "best_per_group"
    """Weights chosen on select: of every trial, of the best of each group, or of none."""
    predictions: Literal["last", "best", "none"] = "last"
    """Logits on select and report: with the last weights, with the best on select, or none."""


class Budget(Spec):
    """When a sweep stops by itself, counted over all of its launches; null: no limit."""

    hours: Positive | None = None
    """Hours in which launches worked; what runs when they are over is checkpointed."""
    gpu_hours: Positive | None = None
    """Hours times GPUs, or shares of one, that were given to work."""
    trials: Count | None = None
    """Number of trials that end completed or stopped; what runs when it is reached finishes."""


class Grid(Spec):
    """A sweep's file, read and checked."""

    model_config = ConfigDict(title="kdsweep grid")

    name: Name
    """Names the sweep and its store folder."""
    task: Task
    """The data; keys that only axes give stand here with their first value."""
    teacher: Teacher
    """The model that teaches; keys that only axes give stand here with their first value."""
    plugins: Annotated[
        tuple[PluginFile, ...],
        _Checked(),
        WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": r"\.py$"}}),
    ] = ()
    """Files of losses of your own, relative to the grid file; terms `{kind: plugin}` name their
    functions. Training executes them, so commands ask for `--allow-plugins`."""
    axes: Annotated[tuple[AxisMapping, ...], _Checked()]
    """Mappings of axes whose points are united."""
    zip: Annotated[tuple[tuple[str, ...], ...], _Checked()] = ()
    """Groups of axes that walk together instead of multiplying."""
    when: Annotated[tuple[WhenRule, ...], _Checked()] = ()
    """Values or further axes for some points; a later rule wins."""
    exclude: Annotated[tuple[ExcludeRule, ...], _Checked()] = ()
    """Points that are left out."""
    order: Annotated[tuple[OrderRule, ...], _Checked()] = ()
    """Which trials run first; changes no trial and no id."""
    training: Training = Training()
    """How students are optimised; what axes and rules do not say."""
    search: Search = GridSearch(method="grid")
    """How points are chosen: all of them, or those that a search proposes."""
    early_stopping: Asha | None = None
    """Which trials are stopped before their end; null: none. Part of no id."""
    resources: Resources = Resources()
    """What one trial takes."""
    retries: Annotated[
        Retries, BeforeValidator(_by_class, json_schema_input_type=Tries | Retries)
    ] = Retries()
    """How often a failed trial is tried again: a number, or a mapping by failure class."""
    keep: Keep = Keep()
    """What stays in the store."""
    budget: Budget = Budget()
    """When the sweep stops by itself."""
    cache_budget_gb: NonNegative = 10.0
    """Most that the sweep keeps of its teachers' outputs on each host, in 10**9 bytes: what spares
    the most time for each byte. 0: teachers run in every step. What a launch has decided stays."""
    sections: Annotated[Sections, _Checked()] = Field(exclude=True, repr=False)
    """Task, teacher and training as written: what dotted paths override."""
