"""What a launch learns of a cluster's nodes, and which of them it refuses."""

from pathlib import Path

import pytest

from kdsweep.sweep.provenance import Commit, Provenance
from kdsweep.sweep.survey import (
    BEACON,
    Device,
    Node,
    Seen,
    Surveyed,
    _beacon,
    judge,
    trouble_in,
    why_unusable,
)

HERE = Provenance(
    host="head",
    platform="Linux",
    python="3.11.7",
    packages={"kdsweep": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0", "ray": "2.60.0"},
    code=Commit(commit="a" * 40, dirty=False),
)


def node(
    name: str = "w1", *, trouble: str | None = None, gpus: float = 0, precision: str | None = "fp32"
) -> Node:
    seen = Seen(provenance=HERE, precision=precision, trouble=trouble)  # type: ignore[arg-type]
    return Node(id=name, name=name, cpus=4, gpus=gpus, memory_gb=16, seen=seen, error=None)


def with_provenance(node: Node, **changes: object) -> Node:
    assert node.seen is not None
    provenance = node.seen.provenance.model_copy(update=changes)
    return node.model_copy(update={"seen": node.seen.model_copy(update={"provenance": provenance})})


def told(*nodes: Node, device: Device = "cpu") -> tuple[list[str], list[str]]:
    problems, warnings = judge(nodes, HERE, device=device, unseen={"unseen": "is not seen here"})
    return [f"{problem.path}: {problem.what}" for problem in problems], warnings


def test_equal_nodes_that_see_the_store_are_fine() -> None:
    assert told(node("w1"), node("w2")) == ([], [])


def test_every_node_that_cannot_be_used_is_named_with_its_reason() -> None:
    silent = node("w5").model_copy(update={"seen": None, "error": "No module named 'kdsweep'"})
    problems, warnings = told(
        node("w1", trouble="does not see the store"),
        node("unseen"),
        with_provenance(node("w3"), packages={**HERE.packages, "kdsweep": "0.2.0"}),
        with_provenance(node("w4"), python="3.12.1"),
        silent,
    )
    assert problems == [
        "node w1: does not see the store",
        "node unseen: is not seen here",
        "node w3: has kdsweep 0.2.0, and here is 0.1.0",
        "node w4: has Python 3.12, and here is 3.11",
        "node w5: does not answer: No module named 'kdsweep'",
    ]
    assert warnings == []


def test_versions_that_may_change_last_bits_and_other_commits_are_warnings() -> None:
    problems, warnings = told(
        with_provenance(node("w1"), packages={**HERE.packages, "torch": "2.12.0"}),
        with_provenance(node("w2"), code=Commit(commit="b" * 40, dirty=False)),
        with_provenance(node("w3"), python="3.11.9"),
    )
    assert problems == []
    assert [warning.split(",")[0] for warning in warnings] == [
        "node w1 has torch 2.12.0",
        f"node w2 has kdsweep at commit {'b' * 12}",
    ]


def test_a_gpu_that_its_torch_does_not_find_is_refused_where_trials_want_it() -> None:
    broken = node("w1", gpus=1, precision=None)
    assert told(broken)[0] == []
    assert told(broken, device="cuda")[0] == ["node w1: has a GPU that its torch does not find"]


@pytest.mark.parametrize(
    ("precisions", "pinned"),
    [(["bf16", "bf16"], "bf16"), (["bf16", "fp32"], "fp32"), (["bf16", None], "bf16"), ([], None)],
)
def test_a_cluster_multiplies_what_all_of_its_nodes_do(
    precisions: list[str | None], pinned: str | None
) -> None:
    nodes = tuple(node(f"w{n}", precision=each) for n, each in enumerate(precisions))
    assert Surveyed(nodes, is_open=False, warnings=()).precision == pinned


def test_a_node_that_sees_the_store_leaves_there_what_the_launch_can_read(tmp_path: Path) -> None:
    with _beacon(tmp_path / "store") as (folder, nonce):
        assert trouble_in(folder, "w1", nonce) is None
        assert (folder / "w1").read_text() == nonce


def test_a_node_without_the_folder_or_with_another_one_says_which(tmp_path: Path) -> None:
    with _beacon(tmp_path / "store") as (folder, nonce):
        nowhere = tmp_path / "nowhere" / folder.name
        assert trouble_in(nowhere, "w1", nonce, patience_seconds=0) == (
            f"does not see the store: there is no folder {nowhere.parent}"
        )
        # The same path on a node's own disk: a folder, perhaps with another launch's beacon.
        elsewhere = tmp_path / "elsewhere" / folder.name
        elsewhere.mkdir(parents=True)
        (elsewhere / BEACON).write_text("of another launch")
        assert trouble_in(elsewhere, "w1", nonce, patience_seconds=0) == (
            f"does not see the store: its {elsewhere.parent} is another folder"
        )
        assert not (elsewhere / "w1").exists()


def test_a_store_that_cannot_be_written_is_told_with_the_systems_words(tmp_path: Path) -> None:
    with _beacon(tmp_path / "store") as (folder, nonce):
        (folder / "w1").mkdir()
        assert str(trouble_in(folder, "w1", nonce)).startswith("cannot write into the store: ")


@pytest.mark.parametrize("there", ["", "runs", "runs/sweep"])
def test_a_survey_leaves_nothing_behind(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyError), _beacon(tmp_path / "runs" / "sweep"):
        assert (tmp_path / "runs" / "sweep").stat().st_mode & 0o777 in (0o700, 0o755)
        raise KeyError
    assert sorted(tmp_path.rglob("*")) == before


def test_a_survey_keeps_what_somebody_else_has_written_meanwhile(tmp_path: Path) -> None:
    store = tmp_path / "runs" / "sweep"
    with _beacon(store):
        (store / "sweep.json").touch()
    assert [path.name for path in store.iterdir()] == ["sweep.json"]


def test_a_node_that_joins_later_is_told_by_the_launchs_own_lock(tmp_path: Path) -> None:
    import socket
    from importlib.metadata import version

    store, lock = tmp_path / "store", tmp_path / "store" / "locks" / "000001.json"
    ours = version("kdsweep")
    missing = why_unusable(store, lock, kdsweep=ours)
    assert missing == (
        f"node {socket.gethostname()} does not see the store: there is no folder {store}"
    )
    store.mkdir()
    assert str(why_unusable(store, lock, kdsweep=ours)).endswith("is another folder")
    lock.parent.mkdir()
    lock.touch()
    assert why_unusable(store, lock, kdsweep=ours) is None
    assert "and the launch 9.9.9" in str(why_unusable(store, lock, kdsweep="9.9.9"))
