"""Tables on terminals of any width: whatever is shown is shown whole."""

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from kdsweep.sweep.fitting import Cells, print_cells

NAMES = ("group_id", "knowledge", "epochs", "select/primary", "parameters", "latency_ms")
ROWS = (
    ("044b43ebd5e8badc", "hard_labels+soft_logits", "2", "0.6625", "4,386,307", "3.0141"),
    ("5b89604266aad9ab", "hard_labels", "2", "0.6375", "4,188,035", "3.5893"),
)
CELLS = Cells(NAMES, ROWS, frozenset(NAMES[3:]))


def printed(width: int) -> list[str]:
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, soft_wrap=True)
    axes, minor = ("knowledge", "epochs"), ("latency_ms", "parameters")
    print_cells(CELLS, console, axes=axes, minor=minor, more="`--csv` shows them")
    return [line.rstrip() for line in Text.from_ansi(file.getvalue()).plain.splitlines()]


@pytest.mark.parametrize("width", [30, 60, 70, 80, 90, 100, 200])
def test_no_width_cuts_a_number_or_an_id(width: int) -> None:
    said = "\n".join(printed(width))
    assert "…" not in said
    for id, *_, score, _, _ in ROWS:
        assert id in said
        assert score in said


def test_constant_axes_go_before_minor_columns_and_both_are_named() -> None:
    whole = printed(200)
    assert whole[0].split() == list(NAMES)
    assert len(whole) == 3
    fewer = printed(84)
    assert fewer[0].split() == [name for name in NAMES if name != "epochs"]
    assert fewer[-1] == "left out to fit: epochs 2 (the same in every row); `--csv` shows them"
    fewest = printed(72)
    assert fewest[0].split() == ["group_id", "knowledge", "select/primary", "parameters"]
    assert "epochs 2 (the same in every row), latency_ms; " in fewest[-1]


def test_what_still_does_not_fit_is_a_record_a_row_with_every_cell() -> None:
    assert printed(45) == [
        "1. group_id 044b43ebd5e8badc",
        "   knowledge: hard_labels+soft_logits,",
        "   epochs: 2, select/primary: 0.6625,",
        "   parameters: 4,386,307, latency_ms: 3.0141",
        "2. group_id 5b89604266aad9ab",
        "   knowledge: hard_labels, epochs: 2,",
        "   select/primary: 0.6375,",
        "   parameters: 4,188,035, latency_ms: 3.5893",
    ]


def test_off_a_terminal_the_table_is_whole_and_no_line_ends_in_blanks() -> None:
    file = StringIO()
    print_cells(CELLS, Console(file=file, width=20, soft_wrap=True), axes=("epochs",))
    lines = file.getvalue().split("\n")
    assert lines[0].split() == list(NAMES)
    assert lines[-1] == ""
    assert [line for line in lines if line != line.rstrip()] == []
