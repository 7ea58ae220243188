"""What the documents show is what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdsweep.search_spaces import ShippedFacts, expand, load_grid, read_grid
from kdsweep.search_spaces.embedded import embedded_data_file, embedded_model_folder
from kdsweep.search_spaces.knowledge import TERM_CLASSES, kind_of
from kdsweep.search_spaces.search import GridSearch
from kdsweep.search_spaces.space import arms, survey
from kdsweep.search_spaces.stages import all_terms
from kdsweep.sweep.planning import Content, ContentFacts, plan_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "examples" / "quickstart.yaml"

needs_demo = pytest.mark.skipif(
    embedded_model_folder("minilm-l6-h384") is None or embedded_data_file("tweets") is None,
    reason="the embedded teacher and data are not installed (pip install '.[demo]')",
)


def kdsweep(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdsweep.sweep", *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def shown(marker: str) -> str:
    """What the README shows between two comments, without its indent."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", README, re.DOTALL)
    assert found is not None
    return "\n".join(
        line.removeprefix("    ").rstrip() for line in found[1].strip("\n").split("\n")
    )


def test_the_grid_in_the_readme_is_the_quickstart() -> None:
    assert f"```yaml\n{QUICKSTART.read_text()}```" in README


@needs_demo
def test_the_plan_in_the_readme_is_the_plan_of_the_quickstart(tmp_path: Path) -> None:
    said = kdsweep("plan", str(QUICKSTART), folder=tmp_path)
    assert said.returncode == 0, said.stderr
    found = "\n".join(line.rstrip() for line in said.stdout.strip().split("\n"))
    assert of_any_host(found) == of_any_host(shown("plan"))


def of_any_host(plan: str) -> str:
    """Without what depends on whether the host multiplies bf16."""
    return re.sub(r"(?<=features: )\S+ \S+|\((bf16|fp32)\)", "...", plan)


@needs_demo
def test_the_leaderboard_in_the_readme_is_of_the_quickstart_as_it_is() -> None:
    content = Content()
    rows = plan_rows(expand(load_grid(QUICKSTART), ContentFacts(content)), content)
    groups = {row.group_id for row in rows}
    board = re.findall(r"\b[0-9a-f]{16}\b", shown("leaderboard"))
    assert len(board) >= 10
    assert set(board) <= groups


def test_the_grid_of_every_kind_has_every_kind() -> None:
    grid = load_grid(ROOT / "examples" / "every_kind.yaml")
    values = (value for mapping in grid.axes for value in mapping.axes["knowledge"].values)
    kinds = {term.kind for value in values for term in all_terms(value.data)}
    assert kinds == {kind_of(each) for each in TERM_CLASSES} - {"plugin"}


def test_the_plugin_in_the_documents_is_the_example_and_what_it_shows_can_be_read() -> None:
    source = (ROOT / "examples" / "my_loss.py").read_text()
    grid = (ROOT / "examples" / "plugin.yaml").read_text()
    read = load_grid(ROOT / "examples" / "plugin.yaml", allow_plugins=True)
    assert [plugin.name for plugin in read.plugins] == ["my_loss"]
    for document in (README, (ROOT / "docs" / "plugins.md").read_text()):
        [code] = re.findall(r"```python\n(def pooled_l1.*?)```", document, re.DOTALL)
        assert code in source
    [lines] = re.findall(r"```yaml\n(plugins:.*?)```", README, re.DOTALL)
    assert lines in grid


def test_the_stages_in_the_documents_are_the_example_and_two_trials_begin_alike() -> None:
    example = ROOT / "examples" / "stages.yaml"
    [shown] = re.findall(
        r"```yaml\n(teacher:.*?)```", (ROOT / "docs" / "stages.md").read_text(), re.DOTALL
    )
    assert shown in example.read_text()
    content = Content()
    rows = plan_rows(expand(load_grid(example), ContentFacts(content)), content)
    assert [row.what for row in rows] == ["teacher", "stage", "trial", "trial", "trial"]


def test_the_search_in_the_documents_is_the_example_and_has_points() -> None:
    example = ROOT / "examples" / "search.yaml"
    [shown] = re.findall(
        r"```yaml\n(axes:.*?)```", (ROOT / "docs" / "search.md").read_text(), re.DOTALL
    )
    assert shown in example.read_text()
    grid = load_grid(example)
    assert not isinstance(grid.search, GridSearch)
    assert len(arms(grid, grid.search)) == 3
    # Two shapes, seeds, and ends of rate and epochs; with logits also of the temperature; with
    # hidden states also of their weight, and two matchings.
    assert len(survey(grid, ShippedFacts()).trials) == 2**4 + 2**5 + 2**7


def test_the_resources_in_the_documents_can_be_read() -> None:
    [shown] = re.findall(
        r"```yaml\n(resources:.*?)```", (ROOT / "docs" / "clusters.md").read_text(), re.DOTALL
    )
    text = re.sub("^resources: .*\n", shown, QUICKSTART.read_text(), flags=re.MULTILINE)
    grid = read_grid(text, file="clusters.md", base=ROOT)
    assert (grid.resources.cpus, grid.resources.gpus) == (2, 0.25)
    assert [dict(rule.changes) for rule in grid.resources.when] == [
        {"gpus": 0.5, "memory_gb": 8, "timeout_minutes": 240}
    ]


def test_every_command_is_in_the_readme_and_every_one_there_exists(tmp_path: Path) -> None:
    listed = re.findall(r"^  ([a-z]+) ", kdsweep("--help", folder=tmp_path).stdout, re.MULTILINE)
    named = set(re.findall(r"`kdsweep ([a-z]+)", README))
    assert set(listed) == named


def test_the_readmes_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_each_of_the_twenty_checks_names_tests_that_are_there() -> None:
    listed = (ROOT / "docs" / "checks.md").read_text()
    number, *checks = re.split(r"^(\d+)\. ", listed, flags=re.MULTILINE)[1:]
    numbers = [number, *checks[1::2]]
    assert numbers == [str(n) for n in range(1, 21)]
    for check in checks[::2]:
        named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", check)
        assert named, check
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "DESIGN.md",
        "CHANGELOG.md",
        "docs/plugins.md",
        "docs/stages.md",
        "docs/early_stopping.md",
        "docs/search.md",
        "docs/checks.md",
        "docs/clusters.md",
        "docs/adding_a_kind.md",
    ],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
        assert ((ROOT / document).parent / target).exists(), target
