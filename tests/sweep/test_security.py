"""What strangers cannot reach, read or run: real launches, looked at from outside."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest
from ray_cluster import TOKEN, credentials, ray_cluster
from toy import TESTS, Toy, wait_for
from world import write_model, write_rows

from kdsweep.results.store import Store

Kdsweep = Callable[..., CompletedProcess[str]]

SECRET = "hf_" + "s3cr3t" * 6
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    write_model(tmp_path / "teacher")
    write_rows(tmp_path / "train.csv", num_rows=240, seed=1)
    write_rows(tmp_path / "report.csv", num_rows=60, seed=2)
    made = Toy(tmp_path, tmp_path / "cache")
    made.write_grid()
    yield made
    wait_for(lambda: not made.processes(), seconds=90)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_launch_listens_on_loopback_runs_no_inherited_code_and_keeps_no_secret(toy: Toy) -> None:
    home, held, ran = toy.folder / "home", toy.folder / "held", toy.folder / "ran"
    home.mkdir()
    # What Ray would import because a variable says so.
    (toy.folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Callback: pass\n")
    found = (toy.folder, TESTS / "sweep", TESTS, os.environ.get("PYTHONPATH", ""))
    launch = toy.start(
        *("launch", "grid.yaml", "--quiet"),
        PYTHONPATH=os.pathsep.join(map(str, found)),
        HOME=str(home),
        HF_TOKEN=SECRET,
        AWS_SECRET_ACCESS_KEY=SECRET[::-1],
        RAY_AUTH_MODE="disabled",
        RAY_TUNE_CALLBACKS="evil.Callback",
        RAY_RUNTIME_ENV_HOOK="evil.Callback",
        RAY_preload_python_modules="evil",
        KDSWEEP_FAILPOINT=f"row=hang::{held}",
    )
    wait_for(held.exists)
    listening = [
        (process.name(), connection.laddr.ip)
        for process in toy.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert {ip for _, ip in listening} <= set(LOOPBACK)
    modes = {each.environ().get("RAY_AUTH_MODE") for each in toy.processes(word="gcs_server")}
    assert modes == {"token"}
    token = home / ".ray" / "auth_token"
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    launch.terminate()
    assert launch.wait() == 75, toy.said
    assert not ran.exists()
    kept = [path for path in toy.store.rglob("*") if path.is_file()]
    assert kept
    secrets = (SECRET.encode(), SECRET[::-1].encode(), token.read_bytes())
    assert not [path for path in kept if any(each in path.read_bytes() for each in secrets)]
    # Nobody gets past these.
    assert {mode(path) for path in [toy.store, *toy.store.iterdir()] if path.is_dir()} == {0o700}


def test_a_cluster_that_asks_for_no_token_is_used_only_if_one_agrees(toy: Toy) -> None:
    home = toy.folder / "home"
    with ray_cluster(1, home=home, token=None, KDSWEEP_CACHE_DIR=str(toy.cache)) as nodes:
        # A token of one's own changes nothing: such a cluster takes any.
        words = ("launch", "grid.yaml", "--address", nodes.address)
        assert toy.run(*words, **credentials(home)) == 2
        assert f"{nodes.address} asks for no token: anybody who reaches it can run" in toy.said
        assert "--insecure-cluster" in toy.said
        assert not toy.store.exists()
        assert toy.run(*words, "--insecure-cluster", **credentials(home)) == 0, toy.said
        assert f"warning: {nodes.address} asks for no token" in toy.said
    [launch] = Store(toy.store).read_sweep()["launches"]
    assert [node["host"] for node in launch["nodes"]] == [launch["host"]]


def test_a_cluster_that_asks_for_another_token_is_left_alone(toy: Toy) -> None:
    home, mine = toy.folder / "home", toy.folder / "mine"
    with ray_cluster(home=home) as nodes:
        words = ("launch", "grid.yaml", "--address", nodes.address)
        without = credentials(mine, TOKEN[::-1])
        assert toy.run(*words, **without) == 2
        assert "asks for a token, and this host has none or another one" in toy.said
        # Nothing but a head that trains nothing: what trials ask for is nowhere.
        assert toy.run(*words, **credentials(home)) == 2
        assert "a trial asks for 1 cpus, and no node has 0" in toy.said
        assert not toy.store.exists()


def test_agreeing_to_an_open_cluster_where_there_is_none_is_refused(
    write_grid: Callable[..., Path], kdsweep: Kdsweep
) -> None:
    said = kdsweep("launch", write_grid(), "--insecure-cluster")
    assert said.returncode == 2
    assert "--insecure-cluster: acts on the cluster of `--address`" in said.stderr


def test_logs_and_complaints_command_no_terminal_and_show_no_secret(
    launched: Path, kdsweep: Kdsweep, tmp_path: Path
) -> None:
    log = next((launched / "work").glob("*/*/log.txt"))
    log.write_text(f"\x1b]0;owned\x07 \x1b[2J\u202edone {SECRET}\n")
    said = kdsweep("logs", launched, log.parent.parent.name)
    assert "]0;owned [2Jdone [redacted]" in said.stdout
    grid = tmp_path / "strange.yaml"
    grid.write_text('name: "\\e]0;owned\\a"\n')
    said = kdsweep("plan", grid)
    assert said.returncode == 2
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said.stderr)


def test_a_spreadsheet_runs_nothing_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd
    from rich.console import Console

    from kdsweep.sweep.showing import Form, print_frame

    cells = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "plain"]
    frame = pd.DataFrame({"=name": pd.Categorical(cells), "n": [-1.5, 2, 3, 4, 5, 6]})
    print_frame(frame, form=Form.CSV, console=Console(), with_index=False)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "'=name,n"
    assert [row.split(",")[0] for row in rows] == [
        *["'=1+1", "'+cmd", "'-2+3", "'@SUM(A1)", "'\t=1", "plain"]
    ]
    assert rows[0].endswith(",-1.5")


def test_stores_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(tmp_path / "runs" / "sweep")
        store.create({"name": "a"})
    finally:
        os.umask(before)
    made = [store.folder, *(path for path in store.folder.rglob("*") if path.is_dir())]
    assert {mode(path) for path in made} == {0o700}
