"""Features of teachers, computed once on a host and shared by all of its lanes.

They lie in files that lanes map into memory. Where the disk does not take them, a lane keeps the
same numbers in memory of its own: whether a trial reads kept features is the sweep's decision, and
never that of a disk.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from ..search_spaces.errors import InputError, Problem
from ..search_spaces.trial import digest
from .feature_files import SCHEMA, Overflows, SourceFiles, collect
from .feature_layout import Entry, feature_type, feature_width
from .outputs import CanonicalPass, Places, kept_in_memory

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from .batches import Split
    from .features import Feature, Needs, Sizes
    from .file_lock import Held
    from .settings import Settings

log = logging.getLogger("kdsweep")

_GB = 10**9
_GIB = 2**30

ROOM_SHARE = 0.5
"""Of the memory that a lane has left, what it may fill with features in want of a disk."""

Found = Mapping[Entry, "npt.NDArray[Any] | Overflows"]


@dataclass
class KeptSource:
    """What a lane has at hand of one source."""

    run: CanonicalPass
    files: SourceFiles
    places: Places
    held: Held | None = None
    """Keeps the files from being pruned."""
    vectors: dict[Feature, Tensor] = field(default_factory=dict)
    seconds: dict[Feature, float | None] = field(default_factory=dict)
    """What the teacher took for each of them; None where nobody measured it."""

    def seconds_a_row(self, needs: Needs) -> float | None:
        """Of a teacher that is asked for these at once: never less than the longest took alone."""
        known = [each for feature in needs if (each := self.seconds[feature]) is not None]
        return max(known) / len(self.run.split) if len(known) == len(needs) else None


class FeatureCache:
    """Finds, computes and keeps features."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings

    def source(
        self, run: CanonicalPass, *, weights: Mapping[str, str], about: Mapping[str, str]
    ) -> KeptSource:
        """One that nothing is known of yet.

        Args:
            run: Asks its teacher.
            weights: Content of the teacher.
            about: What is said of it to people.
        """
        content = {
            "schema": SCHEMA,
            "weights": weights,
            "tokens": _tokens_digest(run.split, run.pad_token_id),
            "precision": run.precision,
            # Sums round differently with each of these. A lane that has prepared a teacher did it
            # with more threads than its trials have.
            "threads": torch.get_num_threads(),
            "device": _device_name(run.device),
            "torch": torch.__version__,
        }
        name = digest(content)[:32]
        told = {**about, "rows": str(len(run.split)), "device": str(content["device"])}
        files = SourceFiles(self._folder / name, run.layout, about=told)
        return KeptSource(run, files, Places.of(run.split, run.layout))

    def vectors(
        self,
        source: KeptSource,
        needs: Needs,
        wanted: Needs,
        *,
        sizes: Sizes,
        is_compact: bool,
        stop: Callable[[], bool],
    ) -> dict[Feature, Tensor]:
        """The packed vectors of some features.

        Args:
            source: Whose.
            needs: Which.
            wanted: What else is computed in the same pass, if there is one.
            sizes: The teacher's.
            is_compact: Whether they are kept in the compact type.
            stop: Looked at on the way.

        Raises:
            StoppedError: `stop` became true.
            InputError: There is no room for them, on the disk or in memory.
        """
        missing = needs - source.vectors.keys()
        if missing:
            source.run = replace(source.run, stop=stop)

            def entry(feature: Feature) -> Entry:
                kind = feature_type(feature, is_compact=is_compact)
                return Entry(feature, kind, feature_width(feature, sizes))

            needed = [entry(feature) for feature in sorted(missing)]
            try:
                found = self._on_disk(source, needed, [entry(each) for each in sorted(wanted)])
                seconds = {entry: source.files.seconds(entry) for entry in found}
            except OSError as error:
                self._check_memory(source, needed, error)
                log.warning("%s: %s; this lane keeps features in memory", self._folder, error)
                seconds = {}

                def get(entries: list[Entry]) -> Found:
                    kept, took = kept_in_memory(source.run, entries)
                    seconds.update(dict.fromkeys(entries, took))
                    return kept

                found = _whole(get, needed)
            source.vectors |= {each.feature: _tensor(array) for each, array in found.items()}
            source.seconds |= {each.feature: seconds[each] for each in found}
        return {feature: source.vectors[feature] for feature in sorted(needs)}

    def _on_disk(
        self, source: KeptSource, needed: list[Entry], wanted: list[Entry]
    ) -> dict[Entry, npt.NDArray[Any]]:
        stop = source.run.stop
        if source.held is None:
            source.held = source.files.use(stop)

        def get(entries: list[Entry]) -> Found:
            also = wanted if entries == needed else entries
            return collect(source.files, entries, also, run=source.run, stop=stop)

        return _whole(get, needed)

    def _check_memory(self, source: KeptSource, entries: list[Entry], error: OSError) -> None:
        layout = source.files.layout
        size = sum(layout.size(entry.axis) * entry.vector_bytes for entry in entries)
        left = float(psutil.virtual_memory().available)
        if self._settings.memory_gb is not None:
            memory: Any = psutil.Process().memory_info()
            own = memory.rss - getattr(memory, "shared", 0)
            left = min(left, self._settings.memory_gb * _GIB - own)
        if size > ROOM_SHARE * left:
            raise InputError(
                [
                    Problem(
                        str(self._folder),
                        f"features of {size / _GB:.3g} GB cannot be kept there ({error}), and this "
                        f"lane has memory for {max(0.0, ROOM_SHARE * left) / _GB:.3g} GB of them",
                        "Make room on that disk, name a folder on another one in "
                        "KDSWEEP_CACHE_DIR, or raise `resources.memory_gb`.",
                    )
                ]
            ) from error


def _whole(
    get: Callable[[list[Entry]], Found], needed: list[Entry]
) -> dict[Entry, npt.NDArray[Any]]:
    """Entries; those with a number beyond their type in fp32."""
    found = dict(get(needed))
    wide = [entry._replace(type="fp32") for entry in needed if isinstance(found[entry], Overflows)]
    if wide:
        found |= get(wide)
    return {entry: array for entry, array in found.items() if not isinstance(array, Overflows)}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # It cannot be written, and nobody does.
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


def _tokens_digest(split: Split, pad_token_id: int) -> str:
    """Of all that the teacher is shown."""
    sha = hashlib.sha256(f"{pad_token_id}".encode())
    for tensor in (split.offsets, split.input_ids, split.token_type_ids):
        sha.update(tensor.numpy().astype(np.int32, copy=False).tobytes())
    return sha.hexdigest()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
