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
from rich.text import Text

from ..results.store import Store
from ..search_spaces.errors import InputError, Problem
from .fitting import Cells, print_cells
from .redaction import redact
from .words import clock, count, named, printable, where_ids_are

if TYPE_CHECKING:
    import pandas as pd

    from ..results.questions import Results
    from ..results.status import Summary
    from ..results.times import Spared
    from .doctor import Diagnosis
    from .launching import Ended

LEADERS = 10

MINOR = ("latency_ms", "parameters")
"""What a narrow terminal does without first."""


_NOTHING = {"failures": "no failures", "search": "no search has proposed anything"}
"""Instead of an empty answer."""


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
    metrics: Sequence[str],
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
        InputError: There is no sweep, no such column, or no answer to such a question.
    """
    from ..results.columns import QuestionError, UnknownColumnError
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
            case "pareto":
                frame = found.pareto(metrics)
            case "search":
                frame = found.search()
            case "failures":
                frame = found.failures().head(len(found.trials) if n is None else n)
            case _:
                raise ValueError(question)
    except UnknownColumnError as error:
        what, *mend = str(error).split("\n    ")
        raise InputError([Problem(str(folder), what, "\n    ".join(mend))]) from None
    except QuestionError as error:
        raise InputError([Problem(str(folder), str(error), "")]) from None
    if frame.empty and form is Form.TABLE:
        notes.print(_NOTHING.get(question, "no trial is completed yet"), highlight=False)
        _print_notes(found, frame, console=notes)
        return False
    print_frame(
        frame,
        form=form,
        console=console,
        with_index=question == "pivot",
        axes=found.axes if question in ("table", "best", "pareto") else (),
    )
    if form is Form.TABLE:
        _print_notes(found, frame, console=notes)
        if question == "table":
            told = _lane_time(found.lane_seconds, found.spared_by_features)
            notes.print(f"time of lanes: {told}", highlight=False)
    return not frame.empty


def print_frame(
    frame: "pd.DataFrame",
    *,
    form: Form,
    console: Console,
    with_index: bool,
    axes: Sequence[str] = (),
) -> None:
    """A frame in the form that was asked for.

    Args:
        frame: What is printed.
        form: How.
        console: Where to.
        with_index: Whether its index is a column of the answer.
        axes: Columns of it that may be missed where they are the same in all rows.
    """
    flat = frame.reset_index() if with_index else frame
    match form:
        case Form.JSON:
            rows = [
                {str(name): _exact(value) for name, value in row.items()}
                for row in flat.to_dict(orient="records")
            ]
            _write(console, json.dumps({"schema_version": 1, "rows": rows}, indent=2))
        case Form.CSV:
            safe = flat.map(_guard).rename(columns=_guard)
            _write(console, safe.to_csv(index=False).rstrip("\n"))
        case Form.LATEX:
            _write(console, flat.to_latex(index=False, na_rep="", float_format="%.4g", escape=True))
        case Form.TABLE:
            print_cells(
                _cells(flat),
                console,
                axes=(*axes, "seeds") if axes else (),
                minor=MINOR if axes else (),
                more="`--csv` and a wider terminal show them",
            )


def print_ended(ended: "Ended", *, data: Console, notes: Console) -> None:
    """How a launch ended: the leaderboard, the teacher beside it, and what to do next."""
    if ended.completed:
        from ..results.leaderboard import leaderboard, teacher_rows

        found = _load(ended.folder)
        board = leaderboard(found, LEADERS)
        print_cells(
            _cells(board),
            data,
            title="Best students, mean over seeds, chosen on select",
            axes=(*found.axes, "seeds"),
            minor=MINOR,
            more=f"`kdsweep results {ended.folder} --csv` and a wider terminal show them",
        )
        data.print()
        print_cells(_cells(teacher_rows(found)), data, title="Teacher", minor=MINOR)
        data.print()
    if ended.slots is not None:
        filled, planned = ended.slots
        notes.print(f"{filled} of {count(planned, 'slot')} of the search filled", highlight=False)
    of = count(ended.planned, "trial")
    counts = [f"{ended.completed} of {of} completed ({ended.trained} now)"]
    if ended.stopped:
        counts.append(f"{ended.stopped} stopped early")
    if ended.failed:
        counts.append(f"{len(ended.failed)} failed")
    if ended.blocked:
        counts.append(f"{ended.blocked} blocked by a teacher that failed")
    notes.print(", ".join(counts), highlight=False)
    folder = ended.folder
    match ended.asked:
        case "failures alike":
            notes.print(f"stopped: {ended.why}", highlight=False, markup=False)
        case "unwritable":
            notes.print(f"cannot be written: {ended.why}", highlight=False, markup=False)
            notes.print("what was completed is safe; make room or mend the disk", highlight=False)
        case "budget":
            mend = "to go on, raise it in the grid and launch the grid again"
            notes.print(f"{ended.why} is used up; {mend}", highlight=False, markup=False)
        case _:
            pass
    if ended.asked not in (None, "budget") or ended.failed:
        notes.print(f"go on with: {ended.resume}", highlight=False)
    if ended.failed:
        notes.print(f"what failed: kdsweep results {folder} failures", highlight=False)
    if ended.completed:
        more = "pivot" if ended.slots is None else "pareto"
        notes.print(f"ask more: kdsweep results {folder} {more}", highlight=False)
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
    if not watch:
        console.print(_status_text(summary(Store(folder))), highlight=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        while (told := summary(Store(folder))).running:
            live.update(_status_text(told), refresh=True)
            time.sleep(2)
        live.update(_status_text(told), refresh=True)
    if not console.is_terminal:
        # There Live writes once, at the end, and without the end of the line.
        console.print()


def show_trial(folder: Path, word: str, *, as_json: bool, console: Console) -> None:
    """One piece of work: what it was resolved to, and its attempts; of a group its trials."""
    found = _load(folder)
    ids = _named(folder, found, word)
    if len(ids) > 1:
        _show_group(folder, found.trials, ids, as_json=as_json, console=console)
        return
    [id] = ids
    frames = {"trial": found.trials, "stage": found.stages, "teacher": found.teachers}
    what, frame = next((w, each) for w, each in frames.items() if id in set(each[f"{w}_id"]))
    attempts = [a for a in Store(folder).read_attempts() if a.id == id]
    row = frame.set_index(f"{what}_id").loc[id].dropna()
    resolved = [a.resolved_json for a in attempts if a.resolved_json]
    told = json.loads(resolved[-1]) if resolved else None
    if as_json:
        body = {
            "schema_version": 1,
            f"{what}_id": id,
            what: json.loads(row.to_json(date_format="iso")),
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
    console.print(_pairs(f"{what} {id}", row.items()), highlight=False)
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


def _show_group(
    folder: Path, trials: "pd.DataFrame", ids: Sequence[str], *, as_json: bool, console: Console
) -> None:
    rows = trials[trials["trial_id"].isin(ids)]
    group = str(rows["group_id"].iloc[0])
    names = ("trial_id", "seed", "status", "select/primary", "report/primary")
    frame = rows[[name for name in names if name in rows]]
    if as_json:
        records = [{k: _exact(v) for k, v in row.items()} for row in frame.to_dict("records")]
        body = {"schema_version": 1, "group_id": group, "trials": records}
        _write(console, json.dumps(body, indent=2))
        return
    print_cells(_cells(frame), console, title=f"group {group}: {count(len(ids), 'trial')}")
    console.print(f"one of them: kdsweep show {folder} TRIAL", highlight=False, markup=False)


def print_resolved(resolved: Mapping[str, Any], console: Console) -> None:
    """Terms with their layer pairs, shapes and projections, then the rest of what was resolved."""
    # A teacher that knows its task already was trained by no terms.
    names = tuple(dict.fromkeys(key for term in resolved["terms"] for key in term))
    rows = tuple(
        tuple(printable(_short(term.get(name))) for name in names) for term in resolved["terms"]
    )
    if rows:
        print_cells(Cells(names, rows), console, title="Terms")
    rest = ((key, value) for key, value in resolved.items() if key != "terms")
    console.print(_pairs("Resolved", rest), highlight=False)


def print_logs(folder: Path, word: str, *, console: Console, notes: Console) -> bool:
    """Every attempt's log of a trial, a teacher or a group's trials; False where there is none."""
    ids = _named(folder, _load(folder), word)
    logs = [log for id in ids for log in sorted((folder / "work" / id).glob("*/log.txt"))]
    for log in logs:
        console.print(f"== {log.parent.parent.name}, attempt {log.parent.name}", highlight=False)
        _write(console, printable(redact(log.read_text(errors="replace"))))
    if not logs:
        notes.print(f"{', '.join(ids)}: nothing has been logged yet", highlight=False)
    return bool(logs)


def print_diagnosis(folder: Path, told: "Diagnosis", *, as_json: bool, console: Console) -> None:
    """What is wrong with a store, what was mended, and what harms nothing."""
    if as_json:
        body = {
            "schema_version": 1,
            "found": [finding._asdict() for finding in told.found],
            "mended": [finding._asdict() for finding in told.mended],
            "strangers": list(told.strangers),
        }
        _write(console, json.dumps(body, indent=2))
        return
    for finding in told.mended:
        _write(console, printable(f"mended: {finding.path}: {finding.reason} ({finding.mend})"))
    for finding in told.found:
        mend = f" (--repair: {finding.mend})" if finding.mend else ""
        _write(console, printable(f"{finding.path}: {finding.reason}{mend}"))
    for name in told.strangers:
        _write(console, printable(f"{name}: no sweep wrote it; it is left alone"))
    wrong = count(len(told.found), "finding")
    _write(console, f"{folder}: {wrong}" if told.found else f"{folder}: sound")


def _load(folder: Path) -> "Results":
    from ..results import load

    _check(folder)
    return load(folder)


def _check(folder: Path) -> None:
    if not Store(folder).exists():
        mend = "Name the folder of a launch, such as runs/quickstart."
        raise InputError([Problem(str(folder), "is no sweep", mend)])


def _named(folder: Path, found: "Results", word: str) -> tuple[str, ...]:
    trials = found.trials
    teachers = [*found.teachers["teacher_id"], *found.stages["stage_id"]]
    groups = dict(zip(trials["trial_id"], trials["group_id"], strict=True))
    groups |= dict(zip(teachers, teachers, strict=True))
    return named(word, groups, place=str(folder), mend=where_ids_are(folder))


def _print_notes(found: "Results", frame: "pd.DataFrame", *, console: Console) -> None:
    if left_out := frame.attrs.get("left_out"):
        told = ", ".join(f"{count} {status}" for status, count in left_out.items())
        console.print(f"left out: {told}", highlight=False)
    for part in found.damaged:
        console.print(f"damaged and left out: {part.path}: {part.reason}", highlight=False)


def _cells(frame: "pd.DataFrame") -> Cells:
    return Cells(
        tuple(printable(str(name)) for name in frame.columns),
        tuple(
            tuple(printable(_cell(value)) for value in row) for row in frame.itertuples(index=False)
        ),
        frozenset(str(name) for name in frame.columns if frame[name].dtype.kind in "if"),
    )


def _status_text(told: "Summary") -> Text:
    lines: dict[str, object] = {
        status: count for status, count in told.counts.items() if count or status == "completed"
    }
    lines |= {f"failed: {name}": count for name, count in told.failed_by_class.items()}
    if told.slots is not None:
        lines["slots filled"] = "{} of {}".format(*told.slots)
    for what, counts in (("teachers", told.teachers), ("shared stages", told.stages)):
        if any(counts.values()):
            shown = [f"{count} {status}" for status, count in counts.items() if count]
            lines[what] = ", ".join(shown)
    if told.running:
        lines["running now"] = " ".join(told.running)
    if told.num_waiting:
        first = clock(told.seconds_until_retry or 0.0)
        lines["waiting"] = f"{told.num_waiting} to be tried again, the first in {first}"
    if told.trials_per_hour is not None:
        lines["trials an hour"] = _rate(told.trials_per_hour)
    if told.seconds_left:
        lines["time left"] = f"about {clock(told.seconds_left)}"
    if told.lane_seconds:
        lines["time of lanes"] = _lane_time(told.lane_seconds, told.spared_by_features)
    if told.damaged:
        lines["damaged files"] = told.damaged
    return _pairs(told.name, lines.items())


def _lane_time(seconds: Mapping[str, float], spared: "Spared | None") -> str:
    """Where it went, and what features spared, in a phrase."""
    return _shares(seconds) + (f"; {_spared(spared)}" if spared else "")


def _spared(told: "Spared") -> str:
    unknown = f"unknown for {count(told.unknown, 'attempt')}" if told.unknown else ""
    if not told.seconds:
        return f"what features spared is {unknown}"
    if told.seconds > 0:
        known = f"features spared {100 * told.share:.0f} % ({clock(told.seconds)} of teacher)"
    else:
        known = f"features took {clock(-told.seconds)} more than they spared"
    return ", ".join(filter(None, [known, unknown]))


def _shares(seconds: Mapping[str, float]) -> str:
    """Seconds by phase as `1:02:05: student 71 %, evaluate 20 %`; what rounds to nothing is not."""
    whole = sum(seconds.values())
    shares = {phase: round(100 * each / whole) for phase, each in seconds.items()} if whole else {}
    told = [f"{phase} {share} %" for phase, share in shares.items() if share]
    return ": ".join([clock(whole), ", ".join(told)]) if told else clock(whole)


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _pairs(title: str, items: Iterable[tuple[Any, Any]]) -> Text:
    """A heading and a line for each item; the terminal breaks what is too long for it."""
    told = [(str(key), _cell(value)) for key, value in items if key not in ("error", "versions")]
    width = max((len(key) for key, _ in told), default=0)
    lines = [f"  {key:<{width}}  {value}".rstrip() for key, value in told]
    return Text.assemble((printable(title), "bold"), printable("\n".join(["", *lines])))


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
    return Text(printable(text))


def _guard(cell: object) -> object:
    """A spreadsheet would run a cell that begins like a formula, after blanks too."""
    is_formula = isinstance(cell, str) and cell.lstrip().startswith(("=", "+", "-", "@"))
    return f"'{cell}" if is_formula else cell


def _write(console: Console, text: str) -> None:
    console.file.write(text + "\n")
