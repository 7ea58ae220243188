"""What an unquoted word of YAML 1.2 means: a number, a truth value, nothing or itself."""

import math
import re

from .tree import Scalar

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False} | {
    "FALSE": False
}
OTHER_BOOLEANS = frozenset({"yes", "no", "on", "off"})
_INTEGER = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MOST_DIGITS = 400


def read_scalar(text: str) -> tuple[Scalar, tuple[str, str] | None]:
    """What an unquoted word means, and what is wrong with it and how to mend it, if anything."""
    if text in _NULLS:
        return None, None
    if text in _BOOLEANS:
        return _BOOLEANS[text], None
    if text.lower() in OTHER_BOOLEANS:
        mend = f'Write `"{text}"` for the word, `true` or `false` for a boolean'
        return text, (f"`{text}` may be a word or a boolean", mend)
    if _NOT_FINITE.fullmatch(text):
        return math.inf, (f"`{text}` is not a finite number", "Write a finite number")
    if len(text) > _MOST_DIGITS:
        return text, None
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0), None
    if _INTEGER.fullmatch(text):
        return int(text), None
    if not _FLOAT.fullmatch(text):
        return text, None
    number = float(text)
    is_finite = math.isfinite(number)
    return number, None if is_finite else (
        f"`{text}` is too large for a number",
        "Write a finite number",
    )
