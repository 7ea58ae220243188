"""What may be swept: the grid language, its validation, trials and their ids; no torch.

Nothing is imported before it is asked for: a wrong grid is refused without what expands one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DataError as DataError
    from .errors import GridError as GridError
    from .errors import InputError as InputError
    from .errors import Problem as Problem
    from .errors import TeacherError as TeacherError
    from .expansion import Collapsed as Collapsed
    from .expansion import Plan as Plan
    from .expansion import PlannedTrial as PlannedTrial
    from .expansion import Skipped as Skipped
    from .expansion import expand as expand
    from .facts import Facts as Facts
    from .facts import ModelFacts as ModelFacts
    from .facts import ShippedFacts as ShippedFacts
    from .facts import TaskFacts as TaskFacts
    from .grid import Grid as Grid
    from .ids import Identifier as Identifier
    from .ids import TrialIds as TrialIds
    from .load import load_grid as load_grid
    from .load import read_grid as read_grid
    from .schema import grid_schema as grid_schema
    from .starter import starter_grid as starter_grid
    from .trial import Digests as Digests
    from .trial import Trial as Trial
    from .trial import group_id as group_id
    from .trial import stage_id as stage_id
    from .trial import trial_id as trial_id

_MODULES = {
    "Collapsed": "expansion",
    "DataError": "errors",
    "Digests": "trial",
    "Facts": "facts",
    "Grid": "grid",
    "GridError": "errors",
    "Identifier": "ids",
    "InputError": "errors",
    "ModelFacts": "facts",
    "Plan": "expansion",
    "PlannedTrial": "expansion",
    "Problem": "errors",
    "ShippedFacts": "facts",
    "Skipped": "expansion",
    "TaskFacts": "facts",
    "TeacherError": "errors",
    "Trial": "trial",
    "TrialIds": "ids",
    "expand": "expansion",
    "grid_schema": "schema",
    "group_id": "trial",
    "load_grid": "load",
    "read_grid": "load",
    "stage_id": "trial",
    "starter_grid": "starter",
    "trial_id": "trial",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever the module holds)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
