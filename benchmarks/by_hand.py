"""What `throughput.py` and the two ways by hand tell each other: work in a file, ends as lines."""

import json
from pathlib import Path
from typing import Any, NamedTuple, TypedDict


class Point(TypedDict):
    """One trial, in the words of a grid."""

    shape: dict[str, int]
    knowledge: list[str]
    seed: int


class Work(TypedDict):
    """What a way by hand is to train."""

    lanes: int
    """Trials at a time."""
    teacher: str
    """A fine-tuned classifier with its tokenizer, as Transformers saves it."""
    files: dict[str, str]
    """CSV files with columns `text` and `label` (the class's number): train, select, report."""
    max_length: int
    training: dict[str, Any]
    """As in a grid, every field written out."""
    points: list[Point]


class Ended(NamedTuple):
    """A trial that came to its end."""

    point: int
    """Its place in the work."""
    ended: float
    """Seconds since the epoch."""
    report: float
    """Accuracy of the last weights on report."""


def write_work(work: Work, file: Path) -> Path:
    """For another process."""
    file.write_text(json.dumps(work))
    return file


def read_work(file: str) -> Work:
    """What was written."""
    work: Work = json.loads(Path(file).read_text())
    return work


def told(ended: Ended) -> None:
    """Say that a trial has ended."""
    print(json.dumps(ended._asdict()), flush=True)


def heard(text: str) -> list[Ended]:
    """What was told, in the order of the points."""
    lines = (line for line in text.splitlines() if line.startswith("{"))
    return sorted(Ended(**json.loads(line)) for line in lines)
