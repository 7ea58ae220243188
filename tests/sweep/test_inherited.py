"""What Ray's processes are given of a launch's environment, and whose eyes its token is for."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdsweep.sweep.inherited import CREDENTIALS, NAMES_OF_CODE, ensure_token, for_ray, has_token


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_names_code_or_is_copied_into_actors_is_not_passed_on() -> None:
    environ = dict.fromkeys((*NAMES_OF_CODE, *CREDENTIALS), "evil.Module") | {"PATH": "/bin"}
    assert for_ray(environ, is_local=False, is_open=False) == {
        "PATH": "/bin",
        "RAY_AUTH_MODE": "token",
    }


def test_a_cluster_of_ones_own_asks_for_its_token_and_listens_on_loopback_whatever_was_set() -> (
    None
):
    given = for_ray({"RAY_AUTH_MODE": "disabled"}, is_local=True, is_open=False)
    assert given == {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def test_an_open_cluster_is_not_shown_the_token_of_another() -> None:
    environ = {"RAY_AUTH_TOKEN": "t", "RAY_AUTH_TOKEN_PATH": "p", "RAY_AUTH_MODE": "token"}
    assert for_ray(environ, is_local=False, is_open=True) == {"RAY_AUTH_MODE": "disabled"}


def test_every_variable_that_rays_tune_and_core_take_code_from_is_named() -> None:
    """Reads Ray's own sources, so that an upgrade that adds one is noticed."""
    ray = pytest.importorskip("ray")
    root = Path(ray.__file__).parent
    constants = "\n".join(
        (root / file).read_text()
        for file in (
            "_private/ray_constants.py",
            "_private/runtime_env/constants.py",
            "tune/constants.py",
            "train/v2/_internal/constants.py",
        )
    )
    named = set(re.findall(r'= "(_*RAY_\w*(?:HOOK|HOOK_ENV_VAR|CALLBACKS|PLUGINS))"', constants))
    assert named
    assert named <= set(NAMES_OF_CODE)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_owner_alone_whatever_the_umask(
    tmp_path: Path, open_umask: None
) -> None:
    ensure_token({}, tmp_path)
    token = tmp_path / ".ray" / "auth_token"
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]
    before = token.read_text()
    ensure_token({}, tmp_path)
    assert token.read_text() == before
    assert has_token({}, tmp_path)


def test_a_token_that_ray_left_readable_is_made_private_and_kept(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    ensure_token({}, tmp_path)
    assert (mode(token), token.read_text()) == (0o600, "a" * 64)


def test_whoever_brings_a_token_needs_no_file(tmp_path: Path) -> None:
    ensure_token({"RAY_AUTH_TOKEN": "t"}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert has_token({"RAY_AUTH_TOKEN": "t"}, tmp_path)
    assert not has_token({}, tmp_path)
