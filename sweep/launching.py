"""The main job: plan, take the sweep, run what is missing, say how it ended."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from rich.console import Console

from ..results.reader import read_attempts
from ..results.schema import Attempt, PlanRow
from ..results.store import Store
from ..search_spaces import load_grid, read_grid
from ..search_spaces.errors import DataError, InputError, Problem
from ..search_spaces.grid import Grid
from ..search_spaces.knowledge import PluginLoss
from ..search_spaces.plugins import changed, code_of_its_own, plugin_losses, read_bytes
from ..search_spaces.search import GridSearch
from ..search_spaces.space import survey
from ..search_spaces.texts import Text
from ..trainers.floor import below_floor
from .agenda import Agenda, Item, no_more
from .breaker import AT_FIRST, Breaker
from .budget import Meter, say, trials_left, used_by_launches
from .consoles import Patient
from .dispatch import Dispatch
from .drain import Asked, Drain, signals
from .errors import ClusterLostError, NothingMatchesError, WouldDeactivateError
from .estimate import Cost, check_room, estimate, planned_work, read_done, with_flops
from .executors import Choice
from .feature_plan import Measures, plan_features
from .folder import check_folder
from .lock import Lock, beating, take
from .pinned import device_of, new_sweep, pinned_for, planned_features, record_launch
from .planning import (
    Begun,
    Content,
    ContentFacts,
    config_of,
    identify_trials,
    nothing_to_train,
    plan_rows,
    request_of,
    requests_of,
)
from .progress import Progress
from .referee import Referee, stopped_ids
from .retrying import failures_by_class, waits
from .search import Searching, open_search, record_studies, search_work
from .students import keep_best_student
from .survey import Surveyed
from .upkeep import Compactor
from .watch import Watch
from .words import named_ids
from .work import (
    Config,
    Outcome,
    Pinned,
    Work,
    remove_leftover_checkpoints,
    remove_old_checkpoints,
)

RAY = Choice()
STDERR = Patient(stderr=True, soft_wrap=True)


@dataclass(frozen=True)
class Ended:
    """How a launch ended; ids of trials and teachers."""

    folder: Path
    epoch: int
    planned: int
    trained: int
    """Trials completed by this launch."""
    completed: int
    """Trials completed in all."""
    stopped: int
    """Trials that early stopping ended, in all."""
    failed: tuple[str, ...]
    blocked: int
    left: int
    """Pieces of work that this launch neither completed nor gave up, and slots it did not fill."""
    asked: Asked | None
    why: str | None
    """Of `asked`, where the sweep itself was the reason."""
    refused: tuple[Problem, ...]
    """Teachers below their floor."""
    resume: str
    """The command that goes on."""
    slots: tuple[int, int] | None = None
    """Of a search: filled, and planned."""


def launch(
    grid_file: Path,
    *,
    store: Path | None = None,
    executor: Choice = RAY,
    console: Console = STDERR,
    agree: Callable[[WouldDeactivateError], bool] = lambda _: False,
    quiet: bool = False,
    allow_plugins: bool = False,
) -> Ended:
    """Plan a grid and run what its sweep still lacks.

    Args:
        grid_file: The grid.
        store: The sweep's folder; `runs/<name>` unless said.
        executor: How work is run.
        console: Where progress goes.
        agree: Asked before completed trials become inactive.
        quiet: No progress.
        allow_plugins: Whether the grid may bring code, which trials execute.

    Raises:
        InputError: Grid, rows or teacher are wrong; nothing has been written.
        SweepLockedError: Another launch holds the sweep.
        WouldDeactivateError: `agree` said no; nothing has been written.
        ClusterUnreachableError: No Ray cluster answers.
        NoRoomError: The disk has less room than the sweep needs; nothing has been written.
    """
    text = grid_file.read_text(encoding="utf-8")
    grid = load_grid(grid_file, allow_plugins=allow_plugins)
    sweep = Store(store or Path("runs") / grid.name)
    check_folder(sweep)
    content = Content()
    plan = survey(grid, ContentFacts(content))
    if not plan.trials:
        raise InputError([nothing_to_train(grid_file, plan)])
    begun = Begun()
    ids = identify_trials(plan, content, begun)
    work = planned_work(plan, begun, ContentFacts(content))
    rows = with_flops(plan_rows(plan, content), work)
    _check_attempts(sweep, console)
    surveyed = _survey(executor, sweep, grid, rows, console)
    done = read_done(sweep, grid, dict(zip(ids, plan.trials, strict=True)))
    if (search := open_search(sweep, grid, content)) is not None:
        work = search_work(search, plan, content)
    _check_room(estimate(sweep, grid, work, done=done), sweep, executor)
    measures = Measures(content)
    measures.read_all(plan, None if search is not None else begun)
    with _held(sweep, grid, console) as (lock, stop_beating):
        pinned = pinned_for(sweep, grid, precision=surveyed.precision)
        # Another launch may have proposed while this one took the sweep.
        search = open_search(sweep, grid, content)
        rows = rows if search is None else search.rows
        if pinned.features is not None:
            features = plan_features(
                grid,
                plan,
                measures,
                begun if search is None else None,
                precision=pinned.precision,
                choices=pinned.features,
                before=() if search is None else tuple(search.trials.values()),
            )
            pinned = pinned.model_copy(update={"features": features.choices})
        gone = _completed(sweep.read_attempts()) & (
            {row.id for row in sweep.read_plan() if row.what == "trial"} - {row.id for row in rows}
        )
        if gone and not agree(question := WouldDeactivateError(len(gone))):
            raise question
        _keep_plugins(sweep, grid)
        changes = record_launch(
            sweep,
            pinned,
            epoch=lock.epoch,
            base=grid_file.resolve().parent,
            plugins={str(plugin.path): plugin.digest for plugin in grid.plugins},
            nodes=surveyed.hosts,
        )
        _warn(console, changes)
        sweep.add_grid(text)
        record_studies(sweep, search)
        sweep.write_plan(rows if search is None else (), epoch=lock.epoch)
        return _run(
            sweep,
            grid,
            rows,
            lock,
            stop_beating=stop_beating,
            search=search,
            pinned=pinned,
            executor=executor,
            surveyed=surveyed,
            console=console,
            quiet=quiet,
            fresh=False,
            only=None,
        )


def resume(
    folder: Path,
    *,
    executor: Choice = RAY,
    console: Console = STDERR,
    failed_only: bool = False,
    trials: Sequence[str] = (),
    quiet: bool = False,
    allow_plugins: bool = False,
) -> Ended:
    """Run what a sweep lacks, from its store alone; failed trials get their retries anew.

    Raises:
        InputError: There is no sweep, its plan cannot be read, its rows, teacher or plugins have
            changed since the plan, or its grid brings code that is not allowed.
        NothingMatchesError: Only failed trials were asked for, and none has failed.
        SweepLockedError: Another launch holds the sweep.
        ClusterUnreachableError: No Ray cluster answers.
        NoRoomError: The disk has less room than the rest needs; nothing has been written.
    """
    sweep = Store(folder)
    if not sweep.exists():
        raise InputError([Problem(str(folder), "is no sweep", "Name the folder of a launch.")])
    told = sweep.read_sweep()
    grid = read_grid(
        sweep.newest_grid(),
        file=str(folder / "grids"),
        base=Path(told["base"]),
        allow_plugins=allow_plugins,
        read_plugin=_kept_plugins(sweep, told.get("plugins", {})),
    )
    rows = _planned(sweep, grid)
    losses = _planned_losses(rows)
    if losses and not allow_plugins:
        # A store from elsewhere may plan code that its grid does not own up to.
        files = sorted({loss.file for loss in losses})
        raise InputError([Problem(str(folder / "plan"), *code_of_its_own(files))])
    only = _chosen(sweep, rows, failed_only=failed_only, trials=trials)
    content = Content()
    check_content(rows, losses, content)
    _check_attempts(sweep, console)
    _check_room(_cost_of_rest(sweep, grid, content, only), sweep, executor)
    surveyed = _survey(executor, sweep, grid, rows, console)
    with _held(sweep, grid, console) as (lock, stop_beating):
        pinned = pinned_for(
            sweep, grid, precision=surveyed.precision, features=planned_features(sweep)
        )
        _keep_plugins(sweep, grid)
        changes = record_launch(
            sweep,
            pinned,
            epoch=lock.epoch,
            base=Path(told["base"]),
            plugins={},
            nodes=surveyed.hosts,
        )
        _warn(console, changes)
        search = None
        if only is None and (search := open_search(sweep, grid, Content())) is not None:
            record_studies(sweep, search)
            rows = search.rows
        return _run(
            sweep,
            grid,
            rows,
            lock,
            stop_beating=stop_beating,
            search=search,
            pinned=pinned,
            executor=executor,
            surveyed=surveyed,
            console=console,
            quiet=quiet,
            fresh=True,
            only=only,
        )


def _planned(sweep: Store, grid: Grid) -> tuple[PlanRow, ...]:
    """The newest plan; an older one in the place of a damaged one would train something else."""
    mend = "Plan anew: `kdsweep launch` with the grid; what is completed is not trained again."
    if lost := sweep.lost_plan():
        raise InputError(
            [
                Problem(str(sweep.folder / part.path), f"is damaged: {part.reason}", mend)
                for part in lost
            ]
        )
    rows = sweep.read_plan()
    # Of a search everything that is planned lies in its proposals, and it may have made none yet.
    if not rows and isinstance(grid.search, GridSearch):
        raise InputError([Problem(str(sweep.folder / "plan"), "holds no whole plan", mend)])
    return rows


def _survey(
    executor: Choice, sweep: Store, grid: Grid, rows: Sequence[PlanRow], console: Console
) -> Surveyed:
    requests = requests_of(rows, grid.resources)
    if not isinstance(grid.search, GridSearch):
        # What is not proposed yet asks for it.
        requests |= {grid.resources.common}
    surveyed = executor.survey(sweep, requests, device=device_of(grid))
    _warn(console, surveyed.warnings)
    return surveyed


def _warn(console: Console, warnings: Sequence[str]) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False, style="yellow")


def _check_room(cost: Cost, sweep: Store, executor: Choice) -> None:
    most = 1 if executor.name == "serial" else executor.max_concurrent
    check_room(cost, sweep.folder, lanes=min(cost.lanes, most or cost.lanes))


def _cost_of_rest(sweep: Store, grid: Grid, content: Content, only: frozenset[str] | None) -> Cost:
    """What a resumed sweep still takes; with `only` those trials alone."""
    plan = survey(grid, ContentFacts(content))
    begun = Begun()
    ids = identify_trials(plan, content, begun)
    done = read_done(sweep, grid, dict(zip(ids, plan.trials, strict=True)))
    work = planned_work(plan, begun, ContentFacts(content))
    if only is not None:
        work = [each for each in work if each.trial is None or each.id in only]
    elif (search := open_search(sweep, grid, content)) is not None:
        work = search_work(search, plan, content)
    return estimate(sweep, grid, work, done=done)


def _check_attempts(sweep: Store, console: Console) -> None:
    """Say what damage would make done work be done again.

    Raises:
        InputError: It is a file of many attempts, of which most can be rescued.
    """
    damaged = read_attempts(sweep.source).damaged
    mend = f"kdsweep doctor {sweep.folder} --repair"
    merged = [part for part in damaged if part.path.startswith("compact/")]
    if merged:
        what = "is damaged ({}), and what it says is completed would be trained again"
        problems = [
            Problem(str(sweep.folder / path), what.format(reason), f"`{mend}` rescues the rest.")
            for path, reason in merged
        ]
        raise InputError(problems)
    _warn(
        console,
        [f"{path} is damaged, so its attempt does not count: {why}" for path, why in damaged],
    )


def check_content(
    rows: Sequence[PlanRow], losses: Collection[PluginLoss], content: Content
) -> None:
    """Read what the plan read, and compare.

    Raises:
        DataError: Rows, weights or the user's losses differ from those that were planned.
    """
    problems = [changed(Path(loss.file)) for loss in losses if _has_changed(loss)]
    for config in _distinct_content(rows):
        now = content.digests(config.task, config.teacher)
        if now.task != config.task_digest:
            files = config.task.files
            place = files.train if files is not None else str(config.task.name)
            problems.append(_changed(place, "the task's rows have"))
        elif now.teacher != config.teacher_digest:
            problems.append(_changed(config.teacher.model, "the teacher has"))
        elif config.trial is not None:
            stages = [stage for stage in config.trial.stages if stage.data != "task"]
            texts = content.texts(config.trial)
            for stage, text, planned in zip(stages, texts, config.text_digests, strict=True):
                if text != planned:
                    place = stage.data.text if isinstance(stage.data, Text) else stage.data
                    problems.append(_changed(place, "a stage's text has"))
    if problems:
        raise DataError(problems)


def _distinct_content(rows: Sequence[PlanRow]) -> Iterator[Config]:
    """Teachers, and of trials whose stages read text of their own one for each."""
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        if row.what == "teacher":
            yield config_of(row)
        elif row.what == "trial" and '"text_digests":[]' not in str(row.config_json):
            config = config_of(row)
            if config.text_digests not in seen:
                seen.add(config.text_digests)
                yield config


def _planned_losses(rows: Sequence[PlanRow]) -> set[PluginLoss]:
    # Without the word, and without an escape that may hide it, a configuration has no such term.
    suspect = (row for row in rows if re.search(r"plugin|\\", str(row.config_json)))
    trials = [config_of(row).trial for row in suspect if row.what == "trial"]
    return {
        loss
        for trial in trials
        if trial is not None
        for stage in trial.stages
        for loss in plugin_losses(stage.terms)
    }


def _has_changed(loss: PluginLoss) -> bool:
    """Whether a file was edited; where there is none any more, the store's copy stands for it."""
    file = Path(loss.file)
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != loss.digest


def _keep_plugins(sweep: Store, grid: Grid) -> None:
    for plugin in grid.plugins:
        sweep.add_plugin(plugin.digest, plugin.source)


def _kept_plugins(sweep: Store, digests: Mapping[str, str]) -> Callable[[Path], bytes]:
    """Reads the store's copies of plugins, by where they were found."""

    def read(path: Path) -> bytes:
        copy = sweep.plugins_folder / f"{digests.get(str(path))}.py"
        return read_bytes(copy if copy.is_file() else path)

    return read


def _changed(path: str, subject: str) -> Problem:
    return Problem(
        path,
        f"{subject} changed since the plan was made",
        "Re-plan: `kdsweep launch` with the grid plans anew with the content as it is now.",
    )


@contextmanager
def _held(sweep: Store, grid: Grid, console: Console) -> Iterator[tuple[Lock, Callable[[], None]]]:
    """Hold the sweep, and beat until told that the watch over what runs does."""
    if not sweep.exists():
        # Another first launch may have been quicker; the lock decides between the two.
        with suppress(FileExistsError):
            sweep.create(new_sweep(grid))
    lock = take(sweep.locks_folder, tell=partial(console.print, highlight=False, markup=False))
    try:
        with beating(lock) as stop_beating:
            yield lock, stop_beating
    finally:
        lock.release()


def _run(
    sweep: Store,
    grid: Grid,
    rows: Sequence[PlanRow],
    lock: Lock,
    *,
    stop_beating: Callable[[], None],
    search: Searching | None,
    pinned: Pinned,
    executor: Choice,
    surveyed: Surveyed,
    console: Console,
    quiet: bool,
    fresh: bool,
    only: frozenset[str] | None,
) -> Ended:
    planned = {str(row.id): row for row in rows if row.what != "skipped"}
    sweep.remove_temporaries()
    attempts = sweep.read_attempts()
    done = _completed(attempts)
    scores = _scores_by_group(attempts)
    referee = Referee(sweep, grid, planned, lock)
    stopped = referee.stopped(attempts)
    ended_before = done | stopped
    _tidy(sweep, grid, done, stopped, scores)
    too_weak = {
        id: problem
        for id, row in planned.items()
        if row.what == "teacher" and id in done
        if (problem := below_floor(config_of(row).teacher, _values(attempts, id)))
    }
    refused = list(too_weak.values())
    trials = {id for id, row in planned.items() if row.what == "trial"}
    usable = ended_before - too_weak.keys() - _removed_stages(sweep, planned)
    todo = _wanted(planned, usable, only)
    names = {id: _name(row) for id, row in planned.items()}
    flops = {id: row.flops for id, row in planned.items()}
    others: dict[str, str] = {id: row.what for id, row in planned.items() if id not in trials}
    dispatch = Dispatch(sweep, grid, planned, pinned, epoch=lock.epoch)

    def propose(search: Searching, lost: Collection[str]) -> list[Item]:
        new = {
            str(row.id): row for row in search.propose({*lost, *stopped}) if row.what != "skipped"
        }
        planned.update(new)
        dispatch.add(new.values())
        flops.update({id: row.flops for id, row in new.items()})
        names.update({id: _name(row) for id, row in new.items()})
        trials.update(id for id, row in new.items() if row.what == "trial")
        others.update({id: row.what for id, row in new.items() if row.what != "trial"})
        return [Item(id, row.depends_on) for id, row in new.items() if id not in ended_before]

    if search is not None:
        for attempt in attempts:
            if attempt.what == "trial" and attempt.status == "completed":
                search.complete(attempt.id, attempt.values)
    is_proven = not ended_before.isdisjoint(trials)
    agenda = Agenda(
        [Item(str(row.id), row.depends_on) for row in sorted(todo, key=lambda row: row.priority)],
        allowed=grid.retries.allowed,
        failures={} if fresh else failures_by_class(attempts),
        unusable=too_weak.keys(),
        waits=waits(attempts, allowed=grid.retries.allowed, fresh=fresh, now=datetime.now(UTC)),
        at_first=None if is_proven else AT_FIRST,
        counted=trials,
        most=trials_left(grid.budget, ended=_num_trials(attempts, ended_before)),
        more=no_more if search is None else partial(propose, search),
    )
    meter = Meter(
        grid.budget,
        before=used_by_launches(sweep.locks_folder),
        gpus=cache(lambda id: request_of(planned[id], grid.resources).gpus),
    )
    ended = partial(
        _ended,
        sweep,
        grid,
        lock,
        agenda,
        meter,
        trials=trials,
        done=done,
        stopped=stopped,
        search=search,
    )
    if agenda.is_over or meter.spent is not None:
        return ended(asked=None, why=None, refused=tuple(refused))
    progress = Progress(
        agenda,
        console,
        done_before=len(ended_before & trials),
        names=names,
        others=others,
        flops=flops,
        unproposed=lambda: search.trials_left if search is not None else 0,
        quiet=quiet,
    )
    drain = Drain(agenda, lock, progress.tell)
    log = lock.locks / f"{lock.epoch:06d}.log"
    run = executor.make(surveyed, log=log, tell=progress.tell)
    breaker = Breaker(is_proven=is_proven)

    compactor = Compactor(sweep, lock, running=lambda: tuple(agenda.running))

    def settle(work: Work, outcome: Outcome) -> None:
        problem = None
        if work.what == "teacher" and outcome.status == "completed":
            problem = below_floor(config_of(planned[work.id]).teacher, outcome.values)
        if problem is not None:
            refused.append(problem)
        if search is not None and outcome.status == "completed":
            search.complete(work.id, outcome.values)
        agenda.settle(work.id, outcome, is_usable=problem is None)
        compactor.note()
        progress.note(work, outcome)
        if outcome.status == "unwritable":
            drain.ask("unwritable", outcome.error)
        if (why := breaker.note(work, outcome)) is not None and not agenda.is_over:
            drain.ask("failures alike", why)
        if breaker.is_proven:
            agenda.open_up()
        if work.what == "trial" and outcome.status == "completed":
            group = scores[work.group_id]
            group[work.id] = float(outcome.values["select/primary/best"] or 0)
            if grid.keep.students == "best_per_group":
                keep_best_student(sweep, group)

    watch = Watch(agenda, lock, drain, meter, refresh=progress.refresh)
    stop_beating()
    with progress, watch, compactor, signals(drain, agenda):
        try:
            run(agenda, make_work=dispatch, settle=settle, hear=referee.hear)
        except ClusterLostError as error:
            drain.lose(str(error))
        except KeyboardInterrupt:
            progress.tell(
                "ended at once; what ran goes on from its last checkpoint, or starts anew where it "
                "had none"
            )
    if drain.asked != "overtaken":
        # A lane that was killed in the middle of a file could not remove it. Those of a launch that
        # took over are its own.
        sweep.remove_temporaries()
    return ended(asked=drain.asked, why=drain.why, refused=tuple(refused))


def _tidy(
    sweep: Store,
    grid: Grid,
    done: set[str],
    stopped: set[str],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Remove what a launch that was killed after a commit left behind."""
    remove_leftover_checkpoints(sweep, done)
    for id in stopped:
        remove_old_checkpoints(sweep, id)
    if grid.keep.students == "best_per_group":
        for of_group in scores.values():
            keep_best_student(sweep, of_group)


def _ended(
    sweep: Store,
    grid: Grid,
    lock: Lock,
    agenda: Agenda,
    meter: Meter,
    *,
    trials: set[str],
    done: set[str],
    stopped: set[str],
    search: Searching | None,
    asked: Asked | None,
    why: str | None,
    refused: tuple[Problem, ...],
) -> Ended:
    now = trials & set(agenda.completed)
    left = len(agenda) - len(agenda.settled) + (search.slots_left if search is not None else 0)
    # A budget that lasted just to the end stopped nothing.
    limit = (meter.spent or ("trials" if agenda.is_at_limit else None)) if left else None
    if asked in (None, "budget"):
        asked, why = ("budget", say(limit, grid.budget)) if limit else (None, None)
    return Ended(
        folder=sweep.folder,
        epoch=lock.epoch,
        planned=len(trials),
        trained=len(now),
        completed=len(now | (trials & done)),
        stopped=len(trials & (stopped | set(agenda.stopped))),
        failed=tuple(agenda.failed),
        blocked=len(agenda.blocked),
        left=left,
        asked=asked,
        why=why,
        refused=refused,
        resume=f"kdsweep resume {sweep.folder}" + (" --allow-plugins" if grid.plugins else ""),
        slots=search.slots if search is not None else None,
    )


def _completed(attempts: Sequence[Attempt]) -> set[str]:
    return {attempt.id for attempt in attempts if attempt.status == "completed"}


def _num_trials(attempts: Sequence[Attempt], done: set[str]) -> int:
    """How many trials are done, those that are no longer planned included."""
    return len({attempt.id for attempt in attempts if attempt.what == "trial"} & done)


def _scores_by_group(attempts: Sequence[Attempt]) -> dict[str, dict[str, float]]:
    """Best select score of every completed trial, by group."""
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for attempt in attempts:
        if attempt.what == "trial" and attempt.status == "completed":
            scores[str(attempt.group_id)][attempt.id] = float(
                attempt.values["select/primary/best"] or 0
            )
    return scores


def _values(attempts: Sequence[Attempt], id: str) -> Mapping[str, object]:
    return next(a.values for a in attempts if a.id == id and a.status == "completed")


def _removed_stages(sweep: Store, planned: Mapping[str, PlanRow]) -> set[str]:
    """Stages that somebody removed, for their room or because they were damaged."""
    stages = {id for id, row in planned.items() if row.what == "stage"}
    return {id for id in stages if not sweep.stage_folder(id).is_dir()}


def _wanted(
    planned: Mapping[str, PlanRow], done: set[str], only: frozenset[str] | None
) -> list[PlanRow]:
    """What is still to do: trials, with `only` those alone, and whatever they depend on."""
    wanted = {
        id for id, row in planned.items() if (row.what == "trial" if only is None else id in only)
    } - done
    reached = list(wanted)
    while reached:
        needed = set(planned[reached.pop()].depends_on) - done - wanted
        wanted |= needed
        reached += needed
    return [row for id, row in planned.items() if id in wanted]


def _chosen(
    sweep: Store, rows: Sequence[PlanRow], *, failed_only: bool, trials: Sequence[str]
) -> frozenset[str] | None:
    groups = {str(row.id): str(row.group_id) for row in rows if row.what == "trial"}
    if trials:
        return named_ids(trials, groups, folder=sweep.folder)
    if not failed_only:
        return None
    attempts = sweep.read_attempts()
    done = _completed(attempts)
    planned = {str(row.id) for row in rows if row.what != "skipped"}
    failed = (failures_by_class(attempts).keys() & planned) - done
    if failed:
        return frozenset(failed | _waiting_for(failed, rows))
    told = "no trial has failed"
    if pending := len(groups.keys() - done - stopped_ids(attempts)):
        are = "is" if pending == 1 else "are"
        them = "it" if pending == 1 else "them"
        told += f"; {pending} {are} pending: `kdsweep resume {sweep.folder}` runs {them}"
    raise NothingMatchesError(told)


def _waiting_for(ids: Collection[str], rows: Sequence[PlanRow]) -> set[str]:
    """What a failed teacher or stage blocked: it failed with it, though nothing was tried."""
    reached = set(ids)
    # Each row stands behind what it depends on.
    for row in rows:
        if not reached.isdisjoint(row.depends_on):
            reached.add(str(row.id))
    return reached


def _name(row: PlanRow) -> str:
    shown = [str(value) for axis, value in row.axes.items() if value is not None and axis != "seed"]
    seed = row.axes.get("seed")
    return " ".join([*shown, *([f"seed {seed}"] if seed is not None else [])])
