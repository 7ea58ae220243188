"""What may be swept: the grid language, its validation, trials and their ids; no torch."""

from .errors import DataError, GridError, InputError, Problem, TeacherError
from .expand import Collapsed, Plan, PlannedTrial, Skipped, expand
from .facts import Facts, ModelFacts, ShippedFacts, TaskFacts
from .grid import Grid
from .ids import Identifier, TrialIds
from .load import load_grid, read_grid
from .schema import grid_schema
from .starter import starter_grid
from .trial import Digests, Trial, group_id, trial_id

__all__ = [
    "Collapsed",
    "DataError",
    "Digests",
    "Facts",
    "Grid",
    "GridError",
    "Identifier",
    "InputError",
    "ModelFacts",
    "Plan",
    "PlannedTrial",
    "Problem",
    "ShippedFacts",
    "Skipped",
    "TaskFacts",
    "TeacherError",
    "Trial",
    "TrialIds",
    "expand",
    "grid_schema",
    "group_id",
    "load_grid",
    "read_grid",
    "starter_grid",
    "trial_id",
]
