import os
import signal

import trio
import trio.testing

from custosd.flow.stopping import open_stopping


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def test_the_first_signal_asks_and_the_second_cancels():
    async with open_stopping() as stopping:
        send(signal.SIGTERM)
        with trio.fail_after(5):
            await stopping.stop.wait()
        assert stopping.asked_by is signal.SIGTERM
        assert not stopping.forced
        send(signal.SIGINT)
        with trio.fail_after(5):
            await trio.sleep_forever()
    assert stopping.forced
    assert stopping.asked_by is signal.SIGTERM


async def test_hangup_and_user_signals_are_counted_and_stop_nothing():
    async with open_stopping() as stopping:
        with trio.fail_after(5):
            send(signal.SIGHUP)
            assert (await stopping.hangups.wait_changed(0)).value == 1
            send(signal.SIGUSR1)
            assert (await stopping.user1.wait_changed(0)).value == 1
            send(signal.SIGUSR2)
            assert (await stopping.user2.wait_changed(0)).value == 1
            send(signal.SIGHUP)
            assert (await stopping.hangups.wait_changed(1)).value == 2
        assert not stopping.stop.is_set()
    assert not stopping.forced


async def test_a_stop_that_came_from_inside_counts_as_the_first():
    async with open_stopping() as stopping:
        stopping.stop.set()
        await trio.testing.wait_all_tasks_blocked()
        send(signal.SIGTERM)
        with trio.fail_after(5):
            await trio.sleep_forever()
    assert stopping.forced
    assert stopping.asked_by is None


async def test_a_block_that_ends_by_itself_gives_the_signals_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    async with open_stopping():
        pass
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    assert before == after
