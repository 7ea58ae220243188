"""Tables that fit a terminal: fewer columns first, then a record a row; nothing is ever cut."""

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_INDENT = "   "
_UNBOUND = 100_000
"""No table is as wide as this."""


@dataclass(frozen=True)
class Cells:
    """A table as text."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[str] = frozenset()
    """Columns that are set flush right."""

    def column(self, name: str) -> tuple[str, ...]:
        """The cells under a name."""
        place = self.names.index(name)
        return tuple(row[place] for row in self.rows)

    def without(self, names: Collection[str]) -> "Cells":
        """The same without some columns."""
        kept = [place for place, name in enumerate(self.names) if name not in names]
        return Cells(
            tuple(self.names[place] for place in kept),
            tuple(tuple(row[place] for place in kept) for row in self.rows),
            self.numeric,
        )


def print_cells(
    cells: Cells,
    console: Console,
    *,
    title: str | None = None,
    axes: Collection[str] = (),
    minor: Sequence[str] = (),
    more: str = "a wider terminal shows them",
) -> None:
    """Print a table whole where there is no terminal, and so that it fits where there is one.

    Args:
        cells: The table.
        console: Where to.
        title: What stands above it.
        axes: Columns that tell nothing where all of their cells are the same.
        minor: Columns that can be missed, the least important first.
        more: How to see what was left out.
    """
    if title:
        console.print(Text(title, style="bold"))
    if not console.is_terminal:
        _print_whole(cells, console)
        return
    constant = [
        name
        for name in cells.names
        if name in axes and len(cells.rows) > 1 and len(set(cells.column(name))) == 1
    ]
    present = [name for name in minor if name in cells.names]
    # Every way to leave columns out, that which leaves out least first.
    ways = [[], *([*constant, *present[:count]] for count in range(len(present) + 1))]
    for gone in ways:
        fewer = cells.without(gone)
        if _width(fewer, console) <= console.width:
            console.print(_table(fewer))
            if gone:
                same = [f"{name} {cells.column(name)[0] or '-'}" for name in constant]
                told = [f"{', '.join(same)} (the same in every row)"] if same else []
                left_out = ", ".join([*told, *gone[len(constant) :]])
                console.print(Text(f"left out to fit: {left_out}; {more}", style="dim"))
            return
    for number, row in enumerate(cells.rows, start=1):
        console.print(Text(record(number, cells.names, row, width=console.width)))


def record(number: int, names: Sequence[str], row: Sequence[str], *, width: int) -> str:
    """A row as a paragraph: its first cell, then every other that is not empty by its name."""
    told = [(name, cell) for name, cell in zip(names[1:], row[1:], strict=True) if cell]
    # No line ends within a name or a number: only ordinary blanks break one.
    short = ", ".join(
        f"{name}: {cell}".replace(" ", "\xa0") for name, cell in told if "\n" not in cell
    )
    lines = textwrap.wrap(
        short,
        width,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    blocks = [
        f"{_INDENT}{name}:\n{textwrap.indent(cell, 2 * _INDENT)}"
        for name, cell in told
        if "\n" in cell
    ]
    return "\n".join([f"{number}. {names[0]} {row[0]}", *lines, *blocks]).replace("\xa0", " ")


def _print_whole(cells: Cells, console: Console) -> None:
    table = _table(cells)
    table.width = _width(cells, console)
    with console.capture() as captured:
        console.print(table, crop=False)
    # Rich fills every line up with blanks.
    lines = (line.rstrip() for line in captured.get().rstrip("\n").split("\n"))
    console.file.write("\n".join(lines) + "\n")


def _width(cells: Cells, console: Console) -> int:
    options = console.options.update(width=_UNBOUND)
    return Measurement.get(console, options, _table(cells)).maximum


def _table(cells: Cells) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in cells.names:
        right = name in cells.numeric
        table.add_column(Text(name), justify="right" if right else "left", no_wrap=True)
    for row in cells.rows:
        table.add_row(*map(Text, row))
    return table
