"""Where a store is read from: a folder of this machine, or any URL that fsspec knows."""

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
        return (self._folder / path).read_bytes()

    def age_seconds(self, path: str, *, now: float) -> float | None:
        """How long ago a file was written."""
        try:
            return now - (self._folder / path).stat().st_mtime
        except FileNotFoundError:
            return None


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

    def age_seconds(self, path: str, *, now: float) -> None:
        """Unknown: not every kind of store tells."""


def open_source(place: str | Path) -> Source:
    """The source that a path or URL names."""
    if isinstance(place, str) and "://" in place:
        return RemoteSource(place)
    return LocalSource(Path(place).expanduser())
