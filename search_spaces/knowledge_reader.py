"""Values of the axis `knowledge`: a kind, terms, stages or a recipe; and of addresses of stages."""

from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from .axes import labelled, take_label, validated_axis
from .recipes import RECIPES, recipe
from .report import Report, did_you_mean, show
from .sections import get_typed, local_path, override, paths_below
from .sentences import Finding
from .spec import Label, ProperShare, Spec
from .stages import ROUNDING, Knowledge, StageData, StageTeacher, StageTerms, all_terms
from .terms import read_terms
from .texts import Text
from .training import Training
from .tree import Path
from .validation import findings
from .values import Value, knowledge_label


class WrittenStage(Spec):
    """Knowledge in stages, one after the other; each trains the student as the one before left it.

    Written `{label: <name>, stages: [{name: <name>, terms: [...]}, ...]}`. Trials that begin with
    the same stages train them once. What follows are the keys of one stage.
    """

    name: Label
    """Names the stage in addresses: `stages.<name>.training.<field>`. Not part of any id."""
    terms: Any
    """Its objective: a kind, or a list of terms."""
    data: StageData = "task"
    """What it trains on: `task`, the train rows; `unlabelled`, all rows that train had before
    `task.limit`, without their labels; or `{text: FILE}`."""
    teacher: StageTeacher = "fine_tuned"
    """Which state of the teacher teaches: `fine_tuned` for the task, or `pretrained`."""
    share: ProperShare | None = None
    """Of `training.total_steps`; what other stages leave, in equal parts, unless said."""
    training: Training = Training()
    """What the stage says of its training for itself."""


_STAGE = "{name: <name>, terms: [...]}"
_KNOWLEDGE_MEND = "Write `{label: <name>, terms: [...]}`"
_ADDRESSED = tuple(
    path
    for name in ("data", "teacher", "share", "training")
    for path in paths_below(WrittenStage, "stage")
    if path == f"stage.{name}" or (name == "training" and path.startswith("stage.training."))
    if path != "stage.training"
)


def read_knowledge(data: object, *, at: Path, report: Report, base: FilePath) -> Value | None:
    """A value of the axis `knowledge`; what is wrong with it goes to the report.

    Args:
        data: As written.
        at: Where it stands.
        report: Takes what is wrong.
        base: The folder that local paths are relative to.
    """
    if isinstance(data, str) and data in RECIPES:
        # A recipe is a value in the language itself; its label is its name.
        data = {"label": data, **recipe(data)}
    if not isinstance(data, dict) or "kind" in data:
        return _value(_one_stage(data, at=at, report=report), None, at=at, report=report)
    unknown = [key for key in data if key not in ("label", "terms", "stages")]
    for key in unknown:
        mend = did_you_mean(key, ("label", "terms", "stages", "kind"))
        report.add((*at, key), "is not a known key", mend, at_key=True)
    if unknown:
        return None
    if ("terms" in data) == ("stages" in data):
        what = "has terms and stages" if "terms" in data else "has no terms"
        report.add(at, f"{show(data)} {what}", "Write `kind:` or `{label:, terms: [...]}`")
        return None
    label = None
    if "label" in data:
        label = validated_axis("label", data["label"], at=(*at, "label"), report=report)
    if "terms" in data:
        stages = _one_stage(data["terms"], at=(*at, "terms"), report=report)
    else:
        stages = _read_stages(data["stages"], at=(*at, "stages"), report=report, base=base)
    return _value(stages, label, at=at, report=report)


def _value(
    knowledge: Knowledge | None, label: str | None, *, at: Path, report: Report
) -> Value | None:
    if knowledge is None:
        return None
    if label is None and len(knowledge) > 1:
        report.add(at, "has stages and no label", "Write `{label: <name>, stages: [...]}`")
        return None
    try:
        return Value(knowledge, label or knowledge_label(tuple(all_terms(knowledge))))
    except LookupError:
        report.add(at, "its label would be longer than 64 characters", _KNOWLEDGE_MEND)
        return None


def _one_stage(items: object, *, at: Path, report: Report) -> Knowledge | None:
    terms = read_terms(items, at=at, report=report)
    return None if terms is None else (StageTerms(terms),)


def _read_stages(items: object, *, at: Path, report: Report, base: FilePath) -> Knowledge | None:
    if not isinstance(items, list) or not items:
        report.add(at, f"{show(items)} is not a list of stages", f"Write `[{_STAGE}, ...]`")
        return None
    found = [
        _read_stage(item, at=(*at, n), report=report, base=base) for n, item in enumerate(items)
    ]
    stages = tuple(stage for stage in found if stage is not None)
    if len(stages) < len(found):
        return None
    before, names = len(report), [stage.name for stage in stages]
    for n, name in enumerate(names):
        if name in names[:n]:
            report.add((*at, n, "name"), f"a second stage is called `{name}`", "Give it another")
        elif "." in str(name):
            what = f"`{name}` has a `.`, which divides addresses such as `stages.<name>.share`"
            report.add((*at, n, "name"), what, "Write `-` or `_`")
    shares = [stage.share for stage in stages if stage.share is not None]
    if sum(shares) > 1 + ROUNDING or (len(shares) == len(stages) and sum(shares) < 1 - ROUNDING):
        what = f"the stages' shares add up to {sum(shares):g}"
        report.add(at, what, "Write shares that add up to 1, or leave one out")
        return None
    return stages if len(report) == before else None


def _read_stage(item: object, *, at: Path, report: Report, base: FilePath) -> StageTerms | None:
    if not isinstance(item, dict):
        report.add(at, f"{show(item)} is not a stage", f"Write `{_STAGE}`")
        return None
    terms = None
    if "terms" in item:
        terms = read_terms(item["terms"], at=(*at, "terms"), report=report)
    try:
        stage = WrittenStage.model_validate(item)
    except ValidationError as error:
        for path, what, mend, at_key in findings(error, WrittenStage, item):
            report.add((*at, *path), what, mend or f"Write `{_STAGE}`", at_key=at_key)
        return None
    if terms is None or _is_idle(item, at=at, report=report):
        return None
    return StageTerms(
        terms,
        item.get("training") or {},
        stage.name,
        _local(stage.data, base),
        stage.teacher,
        stage.share,
    )


def _is_idle(item: Mapping[str, Any], *, at: Path, report: Report) -> bool:
    """Whether a stage says a length that does not act beside another that it says."""
    before, said = len(report), (item.get("training") or {}).keys()
    if {"epochs", "total_steps"} <= said:
        place = (*at, "training", "epochs")
        report.add(place, "does not act beside `total_steps`", "Keep one of the two", at_key=True)
    if item.get("share") is not None and (own := sorted({"epochs", "total_steps"} & said)):
        what = f"does not act beside the stage's own `training.{own[-1]}`"
        report.add((*at, "share"), what, "Keep one of the two", at_key=True)
    return len(report) > before


def _local(data: StageData, base: FilePath) -> StageData:
    return Text(text=local_path(data.text, base)) if isinstance(data, Text) else data


def stage_paths(values: Iterable[Value]) -> tuple[str, ...]:
    """The full address of every field of these stages that may be an axis."""
    names = dict.fromkeys(stage.name for value in values for stage in value.data if stage.name)
    return tuple(
        f"stages.{name}.{path.removeprefix('stage.')}" for name in names for path in _ADDRESSED
    )


def read_stage_field(
    path: str, data: object, *, at: Path, report: Report, base: FilePath
) -> Value | None:
    """A value of `stages.<name>.<field>`."""
    steps = path.split(".", 2)[2].split(".")
    label, bare = take_label(data, at=at, report=report)
    written = override({"name": "stage", "terms": []}, steps, bare)
    try:
        typed = get_typed(WrittenStage.model_validate(written), steps)
    except ValidationError as error:
        wrong: list[Finding] = findings(error, WrittenStage, written)
        for inner, what, mend, at_key in wrong:
            below = inner[len(steps) :]
            report.add((*at, *below), what, mend, at_key=at_key and bool(below))
        return None
    if isinstance(typed, Text):
        typed = _local(typed, base)
    value = labelled(typed, label, at=at, report=report)
    return value and Value(value.data, value.label, bare)
