"""One trial in the foreground, nothing stored: for `kdsweep try`."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from ..results.labels import labelled
from ..search_spaces import expand, load_grid
from ..search_spaces.errors import InputError
from ..search_spaces.grid import Grid
from ..search_spaces.ids import Identifier
from ..search_spaces.training import Limit
from ..search_spaces.trial import Trial
from .pinned import pin
from .planning import Content, ContentFacts, labels_of, nothing_to_train
from .showing import print_resolved
from .words import named


def try_trial(
    grid_file: Path,
    *,
    trial: str | None,
    steps: int,
    console: Console,
    allow_plugins: bool = False,
) -> None:
    """Train a trial for some steps, printing each term's loss and gradient norm.

    A teacher that would have to be fine-tuned sees a single batch instead: this command shows
    terms, shapes and gradients, not what the teacher will know.

    Raises:
        InputError: The grid has no such trial, or its rows or teacher are wrong.
    """
    from ..trainers.assets import Assets
    from ..trainers.loop import train
    from ..trainers.reports import Resolved, Row
    from ..trainers.settings import Settings
    from ..trainers.teacher import prepare_teacher
    from ..trainers.tokens import cache_folder

    grid = load_grid(grid_file, allow_plugins=allow_plugins)
    chosen = _choose(grid, trial, grid_file)
    pinned = pin(grid)
    # Without kept features nothing is computed beyond the batches that are seen.
    settings = Settings(
        threads=pinned.threads, device=pinned.device, precision=pinned.precision, features_gb=0
    )
    assets = Assets(settings, cache_folder())
    with tempfile.TemporaryDirectory(prefix="kdsweep-try-") as scratch:
        folder = Path(scratch) / "teacher"
        teacher, task = chosen.teacher, chosen.task
        if teacher.fine_tune is not None:
            console.print("the teacher is not trained: it sees one batch", style="yellow")
            batch = Limit(train=teacher.fine_tune.batch_size, select=teacher.fine_tune.batch_size)
            head = teacher.language_head
            teacher = teacher.model_copy(
                update={
                    "fine_tune": teacher.fine_tune.model_copy(update={"epochs": 1}),
                    "language_head": head and head.model_copy(update={"steps": 1}),
                }
            )
            task = task.model_copy(update={"limit": batch})
        for _ in prepare_teacher(teacher, task, into=folder, assets=assets, settings=settings):
            pass
        seen = 0
        labels = labels_of(chosen)
        reports = train(
            chosen,
            teacher=folder,
            assets=assets,
            settings=settings,
            stop=lambda: seen >= steps,
        )
        with closing(reports):
            for report in reports:
                match report:
                    case Resolved(values=values):
                        print_resolved(values, console)
                    case Row(step=step, values=values):
                        seen = step
                        console.print(f"step {step}: {_line(values, labels)}", highlight=False)
                    case _:
                        break


def _choose(grid: Grid, word: str | None, file: Path) -> Trial:
    content = Content()
    plan = expand(grid, ContentFacts(content))
    if not plan.trials:
        raise InputError([nothing_to_train(file, plan)])
    identify = Identifier().identify
    trials = {identify(p.trial, content.of_trial(p.trial)): p.trial for p in plan.trials}
    if word is None:
        return plan.trials[0].trial
    groups = {ids.trial: ids.group for ids in trials}
    mend = f"`kdsweep plan {file} --json` lists the ids."
    wanted = named(word, groups, place="--trial", mend=mend)[0]
    return next(trial for ids, trial in trials.items() if ids.trial == wanted)


def _line(values: Mapping[str, float], labels: Sequence[str]) -> str:
    return "  ".join(f"{labelled(name, labels)} {value:.4g}" for name, value in values.items())
