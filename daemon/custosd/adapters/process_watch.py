"""Tells of the end of processes the moment it happens, whoever their parents are.

    pidfd of each process ──► one epoll descriptor ──► one task that waits for it

Laws:

1. A descriptor is of one process for good; its identity is looked at again after it was
   opened, so that no other process is watched in its place.
2. Ten thousand processes cost ten thousand descriptors, and one waiting task.
"""

import os
import select
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from custosd.adapters.process_identity import identify, is_gone
from custosd.core.agents import AgentId
from custosd.core.evidence import ProcessIdentity
from custosd.ports import Death


class PidfdWatch:
    """`ports.ProcessWatch` by pidfds; see `open_process_watch`."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._descriptors: dict[AgentId, int] = {}
        self._watched: dict[int, tuple[AgentId, ProcessIdentity]] = {}
        self._dead: list[Death] = []
        self._some = trio.Event()

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        """See the port."""
        self.forget(agent)
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._tell(Death(agent, process))
            return True
        except OSError:
            return False  # no descriptor left, or a kernel without them
        if identify(process.pid) != process:
            os.close(descriptor)
            if is_gone(process):
                self._tell(Death(agent, process))
                return True
            return False
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        self._descriptors[agent] = descriptor
        self._watched[descriptor] = (agent, process)
        return True

    def forget(self, agent: AgentId) -> None:
        """See the port."""
        descriptor = self._descriptors.pop(agent, None)
        if descriptor is not None:
            del self._watched[descriptor]
            os.close(descriptor)  # which takes it out of the epoll, too

    def _tell(self, death: Death) -> None:
        self._dead.append(death)
        self._some.set()

    async def next_deaths(self) -> Sequence[Death]:
        """See the port."""
        await trio.lowlevel.checkpoint()
        while not self._dead:
            self._some = trio.Event()
            await self._some.wait()
        dead, self._dead = self._dead, []
        return dead

    async def listen(self) -> None:
        """Take in what the kernel tells; never returns."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0):
                if (known := self._watched.get(descriptor)) is not None:
                    agent, process = known
                    self.forget(agent)
                    self._tell(Death(agent, process))

    def close(self) -> None:
        """Watch nothing any more."""
        for agent in list(self._descriptors):
            self.forget(agent)
        self._epoll.close()


@asynccontextmanager
async def open_process_watch() -> AsyncIterator[PidfdWatch]:
    """A watch for the block. Errors of the block come out in an `ExceptionGroup`."""
    watch = PidfdWatch(select.epoll())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.listen)
            yield watch
            nursery.cancel_scope.cancel()
    finally:
        watch.close()
