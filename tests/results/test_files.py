"""Files are whole or absent, and nobody overwrites another's."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdsweep.results.files import (
    UnwritableError,
    publish,
    publish_folder,
    remove_temporaries,
    replace,
)


def writing(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def test_a_published_file_has_its_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    publish(tmp_path / "a.parquet", writing("one"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.parquet", "one")]


def test_publishing_under_a_taken_name_fails_and_changes_nothing(tmp_path: Path) -> None:
    publish(tmp_path / "a", writing("one"))
    with pytest.raises(FileExistsError, match="a exists already"):
        publish(tmp_path / "a", writing("two"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "one")]


def test_a_name_that_was_taken_by_the_same_file_is_a_success(tmp_path: Path) -> None:
    # A network file system that repeats a link whose answer was lost finds its own file.
    target = tmp_path / "a"

    def write_and_link(temporary: Path) -> None:
        temporary.write_text("one")
        os.link(temporary, target)

    publish(target, write_and_link)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_while_it_is_written_no_reader_takes_a_file_for_a_part(tmp_path: Path) -> None:
    seen: list[str] = []

    def write(path: Path) -> None:
        path.write_text("half")
        seen.extend(p.name for p in tmp_path.iterdir())

    publish(tmp_path / "a.parquet", write)
    assert len(seen) == 1
    assert seen[0].startswith(".")
    assert not seen[0].endswith(".parquet")


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    for make in (publish, replace):
        with pytest.raises(OSError, match="disk full"):
            make(tmp_path / "a", write)
    assert list(tmp_path.iterdir()) == []


def test_the_fence_is_asked_when_all_is_written_and_can_forbid_the_file(tmp_path: Path) -> None:
    written: list[str] = []

    def fence() -> None:
        written.extend(p.read_text() for p in tmp_path.iterdir())
        raise PermissionError("a newer launch holds the sweep")

    with pytest.raises(PermissionError, match="newer launch"):
        publish(tmp_path / "a", writing("one"), fence=fence)
    assert written == ["one"]
    assert list(tmp_path.iterdir()) == []


def test_replacing_shows_the_old_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a"
    seen: list[str] = []

    def write(path: Path) -> None:
        path.write_text("two")
        seen.append(target.read_text())

    replace(target, writing("one"))
    replace(target, write)
    assert seen == ["one"]
    assert target.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_with_all_of_its_files_or_not_at_all(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("w")
        assert not (tmp_path / "teacher").exists()

    def fail(folder: Path) -> None:
        (folder / "half").write_text("h")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_folder(tmp_path / "teacher", fail)
    assert list(tmp_path.iterdir()) == []
    publish_folder(tmp_path / "teacher", write)
    assert (tmp_path / "teacher" / "inner" / "weights").read_text() == "w"
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]
    assert stat.S_IMODE((tmp_path / "teacher").stat().st_mode) == 0o700


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    publish_folder(tmp_path / "teacher", lambda folder: (folder / "a").write_text("one"))
    with pytest.raises(FileExistsError):
        publish_folder(tmp_path / "teacher", lambda folder: (folder / "a").write_text("two"))
    assert (tmp_path / "teacher" / "a").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_what_killed_writers_left_can_be_removed_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "kept.parquet").write_text("k")
    (tmp_path / ".hidden").write_text("h")
    (tmp_path / ".a.parquet.17-ab.tmp").write_text("half")
    # Numbers of processes come again.
    (tmp_path / f".b.parquet.{os.getpid()}-0123abcd-ab.tmp").write_text("half")
    (tmp_path / ".teacher.17-ab.tmp").mkdir()
    (tmp_path / ".teacher.17-ab.tmp" / "weights").write_text("half")
    remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "kept.parquet"]


def test_what_this_process_is_writing_is_not_taken_for_left(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("whole")
        remove_temporaries(tmp_path)

    replace(tmp_path / "beat", write)
    assert (tmp_path / "beat").read_text() == "whole"


RACER = """
import sys
import time
from pathlib import Path
from kdsweep.results.files import publish

folder, name = Path(sys.argv[1]), sys.argv[2]
content = name * 1000
(folder / f"ready-{name}").touch()
while not (folder / "go").exists():
    pass
wins = []
for number in range(50):
    try:
        publish(folder / f"{number}.part", lambda path: path.write_text(content))
    except FileExistsError:
        continue
    wins.append(number)
print(*wins)
"""


def test_of_processes_that_publish_one_name_exactly_one_wins(tmp_path: Path) -> None:
    names = "abc"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), name], stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    while not all((tmp_path / f"ready-{name}").exists() for name in names):
        assert all(racer.poll() is None for racer in racers)
    (tmp_path / "go").touch()
    wins = {
        name: [int(number) for number in racer.communicate(timeout=60)[0].split()]
        for name, racer in zip(names, racers, strict=True)
    }
    assert sorted(n for numbers in wins.values() for n in numbers) == list(range(50))
    for name, numbers in wins.items():
        for number in numbers:
            assert (tmp_path / f"{number}.part").read_text() == name * 1000
    assert not list(tmp_path.glob(".*"))


class Disk:
    """Lets `os.fsync` meet an error a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, *, times: int) -> None:
        self._sync = os.fsync
        self._number = number
        self._left = times
        self.paused: list[float] = []
        monkeypatch.setattr(os, "fsync", self)
        monkeypatch.setattr(time, "sleep", self.paused.append)

    def __call__(self, descriptor: int) -> None:
        if self._left:
            self._left -= 1
            raise OSError(self._number, os.strerror(self._number))
        self._sync(descriptor)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN])
def test_an_error_that_passes_is_outlasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    disk = Disk(monkeypatch, number, times=3)
    publish(tmp_path / "part", writing("whole"))
    assert disk.paused == [0.1, 0.5, 2.5]
    assert (tmp_path / "part").read_text() == "whole"
    replace(tmp_path / "part", writing("other"))
    assert (tmp_path / "part").read_text() == "other"
    publish_folder(tmp_path / "folder", lambda folder: writing("inside")(folder / "file"))
    assert (tmp_path / "folder" / "file").read_text() == "inside"


def test_what_a_failed_sync_may_have_forgotten_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, errno.EIO, times=1)
    written: list[Path] = []

    def write(path: Path) -> None:
        written.append(path)
        path.write_text("whole")

    publish(tmp_path / "part", write)
    assert len(written) == 2


@pytest.mark.parametrize("act", [publish, replace, publish_folder])
def test_an_error_that_does_not_pass_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[..., None]
) -> None:
    def write(path: Path) -> None:
        writing("whole")(path / "file" if act is publish_folder else path)

    Disk(monkeypatch, errno.EIO, times=100)
    with pytest.raises(UnwritableError) as caught:
        act(tmp_path / "part", write)
    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path / "part", writing("whole"))
    assert disk.paused == []
    assert list(tmp_path.iterdir()) == []
