"""A door stays open whatever becomes of single clients, or of our own room."""

import errno
import os

import pytest
import trio
import trio.testing

from custosd.flow.accepting import ROOM_PAUSE_S, accepted


class Door:
    """Fails with these numbers, one after the other, then lets a client in."""

    def __init__(self, *failures: int) -> None:
        self._left = list(failures)

    async def __call__(self) -> str:
        await trio.lowlevel.checkpoint()
        if self._left:
            number = self._left.pop(0)
            raise OSError(number, os.strerror(number))
        return "client"


async def test_a_client_that_has_gone_costs_nothing_and_a_lack_of_room_a_pause_and_a_word(
    autojump_clock: trio.testing.MockClock,
):
    told: list[str] = []
    door = Door(errno.ECONNABORTED, errno.EMFILE, errno.EPERM, errno.ENOMEM, errno.EINTR)
    assert await accepted(door, told.append) == "client"
    assert told == [os.strerror(errno.EMFILE), os.strerror(errno.ENOMEM)]
    assert trio.current_time() == pytest.approx(2 * ROOM_PAUSE_S)


async def test_a_broken_socket_goes_out_at_once(autojump_clock: trio.testing.MockClock):
    told: list[str] = []
    with pytest.raises(OSError, match="Bad file"):
        await accepted(Door(errno.EBADF), told.append)
    assert (told, trio.current_time()) == ([], 0)


async def test_whoever_stops_is_not_kept_by_a_lack_of_room(autojump_clock: trio.testing.MockClock):
    with trio.move_on_after(1.05) as scope:
        await accepted(Door(*[errno.EMFILE] * 100), lambda _: None)
    assert scope.cancelled_caught
