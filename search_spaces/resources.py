"""What a trial asks of the host it runs on: the same for all trials, or by rules for some."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, Strict, ValidationError

from .predicate import Predicate
from .report import Report, did_you_mean, show
from .sentences import known_keys
from .spec import Count, Positive, Spec
from .tree import Path
from .validation import findings
from .values import Written

GpuShare = Annotated[float, Strict(), Field(ge=0, le=1)]

ReadPredicate = Callable[[object, Path], Predicate | None]
"""From what a file says, and where, to a predicate; None where it is wrong, which is reported."""


class Request(Spec):
    """What one trial takes of its host; part of no id."""

    cpus: Count = 1
    """Threads of a trial; part of what makes its numbers exact."""
    gpus: GpuShare = 0.0
    """A share of one GPU: of its time by Ray's placement, of its memory by a limit in the lane."""
    memory_gb: Positive = 4.0
    """Host memory (GiB); a trial whose own memory (0.3 of it PyTorch's; files that are mapped, such
    as kept teacher outputs, do not count) is larger is ended as `out_of_memory`."""
    timeout_minutes: Positive = 60.0
    """A trial that takes longer is ended and counted as `timeout`."""
    stall_minutes: Positive = 15.0
    """A trial that takes no step for so long, once it has begun to, is ended as `stalled`."""


class Changes(Spec):
    """What a rule may change of a request: not the threads, on which a trial's numbers depend."""

    gpus: GpuShare = 0.0
    """A share of one GPU, for these trials."""
    memory_gb: Positive = 4.0
    """Host memory, for these trials."""
    timeout_minutes: Positive = 60.0
    """The limit of these trials."""
    stall_minutes: Positive = 15.0
    """How long these trials may take no step."""


@dataclass(frozen=True)
class ResourceRule:
    """Another request for the points of a predicate."""

    predicate: Predicate
    changes: Mapping[str, float]
    where: Written


def read_resource_rules(
    resources: Mapping[str, Any], *, read_predicate: ReadPredicate, report: Report
) -> tuple[ResourceRule, ...]:
    """The rules under `resources.when`; what is wrong with them goes to the report."""
    at: Path = ("resources", "when")
    data = resources.get("when")
    if data is None:
        return ()
    if not isinstance(data, list):
        report.add(at, f"{show(data)} is not a list", "Write `- ` before each rule")
        return ()
    read = [
        _read_rule(rule, at=(*at, n), read_predicate=read_predicate, report=report)
        for n, rule in enumerate(data)
    ]
    rules = tuple(rule for rule in read if rule is not None)
    _check_one_device(resources.get("gpus"), rules, report)
    return rules


def _read_rule(
    rule: object, *, at: Path, read_predicate: ReadPredicate, report: Report
) -> ResourceRule | None:
    if not isinstance(rule, dict) or "if" not in rule or len(rule) == 1:
        mend = "Write `{if: {path: value}, memory_gb: 8}`, or another of " + ", ".join(
            f"`{key}`" for key in known_keys(Changes)
        )
        report.add(at, f"{show(rule)} is not a rule of resources", mend)
        return None
    predicate = read_predicate(rule["if"], (*at, "if"))
    changes = _read_changes({k: v for k, v in rule.items() if k != "if"}, at=at, report=report)
    if predicate is None or changes is None:
        return None
    return ResourceRule(predicate, changes, report.written(at))


def _read_changes(
    data: Mapping[str, Any], *, at: Path, report: Report
) -> Mapping[str, float] | None:
    known = {key: value for key, value in data.items() if key in known_keys(Changes)}
    for key in data.keys() - known.keys():
        what = "is not a known key"
        mend = did_you_mean(key, (*known_keys(Changes), "if"))
        if key == "cpus":
            what = "cannot differ from trial to trial: numbers depend on the threads that make them"
            mend = "Write it under `resources`, for all trials"
        report.add((*at, key), what, mend, at_key=True)
    try:
        return Changes.model_validate(known).model_dump(exclude_unset=True)
    except ValidationError as error:
        for path, what, mend, at_key in findings(error, Changes, known):
            report.add((*at, *path), what, mend, at_key=at_key)
    return None


def _check_one_device(gpus: object, rules: Sequence[ResourceRule], report: Report) -> None:
    """Refuse rules by which some trials would train on a GPU and some not: sums round otherwise."""
    for rule in rules:
        if "gpus" in rule.changes and bool(rule.changes["gpus"]) != bool(gpus):
            these, others = ("off", "on") if gpus else ("on", "off")
            report.add_written(
                rule.where,
                f"these trials would train {these} a GPU and the others {others} it: a sweep "
                "compares numbers of one device",
                "Give all trials a share of a GPU or none, or make two sweeps",
            )
