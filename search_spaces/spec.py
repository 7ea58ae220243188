"""The base of everything a grid may say: frozen, documented fields, no unknown keys.

Numbers are strict, so that a quoted number or a boolean where a number belongs is an error and
never a silent conversion.
"""

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
)

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
LABEL_PATTERN = r"^[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,63}$"


def _whole(value: object) -> object:
    """Two spellings of one number are one number: `3.0` and `3e0` are 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, Strict(), BeforeValidator(_whole)]
Count = Annotated[int, Strict(), Field(ge=1), BeforeValidator(_whole)]
Factor = Annotated[int, Strict(), Field(ge=2), BeforeValidator(_whole)]
Tries = Annotated[int, Strict(), Field(ge=0, le=1000), BeforeValidator(_whole)]
Length = Annotated[int, Strict(), Field(ge=2, le=8192), BeforeValidator(_whole)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32), BeforeValidator(_whole)]
Float = Annotated[float, Strict()]
Number = Annotated[Annotated[int, Strict()] | Float, BeforeValidator(_whole)]
Positive = Annotated[float, Strict(), Field(gt=0)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
ProperShare = Annotated[float, Strict(), Field(gt=0, lt=1)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Label = Annotated[str, StringConstraints(pattern=LABEL_PATTERN)]


def _drop_sign_of_zero(value: float) -> float:
    return value + 0.0


Weight = Annotated[float, Strict(), Field(ge=0), AfterValidator(_drop_sign_of_zero)]


class Spec(BaseModel):
    """A frozen piece of a grid; an attribute's docstring is its help text and JSON Schema text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        validate_by_name=True,
        validate_by_alias=True,
    )
