"""Where a store is read from: a folder of this machine, or any URL that fsspec knows."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Source(Protocol):
    """The little that reading a store asks of its place; paths are relative to the store."""

    def names(self, folder: str) -> tuple[str, ...]:
        """Names of the files in a folder, in order; none where there is no such folder."""

    def content(self, path: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: It is not there, or not any more.
        """

    def open(self, path: str) -> Any:  # noqa: ANN401  # pyarrow ships no types
        """A file of which parts can be read, for Arrow; a file that was opened stays readable.

        Raises:
            FileNotFoundError: It is not there, or not any more.
        """

    def age_seconds(self, path: str, *, now: float) -> float | None:
        """How long ago a file was written, by the clock of the place; None if nobody knows."""


class LocalSource:
    """A store on a file system of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def names(self, folder: str) -> tuple[str, ...]:
        """Names of the files in a folder, in order; none where there is no such folder."""
        try:
            return tuple(sorted(path.name for path in (self._folder / folder).iterdir()))
        except FileNotFoundError:
            return ()

    def content(self, path: str) -> bytes:
        """A file's bytes."""
        with _vanishing():
            return (self._folder / path).read_bytes()

    def open(self, path: str) -> Any:  # noqa: ANN401  # pyarrow ships no types
        """A file of which parts can be read."""
        import pyarrow as pa

        with _vanishing():
            # Not mapped: whoever truncates a mapped file kills its readers.
            return pa.OSFile(str(self._folder / path))

    def age_seconds(self, path: str, *, now: float) -> float | None:
        """How long ago a file was written."""
        try:
            return now - (self._folder / path).stat().st_mtime
        except FileNotFoundError:
            return None


@contextmanager
def _vanishing() -> Iterator[None]:
    """Say of a file that another host removed what is said of one removed here."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise FileNotFoundError(*error.args) from error
        raise


class RemoteSource:
    """A store behind a URL; object stores need the fsspec package of their kind installed."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it ships no types

        self._url = url.rstrip("/")
        files, root = url_to_fs(self._url)
        self._files: Any = files
        self._root: str = root.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def names(self, folder: str) -> tuple[str, ...]:
        """Names of the files in a folder, in order; none where there is no such folder."""
        try:
            # A cached listing would hide what others have written since.
            paths = self._files.ls(f"{self._root}/{folder}", detail=False, refresh=True)
        except FileNotFoundError:
            return ()
        return tuple(sorted(path.rstrip("/").rpartition("/")[2] for path in paths))

    def content(self, path: str) -> bytes:
        """A file's bytes."""
        content: bytes = self._files.cat_file(f"{self._root}/{path}")
        return content

    def open(self, path: str) -> Any:  # noqa: ANN401  # fsspec ships no types
        """A file of which parts can be read."""
        return self._files.open(f"{self._root}/{path}", "rb")

    def age_seconds(self, path: str, *, now: float) -> None:
        """Unknown: not every kind of store tells."""


def open_source(place: str | Path) -> Source:
    """The source that a path or URL names."""
    if isinstance(place, str) and "://" in place:
        return RemoteSource(place)
    return LocalSource(Path(place).expanduser())
