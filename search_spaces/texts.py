"""Text without labels, as a grid names it."""

from typing import Literal

from .spec import Spec


class Text(Spec):
    """Local text."""

    text: str
    """A file, relative to the grid file: `.txt` with one passage a line, or CSV, JSON lines or
    Parquet with the task's text columns. A passage is cut at `task.max_length`."""


Unlabelled = Literal["unlabelled"] | Text
"""All rows that train had before `task.limit`, without their labels; or local text. Rows that equal
one of select or report but for white space are dropped, and all but the first of equal ones."""
