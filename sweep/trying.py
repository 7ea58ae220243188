"""One trial in the foreground, nothing stored: for `kdsweep try`."""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from rich.console import Console

from ..search_spaces import expand
from ..search_spaces.errors import InputError, Problem
from ..search_spaces.grid import Grid
from ..search_spaces.training import Limit
from ..search_spaces.trial import Trial, trial_id
from .pinned import pin
from .planning import Content, ContentFacts
from .showing import print_resolved


def try_trial(grid: Grid, *, trial: str | None, steps: int, console: Console) -> None:
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

    chosen = _choose(grid, trial)
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
            console.print("the teacher is not fine-tuned: it sees one batch", style="yellow")
            batch = Limit(train=teacher.fine_tune.batch_size, select=teacher.fine_tune.batch_size)
            teacher = teacher.model_copy(
                update={"fine_tune": teacher.fine_tune.model_copy(update={"epochs": 1})}
            )
            task = task.model_copy(update={"limit": batch})
        for _ in prepare_teacher(teacher, task, into=folder, assets=assets, settings=settings):
            pass
        seen = 0
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
                        console.print(f"step {step}: {_line(values)}", highlight=False)
                    case _:
                        break


def _choose(grid: Grid, prefix: str | None) -> Trial:
    content = Content()
    plan = expand(grid, ContentFacts(content))
    trials = {
        trial_id(p.trial, content.digests(p.trial.task, p.trial.teacher)): p.trial
        for p in plan.trials
    }
    found = [id for id in trials if id.startswith(prefix or "")]
    if not found or (prefix is not None and len(found) > 1):
        what = "names no trial of this grid" if not found else f"names {len(found)} trials"
        mend = "`kdsweep plan GRID --json` lists the ids."
        raise InputError([Problem(f"--trial {prefix}", what, mend)])
    return trials[found[0]]


def _line(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
