"""Secrets in text that is kept or shown: what a variable holds, and what looks like a secret."""

import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TextIO

REDACTED = "[redacted]"

LEAST_LENGTH = 8
"""Shorter values of secret variables stand in ordinary text too often."""

_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)S?$"
    r"|(TOKEN|SECRET|PASSWORD|ACCESS_?KEY)_",
    re.IGNORECASE,
)

_NOT_SECRET = re.compile(r"(_PATH|_FILE|_DIR|PARALLELISM|_MODE|_TTL|_EXPIRATION)$", re.IGNORECASE)
"""Variables that name a place or a setting, although a word of theirs is a secret's."""

_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS, the key's id
    r"|\bgh[oprsu]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)

_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)

_NAMED = re.compile(
    r"(?P<name>(?:\b|_)(?:secret|password|passwd|api[_-]?key|access[_-]?key|authorization"
    r"|(?:hf|hub|auth|access|refresh|session)[_-]?token)"
    r"[\"']?\s*[=:]\s*(?:bearer\s+|basic\s+)?[\"']?)[^\s\"',;&]{4,}"
    # Tokens are also what texts are made of: `mask_token=[MASK]`, `unknown token: hello`.
    r"|(?P<token>\btoken[\"']?\s*[=:]\s*[\"']?)[A-Za-z0-9_.-]{20,}",
    re.IGNORECASE,
)
"""`password=...`, `"api_key": "..."`, `Authorization: Bearer ...`."""

_OPTION = re.compile(r"^--?[\w-]*(token|secret|password|passwd|key)$", re.IGNORECASE)
"""An option whose value is the next word of a command line."""


def secret_values(environ: Mapping[str, str]) -> frozenset[str]:
    """What the variables hold whose names say that it is a secret."""
    return frozenset(
        value
        for name, value in environ.items()
        if len(value) >= LEAST_LENGTH and _SECRET_NAME.search(name) and not _NOT_SECRET.search(name)
    )


def redact(text: str, *, secrets: Iterable[str] | None = None) -> str:
    """A text without secrets.

    Args:
        text: What is to be kept or shown.
        secrets: Values known to be secret; those of this process's variables unless said.
    """
    known = _of_this_process() if secrets is None else secrets
    # The longest first: one secret may be the beginning of another.
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    text = _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)
    text = _NAMED.sub(lambda found: f"{found['name'] or found['token']}{REDACTED}", text)
    return _SHAPES.sub(REDACTED, text)


def redact_command(words: Sequence[str], *, secrets: Iterable[str] | None = None) -> list[str]:
    """The words of a command line without secrets, in options of their own too."""
    options = (False, *(bool(_OPTION.match(word)) for word in words))
    return [
        REDACTED if is_secret else redact(word, secrets=secrets)
        for word, is_secret in zip(words, options, strict=False)
    ]


@cache
def _of_this_process() -> frozenset[str]:
    return secret_values(os.environ)


class RedactingFormatter(logging.Formatter):
    """Formats a record, its traceback included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        return redact(super().format(record))


class RedactingStream(io.TextIOBase):
    """A text stream without secrets; one that is written in several pieces may pass."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what may be written."""
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Have it written."""
        self._stream.flush()

    def fileno(self) -> int:
        """The stream's own descriptor."""
        return self._stream.fileno()
