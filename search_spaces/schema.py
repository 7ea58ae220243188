"""The grid language as JSON Schema (draft 7), from the models that check it."""

import json
from typing import Any

from .axes import AxisValue
from .documentation import field_help, models_below
from .grid import Grid, Resources
from .knowledge_reader import WrittenStage
from .points import DEFAULTS, REQUIRED_AXES
from .predicate import OPERATORS
from .recipes import RECIPES
from .resources import Changes
from .sections import section_paths
from .spec import LABEL_PATTERN
from .values import RangeKind

Schema = dict[str, Any]

_SCALAR: Schema = {"type": ["string", "number", "boolean", "null"]}
_PREDICATE_HELP = (
    "Maps paths to a value, a list of alternatives, or an operator. Composite values match by "
    "their label: terms joined by `+`, `last_k-2`, `reverse-uniform`, `3x384x12`."
)
_COMPOSITES = (
    *(
        "Shape",
        "FirstK",
        "LastK",
        "TopMinus",
        "RandomSorted",
        "Emd",
        "Progressive",
        "Pairs",
        "Reverse",
    ),
    "TeacherLayers",
)
"""Values of axes that may carry a label beside their own keys."""

_RANGE_HELP: dict[RangeKind, str] = {
    "uniform": "Numbers between two ends, drawn evenly by a search.",
    "log": "Numbers between two ends, drawn by a search evenly in their logarithm.",
    "integers": "Whole numbers from one end to the other, drawn evenly by a search.",
}

_FIXED_HELP = {
    "knowledge": (
        "What is transferred: a kind, a recipe, a list of terms, or terms or stages under a label. "
        "Hard labels are "
        "never implied."
    ),
    "matching": "Which teacher layer teaches which student layer; fills what terms leave open.",
    "temperature": "Of softened logits; fills what terms leave open.",
    "shape": "Sizes of the student, or a budget with the depths to try.",
    "initialisation": "Where the student's weights start.",
    "seed": "Of everything random in a trial; repeats every other point.",
}


def grid_schema() -> Schema:
    """The schema that editors read to complete and check a grid."""
    schema = Grid.model_json_schema()
    values = AxisValue.model_json_schema()
    stage = WrittenStage.model_json_schema()
    definitions = {**schema.pop("$defs"), **values["$defs"], **stage.pop("$defs")}
    definitions["WrittenStage"] = stage
    bare = {name: _bare(each) for name, each in values["properties"].items()}
    definitions["Axes"] = _axes(bare)
    stage["properties"]["terms"] = {"anyOf": [_term(bare), _terms(bare)]}
    definitions["Predicate"] = _predicate()
    definitions["Resources"]["properties"]["when"] = _resource_rules()
    for model in models_below(Grid, AxisValue, WrittenStage):
        said = schema if model is Grid else definitions.get(model.__name__, {})
        for name, help_text in field_help(model).items():
            if name in said.get("properties", {}):
                said["properties"][name]["description"] = help_text
    for name in _COMPOSITES:
        definitions[name]["properties"]["label"] = _label()
    properties = {"axes": _one_or_several("Axes"), **_rules()}
    schema["properties"] |= properties
    schema["required"] = ["name", "task", "teacher", "axes"]
    schema |= {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": definitions}
    _allow_axes_to_complete(schema)
    whole: Schema = json.loads(json.dumps(schema).replace("#/$defs/", "#/definitions/"))
    _to_draft_7(whole)
    return whole


def _axes(values: dict[str, Schema]) -> Schema:
    term, terms = _term(values), _terms(values)
    labelled = {
        "type": "object",
        "properties": {"label": _label(), "terms": terms},
        "required": ["terms"],
        "additionalProperties": False,
    }
    items: dict[str, Schema] = {
        name: {"anyOf": [*_branches(values[name]), *_labelled_value(name)]}
        for name in _FIXED_HELP
        if name != "knowledge"
    }
    recipes: Schema = {"enum": list(RECIPES), "description": "A published recipe."}
    items["knowledge"] = {"anyOf": [*term["anyOf"], recipes, terms, labelled, _stages()]}
    properties = {
        name: _list_of(items[name], help_text + _default_help(name))
        for name, help_text in _FIXED_HELP.items()
    }
    anything: Schema = {"description": "A value; a mapping or list needs `{label:, value:}`."}
    properties |= {
        path: _or_range(_list_of(anything, f"Values of `{path}`.")) for path in section_paths()
    }
    properties["temperature"] = _or_range(properties["temperature"])
    return {
        "type": "object",
        "description": "Axes whose product is a set of points: path to list of values.",
        "properties": properties,
        "patternProperties": {
            r"^terms\..+\..+$": _or_range(
                _list_of(anything, "Values of a term's field, by its label.")
            ),
            r"^stages\..+\..+$": _or_range(
                _list_of(anything, "Values of a stage's field, by its name.")
            ),
        },
        "additionalProperties": False,
    }


def _term(values: dict[str, Schema]) -> Schema:
    return {"anyOf": [{"enum": _kinds(values["term"])}, values["term"]]}


def _terms(values: dict[str, Schema]) -> Schema:
    return {"type": "array", "items": _term(values), "minItems": 1}


def _stages() -> Schema:
    stage: Schema = {"$ref": "#/definitions/WrittenStage"}
    return {
        "type": "object",
        "properties": {"label": _label(), "stages": _list_of(stage, "One after the other.")},
        "required": ["label", "stages"],
        "additionalProperties": False,
    }


def _rules() -> dict[str, Schema]:
    predicate = {"$ref": "#/definitions/Predicate"}
    further = {
        "type": "object",
        "additionalProperties": _or_range({"type": "array"}),
        "description": "Further axes for these points.",
    }
    rule = {
        "type": "object",
        "properties": {
            "if": predicate,
            "set": {"type": "object", "description": "Values for these points."},
            "axes": further,
        },
        "required": ["if"],
        "additionalProperties": False,
    }
    group = {"type": "array", "items": {"type": "string"}, "minItems": 2}
    return {
        "zip": _nullable(_list_of(group, "Axes of equal length that walk together.", least=0)),
        "when": _nullable(
            _list_of(rule, "Values or further axes for some points; a later rule wins.", least=0)
        ),
        "exclude": _nullable(_list_of(predicate, "Points that are left out.", least=0)),
        "order": _nullable(
            _list_of(
                predicate,
                "Which trials run first: those for which the first condition holds, among equals "
                "those for which the second does, and so on. Changes no trial and no id.",
                least=0,
            )
        ),
    }


def _resource_rules() -> Schema:
    changes = Changes.model_json_schema()
    for name, help_text in field_help(Changes).items():
        changes["properties"][name]["description"] = help_text
        del changes["properties"][name]["default"]
    rule = {
        "type": "object",
        "properties": {"if": {"$ref": "#/definitions/Predicate"}, **changes["properties"]},
        "required": ["if"],
        "minProperties": 2,
        "additionalProperties": False,
    }
    said = field_help(Resources)["when"]
    return _nullable(_list_of(rule, said, least=0))


def _predicate() -> Schema:
    test = {
        "anyOf": [
            _SCALAR,
            {"type": "array", "items": _SCALAR},
            {
                "type": "object",
                "properties": {name: {} for name in OPERATORS},
                "additionalProperties": False,
                "minProperties": 1,
            },
        ]
    }
    return {
        "type": "object",
        "description": _PREDICATE_HELP,
        "additionalProperties": test,
        "minProperties": 1,
    }


def _list_of(items: Schema, description: str, *, least: int = 1) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "description": description}


def _or_range(values: Schema) -> Schema:
    """A list of values, or numbers between two ends for a search."""
    ends = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    spans: Schema = {
        "type": "object",
        "properties": {kind: {**ends, "description": help} for kind, help in _RANGE_HELP.items()},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [values, spans], "description": values.get("description", "")}


def _nullable(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _one_or_several(definition: str) -> Schema:
    one = {"$ref": f"#/definitions/{definition}"}
    several = {"type": "array", "items": one, "minItems": 1}
    return {
        "description": "One mapping of axes, or a list of them whose points are united.",
        "anyOf": [{"allOf": [one, {"required": list(REQUIRED_AXES)}]}, several],
    }


def _bare(schema: Schema) -> Schema:
    """A field of `AxisValue` without the null that stands for "another axis"."""
    branches = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _branches(schema: Schema) -> list[Schema]:
    branches: list[Schema] = schema.get("anyOf", [schema])
    return branches


def _labelled_value(name: str) -> list[Schema]:
    if name in ("temperature", "seed"):
        return []
    return [
        {
            "type": "object",
            "properties": {"label": _label(), "value": {}},
            "required": ["label", "value"],
            "additionalProperties": False,
        }
    ]


def _kinds(term: Schema) -> list[str]:
    return sorted(term["discriminator"]["mapping"])


def _label() -> Schema:
    return {
        "type": "string",
        "pattern": LABEL_PATTERN,
        "description": "Names the value in tables and predicates.",
    }


def _default_help(name: str) -> str:
    if name in REQUIRED_AXES:
        return " Required."
    default = json.dumps(DEFAULTS[name]).strip('"')
    return f" `[{default}]` unless said."


def _allow_axes_to_complete(schema: Schema) -> None:
    """A section's required key may be given by an axis alone."""
    for name in ("Task", "Teacher"):
        schema["definitions"][name].pop("required", None)


def _to_draft_7(node: object) -> None:
    """Writes `prefixItems` as `items` and drops keywords that draft 7 does not know."""
    if isinstance(node, list):
        for each in node:
            _to_draft_7(each)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("prefixItems"), list):
        node["items"] = node.pop("prefixItems")
    if isinstance(node.get("discriminator"), dict):
        node.pop("discriminator")
    for each in node.values():
        _to_draft_7(each)
