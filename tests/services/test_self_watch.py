"""What the daemon sees of itself comes into the log, once, and stops nothing."""

import threading
from collections.abc import Awaitable, Callable

import pytest
import structlog
import trio
import trio.testing

from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, Monitor
from custosd.services.self_watch import answer_dump_requests, tell_slow, watch_ourselves


async def test_a_slow_operation_comes_into_the_log(autojump_clock, nursery) -> None:
    monitor = Monitor(slow_s=20.0, on_slow=tell_slow)
    await nursery.start(watch_ourselves, monitor, 60.0)
    with structlog.testing.capture_logs() as lines:
        async with monitor.operation(Kind.NETWORK, "judge", 1.5):
            await trio.sleep(300)
    (line,) = lines
    assert line.pop("runs_s") >= 20.0
    assert line == {
        "event": "operation.slowed",
        "log_level": "warning",
        "kind": "network",
        "name": "judge",
        "queued_s": 1.5,
    }
    nursery.cancel_scope.cancel()


async def test_a_standing_loop_comes_into_the_log_with_its_place(nursery) -> None:
    heard = threading.Event()

    def hear(_logger: object, _name: str, event: dict[str, object]) -> dict[str, object]:
        lines.append(event)
        heard.set()
        raise structlog.DropEvent

    lines: list[dict[str, object]] = []
    await nursery.start(watch_ourselves, Monitor(), 0.05)
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[hear])
    try:
        heard.wait(20)
    finally:
        structlog.configure(processors=before)
    assert lines[0]["event"] == "loop.stalled"
    assert "test_self_watch.py" in str(lines[0]["stack"])
    nursery.cancel_scope.cancel()


Write = Callable[[str], Awaitable[str]]


@pytest.fixture
def written() -> list[str]:
    return []


@pytest.fixture
def write(written) -> Write:
    async def write(tree: str) -> str:
        await trio.lowlevel.checkpoint()
        if not written:
            written.append("")
            raise OSError("disk full")
        written.append(tree)
        return "/state/tasks.txt"

    return write


async def test_a_tree_is_written_when_it_is_asked_for_also_after_a_failure(
    autojump_clock, nursery, write, written
) -> None:
    asked = Latest(0)
    nursery.start_soon(trio.sleep_forever, name="sleeper")
    await nursery.start(answer_dump_requests, asked, write)
    with structlog.testing.capture_logs() as lines:
        asked.publish(1)
        await trio.testing.wait_all_tasks_blocked()
        asked.publish(2)
        await trio.testing.wait_all_tasks_blocked()
    assert [line["event"] for line in lines] == ["tasks.unwritten", "tasks.dumped"]
    assert lines[1]["place"] == "/state/tasks.txt"
    assert lines[1]["tasks"] == len(written[1].splitlines())
    assert "sleeper" in written[1]
    nursery.cancel_scope.cancel()
