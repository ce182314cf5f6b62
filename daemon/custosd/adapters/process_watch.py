"""Tells of the end of processes the moment it happens, whoever their parents are.

    pidfd of each process ──► one epoll descriptor ──► one task that waits for it

Laws:

1. A descriptor is of one process for good; its identity is looked at again after it was
   opened, so that no other process is watched in its place.
2. An end is told only of a process that is not seen to go on.
3. Ten thousand processes cost ten thousand descriptors, and one waiting task. Half of the
   descriptors that this process may have stay for everything else.
"""

import os
import resource
import select
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from custosd.adapters.process_identity import identify, is_gone
from custosd.core.agents import AgentId
from custosd.core.evidence import ProcessIdentity
from custosd.ports import Death, ProcessWatch

_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class PidfdWatch(ProcessWatch):
    """`ports.ProcessWatch` by pidfds; see `open_process_watch`.

    `most` processes are watched at once. Deaths that nobody asks for wait, one of each
    process.
    """

    def __init__(self, epoll: select.epoll, most: int) -> None:
        self._epoll = epoll
        self._most = most
        self._descriptors: dict[AgentId, int] = {}
        self._watched: dict[int, tuple[AgentId, ProcessIdentity]] = {}
        self._dead: dict[tuple[AgentId, ProcessIdentity], Death] = {}
        self._some = trio.Event()

    def watch(self, agent: AgentId, process: ProcessIdentity) -> bool:
        """See the port."""
        self.forget(agent)
        if len(self._descriptors) >= self._most:
            return self._tell_if_gone(agent, process)
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:  # nobody has the id, no descriptor is left, or a kernel without them
            return self._tell_if_gone(agent, process)
        if identify(process.pid) == process and self._register(descriptor):
            self._descriptors[agent] = descriptor
            self._watched[descriptor] = (agent, process)
            return True
        os.close(descriptor)
        return self._tell_if_gone(agent, process)

    def forget(self, agent: AgentId) -> None:
        """See the port."""
        descriptor = self._descriptors.pop(agent, None)
        if descriptor is not None:
            del self._watched[descriptor]
            # Closing alone is not enough: a child that is just being made has it open, too,
            # and what it tells then would be taken for the next one of this number.
            self._epoll.unregister(descriptor)
            os.close(descriptor)

    async def next_deaths(self) -> Sequence[Death]:
        """See the port."""
        await trio.lowlevel.checkpoint()
        while not self._dead:
            self._some = trio.Event()
            await self._some.wait()
        dead = list(self._dead.values())
        self._dead.clear()
        return dead

    async def listen(self) -> None:
        """Take in what the kernel tells; never returns."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0):
                if descriptor in self._watched:
                    self._ended(descriptor)

    def close(self) -> None:
        """Watch nothing any more."""
        for agent in list(self._descriptors):
            self.forget(agent)
        self._epoll.close()

    def _register(self, descriptor: int) -> bool:
        try:
            self._epoll.register(descriptor, _ONCE)
        except OSError:  # the kernel's limit of what one user may watch
            return False
        return True

    def _ended(self, descriptor: int) -> None:
        agent, process = self._watched[descriptor]
        if is_gone(process) is False:
            self._epoll.modify(descriptor, _ONCE)
            return
        self.forget(agent)
        self._tell(Death(agent, process))

    def _tell_if_gone(self, agent: AgentId, process: ProcessIdentity) -> bool:
        gone = is_gone(process) is True
        if gone:
            self._tell(Death(agent, process))
        return gone

    def _tell(self, death: Death) -> None:
        self._dead[death.agent, death.process] = death
        self._some.set()


@asynccontextmanager
async def open_process_watch(most: int | None = None) -> AsyncIterator[PidfdWatch]:
    """A watch for the block, of at most `most` processes (half of the limit of descriptors).

    Errors of the block come out in an `ExceptionGroup`.
    """
    if most is None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    watch = PidfdWatch(select.epoll(), most)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.listen)
            yield watch
            nursery.cancel_scope.cancel()
    finally:
        watch.close()
