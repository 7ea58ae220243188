"""Every word of a grid explains itself, from the class that checks it."""

from typing import get_args

import pytest

from kdsweep.search_spaces.errors import InputError
from kdsweep.search_spaces.explanation import explain, explanations
from kdsweep.search_spaces.knowledge import TERM_CLASSES, kind_of
from kdsweep.search_spaces.matching import RULES, Rule, SoftRule


@pytest.mark.parametrize("kind", [kind_of(each) for each in TERM_CLASSES])
def test_every_kind_says_its_formula_needs_and_paper(kind: str) -> None:
    text = explain(kind).text
    assert [word for word in ("Formula:", "Needs:", "Paper:") if word not in text] == []
    # A loss of the user's own has the paper that its author knows.
    assert "arXiv:" in text or "(CVPR)" in text or kind == "plugin"


def test_every_rule_is_explained() -> None:
    assert set(get_args(Rule)) | set(get_args(SoftRule)) == RULES.keys()


@pytest.mark.parametrize("word", list(explanations()))
def test_every_setting_says_what_it_is_for(word: str) -> None:
    assert all(setting.help for setting in explain(word).settings)


def test_a_setting_has_its_words_and_its_default_as_a_grid_writes_them() -> None:
    settings = {setting.name: setting for setting in explain("relations").settings}
    assert settings["of"].words == ("q", "k", "v")
    assert settings["of"].default == '["k", "q", "v"]'
    assert settings["heads"].default == "null"
    assert explain("last_k").settings[0].default is None


def test_an_unknown_word_is_answered_with_a_known_one() -> None:
    with pytest.raises(InputError, match="Did you mean `relations`"):
        explain("relation")
