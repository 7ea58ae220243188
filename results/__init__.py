"""Where metrics rest and how they are asked for.

from kdsweep import results
r = results.load("runs/my-sweep")
r.trials
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .questions import Results, load
    from .store import Store

__all__ = ["Results", "Store", "load"]

_HOMES = {"Results": "questions", "Store": "store", "load": "questions"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # each name has a type of its own
    # pandas and pyarrow take longer to import than a small command takes to answer.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
