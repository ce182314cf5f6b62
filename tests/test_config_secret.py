"""Secrets: read late, from files that only their owner reads, and told to nobody."""

import os
from pathlib import Path

import pytest

from custosd.config.problems import InvalidConfig
from custosd.config.secret import LONGEST_BYTES, Secret
from custosd.config.settings import StoreSettings


def kept(folder: Path, content: bytes, mode: int = 0o600) -> Secret:
    path = folder / "password"
    path.write_bytes(content)
    path.chmod(mode)
    return Secret("store.password_file", path)


def refusal(secret: Secret) -> str:
    with pytest.raises(InvalidConfig) as caught:
        secret.read()
    assert "hunter2" not in str(caught.value)
    # Chained errors are printed by whoever does not catch this one.
    assert "hunter2" not in repr(caught.value.__cause__)
    return str(caught.value).replace(str(secret.path), "FILE")


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b" hunter 2 \n", " hunter 2 "),
        (b"a\nb\n", "a\nb"),
        ("schlüssel\n".encode(), "schlüssel"),
    ],
)
def test_the_end_of_the_line_is_no_part_of_a_secret(
    tmp_path: Path, content: bytes, secret: str
) -> None:
    assert kept(tmp_path, content).read() == secret


def test_a_changed_secret_takes_effect_at_the_next_reading(tmp_path: Path) -> None:
    secret = kept(tmp_path, b"old")
    assert secret.read() == "old"
    kept(tmp_path, b"new")
    assert secret.read() == "new"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    assert refusal(kept(tmp_path, b"hunter2", mode)) == (
        "FILE: store.password_file: expected a file that others can not read; run: chmod 600 FILE"
    )


def test_a_file_of_a_group_is_allowed(tmp_path: Path) -> None:
    assert kept(tmp_path, b"hunter2", 0o640).read() == "hunter2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a secret in the file; it is empty"),
        (b"\n", "expected a secret in the file; it is empty"),
        (b"hunter2\xff", "expected text in UTF-8; is this the right file?"),
        (b"hunter2" * LONGEST_BYTES, "expected at most 65536 bytes; is this the right file?"),
    ],
)
def test_what_is_no_secret_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert refusal(kept(tmp_path, content)) == f"FILE: store.password_file: {message}"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe without a writer does not hold the reader."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    told = "a folder, pipe or device holds no secret"
    for path in (pipe, tmp_path, Path("/dev/null")):
        expected = f"FILE: store.password_file: expected a regular file; {told}"
        assert refusal(Secret("store.password_file", path)) == expected
    assert refusal(Secret("store.password_file", tmp_path / "none")) == (
        "FILE: store.password_file: expected a file that can be read; No such file or directory"
    )


def test_the_store_has_its_password_from_a_file_a_credential_or_nowhere(tmp_path: Path) -> None:
    secret = kept(tmp_path, b"hunter2")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    by_file = StoreSettings(dsn="postgresql://h", password_file=secret.path)
    by_credential = StoreSettings(dsn="postgresql://h", password_credential="password")
    for settings in (by_file, by_credential):
        found = settings.password(env)
        assert found
        assert found.read() == "hunter2"
        assert "hunter2" not in repr(settings) + repr(found)
    assert StoreSettings().password(env) is None


def test_a_credential_outside_of_systemd_is_refused_with_the_remedy() -> None:
    settings = StoreSettings(dsn="postgresql://h", password_credential="pg")
    with pytest.raises(InvalidConfig) as caught:
        settings.password({})
    assert str(caught.value) == (
        'the environment: store.password_credential = "pg": expected $CREDENTIALS_DIRECTORY to be'
        " set; run under systemd with LoadCredential=pg:/path, or name a file"
    )


@pytest.mark.parametrize("name", ["a/b", "..", ".", "/etc/shadow"])
def test_a_credential_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="password_credential"):
        StoreSettings(dsn="postgresql://h", password_credential=name)
