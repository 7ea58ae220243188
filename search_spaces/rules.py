"""Why a point cannot be trained: rules on a resolved trial and the facts of its models and task."""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from .facts import ModelFacts, TaskFacts
from .initialisation import Initialisation, TeacherLayers, source_layers
from .knowledge import (
    LEAST_ROWS,
    Attentions,
    Dkd,
    HiddenStates,
    MaskedLogits,
    SoftLogits,
    Term,
    couples_rows,
    reads_labels,
    term_label,
)
from .matching import MatchingError
from .resolution import (
    MisfitError,
    matches_layers,
    reads_teachers_answers,
    resolve_term,
    resolve_terms,
    trains_head,
)
from .shape import Shape
from .sizes import trial_sizes
from .task import Task, Teacher
from .trial import Stage, canonical_json, canonical_term

_HEAVY = 10
"""How many times the logits' weight a last layer's has to be for a word about it."""


class Broken(NamedTuple):
    """A rule that a point breaks."""

    rule: str
    reason: str


class Subject(NamedTuple):
    """What the rules look at; unknown facts are None."""

    task: Task
    teacher: Teacher
    stages: tuple[Stage, ...]
    shape: Shape
    initialisation: Initialisation
    model: ModelFacts | None
    task_facts: TaskFacts | None


def _terms_of(subject: Subject) -> Iterator[Term]:
    return (term for stage in subject.stages for term in stage.terms)


def first_broken(subject: Subject) -> Broken | None:
    """The first rule that a point breaks, if it breaks any."""
    return next(_broken(subject), None)


def warnings(subject: Subject) -> Iterator[Broken]:
    """What is allowed but deserves a word."""
    for term in _terms_of(subject):
        yield from _term_warnings(term, subject)
    beside = (pair for stage in subject.stages for pair in combinations(stage.terms, 2))
    for first, second in beside:
        if _without_weight(first) == _without_weight(second):
            names = f"`{term_label(first)}` and `{term_label(second)}`"
            yield Broken("duplicate", f"{names} differ in their weight alone: they are one term")
    for stage in subject.stages:
        yield from _last_layer_warnings(stage, subject)


def _last_layer_warnings(stage: Stage, subject: Subject) -> Iterator[Broken]:
    """Whether hidden states claim the layer from which the student answers.

    References:
        Ko et al., 2023, arXiv:2302.01530; Muralidharan et al., 2024, arXiv:2407.14679, appendix
        A.6: the last one or two layers are specialised.
    """
    answers = [term for term in stage.terms if isinstance(term, SoftLogits)]
    if subject.model is None or not answers:
        return
    student, teacher = trial_sizes(subject.shape, subject.model, num_labels=None)
    for term in stage.terms:
        if not isinstance(term, HiddenStates):
            continue
        pairs = resolve_term(term, student=student, teacher=teacher).pairs
        heavy = term.weight >= _HEAVY * max(answer.weight for answer in answers)
        if heavy and any(pair.student == subject.shape.layers for pair in pairs):
            yield Broken(
                "last layer",
                f"`{term_label(term)}` holds the student's last layer to the teacher's with "
                f"{_HEAVY} times the weight of the logits that it has to serve, or more",
            )


def _term_warnings(term: Term, subject: Subject) -> Iterator[Broken]:
    model, shape, name = subject.model, subject.shape, f"`{term_label(term)}`"
    match term:
        case Attentions(head_map="mean" | "sum" as head_map):
            if model is not None and model.num_attention_heads != shape.heads:
                yield Broken(
                    "heads",
                    f"{name} compares the {head_map} of the teacher's {model.num_attention_heads} "
                    f"heads with that of the student's {shape.heads}",
                )
        case SoftLogits(temperature_squared=False, temperature=float(temperature)):
            if temperature != 1:
                yield Broken(
                    "temperature",
                    f"{name} leaves temperature**2 out, so its weight falls with the temperature",
                )
        case SoftLogits(distance=Dkd()):
            if subject.task_facts is not None and subject.task_facts.num_classes == 2:
                yield Broken(
                    "classes",
                    f"{name} has no other classes to compare in a task of two: `others` does not "
                    "act, and values of it are equal trials under several ids",
                )
        case _:
            pass
    copied = subject.initialisation
    if not matches_layers(term) or not isinstance(copied, TeacherLayers):
        return
    if term.matching == "first" == copied.teacher_layers:
        yield Broken(
            "trivial",
            f"{name} matches the layers that the student copies: its loss begins at 0",
        )
    if term.matching in ("embedding", "tinybert") and copied.embeddings == "copy":
        yield Broken(
            "trivial",
            f"{name} matches the embeddings, and the student copies them: that pair begins at 0",
        )


def _without_weight(term: Term) -> str:
    return canonical_json(canonical_term(term.model_copy(update={"weight": 1.0})))


def _broken(subject: Subject) -> Iterator[Broken]:
    yield from _objective(subject)
    yield from _shape(subject)
    if subject.task_facts is not None:
        yield from _classes(subject, subject.task_facts)
    yield from _teacher_state(subject)
    yield from _stages(subject)
    if subject.model is not None:
        yield from _length(subject, subject.model)
        yield from _terms(subject, subject.model)
        yield from _initialisation(subject, subject.model)


def _objective(subject: Subject) -> Iterator[Broken]:
    if not subject.stages:
        yield Broken("no term", "every term has weight 0")
    elif not any(trains_head(term) for term in _terms_of(subject)):
        yield Broken(
            "untrained head",
            "no term reads the student's logits, so its classifier would stay random; "
            "add `hard_labels` or `soft_logits`",
        )
    for stage in subject.stages:
        batch_size = stage.training.batch_size
        for term in stage.terms:
            if couples_rows(term) and batch_size < LEAST_ROWS:
                yield Broken(
                    "rows",
                    f"`{term_label(term)}` compares the rows of a batch, and "
                    f"`training.batch_size` {batch_size} leaves fewer than {LEAST_ROWS}",
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


def _stages(subject: Subject) -> Iterator[Broken]:
    for stage in subject.stages:
        if stage.teacher == "pretrained" and subject.teacher.fine_tune is None:
            yield Broken(
                "teacher",
                "`teacher: pretrained` needs a teacher with `fine_tune`: this one comes fine-tuned",
            )
        for term in stage.terms:
            name = f"`{term_label(term)}`"
            if stage.data != "task" and reads_labels(term):
                data = stage.data if isinstance(stage.data, str) else "text"
                yield Broken("labels", f"{name} reads labels, and a stage's data `{data}` has none")
            if stage.teacher == "pretrained" and reads_teachers_answers(term):
                yield Broken(
                    "teacher",
                    f"{name} reads the teacher's logits, which mean nothing before it has learned "
                    "the task; leave out `teacher: pretrained`",
                )
            if isinstance(term, MaskedLogits):
                yield from _language_head(subject, stage, name)


def _language_head(subject: Subject, stage: Stage, name: str) -> Iterator[Broken]:
    if stage.teacher != "pretrained":
        yield Broken(
            "language head",
            f"{name} reads a head that belongs to the pre-trained teacher; write `teacher: "
            "pretrained` in its stage",
        )
    known = subject.model.has_language_head if subject.model is not None else None
    if known is False and subject.teacher.language_head is None:
        yield Broken(
            "language head",
            f"{name} needs a teacher with a head for masked language modelling, and "
            f"`{subject.teacher.model}` has none; train one with `language_head: {{}}` under "
            "`teacher`, or compare hidden states or relations, which need no head",
        )


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
    for stage in subject.stages:
        try:
            resolve_terms(stage.terms, student=student, teacher=teacher)
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
