"""What every benchmark prints: one table, and one line of JSON with ratio, spread and machine."""

import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from kdsweep.sweep.machines import this_machine


class Ratio(NamedTuple):
    """A figure beside another of the same run, and how far it was from itself."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Ratio":
        """From the ratio of each repeat."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def tell(
    bench: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    columns: Mapping[str, str],
    ratios: Mapping[str, Ratio],
    notes: Sequence[str] = (),
    **more: object,
) -> None:
    """Print a benchmark's table and its line of JSON.

    Args:
        bench: What was measured.
        rows: Of the table and of the JSON; they may hold more than the table shows.
        columns: Which of their values the table shows, each with its format.
        ratios: The figures that a goal is stated in.
        notes: Lines above the table.
        more: What else the JSON says.
    """
    for note in notes:
        print(note)
    cells = [[format_cell(row.get(name), spec) for name, spec in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    texts = {n for n, spec in enumerate(columns.values()) if not spec}
    for line in (list(columns), *cells):
        told = (
            cell.ljust(width) if n in texts else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(told).rstrip())
    figures = {
        "ratio": {name: ratio.median for name, ratio in ratios.items()},
        "spread": {name: [ratio.low, ratio.high] for name, ratio in ratios.items()},
    }
    told_all = {"bench": bench, **figures, "machine": machine(), "rows": list(rows), **more}
    print(json.dumps(told_all, allow_nan=False), flush=True)


def format_cell(value: object, spec: str) -> str:
    """A value of the table; nothing where there is none."""
    if value is None:
        return ""
    # A ratio stands with its spread, whatever the format.
    return str(value) if isinstance(value, Ratio) else format(value, spec)


def machine() -> dict[str, object]:
    """What the figures were measured on, and how busy it is."""
    this = this_machine()
    return {
        "processor": processor(),
        "cores": this.cpus,
        "gpus": this.gpus,
        "memory_gb": round(this.memory_gb, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "ray": version("ray"),
    }


def processor() -> str:
    """Its name, and which fast arithmetic it says that it has."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    fast = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in known]
    return " ".join([model[1] if model else platform.machine(), *fast])
