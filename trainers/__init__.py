"""How one trial is trained; nothing heavy is imported before it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assets import Assets as Assets
    from .errors import CheckpointError as CheckpointError
    from .errors import DivergedError as DivergedError
    from .features import Needs as Needs
    from .floor import below_floor as below_floor
    from .frozen import load_teacher as load_teacher
    from .loop import train as train
    from .reports import Finished as Finished
    from .reports import Interrupted as Interrupted
    from .reports import Report as Report
    from .reports import Resolved as Resolved
    from .reports import Row as Row
    from .reports import Rung as Rung
    from .reports import Saving as Saving
    from .reports import Stopped as Stopped
    from .settings import Settings as Settings
    from .settings import fast_precision as fast_precision
    from .teacher import prepare_teacher as prepare_teacher

_MODULES = {
    "Assets": "assets",
    "CheckpointError": "errors",
    "DivergedError": "errors",
    "Finished": "reports",
    "Interrupted": "reports",
    "Needs": "features",
    "Report": "reports",
    "Resolved": "reports",
    "Row": "reports",
    "Rung": "reports",
    "Saving": "reports",
    "Settings": "settings",
    "Stopped": "reports",
    "below_floor": "floor",
    "fast_precision": "settings",
    "load_teacher": "frozen",
    "prepare_teacher": "teacher",
    "train": "loop",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever the module holds)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
