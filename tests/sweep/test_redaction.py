"""Secrets stay out of what is kept and shown."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.sweep.redaction import (
    RedactingFormatter,
    RedactingStream,
    redact,
    redact_command,
    secret_values,
)

KEY = "AKIA" + "IOSFODNN7EXAMPLE"
HUGGING = "hf_" + "x" * 34
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"login {HUGGING} failed", "login [redacted] failed"),
        (f"key {KEY}, region eu", "key [redacted], region eu"),
        ("s3://me:pass@host/x", "s3://[redacted]@host/x"),
        ("https://u:p%40ss@hub.org/a?b=1", "https://[redacted]@hub.org/a?b=1"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7", "aws_secret_access_key = [redacted]"),
        ('{"api_key": "abcd1234", "n": 1}', '{"api_key": "[redacted]", "n": 1}'),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer [redacted]"),
        ("password=hunter22&next=1", "password=[redacted]&next=1"),
        ("hub_token: abcdef; token=" + "k" * 32, "hub_token: [redacted]; token=[redacted]"),
        (f"got {JWT}", "got [redacted]"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nrest",
            "[redacted]\nrest",
        ),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    assert redact(text, secrets=[]) == shown


@pytest.mark.parametrize(
    "text",
    [
        "step 12: train/loss 0.3, 64 tokens a row",
        "ValueError: token 102 of row 7 is not in the vocabulary",
        "tokenizer=/data/model, sep_token=[SEP], unknown token: hello",
        "https://huggingface.co/org/model@main",
        "select 0.6625 report 0.6614 3fa85f6412345678",
    ],
)
def test_ordinary_lines_stay_as_they_are(text: str) -> None:
    assert redact(text, secrets=[]) == text


def test_secrets_are_what_variables_of_such_names_hold() -> None:
    environ = {
        "HF_TOKEN": "abcdefgh1",
        "AWS_SECRET_ACCESS_KEY": "abcdefgh2",
        "WANDB_API_KEY": "abcdefgh3",
        "DB_PASSWORD": "abcdefgh4",
        "MY_SECRETS": "abcdefgh5",
        "RAY_AUTH_TOKEN_PATH": "/home/me/token",
        "TOKENIZERS_PARALLELISM": "false123",
        "RAY_AUTH_MODE": "token123",
        "SHORT_TOKEN": "abc",
        "PATH": "/usr/bin:/bin",
    }
    assert secret_values(environ) == {f"abcdefgh{n}" for n in range(1, 6)}


def test_a_known_value_is_removed_wherever_it_stands_and_the_longer_one_first() -> None:
    secrets = ["s3cr3tvalue", "s3cr3tvalue-longer"]
    assert redact("xs3cr3tvalue-longery", secrets=secrets) == "x[redacted]y"


def test_a_command_line_hides_the_word_after_an_option_that_asks_for_one() -> None:
    words = ["launch", "grid.yaml", "--hub-token", "plain-words", "--address", "10.0.0.1:6379"]
    words += ["--password=hunter22", f"--with={HUGGING}"]
    assert redact_command(words, secrets=[]) == [
        *["launch", "grid.yaml", "--hub-token", "[redacted]", "--address", "10.0.0.1:6379"],
        *["--password=[redacted]", "--with=[redacted]"],
    ]


def test_tracebacks_and_what_libraries_print_are_written_without_secrets() -> None:
    error = RuntimeError(f"denied for {HUGGING}")
    record = logging.LogRecord("kdsweep", 40, "f", 1, "failed", (), (RuntimeError, error, None))
    written = RedactingFormatter("%(message)s").format(record)
    assert written.endswith("RuntimeError: denied for [redacted]")
    stream = io.StringIO()
    redacting = RedactingStream(stream)
    redacting.write(f"warning: {KEY}\n")
    assert stream.getvalue() == "warning: [redacted]\n"


@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text, secrets=["s3cr3tvalue"])
    assert redact(once, secrets=["s3cr3tvalue"]) == once
    assert "s3cr3tvalue" not in once
