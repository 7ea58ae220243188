"""A YAML file as a tree in which every key and value knows its line and column."""

from dataclasses import dataclass
from typing import Any, NamedTuple

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]
"""Keys and list positions from the top of the file."""


class Place(NamedTuple):
    """A position in a file, both counted from 1."""

    line: int
    column: int


class Entry(NamedTuple):
    """A key's place and the value under it."""

    place: Place
    node: "Node"


@dataclass(frozen=True, slots=True)
class Node:
    """A scalar, a list or a mapping."""

    place: Place
    value: "Scalar | list[Node] | dict[str, Entry]"
    size: int = 1
    """Nodes beneath and including this one, aliases written out."""
    depth: int = 1


def plain(node: Node) -> Any:  # noqa: ANN401 - any YAML value
    """A node as plain lists, dictionaries and scalars."""
    match node.value:
        case list():
            return [plain(item) for item in node.value]
        case dict():
            return {key: plain(entry.node) for key, entry in node.value.items()}
        case _:
            return node.value


def find_place(root: Node, path: Path, *, of_key: bool = False) -> Place:
    """Where a path is written: its value or its key, or the nearest thing above it."""
    nodes, entry = _walk(root, path)
    return entry.place if of_key and entry and len(nodes) > len(path) else nodes[-1].place


def has_path(root: Node, path: Path) -> bool:
    """Whether a file writes something at a path."""
    return len(_walk(root, path)[0]) > len(path)


def _walk(root: Node, path: Path) -> tuple[list[Node], Entry | None]:
    """The nodes along a path as far as they exist, and the entry of the last if it has a key."""
    nodes, entry = [root], None
    for step in path:
        value = nodes[-1].value
        if isinstance(value, dict) and isinstance(step, str) and step in value:
            entry = value[step]
            nodes.append(entry.node)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            entry = None
            nodes.append(value[step])
        else:
            break
    return nodes, entry


def write_path(path: Path) -> str:
    """`axes.knowledge[1].temperature`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
