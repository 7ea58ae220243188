"""Why a point cannot be trained: rules on a resolved trial and the facts of its models and task."""

from collections.abc import Iterator
from typing import NamedTuple

from .facts import ModelFacts, TaskFacts
from .initialisation import Initialisation, TeacherLayers, source_layers
from .knowledge import Attentions, Term, term_label
from .matching import MatchingError
from .resolution import MisfitError, resolve_terms, trains_head
from .shape import Shape
from .sizes import trial_sizes
from .task import Task, Teacher


class Broken(NamedTuple):
    """A rule that a point breaks."""

    rule: str
    reason: str


class Subject(NamedTuple):
    """What the rules look at; unknown facts are None."""

    task: Task
    teacher: Teacher
    terms: tuple[Term, ...]
    shape: Shape
    initialisation: Initialisation
    model: ModelFacts | None
    task_facts: TaskFacts | None


def first_broken(subject: Subject) -> Broken | None:
    """The first rule that a point breaks, if it breaks any."""
    return next(_broken(subject), None)


def warnings(subject: Subject) -> Iterator[Broken]:
    """What is allowed but deserves a word."""
    model, shape = subject.model, subject.shape
    if model is None or model.num_attention_heads == shape.heads:
        return
    for term in subject.terms:
        if isinstance(term, Attentions) and term.head_map in ("mean", "sum"):
            yield Broken(
                "heads",
                f"`{term_label(term)}` compares the {term.head_map} of the teacher's "
                f"{model.num_attention_heads} heads with that of the student's {shape.heads}",
            )


def _broken(subject: Subject) -> Iterator[Broken]:
    yield from _objective(subject)
    yield from _shape(subject)
    if subject.task_facts is not None:
        yield from _classes(subject, subject.task_facts)
    yield from _teacher_state(subject)
    if subject.model is not None:
        yield from _length(subject, subject.model)
        yield from _terms(subject, subject.model)
        yield from _initialisation(subject, subject.model)


def _objective(subject: Subject) -> Iterator[Broken]:
    if not subject.terms:
        yield Broken("no term", "every term has weight 0")
    elif not any(trains_head(term) for term in subject.terms):
        yield Broken(
            "untrained head",
            "no term reads the student's logits, so its classifier would stay random; "
            "add `hard_labels` or `soft_logits`",
        )


def _shape(subject: Subject) -> Iterator[Broken]:
    width, heads = subject.shape.width, subject.shape.heads
    if width % heads:
        yield Broken("heads divide width", f"{heads} heads do not divide the width {width}")


def _classes(subject: Subject, facts: TaskFacts) -> Iterator[Broken]:
    if facts.regression:
        yield Broken("classes", f"`{subject.task.name}` is a regression, which is not built yet")


def _teacher_state(subject: Subject) -> Iterator[Broken]:
    initialisation = subject.initialisation
    if not isinstance(initialisation, TeacherLayers) or initialisation.from_ != "pretrained":
        return
    if subject.teacher.fine_tune is None:
        yield Broken(
            "initialisation",
            "`from: pretrained` needs a teacher with `fine_tune`: this one comes fine-tuned",
        )
    if initialisation.head == "copy":
        yield Broken("initialisation", "`head: copy` needs `from: fine_tuned`")


def _length(subject: Subject, model: ModelFacts) -> Iterator[Broken]:
    if subject.task.max_length > model.max_position_embeddings:
        yield Broken(
            "length",
            f"`task.max_length` {subject.task.max_length} exceeds the teacher's "
            f"{model.max_position_embeddings} positions",
        )


def _terms(subject: Subject, model: ModelFacts) -> Iterator[Broken]:
    num_labels = subject.task_facts and subject.task_facts.num_classes
    student, teacher = trial_sizes(subject.shape, model, num_labels=num_labels)
    try:
        resolve_terms(subject.terms, student=student, teacher=teacher)
    except MisfitError as error:
        for rule, field, what, mend in error.misfits:
            yield Broken(rule, f"`{field}` {what}. {mend}")


def _initialisation(subject: Subject, model: ModelFacts) -> Iterator[Broken]:
    initialisation, shape = subject.initialisation, subject.shape
    if not isinstance(initialisation, TeacherLayers):
        return
    sizes = {
        "width": (shape.width, model.hidden_size),
        "heads": (shape.heads, model.num_attention_heads),
        "feed-forward width": (shape.intermediate_size, model.intermediate_size),
    }
    unlike = [
        f"{name} {ours} and {theirs}" for name, (ours, theirs) in sizes.items() if ours != theirs
    ]
    if unlike:
        yield Broken(
            "initialisation",
            f"blocks are copied only between equals; student and teacher have {', '.join(unlike)}",
        )
    try:
        source_layers(
            initialisation,
            num_teacher_layers=model.num_hidden_layers,
            num_student_layers=shape.layers,
        )
    except MatchingError as error:
        yield Broken("initialisation", str(error))
