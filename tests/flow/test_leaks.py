"""What is left behind is told; what is given back is not."""

import os
import socket
import threading
from contextlib import suppress

import pytest
import trio

from custosd.flow.leaks import Leaked, leaks_refused


async def test_what_is_given_back_is_no_leak():
    limiter = trio.CapacityLimiter(2)
    with leaks_refused(lent=lambda: limiter.borrowed_tokens):
        async with limiter, trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[int](1)
            nursery.start_soon(send.aclose)
            nursery.start_soon(receive.aclose)
            await trio.to_thread.run_sync(int)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pass


async def test_a_task_left_behind_is_named(nursery):
    with pytest.raises(Leaked, match="task sleeper"), leaks_refused():
        nursery.start_soon(trio.sleep_forever, name="sleeper")
    nursery.cancel_scope.cancel()


async def test_an_open_channel_is_a_leak():
    kept = []

    def work() -> None:
        send, receive = trio.open_memory_channel[int](1)
        receive.close()
        kept.append(send)

    with pytest.raises(Leaked, match=r"\+1 channel ends"), leaks_refused():
        work()
    kept[0].close()


async def test_a_descriptor_and_a_stream_left_open_are_leaks():
    kept = []

    def work() -> None:
        ours, theirs = socket.socketpair()
        kept.extend((theirs, trio.SocketStream(trio.socket.from_stdlib_socket(ours))))

    with pytest.raises(Leaked, match=r"\+2 descriptors, \+1 streams"), leaks_refused():
        work()
    kept[0].close()
    await kept[1].aclose()


async def test_a_number_of_the_callers_own_must_come_back():
    limiter = trio.CapacityLimiter(2)
    with (
        pytest.raises(Leaked, match=r"\+1 lent"),
        leaks_refused(lent=lambda: limiter.borrowed_tokens),
    ):
        limiter.acquire_nowait()
    limiter.release()


async def test_a_thread_left_behind_is_a_leak():
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, daemon=True)
    with pytest.raises(Leaked, match="threads"), leaks_refused():
        thread.start()
    go_on.set()
    thread.join()


async def test_a_block_that_raises_raises_that_alone():
    read, write = os.pipe()
    with suppress(ValueError), leaks_refused():
        os.close(read)
        os.close(write)
        read, write = os.pipe()
        raise ValueError
    os.close(read)
    os.close(write)
