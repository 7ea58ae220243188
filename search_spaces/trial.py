"""One complete point of a grid, its canonical form and its content id."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .initialisation import Initialisation
from .knowledge import Attentions, Plugin, Term, inert_fields
from .shape import Shape
from .spec import Seed, Spec
from .stages import StageData, StageTeacher
from .task import Task, Teacher
from .texts import Text
from .training import Training

ID_VERSION = 1
"""Raised when the canonical form changes; every id changes with it."""

LOOP_VERSION = 3
"""Raised when a change of the training loop changes a trial's numbers; ids change with it."""

KIND_VERSIONS: Mapping[str, int] = {"attentions": 2}
"""Kinds whose numbers have changed since they were first released; 1 is left out."""

Canonical = dict[str, Any]


class Stage(Spec):
    """A stretch of training with its own terms and optimiser."""

    terms: tuple[Term, ...]
    """Summands of the objective, in the order of their canonical form."""
    training: Training
    """How this stage is optimised; `total_steps` are this stage's own."""
    data: StageData = "task"
    """What it trains on."""
    teacher: StageTeacher = "fine_tuned"
    """Who teaches."""


class Trial(Spec):
    """Everything that decides a student's weights, resolved: nothing is left to fill in."""

    task: Task
    teacher: Teacher
    shape: Shape
    initialisation: Initialisation
    stages: tuple[Stage, ...]
    seed: Seed


class Digests(NamedTuple):
    """The content of what a trial reads, as hexadecimal SHA-256."""

    task: str
    """Of the task's rows."""
    teacher: str
    """Of what the teacher is made from."""
    texts: tuple[str, ...] = ()
    """Of what each stage trains on that has data of its own, in their order."""


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; not-a-number is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """Hexadecimal SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_term(term: Term) -> Canonical:
    """A term without what does not act: defaults, label, fields that its others make idle."""
    left_out = {"label", *inert_fields(term)}
    if isinstance(term, Attentions):
        term = _plain_attentions(term)
    fields = term.model_dump(mode="json", exclude_defaults=True, exclude=left_out)
    if isinstance(term, Plugin):
        # The file is known by its content: it may lie anywhere, under any name.
        del fields["loss"]["file"]
    if version := KIND_VERSIONS.get(term.kind):
        fields["version"] = version
    return fields


def _plain_attentions(term: Attentions) -> Attentions:
    """The one spelling of terms that are equal."""
    if term.head_map == "equal" and term.compared != "mse":
        # With no heads to average it is the same to begin with scores or with their softmax.
        term = term.model_copy(update={"distance": term.compared, "of": "probabilities"})
    if term.compared == ("mse" if term.of == "scores" else "kl"):
        term = term.model_copy(update={"distance": None})
    return term


def make_stage(terms: tuple[Term, ...], training: Training) -> Stage:
    """A stage with its terms in canonical order."""
    ordered = sorted(terms, key=lambda term: canonical_json(canonical_term(term)))
    return Stage(terms=tuple(ordered), training=training)


def canonical_shape(shape: Shape) -> Canonical:
    """A shape in numbers, the feed-forward width written out."""
    return {
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "feed_forward": shape.intermediate_size,
    }


def canonical_initialisation(initialisation: Initialisation) -> str | Canonical:
    """An initialisation without its defaults."""
    if isinstance(initialisation, str):
        return initialisation
    return initialisation.model_dump(mode="json", exclude_defaults=True)


def canonical_stage(stage: Stage) -> Canonical:
    """A stage's terms in canonical form, and its training without what does not act.

    Data of its own are in the id by their content, so their place is left out.
    """
    idle = {"epochs"} if stage.training.total_steps is not None else set()
    canonical: Canonical = {
        "terms": [canonical_term(term) for term in stage.terms],
        "training": stage.training.model_dump(mode="json", exclude_defaults=True, exclude=idle),
    }
    if stage.data != "task":
        canonical["data"] = "text" if isinstance(stage.data, Text) else stage.data
    if stage.teacher != "fine_tuned":
        canonical["teacher"] = stage.teacher
    return canonical


def canonical_trial(trial: Trial) -> Canonical:
    """What of a trial is in its id, apart from the digests and the seed."""
    return {
        "shape": canonical_shape(trial.shape),
        "initialisation": canonical_initialisation(trial.initialisation),
        "stages": [canonical_stage(stage) for stage in trial.stages],
    }


def trial_id(trial: Trial, digests: Digests) -> str:
    """The first 16 hexadecimal digits of SHA-256 over what decides a trial's numbers."""
    return digest(_identity(trial, digests) | {"seed": trial.seed})[:16]


def stage_id(trial: Trial, digests: Digests, *, num_stages: int) -> str:
    """The id of what a trial is after its first stages; trials that begin alike share it."""
    begun = first_stages(trial, num_stages)
    texts = digests.texts[: sum(stage.data != "task" for stage in begun.stages)]
    identity = _identity(begun, digests._replace(texts=texts))
    return digest(identity | {"seed": trial.seed, "what": "stage"})[:16]


def first_stages(trial: Trial, num_stages: int) -> Trial:
    """The trial as far as the end of its first stages."""
    return trial.model_copy(update={"stages": trial.stages[:num_stages]})


def group_id(trial: Trial, digests: Digests) -> str:
    """The id that trials share which differ in their seed alone."""
    return digest(_identity(trial, digests))[:16]


def _identity(trial: Trial, digests: Digests) -> Canonical:
    identity = {
        "id_version": ID_VERSION,
        "loop_version": LOOP_VERSION,
        "trial": canonical_trial(trial),
        "task": digests.task,
        "teacher": digests.teacher,
    }
    return identity | ({"texts": list(digests.texts)} if digests.texts else {})
