"""What a stage trains on beside the task's rows, on real files."""

from dataclasses import replace
from pathlib import Path

import pytest
from world import World

from kdsweep.search_spaces.errors import DataError
from kdsweep.search_spaces.task import Task
from kdsweep.search_spaces.texts import Text
from kdsweep.search_spaces.training import Limit
from kdsweep.trainers.rows import Rows
from kdsweep.trainers.tasks import TaskData, load_task
from kdsweep.trainers.texts import unlabelled_texts


@pytest.fixture(scope="module")
def data(world: World) -> TaskData:
    return load_task(world.task)


def limited(world: World, rows: int) -> Task:
    return world.task.model_copy(update={"limit": Limit(train=rows)})


def file(folder: Path, name: str, content: str) -> Text:
    (folder / name).write_text(content, encoding="utf-8")
    return Text(text=str(folder / name))


def test_unlabelled_rows_are_those_that_train_had_before_its_limit(world: World) -> None:
    whole, few = load_task(world.task), load_task(limited(world, 20))
    assert len(few.train) == 20
    assert unlabelled_texts(few, "unlabelled") == whole.train.texts


def test_a_text_file_has_a_passage_a_line_and_each_counts_once(
    data: TaskData, tmp_path: Path
) -> None:
    text = file(tmp_path, "a.txt", "one passage\n\n  another one  \none passage\n")
    assert unlabelled_texts(data, text) == (("one passage",), ("another one",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "other,text\n1,one passage\n2,another one\n"),
        ("a.jsonl", '{"text": "one passage"}\n{"text": "another one", "label": null}\n'),
    ],
)
def test_a_table_gives_its_text_columns_and_needs_no_labels(
    name: str, content: str, data: TaskData, tmp_path: Path
) -> None:
    text = file(tmp_path, name, content)
    assert unlabelled_texts(data, text) == (("one passage",), ("another one",))


def test_what_select_or_report_hold_is_never_trained_on(data: TaskData, tmp_path: Path) -> None:
    [known], [reported] = data.select.texts[0], data.report.texts[0]
    text = file(tmp_path, "a.txt", f"new\n{known}\n{reported}\n")
    assert unlabelled_texts(data, text) == (("new",),)


def test_white_space_does_not_hide_what_select_or_report_hold(
    data: TaskData, tmp_path: Path
) -> None:
    [known], [reported] = data.select.texts[0], data.report.texts[0]
    spaced = replace(data, select=Rows(((f" {known} ",),), data.select.labels[:1]))
    lines = (known, known.replace(" ", "  "), reported.replace(" ", "\t"), "new")
    text = file(tmp_path, "a.txt", "\ufeff" + "\r\n".join(lines))
    assert unlabelled_texts(spaced, text) == (("new",),)


def test_a_passage_that_is_one_text_of_a_pair_is_dropped_and_pairs_by_both(
    data: TaskData, tmp_path: Path
) -> None:
    pairs = Rows((("a premise", "a hypothesis"),), data.report.labels[:1])
    of_pairs = replace(data, report=pairs, text=("one", "two"))
    lines = file(tmp_path, "a.txt", "a premise\na hypothesis\nnew\n")
    assert unlabelled_texts(of_pairs, lines) == (("new",),)
    table = file(tmp_path, "a.csv", "one,two\na premise,a hypothesis\na premise,new\n")
    assert unlabelled_texts(of_pairs, table) == (("a premise", "new"),)


def test_a_passage_ends_with_its_line_and_nowhere_before(data: TaskData, tmp_path: Path) -> None:
    assert unlabelled_texts(data, file(tmp_path, "a.txt", "one\u2028passage\x85\n")) == (
        ("one\u2028passage",),
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "has no text that is not in select or report"),
        ("a.csv", "words\nhello\n", "has no column `text`; it has `words`"),
        ("a.csv", "text,x\nhello,1\n,2\n", "has no text in row 2"),
        ("a.xml", "<a/>", "is not a CSV, JSON-lines or Parquet file"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(
    name: str, content: str, message: str, data: TaskData, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        unlabelled_texts(data, file(tmp_path, name, content))
    assert message in str(caught.value)


def test_a_missing_file_and_one_of_another_encoding_are_refused(
    data: TaskData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"gone\.txt cannot be read"):
        unlabelled_texts(data, Text(text=str(tmp_path / "gone.txt")))
    with pytest.raises(DataError, match=r"^teacher\.language_head\.data\.text: "):
        unlabelled_texts(
            data, Text(text=str(tmp_path / "gone.txt")), place="teacher.language_head.data"
        )
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        unlabelled_texts(data, Text(text=str(tmp_path / "latin.txt")))


def test_tasks_that_differ_beyond_their_limit_have_other_unlabelled_rows(
    world: World, tmp_path: Path
) -> None:
    from kdsweep.trainers import Assets, Settings
    from kdsweep.trainers.sources import locate_teacher

    assert world.task.files is not None
    more = tmp_path / "more.csv"
    more.write_text(Path(world.task.files.train).read_text() + "w1 w2 one more row,good\n")
    kept = limited(world, 20)
    source = locate_teacher(world.teacher)
    assets = Assets(Settings(), world.cache)
    found = []
    for train in (world.task.files.train, str(more)):
        files = world.task.files.model_copy(update={"train": train})
        loaded = assets.task(kept.model_copy(update={"files": files}))
        found.append(assets.text(loaded, "unlabelled", source, max_length=16))
    assert found[0].digest != found[1].digest
