"""What a person is told about input that they can mend: where, what, how; all of it at once."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to write instead."""

    path: str
    """Where: a dotted path in the grid, or the name of a file or model."""
    what: str
    """What is wrong, with the value."""
    mend: str
    """What to do about it, as an instruction."""
    file: str | None = None
    """The file the path lies in."""
    line: int | None = None
    """Line of the file, counted from 1."""
    column: int | None = None
    """Column of the line, counted from 1."""

    def __str__(self) -> str:
        place = ":".join(
            str(part) for part in (self.file, self.line, self.column) if part is not None
        )
        said = ": ".join(part for part in (place, self.path, self.what) if part)
        return f"{said}\n    {self.mend}" if self.mend else said


class InputError(Exception):
    """Input that a person can mend; nothing has been spent. The command line exits with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class GridError(InputError):
    """The grid file is wrong."""


class DataError(InputError):
    """The task's rows are wrong, missing or unreadable."""


class TeacherError(InputError):
    """The teacher is unknown, does not fit the task, or knows too little of it."""


class PluginError(InputError):
    """A user's loss cannot be loaded, or does not do what every loss has to."""


class UnreachableError(DataError):
    """The rows lie on a hub that cannot be reached from here; nothing is known to be wrong."""
