"""What runs, when and where: `from kdsweep.sweep import launch` does what the command does."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .launching import launch, resume

__all__ = ["launch", "resume"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # each name has a type of its own
    # The command line refuses a bad grid before anything that launching needs is imported.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import launching

    return getattr(launching, name)
