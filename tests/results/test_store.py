"""The store keeps what was committed, whatever else happens to it."""

import json
import math
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import hypothesis.strategies as st
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kdsweep import results
from kdsweep.results.predictions import read_predictions
from kdsweep.results.reader import StoreNotFoundError, read_attempts, read_sweep
from kdsweep.results.rows import plan_table
from kdsweep.results.schema import Attempt, AttemptKey, NewerStoreError, PlanRow
from kdsweep.results.source import RemoteSource
from kdsweep.results.store import Store
from kdsweep.results.tables import write_table

ID = "0123456789abcdef"
OTHER = "fedcba9876543210"
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def allow() -> None:
    """The fence that lets everything pass."""


def new_store(folder: Path) -> Store:
    store = Store(folder / "sweep")
    store.create({"name": "sweep"})
    return store


def make_attempt(id: str = ID, epoch: int = 1, number: int = 1, **fields: Any) -> Attempt:
    defaults: dict[str, Any] = {
        "what": "trial",
        "group_id": OTHER,
        "status": "completed",
        "failure_class": None,
        "error": None,
        "started": START,
        "ended": START + timedelta(seconds=90),
        "config_json": '{"shape": {"layers": 2}}',
        "resumed_from": None,
        "resumed_from_step": 0,
        "values": {"report/accuracy": 0.75},
    }
    return Attempt(id=id, epoch=epoch, number=number, **(defaults | fields))


def plan_row(id: str | None, **fields: Any) -> PlanRow:
    defaults: dict[str, Any] = {
        "what": "trial",
        "group_id": OTHER,
        "axes": {"knowledge": "logits", "seed": 0},
        "config_json": "{}",
        "labels": ("soft_logits",),
        "depends_on": (OTHER,),
    }
    return PlanRow(id=id, **(defaults | fields))


def comparable(attempt: Attempt) -> str:
    """All of an attempt as text, in which not-a-number equals itself."""
    values = {name: repr(value) for name, value in sorted(attempt.values.items())}
    return repr((attempt.started.timestamp(), attempt.ended.timestamp(), values)) + repr(
        {name: value for name, value in vars(attempt).items() if name not in _WRITTEN_APART}
    )


_WRITTEN_APART = {"started", "ended", "values"}


# --- sweep.json, grids, folders


def test_a_created_store_exists_and_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs" / "x")
    assert not store.exists()
    store.create({"name": "x", "precision": "fp32"})
    assert store.exists()
    assert store.read_sweep() == {"name": "x", "precision": "fp32"}
    store.write_sweep({"name": "x", "precision": "bf16"})
    assert store.read_sweep() == {"name": "x", "precision": "bf16"}
    with pytest.raises(FileExistsError):
        store.create({"name": "y"})
    assert store.read_sweep()["name"] == "x"


def test_a_store_is_private(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for folder in (store.folder, *(path for path in store.folder.iterdir() if path.is_dir())):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_without_a_sweep_says_what_to_name_instead(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with pytest.raises(StoreNotFoundError, match=r"It holds the sweeps sweep: name one of them"):
        read_sweep(Store(tmp_path).source)
    with pytest.raises(StoreNotFoundError, match="Name the folder that `kdsweep launch` wrote"):
        read_sweep(Store(store.folder / "plan").source)


def test_a_grid_is_kept_verbatim_and_not_twice_in_a_row(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    texts = ["a: 1\r\n# é\n", "a: 1\r\n# é\n", "a: 2\n", "a: 1\r\n# é\n"]
    assert [store.add_grid(text) for text in texts] == [1, 1, 2, 3]
    assert store.grid_file(1).read_bytes() == texts[0].encode()
    assert [p.name for p in sorted((store.folder / "grids").iterdir())] == [
        "0001.yaml",
        "0002.yaml",
        "0003.yaml",
    ]


@pytest.mark.parametrize(
    "id", ["", "../../etc", "0123456", "0123456G", "0" * 65, "01234567/..", "01234567\n"]
)
def test_only_ids_become_paths(tmp_path: Path, id: str) -> None:
    store = Store(tmp_path)
    for make in (
        lambda: store.student_folder(id),
        lambda: store.teacher_folder(id),
        lambda: store.work_folder(id, 1, 1),
        lambda: store.open_history(id, 1, 1),
        lambda: make_attempt(id),
        lambda: plan_row(id),
    ):
        with pytest.raises(ValueError, match="is not an id"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_paths_are_those_of_the_design(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.work_folder(ID, 2, 3) == tmp_path / "work" / ID / "2-3"
    assert store.student_folder(ID) == tmp_path / "students" / ID
    assert store.teacher_folder(ID) == tmp_path / "teachers" / ID
    assert store.locks_folder == tmp_path / "locks"


# --- plan


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rows = (
        plan_row(OTHER, what="teacher", axes={"knowledge": None, "seed": None}, depends_on=()),
        plan_row(ID, axes={"knowledge": "a+b", "seed": 3}, priority=3, flops=1e9),
        PlanRow("skipped", None, None, {"knowledge": "c", "seed": 0}, None, reason="no heads"),
    )
    store.write_plan(rows, epoch=1)
    assert store.read_plan() == rows


def test_a_damaged_plan_is_told_and_an_older_one_written_anew(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    older, newer = (plan_row(ID),), (plan_row(OTHER),)
    store.write_plan(older, epoch=1)
    store.write_plan(newer, epoch=2)
    (store.folder / "plan" / "2-1.parquet").write_bytes(b"garbage")
    assert [part.path for part in store.lost_plan()] == ["plan/2-1.parquet"]
    store.write_plan(older, epoch=3)
    assert store.lost_plan() == ()
    assert store.read_plan() == older


def test_the_work_of_a_plan_without_priorities_is_equal(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    table = plan_table([plan_row(ID, priority=3, flops=1e9)]).drop_columns(["priority", "flops"])
    stamps = {"part": "1", "parts": "1"}
    write_table(table, store.folder / "plan" / "1-1.parquet", kind="plan", metadata=stamps)
    assert store.read_plan() == (plan_row(ID),)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([1, 2, None], [1, 2, None]),
        ([1, 0.5, None], [1.0, 0.5, None]),
        ([True, False, None], [True, False, None]),
        ([True, 1, "auto"], ["true", "1", "auto"]),
        ([None, None, None], [None, None, None]),
        ([True, 1, 0.5], ["true", "1", "0.5"]),
    ],
)
def test_the_type_of_an_axis_follows_from_all_of_its_values(
    tmp_path: Path, given: list[Any], found: list[Any]
) -> None:
    store = new_store(tmp_path)
    store.write_plan([plan_row(f"{n:08x}", axes={"x": v}) for n, v in enumerate(given)], epoch=1)
    values = [row.axes["x"] for row in store.read_plan()]
    assert [(type(v), v) for v in values] == [(type(v), v) for v in found]


def test_an_equal_plan_is_not_written_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.write_plan([plan_row(ID, axes={"rate": 1, "x": None})], epoch=1)
    store.write_plan([plan_row(ID, axes={"rate": 1, "x": None})], epoch=2)
    assert [p.name for p in (store.folder / "plan").iterdir()] == ["1-1.parquet"]
    store.write_plan([plan_row(ID, axes={"rate": 2, "x": None})], epoch=3)
    assert store.read_plan()[0].axes["rate"] == 2


def test_the_newest_plan_counts_by_the_number_of_its_epoch(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for epoch in (9, 10):
        store.write_plan([plan_row(f"{epoch:08x}")], epoch=epoch)
    assert [row.id for row in store.read_plan()] == ["0000000a"]


def test_a_plan_of_many_parts_counts_only_when_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdsweep.results.store._ROWS_OF_A_PLAN_PART", 2)
    store = new_store(tmp_path)
    old = tuple(plan_row(f"{n:08x}") for n in range(3))
    new = tuple(plan_row(f"{n:08x}", axes={"seed": n}) for n in range(25))
    store.write_plan(old, epoch=1)
    store.write_plan(new, epoch=2)
    assert len(list((store.folder / "plan").iterdir())) == 2 + 13
    assert store.read_plan() == new
    for missing in (1, 7, 13):
        part = store.folder / "plan" / f"2-{missing}.parquet"
        content = part.read_bytes()
        part.unlink()
        assert store.read_plan() == old
        part.write_bytes(content[:100])
        assert store.read_plan() == old
        assert [path for path, _ in store.damaged()] == [part]
        part.write_bytes(content)
    assert store.read_plan() == new


def test_another_plan_of_the_same_epoch_is_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.write_plan([plan_row(ID)], epoch=1)
    with pytest.raises(FileExistsError):
        store.write_plan([plan_row(OTHER)], epoch=1)
    assert [row.id for row in store.read_plan()] == [ID]


# --- attempts


def test_every_field_of_an_attempt_is_read_from_its_own_column(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    attempt = Attempt(
        id=ID,
        what="teacher",
        group_id=OTHER,
        epoch=3,
        number=7,
        status="failed",
        failure_class="nan",
        error="step 12\nloss is nan",
        started=START,
        ended=START + timedelta(microseconds=1),
        config_json='{"a": 0.1}',
        resumed_from=(2, 5),
        resumed_from_step=11,
        values={"loss": math.nan, "high": math.inf, "host": "a/b", "ok": True, "n": 3, "": "empty"},
    )
    store.commit_attempt(attempt, fence=allow)
    (found,) = store.read_attempts()
    assert comparable(found) == comparable(attempt).replace("'n': '3'", "'n': '3.0'")
    assert found.started.utcoffset() == timedelta(0)


def test_numbers_are_float64_and_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    values: dict[str, Any] = {"a": 1, "b": np.float32(0.5), "c": np.int64(2), "d": np.float64(0.1)}
    store.commit_attempt(make_attempt(values=values), fence=allow)
    assert store.read_attempts()[0].values == {"a": 1.0, "b": 0.5, "c": 2.0, "d": 0.1}
    schema = pq.read_schema(store.folder / "attempts" / f"{ID}.1-1.parquet")
    assert {str(schema.field(f"value/{name}").type) for name in values} == {"double"}
    with pytest.raises(TypeError, match="value 'x' is a list"):
        store.commit_attempt(make_attempt(number=2, values={"x": [1]}), fence=allow)  # type: ignore[dict-item]


def test_a_value_of_none_is_no_value(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.commit_attempt(make_attempt(values={"a": None, "b": 1.0}), fence=allow)
    assert store.read_attempts()[0].values == {"b": 1.0}


def test_a_value_that_is_text_in_one_attempt_and_a_number_in_another_becomes_text(
    tmp_path: Path,
) -> None:
    store = new_store(tmp_path)
    store.commit_attempt(make_attempt(number=1, values={"x": 0.5, "y": True}), fence=allow)
    store.commit_attempt(make_attempt(number=2, values={"x": "many", "y": 2}), fence=allow)
    store.commit_attempt(make_attempt(number=3, values={"z": 1}), fence=allow)
    assert [attempt.values for attempt in store.read_attempts()] == [
        {"x": "0.5", "y": "true"},
        {"x": "many", "y": "2"},
        {"z": 1.0},
    ]


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="says no time zone"):
        make_attempt(ended=datetime(2026, 1, 1))


def test_attempts_of_a_newer_version_are_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path)
    with monkeypatch.context() as newer:
        newer.setattr("kdsweep.results.tables.SCHEMA_VERSION", 3)
        store.commit_attempt(make_attempt(), fence=allow)
    with pytest.raises(NewerStoreError, match=r"schema version 3, and this kdsweep .* up to 2"):
        store.read_attempts()


def test_a_sweep_of_a_newer_version_is_a_clear_error(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (store.folder / "sweep.json").write_text(json.dumps({"schema_version": 3}))
    with pytest.raises(NewerStoreError, match="pip install --upgrade kdsweep"):
        store.read_sweep()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 100, b"PAR1" + bytes(50) + b"PAR1"])
def test_garbage_is_reported_and_harms_no_other_part(tmp_path: Path, content: bytes) -> None:
    store = new_store(tmp_path)
    store.commit_attempt(make_attempt(), fence=allow)
    bad = store.folder / "attempts" / f"{OTHER}.1-1.parquet"
    bad.write_bytes(content)
    assert [attempt.id for attempt in store.read_attempts()] == [ID]
    ((path, reason),) = store.damaged()
    assert path == bad
    assert reason


def test_a_part_under_another_attempts_name_is_damaged(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.commit_attempt(make_attempt(), fence=allow)
    folder = store.folder / "attempts"
    shutil.copy(folder / f"{ID}.1-1.parquet", folder / f"{ID}.1-2.parquet")
    assert len(store.read_attempts()) == 1
    assert store.damaged()[0][1] == "the file's name and its content name different attempts"


def test_parquet_files_of_others_are_damaged_and_other_names_ignored(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    folder = store.folder / "attempts"
    store.commit_attempt(make_attempt(), fence=allow)
    foreign = pq.read_table(folder / f"{ID}.1-1.parquet").replace_schema_metadata(None)
    pq.write_table(foreign, folder / f"{OTHER}.1-1.parquet")
    (folder / "notes.txt").write_text("mine")
    (folder / f".{ID}.1-9.parquet").write_text("hidden")
    assert len(store.read_attempts()) == 1
    assert [reason for _, reason in store.damaged()] == ["not a part of attempts"]


class Merging:
    """A place where, once its files were listed, one is replaced by another of its own."""

    def __init__(self, store: Store, *, replaced: Path, staged: Path, by: Path) -> None:
        self._source = store.source
        self._replaced, self._staged, self._by = replaced, staged, by

    def names(self, folder: str) -> tuple[str, ...]:
        return self._source.names(folder)

    def content(self, path: str) -> bytes:
        if self._staged.exists():
            self._replaced.unlink()
            self._staged.rename(self._by)
        return self._source.content(path)

    def open(self, path: str) -> object:
        return self._source.open(path)

    def age_seconds(self, path: str, *, now: float) -> float | None:
        return None


def test_a_part_that_vanishes_while_it_is_read_is_looked_for_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.commit_attempt(make_attempt(ID), fence=allow)
    store.commit_attempt(make_attempt(OTHER), fence=allow)
    first, second = (store.folder / "attempts" / f"{id}.1-1.parquet" for id in (ID, OTHER))
    second.rename(tmp_path / "staged")
    place = Merging(store, replaced=first, staged=tmp_path / "staged", by=second)

    found = read_attempts(place)

    assert found.table["id"].to_pylist() == [OTHER]
    assert found.damaged == ()


def test_a_reader_sees_only_whole_attempts_while_others_write(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    expected = {comparable(make_attempt(number=number)) for number in range(40)}

    def write() -> None:
        for number in range(40):
            store.commit_attempt(make_attempt(number=number), fence=allow)

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[str] = set()
    while writer.is_alive():
        found = {comparable(attempt) for attempt in store.read_attempts()}
        assert seen <= found <= expected
        assert store.damaged() == ()
        seen = found
    writer.join()
    assert {comparable(attempt) for attempt in store.read_attempts()} == expected


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    rows, labels = np.array([2, 0, 1]), np.array([1, 0, 1])
    logits = np.array([[0.1, -0.2], [1.5, 2.5], [np.nan, -3.0]], dtype=np.float32)
    store.write_predictions(ID, 1, 2, "report", rows, labels, logits)
    table, _ = read_predictions(store.source, AttemptKey(ID, 1, 2), "report")
    assert table is not None
    assert table["row"].to_pylist() == [2, 0, 1]
    assert table["label"].to_pylist() == [1, 0, 1]
    found = np.column_stack([table["logit/0"].to_numpy(), table["logit/1"].to_numpy()])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits)
    with pytest.raises(FileExistsError):
        store.write_predictions(ID, 1, 2, "report", rows, labels, logits)
    with pytest.raises(ValueError, match="not the name of a split"):
        store.write_predictions(ID, 1, 2, "../x", rows, labels, logits)
    with pytest.raises(ValueError, match="do not fit"):
        store.write_predictions(ID, 1, 3, "report", rows[:2], labels, logits)


def test_a_store_is_read_from_a_url_that_fsspec_knows(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    store.commit_attempt(make_attempt(), fence=allow)
    files = fsspec.filesystem("memory")
    files.put(str(store.folder), "/bucket/sweep", recursive=True)
    source = RemoteSource("memory://bucket/sweep/")
    assert read_sweep(source) == {"name": "sweep"}
    assert results.load("memory://bucket/sweep", include_inactive=True).trials["trial_id"][0] == ID
    assert read_attempts(source).table["id"].to_pylist() == [ID]
    with pytest.raises(StoreNotFoundError):
        read_sweep(RemoteSource("memory://bucket/other"))


# --- against a model

IDS = st.sampled_from([ID, OTHER, "00" * 4, "ff" * 32])
COUNTS = st.integers(0, 3)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
# A name keeps its type: one that changes it is tested above.
VALUES = st.builds(
    lambda *parts: {name: value for part in parts for name, value in part.items()},
    st.dictionaries(NAMES.map("number {}".format), st.floats(), max_size=2),
    st.dictionaries(NAMES.map("truth {}".format), st.booleans(), max_size=2),
    st.dictionaries(NAMES.map("text {}".format), st.text(max_size=8), max_size=2),
)
MOMENTS = st.datetimes(
    datetime(2000, 1, 1),
    datetime(2100, 1, 1),
    timezones=st.just(UTC),
)
ATTEMPTS = st.builds(
    make_attempt,
    IDS,
    COUNTS,
    COUNTS,
    what=st.sampled_from(["teacher", "trial"]),
    status=st.sampled_from(["completed", "failed", "interrupted"]),
    failure_class=st.none() | st.sampled_from(["error", "nan"]),
    error=st.none() | st.text(max_size=20),
    started=MOMENTS,
    ended=MOMENTS,
    resumed_from=st.none() | st.tuples(COUNTS, COUNTS),
    resumed_from_step=st.integers(0, 2**40),
    values=VALUES,
)


class StoreAgainstModel(RuleBasedStateMachine):
    """Several writers, killed and forbidden ones, and damage: what is committed stays."""

    @initialize()
    def create(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = new_store(Path(self.folder.name))
        self.committed: dict[str, str] = {}
        self.damaged: set[str] = set()
        self.left_behind: set[str] = set()

    def name(self, attempt: Attempt) -> str:
        return f"{attempt.id}.{attempt.epoch}-{attempt.number}.parquet"

    def commit(self, attempt: Attempt, fence: Callable[[], None] = allow) -> None:
        name = self.name(attempt)
        try:
            self.store.commit_attempt(attempt, fence=fence)
        except FileExistsError:
            assert name in self.committed or name in self.damaged
        else:
            assert name not in self.committed
            assert name not in self.damaged
            self.committed[name] = comparable(attempt)

    @rule(attempt=ATTEMPTS)
    def commits(self, attempt: Attempt) -> None:
        self.commit(attempt)

    @rule(first=ATTEMPTS, second=ATTEMPTS)
    def a_second_writer_commits_while_the_first_is_about_to(
        self, first: Attempt, second: Attempt
    ) -> None:
        self.commit(first, fence=lambda: self.commit(second))

    @rule(attempt=ATTEMPTS)
    def is_forbidden_to_commit(self, attempt: Attempt) -> None:
        def forbid() -> None:
            raise PermissionError

        with pytest.raises(PermissionError):
            self.store.commit_attempt(attempt, fence=forbid)

    @rule(attempt=ATTEMPTS, content=st.binary(max_size=30))
    def is_killed_while_it_writes(self, attempt: Attempt, content: bytes) -> None:
        path = self.store.folder / "attempts" / f".{self.name(attempt)}.1-ab.tmp"
        path.write_bytes(content)
        self.left_behind.add(path.name)

    @rule(data=st.data(), share=st.floats(0, 0.99))
    def a_part_is_truncated(self, data: st.DataObject, share: float) -> None:
        if not self.committed:
            return
        name = data.draw(st.sampled_from(sorted(self.committed)))
        path = self.store.folder / "attempts" / name
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        del self.committed[name]
        self.damaged.add(name)

    @rule()
    def the_next_launch_cleans_up(self) -> None:
        self.store.remove_temporaries()
        self.left_behind.clear()

    @invariant()
    def reading_equals_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        found = {self.name(attempt): comparable(attempt) for attempt in self.store.read_attempts()}
        assert found == self.committed
        assert {path.name for path, _ in self.store.damaged()} == self.damaged
        names = {path.name for path in (self.store.folder / "attempts").iterdir()}
        assert names == {*self.committed, *self.damaged, *self.left_behind}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


StoreAgainstModel.TestCase.settings = settings(
    max_examples=10, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_store_equals_its_model = StoreAgainstModel.TestCase


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255), cut=st.booleans())
def test_whatever_happens_to_one_part_the_others_are_read(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int, cut: bool
) -> None:
    store = new_store(tmp_path_factory.mktemp("store"))
    store.commit_attempt(make_attempt(ID), fence=allow)
    store.commit_attempt(make_attempt(OTHER), fence=allow)
    part = store.folder / "attempts" / f"{OTHER}.1-1.parquet"
    content = bytearray(part.read_bytes())
    position = int(place * len(content))
    if cut:
        del content[position:]
    else:
        content[position] = byte
    part.write_bytes(content)
    found = store.read_attempts()
    assert comparable(make_attempt(ID)) in [comparable(attempt) for attempt in found]
    damaged = [path for path, _ in store.damaged()]
    assert len(found) + len(damaged) == 2
    assert not cut or damaged == [part]
