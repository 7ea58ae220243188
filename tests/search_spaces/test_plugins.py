"""A user's own losses as a grid says them: read and checked, never executed."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from grids import HEAD, KnownFacts
from ruamel.yaml import YAML

from kdsweep.search_spaces import GridError, Plan, expand, grid_schema, read_grid
from kdsweep.search_spaces.explanation import explain
from kdsweep.search_spaces.knowledge import Plugin, inert_fields
from kdsweep.search_spaces.resolution import resolve_term
from kdsweep.search_spaces.sizes import Sizes
from kdsweep.search_spaces.trial import canonical_term

SOURCE = """\
raise SystemExit("executed")

def pooled(student, teacher, token_mask, *, power=1, floor=0.0): ...

def needs(student, teacher, token_mask, temperature): ...

def two(student, teacher): ...

def defaults(student, teacher, power=2): ...
"""
TERM = "{kind: plugin, loss: my_loss.pooled, reads: hidden_states}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_loss.py").write_text(SOURCE)
    return tmp_path


def grid_text(*terms: str, plugins: str = "[my_loss.py]", more: str = "") -> str:
    knowledge = "".join(f"    - [hard_labels, {term}]\n" for term in terms)
    shape = "  shape: [{layers: 1, width: 96, heads: 12}]\n"
    return f"{HEAD}plugins: {plugins}\naxes:\n  knowledge:\n{knowledge}{shape}{more}"


def plan(folder: Path, text: str) -> Plan:
    grid = read_grid(text, file="grid.yaml", base=folder, allow_plugins=True)
    return expand(grid, KnownFacts())


def problems(folder: Path, text: str) -> str:
    with pytest.raises(GridError) as found:
        plan(folder, text)
    return str(found.value)


def test_a_term_is_labelled_by_its_function_and_takes_matching_from_the_axis(folder: Path) -> None:
    found = plan(folder, grid_text(TERM, more="  matching: [first, last]\n"))
    assert [trial.axes["matching"] for trial in found.trials] == ["first", "last"]
    assert {trial.axes["knowledge"] for trial in found.trials} == {"hard_labels+pooled"}


@pytest.mark.parametrize(
    ("term", "what", "mend"),
    [
        (
            "loss: my_loss.poled",
            "my_loss.py has no function `poled` at its top level",
            "Did you mean `pooled`?",
        ),
        (
            "loss: my_loss.two",
            "my_loss.py:7: `two(student, teacher)` does not take three tensors",
            "Write `def two(student, teacher, token_mask):`",
        ),
        (
            "loss: my_loss.defaults",
            "`defaults(student, teacher, power=2)` does not take three tensors",
            "Write `def defaults(student, teacher, token_mask):`",
        ),
        (
            "loss: my_loss.needs",
            "three tensors and no settings: missing a required argument: 'temperature'",
            "Write `def needs(student, teacher, token_mask):`",
        ),
        (
            "loss: my_loss.pooled, settings: {powr: 2}",
            "the settings powr: got an unexpected keyword argument 'powr'",
            "Write `def pooled(student, teacher, token_mask, *, powr):`",
        ),
        (
            "loss: torch.nn.functional.l1_loss",
            "`torch.nn.functional.l1_loss` names no loss",
            "Write a file without `.py` and a function of it: `loss: my_loss.pooled_l1`",
        ),
        (
            "loss: other.pooled",
            "`plugins` lists no file `other.py`",
            "Write `plugins: [other.py]` at the top of the grid",
        ),
        ("loss: {file: my_loss.py}", "names no loss", "Write a file without"),
        ("loss: my_loss.pooled, settings: {power: true}", "`true` does not fit", "a number"),
    ],
)
def test_a_wrong_loss_is_one_problem_with_its_mend(
    folder: Path, term: str, what: str, mend: str
) -> None:
    told = problems(folder, grid_text(f"{{kind: plugin, reads: logits, {term}}}"))
    assert what in told
    assert mend in told
    assert told.count("\n") == 1, told


@pytest.mark.parametrize(
    ("plugins", "source", "what", "mend"),
    [
        ("[no.py]", "", "no.py cannot be read: No such file", "relative to the grid file"),
        ("[my_loss.txt]", "", "`my_loss.txt` is not a `.py` file", "plugins: [my_loss.py]"),
        ("[my_loss.py]", "def pooled(:\n", "my_loss.py:1: is not Python: ", "says more"),
        ("[my_loss.py]", "x = '\0'\n", "is not Python: ", "says more"),
        ("[my_loss.py, ./my_loss.py]", SOURCE, "a second file is called `my_loss`", "Rename one"),
        (
            "[my_loss.py]",
            "def pooled(student, teacher, token_mask):\n    from beside import f\n",
            "my_loss.py:2: imports `beside` from beside it",
            "Put all that the loss needs into its one file",
        ),
        ("[below.py]", "", "below.py is no file", "Name a file"),
    ],
)
def test_a_wrong_file_is_one_problem_with_its_mend(
    folder: Path, plugins: str, source: str, what: str, mend: str
) -> None:
    (folder / "my_loss.py").write_text(source)
    (folder / "beside.py").touch()
    (folder / "below.py").mkdir()
    stem = plugins.strip("[]").split(".")[0]
    told = problems(folder, grid_text(TERM.replace("my_loss", stem), plugins=plugins))
    assert what in told
    assert mend in told
    assert told.count("\n") == 1, told


def test_files_that_are_not_allowed_are_not_even_read(folder: Path) -> None:
    def read(path: Path) -> bytes:
        raise AssertionError(path)

    with pytest.raises(GridError, match="add `--allow-plugins` to the command"):
        read_grid(grid_text(TERM), file="grid.yaml", base=folder, read_plugin=read)


def test_losses_and_settings_may_be_axes(folder: Path) -> None:
    (folder / "my_loss.py").write_text(SOURCE + "def other(student, teacher, token_mask): ...\n")
    term = TERM.replace("}", ", label: own}")
    text = grid_text(
        term,
        more="  terms.own.loss: [my_loss.pooled, my_loss.other]\n"
        "  terms.own.settings: [{label: none, value: {}}, {label: two, value: {power: 2}}]\n",
    )
    found = plan(folder, text)
    assert [(trial.axes["loss"], trial.axes["settings"]) for trial in found.trials] == [
        ("my_loss.pooled", "none"),
        ("my_loss.pooled", "two"),
        ("my_loss.other", "none"),
    ]
    [skipped] = found.skipped
    assert "the settings power: got an unexpected keyword argument 'power'" in skipped.reason
    unset = "{label: none, value: {}}"
    rule = "when: [{if: {terms.own.loss: my_loss.other}, set: {terms.own.settings: %s}}]\n"
    found = plan(folder, text + rule % unset)
    assert (len(found.trials), len(found.skipped)) == (3, 0)
    assert "no function `othr`" in problems(folder, text.replace("my_loss.other", "my_loss.othr"))


def test_a_whole_setting_is_one_number_however_it_is_spelt(folder: Path) -> None:
    spelt = [TERM.replace("}", f", settings: {{power: {n}}}, label: l{n}}}") for n in ("2", "2.0")]
    found = plan(folder, grid_text(*(each.replace("l2.0", "m") for each in spelt)))
    [trial] = found.trials
    [term] = [term for term in trial.trial.stages[0].terms if isinstance(term, Plugin)]
    assert repr(term.settings.as_arguments()) == "{'power': 2}"
    assert len({hash(trial.trial), hash(found.trials[0].trial)}) == 1


def term_reading(reads: str, **fields: Any) -> Plugin:
    loss = {"file": "/my_loss.py", "digest": "a" * 64, "function": "f"}
    return Plugin.model_validate(
        {"kind": "plugin", "loss": loss, "reads": reads, "matching": "tinybert", **fields}
    )


def test_a_file_is_known_by_its_content_wherever_it_lies() -> None:
    term = term_reading("keys", settings={"beta": 0.5})
    assert canonical_term(term) == {
        "kind": "plugin",
        "loss": {"digest": "a" * 64, "function": "f"},
        "matching": "tinybert",
        "reads": "keys",
        "settings": {"beta": 0.5},
    }


WIDE, NARROW = Sizes(4, 64, 4, 2), Sizes(2, 32, 2, 2)


def test_what_does_not_act_on_a_feature_is_in_no_id() -> None:
    assert inert_fields(term_reading("logits")) == {"matching", "reduce_layers", "projection"}
    assert inert_fields(term_reading("attentions")) == {"projection"}
    assert inert_fields(term_reading("keys")) == set()


def test_attention_has_no_embedding_layer_and_hidden_states_have() -> None:
    def layers(reads: str) -> list[int]:
        resolved = resolve_term(term_reading(reads), student=NARROW, teacher=WIDE)
        return [pair.student for pair in resolved.pairs]

    assert layers("hidden_states") == [0, 1, 2]
    assert layers("attentions") == layers("values") == [1, 2]


def test_a_projection_is_made_where_it_is_asked_for_and_widths_differ() -> None:
    def projection(reads: str, teacher: Sizes = WIDE, **fields: Any) -> tuple[int, int] | None:
        found = resolve_term(term_reading(reads, **fields), student=NARROW, teacher=teacher)
        made = found.projection
        return made and (made.student_width, made.teacher_width)

    assert projection("queries", projection="linear") == (32, 64)
    assert projection("queries", projection="linear", teacher=NARROW) is None
    assert projection("queries") is None
    assert projection("attentions", projection="linear") is None


def test_the_schema_knows_plugins_and_explain_says_who_masks_and_reduces(folder: Path) -> None:
    def complaints(text: str) -> int:
        found = jsonschema.Draft7Validator(grid_schema()).iter_errors(YAML(typ="safe").load(text))
        return len(list(found))

    assert complaints(grid_text(TERM)) == 0
    for wrong in (TERM.replace("my_loss.pooled", "my_loss"), TERM.replace("reads", "read")):
        assert complaints(grid_text(wrong)) > 0
    assert complaints(grid_text(TERM, plugins="[my_loss.txt]")) > 0
    told = explain("plugin").text
    assert "It masks, reduces, and returns a tensor of shape []" in told
