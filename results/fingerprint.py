"""What errors have in common."""

import hashlib
import re

_VARYING = re.compile(r"0x[0-9a-fA-F]+|[0-9a-f]{8,}|\d+(\.\d+)?(e[+-]?\d+)?")


def cause(error: str) -> str:
    """The line of an error that names it: the last one; tracebacks and mends are indented."""
    lines = [line for line in error.splitlines() if line[:1].strip()]
    return lines[-1].rstrip() if lines else ""


def fingerprint(error: str) -> str:
    """Eight digits that errors share which differ in numbers, addresses and ids alone."""
    return hashlib.sha256(_VARYING.sub("#", cause(error)).encode()).hexdigest()[:8]
