"""Reads the parts of a store that others write to and merge at the same time.

A part may lie alone in its folder, in a compact file, or for a while in both. Parts are listed
before compact files: what was merged and removed in between is then found where it went. Whatever
is found twice counts once, and what vanishes is looked for again, so that a reader sees every part
once at any moment.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from .compact import Block, CompactFile, CompactName, Held, Kind
from .schema import Damaged, NewerStoreError
from .source import Source
from .tables import Kind as TableKind
from .tables import decode, stamps

_FETCHERS = 8
_ROUNDS = 4
_BROKEN = (pa.ArrowException, OSError, ValueError, KeyError)


class Parts(NamedTuple):
    """What was found of a kind."""

    blocks: tuple[Block, ...]
    """No part is in two of them; those of the parts that lie alone come last, by name."""
    columns: tuple[str, ...]
    """All that the files have, also those that were not asked for."""
    damaged: tuple[Damaged, ...]


class Compacted(NamedTuple):
    """The compact files of a kind, and those that cannot be read."""

    files: tuple[tuple[str, CompactFile], ...]
    """By name, those of the most parts first."""
    damaged: tuple[Damaged, ...]
    has_vanished: bool
    """Whether a file vanished between being listed and being opened."""


def every(_: str) -> bool:
    """Whether a name is wanted where all are."""
    return True


def read_parts(
    source: Source,
    folder: TableKind,
    *,
    wanted: Callable[[str], bool],
    check: Callable[[Block], None],
    columns: Callable[[str], bool] = every,
    compacted: Kind | None = None,
) -> Parts:
    """Read all wanted parts of a folder, wherever they lie.

    Args:
        source: The store.
        folder: A folder of it, named as the kind of its parts.
        wanted: Whether the part of a name is to be read.
        check: Raises ValueError or KeyError if a block is not what the names of its parts say.
        columns: Which columns of compact files are read; parts that lie alone are read whole.
        compacted: Of what kind compact files are read too; None for parts that always lie alone.
    """
    blocks: list[Block] = []
    loose: dict[str, Block] = {}
    found: set[str] = set()
    known: dict[str, None] = {}
    damaged: dict[str, Damaged] = {}
    vanished: list[str] = []
    with ThreadPoolExecutor(_FETCHERS) as pool:
        for _ in range(_ROUNDS):
            damaged.clear()
            names = [name for name in source.names(folder) if name[0] != "." and wanted(name)]
            vanished.clear()
            if compacted is not None:
                held = compact_files(source, compacted)
                damaged |= {each.path: each for each in held.damaged}
                vanished += ["compact"] if held.has_vanished else []
                for name, file in held.files:
                    known |= dict.fromkeys(file.columns)
                    block = _rows(file, name, wanted, found, columns, check)
                    if isinstance(block, Damaged):
                        damaged[block.path] = block
                    elif block.parts:
                        blocks.append(block)
                        found |= {part.name for part in block.parts}
            missing = [name for name in names if name not in found]
            contents = pool.map(lambda name: _content(source, f"{folder}/{name}"), missing)
            # Fetching waits for the disk or the network. Decoding holds the interpreter for so
            # much of its time that more threads only slow it down (1,000 attempts: 1.4 s in one,
            # 1.9 s in two).
            for name, content in zip(missing, contents, strict=True):
                path = f"{folder}/{name}"
                part = _alone(content, path, folder, check)
                if isinstance(part, Damaged):
                    damaged[path] = part
                elif part is None:
                    vanished.append(path)
                else:
                    loose[name] = part
                    known |= dict.fromkeys(part.table.column_names)
                    found.add(name)
            if not vanished:
                break
        else:
            # Never a hole without a word.
            gone = "vanished while it was read, and nothing replaces it"
            damaged |= {path: Damaged(path, gone) for path in vanished}
    alone = tuple(block for _, block in sorted(loose.items()))
    return Parts((*blocks, *alone), tuple(known), tuple(damaged.values()))


def compact_files(source: Source, kind: Kind) -> Compacted:
    """Open the compact files of a kind."""
    files: list[tuple[str, CompactFile]] = []
    damaged: list[Damaged] = []
    has_vanished = False
    for name in source.names("compact"):
        told = CompactName.parse(name)
        if told is None or told.kind != kind:
            continue
        path = f"compact/{name}"
        try:
            file = CompactFile(source.open(path), kind=kind, name=path)
            if file.is_list_whole:
                files.append((name, file))
            else:
                damaged.append(Damaged(path, "its list of parts is not the one that was written"))
        except FileNotFoundError:
            has_vanished = True
        except NewerStoreError:
            # One wrong bit makes a version of a number, and a newer kdsweep would not mend that.
            if told.fits(source.content(path)):
                raise
            damaged.append(Damaged(path, "its version is not the one that was written"))
        except _BROKEN as error:
            damaged.append(Damaged(path, _reason(error)))
    files.sort(key=lambda each: (-len(each[1].parts), each[0]))
    return Compacted(tuple(files), tuple(damaged), has_vanished)


def _rows(
    file: CompactFile,
    name: str,
    wanted: Callable[[str], bool],
    found: set[str],
    columns: Callable[[str], bool],
    check: Callable[[Block], None],
) -> Block | Damaged:
    """What a compact file holds of the wanted parts that were not found yet."""
    new = {part.name for part in file.parts if part.name not in found and wanted(part.name)}
    if not new:
        return Block((), pa.table({}))
    try:
        block = file.read(lambda part: part.name in new, columns=columns)
        check(block)
    except _BROKEN as error:
        return Damaged(f"compact/{name}", _reason(error))
    return block


def _content(source: Source, path: str) -> bytes | Damaged | None:
    try:
        return source.content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Damaged(path, f"cannot be read: {error}")


def _alone(
    content: bytes | Damaged | None,
    path: str,
    kind: TableKind,
    check: Callable[[Block], None],
) -> Block | Damaged | None:
    if not isinstance(content, bytes):
        return content
    try:
        table = decode(content, kind=kind, name=path)
        told = {
            key: value
            for key, value in stamps(table).items()
            if key not in ("table", "schema_version")
        }
        block = Block((Held(path.rpartition("/")[2], table.num_rows, told),), table)
        check(block)
    except _BROKEN as error:
        return Damaged(path, _reason(error))
    return block


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def tables(blocks: Sequence[Block]) -> list[pa.Table]:
    """The rows of blocks."""
    return [block.table for block in blocks]
