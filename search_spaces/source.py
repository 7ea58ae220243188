"""Reads YAML 1.2 text as a tree.

The tree is built from the parser's events, not from its documents: only so can a reader refuse
duplicate keys, bound what aliases expand to, and decide itself what a bare word means.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from .scalars import OTHER_BOOLEANS, read_scalar
from .tree import Entry, Node, Path, Place, Scalar

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
"""Of one file, with every alias written out."""
MAX_DEPTH = 40


class Flaw(NamedTuple):
    """Something that YAML itself, or this reader, does not accept."""

    place: Place
    path: Path
    what: str
    mend: str


class SourceError(Exception):
    """The text has no tree at all; the flaw says why."""

    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw
        super().__init__(flaw.what)


def decode(content: bytes) -> str:
    """A file's text.

    Raises:
        SourceError: It is longer than `MAX_BYTES`, or not UTF-8.
    """
    if len(content) > MAX_BYTES:
        raise SourceError(
            Flaw(
                Place(1, 1),
                (),
                f"has {len(content)} bytes; a grid has at most {MAX_BYTES}",
                "Say long lists of values as several axes, or split the grid into several sweeps",
            )
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        place = Place(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise SourceError(
            Flaw(
                place,
                (),
                f"is not UTF-8: byte 0x{content[error.start]:02x}",
                "Save the file as UTF-8",
            )
        ) from None


def read_tree(text: str) -> tuple[Node, list[Flaw]]:
    """The tree of a YAML text, and the flaws that leave a tree standing.

    Raises:
        SourceError: There is no tree: a syntax error, several documents, too many nodes.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if len(text.encode()) > MAX_BYTES:
        decode(text.encode())
    for number, line in enumerate(text.split("\n"), start=1):
        indentation = line[: len(line) - len(line.lstrip())]
        if "\t" in indentation and line.strip():
            flaw = Flaw(
                Place(number, indentation.index("\t") + 1),
                (),
                "a tab indents this line",
                "Indent with spaces",
            )
            raise SourceError(flaw)
    builder = _Builder(YAML(typ="safe", pure=True).parse(text))
    try:
        return builder.document(), builder.flaws
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise SourceError(
            Flaw(place, (), f"is not YAML: {what}", "Mend the syntax at this place")
        ) from None
    except (YAMLError, ValueError) as error:
        raise SourceError(
            Flaw(Place(1, 1), (), f"is not YAML: {error}", "Save the file as plain UTF-8 text")
        ) from None


class _Event(Protocol):
    """What is read of ruamel.yaml's events, which have no types."""

    start_mark: Any
    end_mark: Any
    anchor: str | None
    tag: str | None
    value: Any
    style: str | None
    version: Any
    tags: Any


class _Builder:
    def __init__(self, events: Iterator[_Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node | None] = {}
        self._path: list[str | int] = []
        self._nodes = 0
        self.flaws: list[Flaw] = []

    def document(self) -> Node:
        root = None
        for event in self._events:
            match type(event).__name__:
                case "StreamStartEvent" | "StreamEndEvent" | "DocumentEndEvent":
                    continue
                case "DocumentStartEvent":
                    if root is not None:
                        raise self._error(
                            event, "a second document starts here", "Write one grid in one file"
                        )
                    if event.version or event.tags:
                        raise self._error(
                            event, "has a `%` directive", "Remove it: a grid is YAML 1.2"
                        )
                case _:
                    root = self._node(event)
        return root or Node(Place(1, 1), None)

    def _node(self, event: _Event) -> Node:
        self._nodes += 1
        if len(self._path) > MAX_DEPTH:
            del self._path[3:]
            raise self._error(event, f"is nested deeper than {MAX_DEPTH}", "Write it flatter")
        if self._nodes > MAX_NODES:
            raise self._too_many(event)
        kind = type(event).__name__
        if kind == "AliasEvent":
            return self._alias(event)
        if event.tag is not None:
            self._flaw(event, f"has the tag `{event.tag}`", "Write plain YAML without tags")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if kind == "ScalarEvent":
            node = Node(_place(event), self._scalar(event))
        elif kind == "SequenceStartEvent":
            node = self._sequence(event)
        else:
            node = self._mapping(event)
        if node.size > MAX_NODES:
            raise self._too_many(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: _Event) -> Node:
        anchor = str(event.anchor)
        node = self._anchors.get(anchor)
        if node is not None and node.depth + len(self._path) <= MAX_DEPTH:
            return node
        if node is not None:
            what, mend = f"expands deeper than {MAX_DEPTH}", "Write it flatter"
        elif anchor in self._anchors:
            what, mend = f"`*{anchor}` contains itself", "Write the values out"
        else:
            what, mend = f"`*{anchor}` has no anchor", f"Write `&{anchor}` before it"
        raise self._error(event, what, mend)

    def _sequence(self, start: _Event) -> Node:
        items: list[Node] = []
        for event in self._events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            self._path.append(len(items))
            items.append(self._node(event))
            self._path.pop()
        return Node(
            _place(start),
            items,
            1 + sum(item.size for item in items),
            1 + max((item.depth for item in items), default=0),
        )

    def _mapping(self, start: _Event) -> Node:
        entries: dict[str, Entry] = {}
        size, depth = 1, 0
        for event in self._events:
            if type(event).__name__ == "MappingEndEvent":
                break
            key = self._key(event)
            self._path.append(key)
            if key in entries:
                self._flaw(
                    event,
                    f"is written twice; first in line {entries[key].place.line}",
                    "Keep one of the two",
                )
            value = next(self._events)
            node = self._node(value)
            if value.start_mark.index == value.end_mark.index:
                # An absent value lies where the next token starts, which belongs to another key.
                node = Node(_place(event), node.value)
            entries.setdefault(key, Entry(_place(event), node))
            self._path.pop()
            size, depth = size + node.size, max(depth, node.depth)
        return Node(_place(start), entries, size, depth + 1)

    def _key(self, event: _Event) -> str:
        if type(event).__name__ != "ScalarEvent":
            raise self._error(event, "a key is not a word", "Write a word before the colon")
        if event.value == "<<" and event.style is None:
            raise self._error(
                event, "`<<` merges, which YAML 1.2 does not have", "Write the keys out"
            )
        if event.style is None and event.value.lower() in OTHER_BOOLEANS:
            self._flaw(
                event, f"the key `{event.value}` may be a boolean", f'Write `"{event.value}"`'
            )
        return str(event.value)

    def _scalar(self, event: _Event) -> Scalar:
        if event.style is not None:
            return str(event.value)
        value, wrong = read_scalar(str(event.value))
        if wrong:
            self._flaw(event, *wrong)
        return value

    def _too_many(self, event: _Event) -> SourceError:
        return self._error(
            event,
            f"has more than {MAX_NODES} values, aliases written out",
            "Say them as several axes",
        )

    def _error(self, event: _Event, what: str, mend: str) -> SourceError:
        return SourceError(Flaw(_place(event), tuple(self._path), what, mend))

    def _flaw(self, event: _Event, what: str, mend: str) -> None:
        self.flaws.append(Flaw(_place(event), tuple(self._path), what, mend))


def _place(event: _Event) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)
