"""The command line: parse, call, print. Data on standard output, everything else on stderr."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
from typer.exceptions import TyperException

from ..results.schema import DamagedSweepError, NewerStoreError
from ..search_spaces import load_grid
from ..search_spaces.errors import InputError, Problem
from .errors import (
    ClusterUnreachableError,
    NoRoomError,
    NothingMatchesError,
    SweepLockedError,
    WouldDeactivateError,
)
from .words import printable

if TYPE_CHECKING:
    from rich.console import Console

    from .executors import Choice
    from .launching import Ended

app = typer.Typer(
    name="kdsweep",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

OK, INTERNAL, INVALID, FAILED, NO_MATCH, LOCKED, UNWRITABLE, STOPPED, INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    73,
    74,
    75,
    130,
)

GridFile = Annotated[Path, typer.Argument(metavar="GRID", help="The grid file.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The sweep's folder.")]
TrialId = Annotated[
    str,
    typer.Argument(
        metavar="TRIAL", help="The id of a trial, a group or a teacher, or the beginning of one."
    ),
]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", help="The sweep's folder; runs/<name> unless said.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
AllowPlugins = Annotated[
    bool,
    typer.Option(
        "--allow-plugins", help="Agree that training executes the files under the grid's `plugins`."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


class ExecutorName(StrEnum):
    """Where work runs."""

    RAY = "ray"
    SERIAL = "serial"


Address = Annotated[
    str, typer.Option(help="Ray cluster: local (one of its own), auto, or HOST:PORT.")
]
ExecutorOption = Annotated[
    ExecutorName, typer.Option(help="ray, or serial: in this process, for a debugger.")
]
InsecureCluster = Annotated[
    bool,
    typer.Option(
        "--insecure-cluster",
        help="Agree that the cluster of --address asks for no token: anybody may run code there.",
    ),
]
MaxConcurrent = Annotated[
    int | None, typer.Option(min=1, help="Most trials at once; as many as fit unless said.")
]


def stderr() -> "Console":
    """Where progress and messages go."""
    from .consoles import Patient

    return Patient(stderr=True, soft_wrap=True)


def stdout() -> "Console":
    """Where data go; a pipe has no width, so nothing is cut there."""
    from .consoles import Patient

    return Patient(soft_wrap=True, width=None if sys.stdout.isatty() else 400)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"kdsweep {version('kdsweep')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Distillation studies as one command: `kdsweep launch grid.yaml`."""


@app.command()
def plan(
    grid: GridFile,
    store: StoreFolder = None,
    as_json: AsJson = False,
    address: Address = "local",
    allow_plugins: AllowPlugins = False,
) -> None:
    """Count a grid's trials and say what would be skipped, collapsed, or is done already."""
    # A wrong grid is refused before anything heavy is imported.
    read = load_grid(grid, allow_plugins=allow_plugins)
    from .executors import Choice
    from .forecast import forecast, print_forecast
    from .planning import nothing_to_train

    where = Choice(address=address)
    told = forecast(read, store)
    if as_json:
        _print_json(told.as_json())
    else:
        print_forecast(told, stdout())
    if not told.plan.trials:
        # As `launch` would: whoever plans first is to learn it from the exit code.
        raise InputError([nothing_to_train(grid, told.plan)])
    where.check_room(told.requests)


@app.command(name="try")
def try_(
    grid: GridFile,
    trial: Annotated[
        str | None, typer.Option(help="Its id or its group's, or the beginning of one.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps to take.")] = 50,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Train one trial for a few steps in the foreground; nothing is stored."""
    from .trying import try_trial

    try_trial(grid, trial=trial, steps=steps, console=stdout(), allow_plugins=allow_plugins)


@app.command()
def launch(
    grid: GridFile,
    store: StoreFolder = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Agree that completed trials become inactive.")
    ] = False,
    address: Address = "local",
    executor: ExecutorOption = ExecutorName.RAY,
    max_concurrent: MaxConcurrent = None,
    insecure_cluster: InsecureCluster = False,
    quiet: Quiet = False,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Train every trial of a grid that its sweep still lacks."""
    # A wrong grid is refused before anything heavy is imported.
    load_grid(grid, allow_plugins=allow_plugins)
    from . import launching

    def agree(question: WouldDeactivateError) -> bool:
        if yes:
            return True
        return sys.stdin.isatty() and typer.confirm(f"{question}. Go on?", err=True)

    ended = launching.launch(
        grid,
        store=store,
        executor=_choose(executor, address, max_concurrent, insecure_cluster),
        console=stderr(),
        agree=agree,
        quiet=quiet,
        allow_plugins=allow_plugins,
    )
    _finish(ended)


@app.command()
def resume(
    folder: Folder,
    failed_only: Annotated[
        bool, typer.Option("--failed-only", help="Only trials that failed.")
    ] = False,
    trial: Annotated[
        list[str] | None, typer.Option("--trial", help="Only this trial or group; may be repeated.")
    ] = None,
    address: Address = "local",
    executor: ExecutorOption = ExecutorName.RAY,
    max_concurrent: MaxConcurrent = None,
    insecure_cluster: InsecureCluster = False,
    quiet: Quiet = False,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Run what a sweep lacks; failed trials get their retries anew."""
    from . import launching

    ended = launching.resume(
        folder,
        executor=_choose(executor, address, max_concurrent, insecure_cluster),
        console=stderr(),
        failed_only=failed_only,
        trials=trial or (),
        quiet=quiet,
        allow_plugins=allow_plugins,
    )
    _finish(ended)


@app.command()
def grow(
    folder: Folder,
    top: Annotated[int, typer.Option(min=1, help="How many groups: the best on select.")],
    seeds: Annotated[int, typer.Option(min=2, help="How many seeds each is to have in all.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; <name>-grown.yaml unless said.")
    ] = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Write a sweep's grid again, with more seeds for its best groups."""
    from .growing import grow as write_grown
    from .words import count

    try:
        grown = write_grown(folder, top=top, seeds=seeds, into=output, allow_plugins=allow_plugins)
    except FileExistsError as error:
        _complain(f"{error.filename} exists\n    Name another file with `-o`.", INVALID)
    allow = " --allow-plugins" if allow_plugins else ""
    typer.echo(
        f"wrote {grown.file}: {count(grown.new_trials, 'new trial')} in "
        f"{count(grown.groups, 'group')}; next: "
        f"kdsweep launch {grown.file} --store {grown.folder}{allow}",
        err=True,
    )


@app.command()
def stop(
    folder: Folder,
    wait: Annotated[bool, typer.Option("--wait", help="Return once the launch has left.")] = False,
    trial: Annotated[
        list[str] | None,
        typer.Option(
            "--trial", help="End only this trial or group, as `cancelled`; may be repeated."
        ),
    ] = None,
) -> None:
    """Ask a running launch, on any host, to checkpoint what it runs and to leave."""
    from .cancelling import ask_to_cancel
    from .stop_request import ask_to_stop

    def tell(message: str) -> None:
        typer.echo(message, err=True)

    if not trial:
        ask_to_stop(folder, wait=wait, tell=tell)
    elif wait:
        what = "waits for a launch that leaves, and with `--trial` it goes on"
        raise InputError([Problem("--wait", what, "Leave out one of the two.")])
    else:
        ask_to_cancel(folder, trial, tell=tell)


@app.command()
def status(
    folder: Folder,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Until nothing runs.")] = False,
) -> None:
    """Completed, failed, running and pending trials; reads files only, from any host."""
    from .showing import watch_status

    watch_status(folder, as_json=as_json, watch=watch, console=stdout())


class Question(StrEnum):
    """What to ask of the results."""

    TABLE = "table"
    BEST = "best"
    PIVOT = "pivot"
    PARETO = "pareto"
    SEARCH = "search"
    FAILURES = "failures"


ACTS: Mapping[str, tuple[Question, ...]] = {
    "--metric": (Question.BEST, Question.PIVOT, Question.PARETO),
    "--by": (Question.BEST,),
    "--index": (Question.PIVOT,),
    "--columns": (Question.PIVOT,),
    "-n": (Question.TABLE, Question.BEST, Question.FAILURES),
}
"""On which questions an option acts."""


@app.command()
def results(
    folder: Folder,
    question: Annotated[
        Question, typer.Argument(metavar="[table|best|pivot|pareto|search|failures]")
    ] = Question.TABLE,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="best, pivot: a metric's name; primary unless said. pareto: one of several; "
            "primary and parameters unless said."
        ),
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="best: one list for each value.")] = None,
    index: Annotated[
        str | None, typer.Option(help="pivot: the axis of the rows; knowledge unless said.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="pivot: the axis of the columns; matching unless said.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="table, best, failures: how many rows.")
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="A LaTeX table.")] = False,
) -> None:
    """Ask a sweep: its leaderboard, the best students, a pivot table, the best compromises.

    `search` tells what a search proposed, and the best so far by the number of its trials.
    """
    from .showing import Form, ask

    _check_options(
        question, {"--metric": metric, "--by": by, "--index": index, "--columns": columns, "-n": n}
    )
    if question is not Question.PARETO and len(metric or ()) > 1:
        what = f"is given {len(metric or ())} times, and `{question.value}` shows one metric"
        raise InputError([Problem("--metric", what, "Keep one.")])
    flags = {Form.JSON: as_json, Form.CSV: as_csv, Form.LATEX: as_latex}
    forms = [form for form, is_asked in flags.items() if is_asked]
    if len(forms) > 1:
        what = " and ".join(f"`--{form.value}`" for form in forms)
        raise InputError([Problem("results", f"{what} contradict each other", "Choose one.")])
    found = ask(
        folder,
        question.value,
        metric=(metric or ["primary"])[0],
        metrics=metric or ["primary", "parameters"],
        by=by or [],
        index=index or "knowledge",
        columns=columns or "matching",
        n=n,
        form=forms[0] if forms else Form.TABLE,
        console=stdout(),
        notes=stderr(),
    )
    if not found:
        raise typer.Exit(NO_MATCH)


@app.command()
def show(folder: Folder, trial: TrialId, as_json: AsJson = False) -> None:
    """One trial: its resolved terms, layer pairs, shapes and projections, and its attempts."""
    from .showing import show_trial

    show_trial(folder, trial, as_json=as_json, console=stdout())


@app.command()
def logs(folder: Folder, trial: TrialId) -> None:
    """What the attempts of one trial have logged."""
    from .showing import print_logs

    if not print_logs(folder, trial, console=stdout(), notes=stderr()):
        raise typer.Exit(NO_MATCH)


@app.command()
def compact(folder: Folder) -> None:
    """Merge the files of a sweep that nobody launches; a launch merges by itself."""
    from .upkeep import compact as merge
    from .words import count

    notes = stderr()
    done = merge(folder, tell=lambda message: notes.print(message, highlight=False))
    typer.echo(f"merged {count(done.parts, 'part')}, removed {count(done.removed, 'file')}")


@app.command()
def doctor(
    folder: Folder,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Mend what can be mended; the rest is moved to DIR/quarantine."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every file of a sweep; exit code 3 while something stays wrong."""
    from . import doctor as doctoring
    from .showing import print_diagnosis

    told = doctoring.repair(folder) if repair else doctoring.diagnose(folder)
    print_diagnosis(folder, told, as_json=as_json, console=stdout())
    if told.found:
        raise typer.Exit(FAILED)


cache = typer.Typer(no_args_is_help=True, help="What this host keeps of texts and teachers.")
app.add_typer(cache, name="cache")


@cache.command("list")
def cache_list(as_json: AsJson = False) -> None:
    """Tokens and features of teachers, what was used last first."""
    from ..trainers.tokens import cache_folder
    from .caching import list_cache, print_cache

    folder = cache_folder()
    print_cache(list_cache(folder), folder, stdout(), as_json=as_json)


@cache.command("prune")
def cache_prune(
    older_than: Annotated[
        str, typer.Option(help="Only what nobody has used for so long: 12h, 30d, 8w.")
    ] = "30d",
    everything: Annotated[bool, typer.Option("--all", help="However lately it was used.")] = False,
) -> None:
    """Remove what is not in use; a sweep that needs it again computes it again."""
    from ..trainers.tokens import cache_folder
    from .caching import parse_age
    from .caching import prune as remove
    from .words import count, size

    removed = remove(cache_folder(), older_than=0.0 if everything else parse_age(older_than))
    freed = size(sum(each.bytes for each in removed))
    typer.echo(f"removed {count(len(removed), 'item')}, {freed}")


@app.command()
def explain(
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="Such as `relations` or `uniform`.")
    ] = None,
) -> None:
    """Every knowledge, matching and initialisation, with formula, needs and paper."""
    from .explaining import print_word, print_words

    if word is None:
        print_words(stdout())
    else:
        print_word(word, stdout())


@app.command()
def schema() -> None:
    """The grid language as JSON Schema, for editors."""
    from ..search_spaces import grid_schema

    _print_json(grid_schema())


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE")] = Path("grid.yaml"),
) -> None:
    """Write a commented grid to start from."""
    from ..search_spaces import starter_grid

    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(starter_grid())
    except FileExistsError:
        _complain(f"{file} exists\n    Name another file: `kdsweep init other.yaml`.", INVALID)
    except (FileNotFoundError, NotADirectoryError):
        _complain(f"there is no folder {file.parent}\n    Make it, or name another.", INVALID)
    typer.echo(f"wrote {file}; next: kdsweep plan {file}", err=True)


def main() -> NoReturn:
    """Run the command line and end with one of the documented exit codes."""
    try:
        run()
    except SystemExit as ending:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        if "ray" in sys.modules:
            # Ray's threads may crash an interpreter that is torn down around them, and then the
            # exit code would be that of the crash. All that was ours to close is closed.
            os._exit(cast("int", ending.code))
        raise


def run() -> NoReturn:
    """Run the command line; every ending is a SystemExit with a documented code."""
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        _complain(f"{error.format_message()}\n    `kdsweep --help` lists what there is.", INVALID)
    except InputError as error:
        _complain(str(error), INVALID)
    except WouldDeactivateError as error:
        _complain(f"{error}\n    Agree with `--yes`, or launch into another folder.", INVALID)
    except SweepLockedError as error:
        _complain(str(error), LOCKED)
    except NewerStoreError as error:
        _complain(str(error), INVALID)
    except DamagedSweepError as error:
        mend = "Results can still be read. To train on, restore it, or launch into another folder."
        _complain(f"{error}\n    {mend}", INVALID)
    except NothingMatchesError as error:
        _complain(str(error), NO_MATCH)
    except ClusterUnreachableError as error:
        mend = "Start it, or name another with `--address`; then run the command again."
        _complain(f"{error}\n    {mend}", STOPPED)
    except NoRoomError as error:
        mend = "Free some, keep fewer students (`keep`), or name another `--store`."
        _complain(f"{error}\n    {mend}", UNWRITABLE)
    except FileNotFoundError as error:
        _complain(f"{error.filename or error}: no such file\n    Check the name.", INVALID)
    except OSError as error:
        _complain(f"{error}\n    Mend space or permissions, and run it again.", UNWRITABLE)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(code or OK)


def _finish(ended: "Ended") -> NoReturn:
    from .showing import print_ended

    print_ended(ended, data=stdout(), notes=stderr())
    if ended.refused:
        raise InputError(ended.refused)
    match ended.asked:
        case "SIGINT":
            raise typer.Exit(INTERRUPTED)
        case "SIGTERM" | "stop" | "budget" | "overtaken" | "cluster lost":
            raise typer.Exit(STOPPED)
        case "failures alike":
            raise typer.Exit(FAILED)
        case "unwritable":
            raise typer.Exit(UNWRITABLE)
        case None:
            raise typer.Exit(FAILED if ended.failed else STOPPED if ended.left else OK)


def _check_options(question: Question, given: Mapping[str, object]) -> None:
    """Refuse an option that says nothing about this question, rather than answer another one."""
    problems = [
        Problem(
            option,
            f"does not act on `{question.value}`",
            f"It acts on {' and '.join(f'`{other.value}`' for other in ACTS[option])}.",
        )
        for option, value in given.items()
        if value and question not in ACTS[option]
    ]
    if problems:
        raise InputError(problems)


def _choose(
    name: ExecutorName, address: str, max_concurrent: int | None, insecure_cluster: bool
) -> "Choice":
    from .executors import Choice

    if name is ExecutorName.SERIAL and (address != "local" or max_concurrent is not None):
        what = "`--executor serial` runs one trial after another in this process"
        mend = "Leave out `--address` and `--max-concurrent`, or leave out `--executor serial`."
        raise InputError([Problem("--executor", what, mend)])
    return Choice(
        name.value,
        address=address,
        max_concurrent=max_concurrent,
        allows_open=insecure_cluster,
    )


def _complain(message: str, code: int) -> NoReturn:
    # Nobody may be left to read it, and what is complained of may be a stranger's file.
    with suppress(BrokenPipeError):
        typer.echo(printable(message), err=True)
    sys.exit(code)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
