"""Data sets of the hub, or local copies in its layout, as columns of values.

A hub data set is downloaded first and then read as a local copy: one code for both, and what was
downloaded once is read again without a network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..search_spaces.errors import DataError, Problem, UnreachableError
from .rows import Columns

if TYPE_CHECKING:
    import datasets


def download(repository: str, *, revision: str | None, only: list[str] | None) -> Path:
    """The folder of a hub data set's copy in the hub library's own cache.

    Args:
        repository: The data set's id.
        revision: The full commit; the newest unless said.
        only: Patterns of the files needed; all unless said.

    Raises:
        UnreachableError: Not in the cache, and the hub cannot be reached.
        DataError: Unknown or private.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    out_of_reach = UnreachableError(
        [
            Problem(
                "task.name",
                f"the hub's data set `{repository}` is not in the local cache and cannot be "
                "downloaded from here",
                "Connect, unset HF_HUB_OFFLINE, or give a local copy with `path`.",
            )
        ]
    )
    try:
        folder = Path(
            snapshot_download(
                repository, repo_type="dataset", revision=revision, allow_patterns=only
            )
        )
    except HFValidationError as error:
        raise _error(f"`{repository}` is no id of the hub", "Write `owner/name`.") from error
    except LocalEntryNotFoundError as error:
        raise out_of_reach from error
    except HfHubHTTPError as error:
        at = f" at {revision}" if revision else ""
        raise _error(
            f"the hub refuses the data set `{repository}`{at}: {error}",
            "Check the name and the revision; log in if it is private.",
        ) from error
    # Without a network the library gives whatever an earlier, smaller download has left.
    if not all(any(folder.glob(pattern)) for pattern in only or ("*",)):
        raise out_of_reach
    return folder


def read_parquet_splits(
    folder: Path,
    splits: Sequence[str],
    *,
    name: str,
    text: Sequence[str],
    label: str,
) -> dict[str, Columns]:
    """Splits that lie as `<split>-<part>-of-<parts>.parquet` in one folder.

    Args:
        folder: Where the files lie.
        splits: The splits wanted.
        name: What the data set is called, for messages.
        text: The text columns.
        label: The label column.

    Raises:
        DataError: A split has no file, or its files cannot be read.
    """
    files = {split: sorted(map(str, folder.glob(f"{split}-*-of-*.parquet"))) for split in splits}
    missing = [split for split, found in files.items() if not found]
    if missing:
        raise DataError(
            [
                Problem(
                    "task.path",
                    f"{folder} has no file `{split}-00000-of-00001.parquet`",
                    "Copy the split into the folder, or correct `path`.",
                )
                for split in missing
            ]
        )
    return _load("parquet", config=None, files=files, name=name, text=text, label=label)


def read_repository(
    folder: Path, *, name: str, config: str | None, text: Sequence[str], label: str
) -> dict[str, Columns]:
    """Every split of a data set, in whatever form `datasets` knows.

    Args:
        folder: The local copy.
        name: What the data set is called, for messages.
        config: One of several data sets in it; needed if there are several.
        text: The text columns.
        label: The label column.

    Raises:
        DataError: `datasets` cannot read it.
    """
    return _load(str(folder), config=config, files=None, name=name, text=text, label=label)


def _load(
    source: str,
    *,
    config: str | None,
    files: Mapping[str, Sequence[str]] | None,
    name: str,
    text: Sequence[str],
    label: str,
) -> dict[str, Columns]:
    import datasets

    bars_were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        # A cache of its own for each reading: rows are kept by their content elsewhere, and what
        # lies in a shared one could be older than the files.
        with TemporaryDirectory(prefix="kdsweep-") as cache:
            loaded = datasets.load_dataset(source, config, data_files=files, cache_dir=cache)
            return {
                str(split): _columns(
                    table, source=f"{name}, split {split}", wanted=(*text, label), label=label
                )
                for split, table in loaded.items()
            }
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise _error(
            f"the data set `{name}` cannot be read: {error}", "Check its files and its name."
        ) from error
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()


def _columns(
    table: "datasets.Dataset",
    *,
    source: str,
    wanted: Sequence[str],
    label: str,
) -> Columns:
    from datasets import ClassLabel

    names = tuple(table.column_names)
    arrow = table.with_format("arrow")[:]
    feature = table.features.get(label)
    class_names = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    values = {name: arrow.column(name).to_pylist() for name in wanted if name in names}
    return Columns(source, names, values, class_names=class_names)


def _error(what: str, mend: str) -> DataError:
    return DataError([Problem("task.name", what, mend)])
