"""Takes in the next client of a listening socket, whatever keeps the kernel from it for now.

Laws: a client that has gone before it was taken in is nobody's trouble; a process that is out
of descriptors or memory keeps its door, and tries again, for what was used comes back.
"""

import errno
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TypeVar

from custosd.flow.retry import FailedAttempt, RetryPolicy, retry, steady

T = TypeVar("T")

ROOM_PAUSE_S = 0.1
"""How soon it is tried again where there is no room."""

_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def _again_on(numbers: frozenset[int], pause_s: float) -> RetryPolicy:
    return RetryPolicy(
        inf,
        pause_s,
        pause_s,
        retry_on=lambda error: isinstance(error, OSError) and error.errno in numbers,
        random=steady,
        patient=True,
    )


_PAST_THE_GONE = _again_on(_GONE, 0.0)
_WHEN_THERE_IS_ROOM = _again_on(_OUT_OF_ROOM, ROOM_PAUSE_S)


async def accepted(accept: Callable[[], Awaitable[T]], on_starved: Callable[[str], None]) -> T:
    """What `accept()` returns, when it does; `on_starved` is told, in words, of a lack of room.

    Raises what else `accept` raises: the socket is broken then.
    """

    def failed(failure: FailedAttempt) -> None:
        if failure.pause_s is not None:
            on_starved(getattr(failure.error, "strerror", None) or str(failure.error))

    return await retry(
        partial(retry, accept, _PAST_THE_GONE), _WHEN_THERE_IS_ROOM, on_failure=failed
    )
