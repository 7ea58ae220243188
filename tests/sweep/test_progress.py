"""What a launch says of itself while it runs."""

from collections.abc import Callable
from io import StringIO

from rich.console import Console

from kdsweep.sweep.agenda import Agenda, Item
from kdsweep.sweep.progress import Progress
from kdsweep.sweep.work import Outcome, Work

Say = Callable[[], str]


def attempt_of(id: str) -> Work:
    return Work.model_construct(what="trial", id=id)


def shown() -> tuple[Agenda, Say]:
    items = [Item("t"), *(Item(id, ("t",)) for id in "abc")]
    agenda = Agenda(items, allowed=lambda _: 0, failures={})
    names = {"t": "minilm", "a": "hard seed 0", "b": "hard seed 1", "c": "soft seed 0"}
    file = StringIO()
    console = Console(file=file, width=200)
    progress = Progress(
        agenda, console, done_before=1, names=names, others={"t": "teacher"}, flops={}
    )

    def say() -> str:
        file.truncate(file.seek(0))
        progress.__exit__()
        return file.getvalue()

    return agenda, say


def test_trials_are_counted_and_what_runs_is_named() -> None:
    agenda, say = shown()
    agenda.take()
    assert say().startswith("1/4 trials, teacher minilm is being prepared, 0:00 elapsed")
    agenda.settle("t", Outcome(status="completed"))
    agenda.take()
    assert say().startswith("1/4 trials, running hard seed 0, ")
    agenda.take()
    agenda.take()
    assert say().startswith("1/4 trials, running hard seed 0 and 2 more, ")
    agenda.settle("a", Outcome(status="completed"))
    assert say().startswith("2/4 trials, running hard seed 1 and 1 more, ")


def test_a_single_trial_is_counted_in_the_singular() -> None:
    agenda = Agenda([Item("a")], allowed=lambda _: 0, failures={})
    file = StringIO()
    with Progress(
        agenda, Console(file=file), done_before=0, names={"a": "hard"}, others={}, flops={}
    ):
        agenda.take()
        agenda.settle("a", Outcome(status="completed"))
    assert file.getvalue().startswith("1/1 trial, ")


def test_a_failure_says_when_it_is_tried_again_and_what_waits_is_counted() -> None:
    agenda = Agenda([Item("a")], allowed=lambda _: 1, failures={}, wait=lambda *_: 90.0)
    file = StringIO()
    console = Console(file=file, width=200)
    failed = Outcome(status="failed", failure_class="stalled", error="x\nno step for 15 minutes")
    with Progress(
        agenda, console, done_before=0, names={"a": "hard"}, others={}, flops={}
    ) as progress:
        agenda.take()
        agenda.settle("a", failed)
        progress.note(attempt_of("a"), failed)
    told, line = file.getvalue().splitlines()
    assert told.startswith("stalled: trial a (hard): no step for 15 minutes; tried again in 1:")
    assert "1 waiting to be tried again" in line
