"""Ids: pinned, blind to spelling, sensitive to everything that acts."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.search_spaces import Digests, Identifier, Trial, group_id, trial_id
from kdsweep.search_spaces.initialisation import TeacherLayers
from kdsweep.search_spaces.knowledge import (
    Attentions,
    HardLabels,
    HiddenStates,
    SoftLogits,
    Term,
)
from kdsweep.search_spaces.matching import LastK
from kdsweep.search_spaces.shape import Shape
from kdsweep.search_spaces.task import Task, Teacher
from kdsweep.search_spaces.training import AboveMajority, Evaluate, FineTune, Training
from kdsweep.search_spaces.trial import make_stage

DIGESTS = Digests(task="a" * 64, teacher="b" * 64)
TERMS: tuple[Term, ...] = (
    HardLabels(kind="hard_labels"),
    SoftLogits(kind="soft_logits", temperature=4),
    HiddenStates(kind="hidden_states", matching="uniform", weight=10),
    Attentions(kind="attentions", matching=LastK(last_k=2), head_map="mean"),
)


def make_trial(
    terms: tuple[Term, ...] = TERMS,
    *,
    training: Training | None = None,
    shape: Shape | None = None,
    initialisation: TeacherLayers | None = None,
    seed: int = 0,
) -> Trial:
    return Trial(
        task=Task(name="tweets"),
        teacher=Teacher(model="minilm-l6-h384", fine_tune=FineTune()),
        shape=shape or Shape(layers=3, width=384, heads=12),
        initialisation=initialisation or "random",
        stages=(make_stage(terms, training or Training()),),
        seed=seed,
    )


def test_ids_are_pinned() -> None:
    # Changing one of these orphans the results of every sweep: raise ID_VERSION instead.
    assert trial_id(make_trial(), DIGESTS) == "06bc84934099e803"
    assert group_id(make_trial(), DIGESTS) == "649afe13d95b1110"
    simple = make_trial((HardLabels(kind="hard_labels"),), seed=7)
    assert trial_id(simple, DIGESTS) == "d431383914e748fd"
    copied = make_trial(initialisation=TeacherLayers(teacher_layers="uniform", head="copy"))
    assert trial_id(copied, DIGESTS) == "f17ddb6aff7850c3"


def test_an_id_is_the_digest_of_a_trial_written_as_canonical_json() -> None:
    written = (
        '{"id_version":1,"loop_version":3,"seed":0,"task":"'
        + "a" * 64
        + '","teacher":"'
        + "b" * 64
        + '","trial":{"initialisation":"random",'
        '"shape":{"feed_forward":1536,"heads":12,"layers":3,"width":384},'
        '"stages":[{"terms":[{"head_map":"mean","kind":"attentions","matching":{"last_k":2},'
        '"version":2},'
        '{"kind":"hard_labels"},{"kind":"hidden_states","matching":"uniform","weight":10.0},'
        '{"kind":"soft_logits","temperature":4.0}],"training":{}}]}}'
    )
    assert trial_id(make_trial(), DIGESTS) == hashlib.sha256(written.encode()).hexdigest()[:16]


def test_the_order_of_terms_changes_no_id() -> None:
    ids = {trial_id(make_trial(tuple(p)), DIGESTS) for p in itertools.permutations(TERMS)}
    assert len(ids) == 1


SPELLINGS: list[tuple[Term, Term]] = [
    (
        SoftLogits(kind="soft_logits", temperature=2),
        SoftLogits(kind="soft_logits", temperature=2.0, distance="kl", weight=1, label="soft"),
    ),
    (
        SoftLogits(kind="soft_logits", distance="mse"),
        SoftLogits(kind="soft_logits", distance="mse", temperature=9),
    ),
    (
        HiddenStates.model_validate({"kind": "hidden_states", "matching": {"last_k": 2}}),
        HiddenStates.model_validate({"matching": {"last_k": 2.0}, "kind": "hidden_states"}),
    ),
    (
        HardLabels(kind="hard_labels", weight=1),
        HardLabels(label="control", weight=1.0, kind="hard_labels"),
    ),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_two_spellings_of_a_term_have_one_id(one: Term, other: Term) -> None:
    assert trial_id(make_trial((one,)), DIGESTS) == trial_id(make_trial((other,)), DIGESTS)


def test_the_feed_forward_width_written_out_changes_no_id() -> None:
    written = make_trial(shape=Shape(layers=3, width=384, heads=12, feed_forward=1536))
    assert trial_id(written, DIGESTS) == trial_id(make_trial(), DIGESTS)


def test_names_paths_and_floors_are_in_no_id() -> None:
    trial = make_trial()
    moved = trial.model_copy(
        update={
            "task": Task(name="tweets", path="/elsewhere"),
            "teacher": Teacher(model="copy", floor=AboveMajority(above_majority=0.1)),
        }
    )
    assert trial_id(moved, DIGESTS) == trial_id(trial, DIGESTS)


CHANGES = [
    make_trial(TERMS[:3]),
    make_trial((*TERMS[:3], Attentions(kind="attentions", matching="last", head_map="mean"))),
    make_trial((*TERMS[:3], Attentions(kind="attentions", matching=LastK(last_k=2)))),
    make_trial((TERMS[0], SoftLogits(kind="soft_logits", temperature=5), *TERMS[2:])),
    make_trial((HardLabels(kind="hard_labels", weight=2), *TERMS[1:])),
    make_trial(training=Training(learning_rate=2e-4)),
    make_trial(training=Training(dropout=0)),
    make_trial(training=Training(precision="fp32")),
    make_trial(training=Training(gradient_clipping=None)),
    make_trial(training=Training(evaluate=Evaluate(times=11))),
    make_trial(shape=Shape(layers=3, width=384, heads=6)),
    make_trial(shape=Shape(layers=3, width=384, heads=12, feed_forward=1000)),
    make_trial(initialisation=TeacherLayers(teacher_layers="first")),
    make_trial(initialisation=TeacherLayers(teacher_layers="first", from_="pretrained")),
    make_trial(initialisation=TeacherLayers(teacher_layers="first", embeddings="random")),
]


def test_everything_that_acts_changes_the_id_and_the_group() -> None:
    trials = [make_trial(), *CHANGES]
    assert len({trial_id(trial, DIGESTS) for trial in trials}) == len(trials)
    assert len({group_id(trial, DIGESTS) for trial in trials}) == len(trials)


@pytest.mark.parametrize("digests", [Digests("c" * 64, "b" * 64), Digests("a" * 64, "c" * 64)])
def test_other_rows_or_another_teacher_make_another_trial(digests: Digests) -> None:
    assert trial_id(make_trial(), digests) != trial_id(make_trial(), DIGESTS)
    assert group_id(make_trial(), digests) != group_id(make_trial(), DIGESTS)


@given(seed=st.integers(1, 2**32 - 1))
def test_a_seed_changes_the_id_and_not_the_group(seed: int) -> None:
    assert trial_id(make_trial(seed=seed), DIGESTS) != trial_id(make_trial(), DIGESTS)
    assert group_id(make_trial(seed=seed), DIGESTS) == group_id(make_trial(), DIGESTS)


@given(
    learning_rate=st.floats(1e-8, 1.0),
    epochs=st.integers(1, 99),
    weight=st.floats(0.001, 1000),
    seed=st.integers(0, 2**32 - 1),
)
def test_writing_defaults_out_and_turning_keys_round_changes_no_id(
    learning_rate: float, epochs: int, weight: float, seed: int
) -> None:
    training = {"learning_rate": learning_rate, "epochs": float(epochs)}
    spelt_out = Training().model_dump() | {"epochs": epochs, "learning_rate": learning_rate}
    turned = dict(reversed(spelt_out.items()))
    ids = {
        trial_id(
            make_trial(
                (HardLabels(kind="hard_labels", weight=weight),),
                training=Training.model_validate(data),
                seed=seed,
            ),
            DIGESTS,
        )
        for data in (training, turned)
    }
    assert len(ids) == 1


def test_many_ids_at_once_equal_the_ids_one_by_one() -> None:
    identifier = Identifier()
    for trial in (make_trial(), *CHANGES, make_trial(seed=3)):
        ids = identifier.identify(trial, DIGESTS)
        assert ids == (trial_id(trial, DIGESTS), group_id(trial, DIGESTS))


def test_a_trial_reads_back_from_its_own_json() -> None:
    trial = make_trial(initialisation=TeacherLayers(teacher_layers=(1, 3, 5), from_="pretrained"))
    again = Trial.model_validate_json(trial.model_dump_json())
    assert again == trial
    assert trial_id(again, DIGESTS) == trial_id(trial, DIGESTS)
