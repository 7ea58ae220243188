"""What is recorded of code, packages and hosts, and what a later launch is told of it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from fault_table import fault

from kdsweep.results.store import Store
from kdsweep.sweep.provenance import Commit, Provenance, commit_of, differences, provenance_here

Kdsweep = Callable[..., CompletedProcess[str]]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    said = subprocess.run(
        ["git", *identity, "-C", str(folder), *words], check=True, capture_output=True, text=True
    )
    return said.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "grid.yaml").write_text("name: a\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_a_folder_of_a_repository_has_a_commit_which_edits_of_tracked_files_make_dirty(
    repository: Path,
) -> None:
    head = git(repository, "rev-parse", "HEAD")
    (repository / "not tracked").touch()
    assert commit_of(repository) == Commit(commit=head, dirty=False)
    (repository / "grid.yaml").write_text("name: b\n")
    assert commit_of(repository) == Commit(commit=head, dirty=True)


def test_a_folder_of_no_repository_has_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None


def test_asking_a_repository_runs_no_program_of_its_own(repository: Path) -> None:
    ran = repository / "ran"
    program = repository / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(program))
    (repository / "grid.yaml").write_text("name: b\n")
    assert commit_of(repository) is not None
    assert not ran.exists()


HOST = Provenance(
    host="a",
    platform="Linux",
    python="3.11.7",
    packages={"kdsweep": "0.1.0", "torch": "2.12.0"},
    code=Commit(commit="a" * 40, dirty=False),
)


def test_launches_of_equal_hosts_do_not_differ_whatever_these_are_called() -> None:
    assert differences([HOST], [HOST.model_copy(update={"host": "b"}), HOST]) == []
    assert differences([], [HOST]) == []


def test_what_differs_between_launches_is_told_with_both_values() -> None:
    newer = HOST.model_copy(
        update={"packages": {"kdsweep": "0.1.0", "torch": "2.13.0"}, "python": "3.12.0"}
    )
    assert differences([HOST], [HOST, newer]) == [
        "Python is 3.11.7 and 3.12.0 and was 3.11.7",
        "torch is 2.12.0 and 2.13.0 and was 2.12.0",
    ]
    edited = HOST.model_copy(update={"code": Commit(commit="a" * 40, dirty=True)})
    [told] = differences([HOST], [edited])
    assert told == (
        f"the commit of kdsweep is {'a' * 12} with changes that are not committed and was "
        f"{'a' * 12}"
    )


@fault(29, "code or packages change between launches", "a warning says what was and what is")
def test_a_launch_records_where_it_ran_with_what_and_a_later_one_says_what_changed(
    launched: Path, kdsweep: Kdsweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Store(launched).read_sweep()
    [launch] = told["launches"]
    here = provenance_here()
    assert launch["host"] == here.host
    assert launch["packages"] == dict(here.packages)
    assert {"commit", "dirty"} == (launch["code"] or {"commit": 0, "dirty": 0}).keys()
    launch["packages"]["torch"] = "1.0"
    Store(launched).write_sweep(told)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    said = kdsweep("resume", launched, "--executor", "serial")
    assert f"warning: torch is {here.packages['torch']} and was 1.0" in said.stderr
    assert "hf_aaaa" not in (launched / "sweep.json").read_text()
