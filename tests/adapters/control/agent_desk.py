"""Where fake agents report: the other end of `fake_agent.py`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
from tests.contracts.control_contract import Found

from custosd.adapters.control.descent import ended
from custosd.adapters.process_identity import identify
from custosd.core.evidence import ProcessIdentity

LONGEST_WAIT_S = 20
PROGRAM = Path(__file__).with_name("fake_agent.py")


@contextmanager
def child(*argv: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child of the test's own, for the block."""
    with subprocess.Popen(argv, **options) as running:
        try:
            yield running
        finally:
            running.kill()


@dataclass
class Desk:
    """`reports` are of the incarnations that have begun, in order."""

    address: Path
    reports: list[dict[str, Any]] = field(default_factory=list)
    processes: list[ProcessIdentity] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[dict[str, Any]](100)

    def command(self, *ways: str) -> tuple[str, ...]:
        return (sys.executable, "-S", str(PROGRAM), str(self.address), *ways)

    async def open(self, nursery: trio.Nursery) -> None:
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listening.bind(str(self.address))
        self.address.chmod(0o777)
        listening.listen()
        await nursery.start(
            partial(trio.serve_listeners, self._serve, [trio.SocketListener(listening)])
        )

    async def _serve(self, stream: trio.SocketStream) -> None:
        said = b""
        async with stream:
            while b"\n" not in said:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                said += chunk
            report = json.loads(said)
            process = identify(report["pid"])
            assert process is not None
            self.reports.append(report)
            self.processes.append(process)
            await self._send.send(report)
            await trio.sleep_forever()

    async def report(self) -> dict[str, Any]:
        with trio.fail_after(LONGEST_WAIT_S):
            return await self._receive.receive()

    async def found(self) -> Found:
        report = await self.report()
        return Found(report["CUSTOSD_AGENT"], report["CUSTOSD_EPOCH"], report["hand_over"])

    async def ended(self) -> None:
        with trio.fail_after(LONGEST_WAIT_S):
            await ended(self.processes[-1])
