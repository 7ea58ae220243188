"""The data a sweep works on, and the teacher that knows it."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .spec import Length, ProperShare, Seed, Spec
from .training import FineTune, Floor, LanguageHead, Limit

Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]


class Carve(Spec):
    """A part taken out of another split, stratified by label."""

    from_: Literal["train"] = Field(alias="from")
    """The split that gives the rows away."""
    fraction: ProperShare
    """The share of its rows."""
    seed: Seed = 0
    """Of the draw."""


class Files(Spec):
    """Local CSV, JSON-lines or Parquet files; relative to the grid file."""

    train: str
    """Rows to train on."""
    select: str | None = None
    """Rows that every choice reads; carved from train unless said."""
    report: str | None = None
    """Rows that tables report; needed unless `report` carves them."""


Split = str | Carve
"""The name of a split that the source has, or a part carved from train."""


class Task(Spec):
    """A classification task: where its rows come from and how they are split."""

    name: str | None = None
    """An embedded name (`tweets`), a GLUE name (`glue/sst2`), or a data set's hub id."""
    path: str | None = None
    """A local copy of the named data set in hub layout; relative to the grid file."""
    revision: Commit | None = None
    """The data set's full commit on the hub; part of what makes a hub task reproducible."""
    files: Files | None = None
    """Local files instead of a name."""
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] | None = None
    """The one or two text columns; known for embedded and GLUE names."""
    label: str | None = None
    """The label column; `label` unless said."""
    select: Split | None = None
    """Every choice reads it: a split's name or a part of train. A source without a select split
    of its own gives a stratified tenth of train."""
    report: Split | None = None
    """Tables read it, nothing else does. A GLUE task's validation split unless said."""
    max_length: Length = 128
    """Longest sequence in tokens; longer texts are cut."""
    limit: Limit = Limit()
    """Fewer rows for train or select; never touches report."""
    metric: Literal["accuracy", "f1", "matthews"] | None = None
    """The main metric; GLUE's own for GLUE names, else accuracy. `f1` needs two classes and counts
    the second as positive."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.name is None) == (self.files is None):
            raise ValueError(
                "give either `name` or `files`; write `name: tweets`, or "
                "`files: {train: train.csv, report: test.csv}` with `text: [column]`"
            )
        if self.files is not None and self.path is not None:
            raise ValueError("`path` goes with `name`; `files` has its own paths")
        if self.files is not None and self.text is None:
            raise ValueError(
                "`files` need `text`; write `text: [column]`, the column or two that hold the text"
            )
        return self


class Teacher(Spec):
    """The model that teaches: what it is and how it learned the task."""

    model: str
    """An embedded name (`minilm-l6-h384`), a local folder relative to the grid file, or a hub id
    together with `revision`."""
    revision: Commit | None = None
    """The model's full commit on the hub."""
    fine_tune: FineTune | None = None
    """How it learns the task before the trials; absent: it already has a head for this task."""
    language_head: LanguageHead | None = None
    """For stages that read what the pre-trained teacher expects behind hidden tokens, where its
    checkpoint has no head for that."""
    floor: Floor | None = None
    """Below this no trial starts. Part of no id."""
