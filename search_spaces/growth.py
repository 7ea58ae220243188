"""Further `when` rules written into the text of a grid: what a person wrote stays as it is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .columns import column_paths, short_names
from .grid import Grid
from .scalars import read_scalar
from .source import read_tree
from .tree import Node, Scalar, plain

_FLOW = ",[]{}:#&*!|>'\"%@`? "
"""What a word inside `{}` and `[]` may not hold, or not everywhere: it is quoted then."""


class FurtherSeeds(NamedTuple):
    """Seeds that one group is to have beside those that the grid gives it."""

    axes: Mapping[str, Scalar]
    """The group's values by short name, as a plan says them; None where an axis does not act."""
    seed: int
    """One that the grid gives it."""
    seeds: Sequence[int]
    """Those to add."""
    comment: str
    """One line for the reader of the file."""


def add_seeds(text: str, grid: Grid, groups: Sequence[FurtherSeeds], *, heading: str) -> str:
    """The grid with a rule for each group: `{if: {...}, axes: {seed: [...]}}`.

    Args:
        text: Of the grid.
        grid: The same, read.
        groups: The groups that get further seeds.
        heading: One line of comment above the rules.
    """
    names = short_names(column_paths(grid))
    comments, rules = [heading], []
    for group in groups:
        said = {path: group.axes.get(name) for path, name in names.items() if path != "seed"}
        condition = {path: value for path, value in said.items() if value is not None}
        seeds = [group.seed, *group.seeds]
        rules.append({"if": {**condition, "seed": group.seed}, "axes": {"seed": seeds}})
        comments.append(group.comment)
    root, _ = read_tree(text)
    lines = text.rstrip("\n").split("\n")
    if lines[root.place.line - 1].lstrip().startswith("{"):
        # A mapping in braces, such as JSON, has no place for the lines of a block.
        data = plain(root)
        whole = {**data, "when": [*(data.get("when") or []), *rules]}
        said_above = [f"# {comment}" for comment in comments]
        return "\n".join([*said_above, json.dumps(whole, indent=1, ensure_ascii=False), ""])
    added = [f"# {heading}"]
    for comment, rule in zip(comments[1:], rules, strict=True):
        added += [f"# {comment}", f"- {_flow(rule)}"]
    return "\n".join([*_with_rules(lines, root, added), ""])


def _with_rules(lines: list[str], root: Node, added: Sequence[str]) -> list[str]:
    """A file's lines with items at the end of its list `when`, which need not be there yet."""
    assert isinstance(root.value, dict), "a grid is a mapping"
    if "when" not in root.value:
        return [*lines, "", "when:", *_indented(added, "  ")]
    begin, end = _extent(root, "when", last=len(lines))
    while _is_no_content(lines[end - 1]):
        end -= 1
    block = lines[begin:end]
    if (first := next(filter(_is_item, block), None)) is not None:
        indent = first[: len(first) - len(first.lstrip())]
        return [*lines[:end], *_indented(added, indent), *lines[end:]]
    # Nothing, or a list in brackets.
    items = [f"- {_flow(item)}" for item in plain(root.value["when"].node) or []]
    return [*lines[: begin - 1], "when:", *_indented([*items, *added], "  "), *lines[end:]]


def _extent(root: Node, key: str, *, last: int) -> tuple[int, int]:
    """The lines below a key up to the next key, as a slice of the file's lines."""
    assert isinstance(root.value, dict), "a grid is a mapping"
    begin = root.value[key].place.line
    later = [e.place.line for e in root.value.values() if e.place.line > begin]
    return begin, min(later, default=last + 1) - 1


def _is_no_content(line: str) -> bool:
    return not line.strip() or line.startswith("#")


def _is_item(line: str) -> bool:
    return line.lstrip().startswith("- ")


def _indented(lines: Sequence[str], indent: str) -> list[str]:
    return [indent + line for line in lines]


def _flow(data: Any) -> str:  # noqa: ANN401 - any YAML value
    match data:
        case dict():
            return "{" + ", ".join(f"{_flow(k)}: {_flow(v)}" for k, v in data.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, data)) + "]"
        case str():
            is_plain = read_scalar(data) == (data, None) and not set(data) & set(_FLOW)
            return data if is_plain and data[:1] not in "-" else json.dumps(data)
        case _:
            return json.dumps(data)
