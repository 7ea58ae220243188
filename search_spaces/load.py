"""A grid file, read and checked: every problem at once, each with its line and its mend."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from .errors import GridError, Problem
from .grid import Grid
from .not_built import NOT_BUILT, TASKS
from .plugins import ReadBytes, name_losses, read_bytes, read_plugins
from .points import PointReader
from .report import Report, did_you_mean, nearest, show
from .search import METHODS
from .sections import Sections, read_sections
from .sentences import Finding, known_keys
from .source import SourceError, decode, read_tree
from .tree import plain, write_path
from .validation import findings
from .values import FIXED_AXES

NOT_SECTIONS = ("axes", "zip", "when", "exclude")


def load_grid(path: FilePath, *, allow_plugins: bool = False) -> Grid:
    """Reads a grid file; local paths in it are relative to its folder.

    Args:
        path: The file.
        allow_plugins: Whether the grid may list code of its own; it is read, never executed.

    Raises:
        GridError: The file cannot be read, or is wrong; all problems at once.
    """
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise GridError([Problem(str(path), what, "Check the name of the grid file")]) from None
    except SourceError as error:
        raise _grid_error(error, str(path)) from None
    return read_grid(text, file=str(path), base=path.parent.resolve(), allow_plugins=allow_plugins)


def read_grid(
    text: str,
    *,
    file: str,
    base: FilePath,
    allow_plugins: bool = False,
    read_plugin: ReadBytes = read_bytes,
) -> Grid:
    """Reads the text of a grid.

    Args:
        text: YAML 1.2.
        file: Names the text in messages.
        base: The folder that local paths are relative to.
        allow_plugins: Whether the grid may list code of its own; it is read, never executed.
        read_plugin: Gives the content of such code.

    Raises:
        GridError: The text is wrong; all problems at once.
    """
    try:
        root, flaws = read_tree(text)
    except SourceError as error:
        raise _grid_error(error, file) from None
    report = Report(file, root)
    for flaw in flaws:
        report.add_flaw(flaw)
    data = plain(root)
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"{show(data)} is not a mapping"
        report.add((), what, "Write `name:`, `task:`, `teacher:` and `axes:`")
        report.raise_if_any()
    misspelt = _check_keys(data, report)
    plugins = read_plugins(
        data.get("plugins"), base=base, is_allowed=allow_plugins, read=read_plugin, report=report
    )
    data = name_losses(data, plugins, report)
    sections = read_sections(data, base=base)
    _check_tasks(data, report)
    _check_length(data, report)
    points = {} if "axes" in misspelt else PointReader(sections, report).read(data)
    payload = _payload(data, sections, points, report)
    payload["plugins"] = tuple(plugin for plugin in plugins.values() if plugin is not None)
    grid: Grid | None = None
    wrong: list[Finding] = []
    try:
        grid = Grid.model_validate(payload)
    except ValidationError as error:
        wrong = findings(error, Grid, payload)
    for path, what, mend, at_key in wrong:
        is_said_elsewhere = write_path(path).startswith((*sections.filled, *misspelt))
        if not is_said_elsewhere or not len(report):
            report.add(path, what, mend, at_key=at_key)
    report.raise_if_any()
    assert grid is not None, "a grid without problems is valid"
    return grid


def _grid_error(error: SourceError, file: str) -> GridError:
    flaw = error.flaw
    place = flaw.place
    return GridError(
        [Problem(write_path(flaw.path), flaw.what, flaw.mend, file, place.line, place.column)]
    )


def _check_keys(data: Mapping[str, Any], report: Report) -> set[str]:
    """Reports unknown keys; gives the absent keys that were meant."""
    known = known_keys(Grid)
    misspelt = set()
    for key in data:
        if key in known:
            continue
        if key in FIXED_AXES:
            mend = f"Write it under `axes`, as a list: `{key}: [...]`"
            report.add((key,), "is an axis", mend, at_key=True)
        elif key == "stages":
            mend = "Write stages under `axes.knowledge`: `- {label: <name>, stages: [...]}`"
            report.add((key,), "is knowledge", mend, at_key=True)
        else:
            report.add((key,), "is not a known key", did_you_mean(key, known), at_key=True)
            misspelt |= {nearest(key, known)} - {None, *data}
    return {key for key in misspelt if key is not None}


def _mapping(data: object) -> Mapping[str, Any]:
    return data if isinstance(data, dict) else {}


def _check_tasks(data: Mapping[str, Any], report: Report) -> None:
    name = _mapping(data.get("task")).get("name")
    if isinstance(name, str) and name in TASKS:
        report.add(("task", "name"), f"{TASKS[name]} (`{name}`) {NOT_BUILT}", "Classify instead")


def _check_length(data: Mapping[str, Any], report: Report) -> None:
    training = _mapping(data.get("training"))
    if {"epochs", "total_steps"} <= training.keys():
        what = "does not act beside `total_steps`"
        report.add(("training", "epochs"), what, "Keep one of the two", at_key=True)


def _payload(
    data: Mapping[str, Any], sections: Sections, points: Mapping[str, Any], report: Report
) -> dict[str, Any]:
    """What the model of a grid is made of, without what is said to be wrong already."""
    known = known_keys(Grid)
    payload = {key: value for key, value in data.items() if key in known}
    if not _has_method(data, report):
        payload.pop("search", None)
    for name, written in sections.written.items():
        if written and (name not in data or isinstance(data[name], dict)):
            payload[name] = written
    return {"axes": (), **payload, **points, "sections": sections}


def _has_method(data: Mapping[str, Any], report: Report) -> bool:
    """Whether a search's method says which other keys it may have; says so where it does not."""
    if "search" not in data:
        return True
    search = data["search"]
    form = "`{method: tpe, trials: 40}`"
    if not isinstance(search, dict):
        report.add(("search",), f"{show(search)} is not a mapping", f"Write one such as {form}")
    elif "method" not in search:
        report.add(("search",), "has no method", f"Add `method:`, such as {form}")
    elif search["method"] not in METHODS:
        what = f"{show(search['method'])} is not one of {', '.join(METHODS)}"
        report.add(("search", "method"), what, did_you_mean(search["method"], METHODS))
    else:
        return True
    return False
