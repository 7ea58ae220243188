"""What is known without loading models or rows."""

import json
from pathlib import Path

from kdsweep.search_spaces import ModelFacts, ShippedFacts, TaskFacts
from kdsweep.search_spaces.embedded import EMBEDDED_MODELS, EMBEDDED_TASKS
from kdsweep.search_spaces.facts import read_config
from kdsweep.search_spaces.shape import Shape, embedding_parameters, encoder_parameters
from kdsweep.search_spaces.task import Task, Teacher


def test_a_folder_says_its_own_size(tmp_path: Path) -> None:
    config = {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 100,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "id2label": {"0": "no", "1": "yes"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = ShippedFacts().model(Teacher(model=str(tmp_path)))
    assert facts == ModelFacts("bert", 2, 32, 4, 64, 100, 40, 2, num_labels=2)


def test_a_folder_that_does_not_say_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_config(tmp_path / "config.json") is None
    (tmp_path / "config.json").write_text("no json")
    assert read_config(tmp_path / "config.json") is None
    assert ShippedFacts().model(Teacher(model=str(tmp_path))) is None
    assert ShippedFacts().model(Teacher(model="nobody/nothing")) is None


def test_the_shipped_table_gives_published_parameter_counts() -> None:
    facts = ShippedFacts().model(Teacher(model="google-bert/bert-base-uncased"))
    assert facts
    shape = Shape(
        layers=facts.num_hidden_layers,
        width=facts.hidden_size,
        heads=facts.num_attention_heads,
        feed_forward=facts.intermediate_size,
    )
    embeddings = embedding_parameters(
        facts.hidden_size,
        vocab_size=facts.vocab_size,
        max_positions=facts.max_position_embeddings,
        type_vocab_size=facts.type_vocab_size,
    )
    pooler = facts.hidden_size * (facts.hidden_size + 1)
    assert encoder_parameters(shape) + embeddings + pooler == 109_482_240


def test_every_embedded_name_is_known_without_its_package() -> None:
    for name in EMBEDDED_MODELS:
        assert ShippedFacts().model(Teacher(model=name)) is not None
    for name, task in EMBEDDED_TASKS.items():
        known = ShippedFacts().task(Task(name=name))
        assert known is not None
        assert known.num_classes == len(task.classes)


def test_glue_is_known_and_local_files_are_not() -> None:
    # Wang et al., GLUE, 2019, table 1.
    assert ShippedFacts().task(Task(name="glue/mnli")) == TaskFacts(3, train_rows=392702)
    assert ShippedFacts().task(Task(name="glue/sst2")) == TaskFacts(2, train_rows=67349)
    files = Task.model_validate({"files": {"train": "a.csv"}, "text": ["a"]})
    assert ShippedFacts().task(files) is None
