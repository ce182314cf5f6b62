import trio
import trio.testing

from custosd.flow.latest import Latest


async def test_a_reader_that_is_slow_gets_the_newest_value_and_no_other():
    latest = Latest("first")
    for value in ("second", "third", "fourth"):
        latest.publish(value)

    published = await latest.wait_changed(since=0)

    assert (published.value, published.version) == ("fourth", 3)
    assert (latest.value, latest.version) == ("fourth", 3)


async def test_all_readers_are_woken_by_one_publication(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    latest = Latest(0)
    got: list[int] = []

    async def read() -> None:
        got.append((await latest.wait_changed(latest.version)).value)

    for _ in range(3):
        nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    assert got == []

    latest.publish(7)
    await trio.testing.wait_all_tasks_blocked()
    assert got == [7, 7, 7]


async def test_iterating_gives_the_present_value_first_and_skips_what_was_missed(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
):
    """A writer each second, a reader that takes 2.5 s a value: the writer is never held up."""
    latest = Latest(0)

    async def write() -> None:
        for value in range(1, 11):
            await trio.sleep(1)
            latest.publish(value)

    began = trio.current_time()
    nursery.start_soon(write)
    seen = []
    async for value in latest:
        seen.append(value)
        if value == 10:
            break
        await trio.sleep(2.5)

    assert seen[0] == 0
    assert seen == sorted(set(seen))
    assert len(seen) < 7
    assert trio.current_time() - began <= 12.5


async def test_an_equal_value_is_a_publication_too():
    latest = Latest("same")
    latest.publish("same")
    assert (await latest.wait_changed(0)).version == 1


async def test_publishing_never_waits_and_waiting_is_always_a_checkpoint():
    latest = Latest(0)
    with trio.testing.assert_no_checkpoints():
        latest.publish(1)
    with trio.testing.assert_checkpoints():
        await latest.wait_changed(0)


async def test_a_cancelled_reader_leaves_nothing_behind(nursery: trio.Nursery):
    latest = Latest(0)
    with trio.move_on_after(0) as scope:
        await latest.wait_changed(0)
    assert scope.cancelled_caught
    assert len(latest._readers) == 0
