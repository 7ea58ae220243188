"""What the command line shows of a store: status, answers, one trial, its log."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem

if TYPE_CHECKING:
    import pandas as pd

    from ..results.questions import Results
    from ..results.status import Summary
    from .launching import Ended

LEADERS = 10


class Form(Enum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    LATEX = "latex"


def ask(
    folder: Path,
    question: str,
    *,
    metric: str,
    by: Sequence[str],
    index: str,
    columns: str,
    n: int | None,
    form: Form,
    console: Console,
    notes: Console,
) -> bool:
    """Answer a question about a sweep; False when nothing matches.

    Raises:
        InputError: There is no sweep, or no such column.
    """
    from ..results.columns import UnknownColumnError
    from ..results.leaderboard import leaderboard

    found = _load(folder)
    try:
        match question:
            case "table":
                frame = leaderboard(found, n)
            case "best":
                frame = found.best(metric, by=by or None, n=n or 1, over="seeds")
            case "pivot":
                frame = found.pivot(index, columns, metric)
            case "failures":
                frame = found.failures()
            case _:
                raise ValueError(question)
    except UnknownColumnError as error:
        what, *mend = str(error).split("\n    ")
        raise InputError([Problem(str(folder), what, "\n    ".join(mend))]) from None
    print_frame(frame, form=form, console=console, with_index=question == "pivot")
    if form is Form.TABLE:
        _print_notes(found, frame, console=notes)
    return not frame.empty


def print_frame(frame: "pd.DataFrame", *, form: Form, console: Console, with_index: bool) -> None:
    """A frame in the form that was asked for."""
    flat = frame.reset_index() if with_index else frame
    match form:
        case Form.JSON:
            rows = [
                {str(name): _exact(value) for name, value in row.items()}
                for row in flat.to_dict(orient="records")
            ]
            _write(console, json.dumps({"schema_version": 1, "rows": rows}, indent=2))
        case Form.CSV:
            _write(console, flat.map(_guard).to_csv(index=False).rstrip("\n"))
        case Form.LATEX:
            _write(console, flat.to_latex(index=False, float_format="%.4g", escape=True))
        case Form.TABLE:
            console.print(_table(flat))


def print_ended(ended: "Ended", *, data: Console, notes: Console) -> None:
    """How a launch ended: the leaderboard, the teacher beside it, and what to do next."""
    if ended.completed:
        from ..results.leaderboard import leaderboard, teacher_rows

        found = _load(ended.folder)
        board = leaderboard(found, LEADERS)
        data.print(_table(board, title="Best students, mean over seeds, chosen on select"))
        data.print()
        data.print(_table(teacher_rows(found), title="Teacher"))
        data.print()
    counts = [f"{ended.completed} of {ended.planned} trials completed ({ended.trained} now)"]
    if ended.failed:
        counts.append(f"{len(ended.failed)} failed")
    if ended.blocked:
        counts.append(f"{ended.blocked} blocked by a teacher that failed")
    notes.print(", ".join(counts), highlight=False)
    folder = ended.folder
    if ended.asked is not None or ended.failed:
        notes.print(f"go on with: kdsweep resume {folder}", highlight=False)
    if ended.failed:
        notes.print(f"what failed: kdsweep results {folder} failures", highlight=False)
    if ended.completed:
        notes.print(f"ask more: kdsweep results {folder} pivot", highlight=False)
        notes.print(
            f'in Python: from kdsweep import results; results.load("{folder}").trials',
            highlight=False,
            markup=False,
        )


def watch_status(folder: Path, *, as_json: bool, watch: bool, console: Console) -> None:
    """Print how a sweep stands, once or until nothing runs."""
    from ..results.status import summary

    _check(folder)
    if as_json:
        body = {"schema_version": 1, **asdict(summary(Store(folder)))}
        _write(console, json.dumps(body, indent=2))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            told = summary(Store(folder))
            live.update(_status_table(told), refresh=True)
            if not watch or not told.running:
                return
            time.sleep(2)


def show_trial(folder: Path, prefix: str, *, as_json: bool, console: Console) -> None:
    """One trial: what it was resolved to, and its attempts."""
    found = _load(folder)
    id = _find(found, prefix)
    attempts = [a for a in Store(folder).read_attempts() if a.id == id]
    row = found.trials.set_index("trial_id").loc[id]
    resolved = [a.resolved_json for a in attempts if a.resolved_json]
    told = json.loads(resolved[-1]) if resolved else None
    if as_json:
        body = {
            "schema_version": 1,
            "trial_id": id,
            "trial": json.loads(row.dropna().to_json(date_format="iso")),
            "resolved": told,
            "attempts": [
                {
                    "attempt": f"{a.epoch}-{a.number}",
                    "status": a.status,
                    "failure_class": a.failure_class,
                    "resumed_from_step": a.resumed_from_step,
                    "started": a.started.isoformat(),
                    "ended": a.ended.isoformat(),
                    "error": a.error,
                }
                for a in attempts
            ],
        }
        _write(console, json.dumps(body, indent=2))
        return
    console.print(_pairs(f"trial {id}", row.dropna().items()))
    if told is not None:
        print_resolved(told, console)
    for attempt in attempts:
        seconds = (attempt.ended - attempt.started).total_seconds()
        ending = attempt.failure_class or attempt.status
        console.print(
            f"attempt {attempt.epoch}-{attempt.number}: {ending} after {seconds:.1f} s"
            + (f", from step {attempt.resumed_from_step}" if attempt.resumed_from_step else ""),
            highlight=False,
        )
        if attempt.error:
            console.print(_plain(attempt.error), style="red")


def print_resolved(resolved: Mapping[str, Any], console: Console) -> None:
    """Terms with their layer pairs, shapes and projections, then the rest of what was resolved."""
    terms = Table(title="Terms", title_justify="left", box=None, padding=(0, 2))
    names = list(dict.fromkeys(key for term in resolved["terms"] for key in term))
    for name in names:
        terms.add_column(name)
    for term in resolved["terms"]:
        terms.add_row(*(_plain(_short(term.get(name))) for name in names))
    console.print(terms)
    rest = ((key, value) for key, value in resolved.items() if key != "terms")
    console.print(_pairs("Resolved", rest))


def print_logs(folder: Path, prefix: str, *, console: Console) -> bool:
    """Every attempt's log of one trial or teacher; False where there is none."""
    found = _load(folder)
    id = _find(found, prefix)
    logs = sorted((folder / "work" / id).glob("*/log.txt"))
    for log in logs:
        console.print(f"== attempt {log.parent.name}", highlight=False)
        _write(console, _printable(log.read_text(errors="replace")))
    return bool(logs)


def _load(folder: Path) -> "Results":
    from ..results import load

    _check(folder)
    return load(folder)


def _check(folder: Path) -> None:
    if not Store(folder).exists():
        mend = "Name the folder of a launch, such as runs/quickstart."
        raise InputError([Problem(str(folder), "is no sweep", mend)])


def _find(found: "Results", prefix: str) -> str:
    ids = [*found.trials["trial_id"], *found.teachers["teacher_id"]]
    match [id for id in ids if id.startswith(prefix)]:
        case [id]:
            return str(id)
        case []:
            what, mend = "names no trial", "`kdsweep results DIR best` shows ids."
        case many:
            what, mend = f"names {len(many)} trials", f"Write more digits: {', '.join(many[:5])}"
    raise InputError([Problem(prefix, what, mend)])


def _print_notes(found: "Results", frame: "pd.DataFrame", *, console: Console) -> None:
    if left_out := frame.attrs.get("left_out"):
        told = ", ".join(f"{count} {status}" for status, count in left_out.items())
        console.print(f"left out: {told}", highlight=False)
    for part in found.damaged:
        console.print(f"damaged and left out: {part.path}: {part.reason}", highlight=False)


def _table(frame: "pd.DataFrame", title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "if"
        table.add_column(_plain(str(name)), justify="right" if numeric else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(_plain(_cell(value)) for value in row))
    return table


def _status_table(told: "Summary") -> Table:
    lines: dict[str, object] = {
        status: count for status, count in told.counts.items() if count or status == "completed"
    }
    lines |= {f"failed: {name}": count for name, count in told.failed_by_class.items()}
    teachers = [f"{count} {status}" for status, count in told.teachers.items() if count]
    lines["teachers"] = ", ".join(teachers)
    if told.running:
        lines["running now"] = " ".join(told.running)
    if told.trials_per_hour is not None:
        lines["trials an hour"] = round(told.trials_per_hour, 1)
    if told.seconds_left:
        lines["time left"] = f"about {told.seconds_left / 60:.0f} minutes"
    if told.damaged:
        lines["damaged files"] = told.damaged
    return _pairs(told.name, lines.items())


def _pairs(title: str, items: Iterable[tuple[Any, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2), show_header=False)
    for key, value in items:
        if key not in ("error", "versions"):
            table.add_row(_plain(str(key)), _plain(_cell(value)))
    return table


def _exact(value: Any) -> str | int | float | bool | None:  # noqa: ANN401  (any cell)
    """A cell for JSON with all of its digits; what is missing or not a number is null."""
    match value:
        case None | bool() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case _ if value != value:
            return None
        case _ if hasattr(value, "item"):
            return _exact(value.item())
        case int():
            return value
        case _:
            return str(value)


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.3g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return _short(value)


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return "" if value is None else str(value)


def _plain(text: str) -> Text:
    """Text of a trial's own is never markup and never a terminal's control sequence."""
    return Text(_printable(text))


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _guard(cell: object) -> object:
    """A spreadsheet would run a cell that begins like a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def _write(console: Console, text: str) -> None:
    console.file.write(text + "\n")
