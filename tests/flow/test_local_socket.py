"""Sockets at a path: made safely, never in place of anything else, taken away at the end."""

# ruff: noqa: ASYNC240 - a test may look at its few files where it stands

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from custosd.flow.local_socket import bound_socket

KINDS = [socket.SOCK_DGRAM, socket.SOCK_STREAM]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "door.sock"


def abandoned(path: Path, kind: socket.SocketKind) -> None:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_it_has_its_mode_whatever_the_umask_and_goes_at_the_end(
    path: Path, kind: socket.SocketKind, mode: int
) -> None:
    umask = os.umask(0o077)
    try:
        async with bound_socket(kind, path, mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(umask)
    assert not path.exists()


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_nobody_listens_on_is_replaced(path: Path, kind: socket.SocketKind) -> None:
    abandoned(path, kind)
    async with bound_socket(kind, path, 0o600) as sock:
        assert sock.getsockname() == str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
async def test_one_that_somebody_listens_on_stays(
    path: Path, kind: socket.SocketKind, other: socket.SocketKind
) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, other) as owner:
        owner.bind(str(path))
        if other is socket.SOCK_STREAM:
            owner.listen()
        with pytest.raises(OSError, match="somebody listens there"):
            async with bound_socket(kind, path, 0o600):
                pass
        assert path.is_socket()


async def test_what_is_no_socket_stays(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
            pass
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(FileExistsError):
        async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
            pass
    assert path.is_symlink()


async def test_a_folder_that_others_may_change_is_not_trusted(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="must belong"):
        async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
            pass
    path.parent.chmod(0o1777)
    async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
        assert path.is_socket()


async def test_what_has_taken_its_place_meanwhile_stays(path: Path) -> None:
    async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
        path.unlink()
        abandoned(path, socket.SOCK_DGRAM)
    assert path.is_socket()


async def test_it_goes_when_its_user_is_cancelled(path: Path) -> None:
    with trio.CancelScope() as scope:
        async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
            scope.cancel()
            await trio.sleep_forever()
    assert not path.exists()


async def test_a_path_may_be_deeper_than_an_address_is_long(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "door.sock"
    for _ in range(2):
        async with bound_socket(socket.SOCK_DGRAM, path, 0o600):
            assert path.is_socket()
        abandoned(tmp_path / "x", socket.SOCK_DGRAM)
        (tmp_path / "x").rename(path)
