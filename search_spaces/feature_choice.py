"""Which of its teachers' outputs a sweep keeps: what spares the most operations for each byte.

A source is one teacher over some rows in one precision. A stage reads a set of its features in
every step, and is spared the teacher only if all of the set is kept. Pure integers and floats.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .resolution import Feature
from .spec import Spec
from .stages import StageTeacher
from .trial import Digests, Trial, digest

Needs = frozenset[Feature]

FINENESS, ROOMS = 0.95, 100
"""Of the budgets that are tried, each by so much smaller than the one before."""


class SourceChoice(Spec):
    """What a sweep has decided of one source; it never changes for what was planned by then."""

    source: str
    """The source's key."""
    kept: tuple[Feature, ...]
    """Features that are kept."""
    online: tuple[tuple[Feature, ...], ...] = ()
    """What stages read whose teacher was to run online, though all of it came to be kept later."""

    def keeps(self, needs: Needs) -> bool:
        """Whether a stage that reads this reads what is kept."""
        return needs <= set(self.kept) and tuple(sorted(needs)) not in self.online


@dataclass(frozen=True)
class Source:
    """What is to be known of a source."""

    flops: float
    """Of the teacher over all rows once."""
    sizes: Mapping[Feature, int]
    """Bytes of each feature that some stage reads."""


class Reading(NamedTuple):
    """What a stage, or several alike, read of a source."""

    source: str
    needs: Needs
    passes: float
    """How often the teacher would run over all rows."""


def source_keys(trial: Trial, digests: Digests, *, precision: str) -> tuple[str, ...]:
    """The key of what each stage of a trial would read; the same in a plan and in a lane.

    Args:
        trial: Whose stages.
        digests: Of all that it reads.
        precision: What `auto` is.
    """
    texts = iter(digests.texts)
    keys = []
    for stage in trial.stages:
        own = stage.training.precision
        keys.append(
            _source_key(
                digests.teacher,
                stage.teacher,
                digests.task if stage.data == "task" else next(texts),
                max_length=trial.task.max_length,
                precision=precision if own == "auto" else own,
            )
        )
    return tuple(keys)


def _source_key(
    teacher: str, which: StageTeacher, rows: str, *, max_length: int, precision: str
) -> str:
    parts = {"teacher": teacher, "which": which, "rows": rows}
    return digest({**parts, "max_length": max_length, "precision": precision})[:16]


def choose(
    sources: Mapping[str, Source],
    readings: Iterable[Reading],
    *,
    budget: float,
    kept: Mapping[str, Needs],
) -> dict[str, Needs]:
    """The features to keep beside those that are, by source.

    What stages read is taken in the order of its worth for each byte, and what does not fit is
    left out. Beside this budget smaller ones are tried, the same for all: so a larger budget never
    spares less, though what it has room for may take the room of more.

    Args:
        sources: By their keys.
        readings: Of all stages that are to be trained.
        budget: Bytes in all, those of `kept` included.
        kept: What is kept already.
    """
    offers = _in_order(sources, readings, kept)
    left = budget - sum(
        sources[key].sizes[feature] for key, features in kept.items() for feature in features
    )
    tried = [_filled(offers, sources, kept, room) for room in _rooms(offers) if room <= left]
    best = max(tried, key=lambda each: (each.flops, -each.size), default=_Filled({}, 0.0, 0))
    return best.features


class _Offer(NamedTuple):
    """What some stages read; what it takes and is worth beside all that was offered before."""

    source: str
    needs: Needs
    passes: float
    size: int
    rate: float


class _Filled(NamedTuple):
    """What fits."""

    features: dict[str, Needs]
    flops: float
    size: int


def _in_order(
    sources: Mapping[str, Source], readings: Iterable[Reading], kept: Mapping[str, Needs]
) -> list[_Offer]:
    """What stages read and is not kept yet, the worthiest for each byte first."""
    passes: defaultdict[str, dict[Needs, float]] = defaultdict(dict)
    for source, needs, number in readings:
        if not needs <= kept.get(source, frozenset()):
            passes[source][needs] = passes[source].get(needs, 0.0) + number
    chains = [
        _chain(key, sources[key], passes[key], kept.get(key, frozenset())) for key in sorted(passes)
    ]
    found = []
    while chains := [chain for chain in chains if chain]:
        found.append(max(chains, key=lambda chain: chain[0].rate).pop(0))
    return found


def _chain(key: str, source: Source, passes: Mapping[Needs, float], kept: Needs) -> list[_Offer]:
    """Of one source, each with regard to those before."""
    left, chain = dict(passes), []
    while left:
        offers = []
        for needs, number in left.items():
            size = sum(source.sizes[feature] for feature in needs - kept)
            spared = sum(left[other] for other in left if other <= kept | needs)
            # What an earlier one brought along is free.
            rate = source.flops * spared / size if size else math.inf
            offers.append(_Offer(key, needs, number, size, rate))
        best = max(offers, key=lambda offer: (offer.rate, sorted(offer.needs)))
        kept |= best.needs
        del left[best.needs]
        chain.append(best)
    return chain


def _rooms(offers: Sequence[_Offer]) -> list[int]:
    """Sizes that matter, whatever the budget: of each offer, of the first ones, and between."""
    total = sum(offer.size for offer in offers)
    firsts = itertools.accumulate(offer.size for offer in offers)
    between = [int(total * FINENESS**step) for step in range(ROOMS)]
    return [*{*firsts, *between, *(offer.size for offer in offers)}]


def _filled(
    offers: Sequence[_Offer],
    sources: Mapping[str, Source],
    before: Mapping[str, Needs],
    room: int,
) -> _Filled:
    kept = dict(before)
    size = 0
    for source, needs, *_ in offers:
        there = kept.get(source, frozenset())
        more = sum(sources[source].sizes[feature] for feature in needs - there)
        if size + more <= room:
            kept[source] = there | needs
            size += more
    spared: Counter[str] = Counter()
    for source, needs, passes, *_ in offers:
        if needs <= kept.get(source, frozenset()):
            spared[source] += passes  # type: ignore[assignment]
    # The pass that computes them counts against them, where nothing was kept before.
    net = {key: passes - (key not in before) for key, passes in spared.items()}
    worth = {key: kept[key] - before.get(key, frozenset()) for key in net if net[key] > 0}
    return _Filled(
        worth,
        sum(sources[key].flops * net[key] for key in worth),
        sum(sources[key].sizes[feature] for key, each in worth.items() for feature in each),
    )
