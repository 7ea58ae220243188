"""A lane that collects toy features: `python feature_lane.py FOLDER [KILL_AT]`.

It says on standard output how many batches it computed, and a checksum of what it read. At the
batch KILL_AT, counted from 0, it kills itself in the midst of a shard.
"""

import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsweep.search_spaces.resolution import Feature
from kdsweep.trainers.feature_files import Overflows, Ran, SourceFiles, collect
from kdsweep.trainers.feature_layout import Entry, Layout

LENGTHS = np.random.default_rng(0).integers(1, 9, size=3000)
"""Of the rows: six shards."""

LOGITS = Entry(Feature("logits", 0), "fp32", 3)
HIDDEN = Entry(Feature("hidden_states", 2), "fp16", 5)
SCORES = Entry(Feature("attentions", 1), "fp16", 2)
ENTRIES = [LOGITS, HIDDEN, SCORES]


def files_in(folder: Path) -> SourceFiles:
    return SourceFiles(folder, Layout(LENGTHS), about={"teacher": "toy", "task": "toy"})


class Toy:
    """A teacher that says of each vector its own number."""

    def __init__(
        self, *, kill_at: int | None = None, seconds: float = 0.0, overflows: bool = False
    ) -> None:
        self.batches: list[tuple[int, int]] = []
        self._layout = Layout(LENGTHS)
        self._kill_at = kill_at
        self._seconds = seconds
        self._overflows = overflows

    def __call__(self, start: int, end: int, *, entries: Sequence[Entry]) -> Ran:
        if len(self.batches) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._seconds)
        self.batches.append((start, end))
        part = {
            entry: self.vectors(entry, start, end)
            for entry in entries
            if not (self._overflows and entry == HIDDEN and start == 640)
        }
        return Ran(part, seconds=0.25)

    def vectors(self, entry: Entry, start: int, end: int) -> npt.NDArray[Any]:
        first, stop = (int(self._layout.offsets[entry.axis][row]) for row in (start, end))
        numbers = np.arange(first * entry.width, stop * entry.width, dtype=np.int64) % 2000
        return numbers.astype(entry.dtype).reshape(-1, entry.width)


def whole(entry: Entry) -> npt.NDArray[Any]:
    """What every lane has to read."""
    return Toy().vectors(entry, 0, len(LENGTHS))


def checksum(vectors: npt.NDArray[Any] | Overflows) -> int:
    assert not isinstance(vectors, Overflows)
    return zlib.crc32(np.ascontiguousarray(vectors).data)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    folder, *kill_at = sys.argv[1:]
    toy = Toy(kill_at=int(kill_at[0]) if kill_at else None, seconds=0.005)
    files = files_in(Path(folder))
    held = files.use(lambda: False)
    say("ready")
    sys.stdin.readline()
    found = collect(files, ENTRIES, ENTRIES, run=toy, stop=lambda: False)
    told = [checksum(found[entry]) for entry in ENTRIES]
    say(json.dumps({"batches": len(toy.batches), "read": told}))
    sys.stdin.readline()
    held.close()


if __name__ == "__main__":
    main()
