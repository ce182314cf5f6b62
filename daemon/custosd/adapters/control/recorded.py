"""A control over a process that is only told of: the shipped fake, for tests and drills."""

from enum import StrEnum

import trio

from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, ProcessIdentity, Source, Value
from custosd.ports import AgentControl, HandOver

BOOT = "recorded-boot"
FIRST_PID = 1_000


class Body(StrEnum):
    """What the process is like. HUNG: there, and deaf to everything but `kill`."""

    RUNNING = "running"
    HUNG = "hung"
    GONE = "gone"


class RecordedControl(AgentControl):
    """One agent's process, in memory, by trio's clock.

    `obeys`: whether it ends when it is asked to, `stop_s` later; otherwise only `kill` ends
    it. A new incarnation is there `spawn_s` after it was asked for; a spawn that is cancelled
    before has started nothing. `acts` are the calls that changed or should have changed
    something, in order, also those that failed; `hand_overs` what each incarnation was told.
    While `blind` nothing is seen of it.
    """

    def __init__(
        self,
        body: Body = Body.RUNNING,
        *,
        obeys: bool = True,
        stop_s: float = 0.0,
        spawn_s: float = 0.0,
    ) -> None:
        self.obeys = obeys
        self.stop_s = stop_s
        self.spawn_s = spawn_s
        self.blind = False
        self.acts: list[str] = []
        self.hand_overs: list[HandOver] = []
        self._failures: list[tuple[str, ControlError]] = []
        self._keys: set[str] = set()
        self._pid = FIRST_PID
        self._body = body
        self._exit: Exit | None = None
        self._ends_at: float | None = None

    @property
    def body(self) -> Body:
        """What the process is like now."""
        if self._ends_at is not None and trio.current_time() >= self._ends_at:
            self.end(Exit(signal=15))
        return self._body

    @property
    def process(self) -> ProcessIdentity:
        """The present process, or the last one."""
        return ProcessIdentity(self._pid, self._pid * 7, BOOT)

    def end(self, exit_: Exit | None = None) -> None:
        """The process ends by itself."""
        self._body, self._exit, self._ends_at = Body.GONE, exit_, None

    def hang(self) -> None:
        """The process stays, and answers nothing any more."""
        self._body, self._ends_at = Body.HUNG, None

    def fail_next(self, act: str, error: ControlError) -> None:
        """Raise this at the next `act`: "interrupt", "stop", "kill" or "spawn"."""
        self._failures.append((act, error))

    async def sight(self) -> Observation:
        """See the port."""
        await trio.lowlevel.checkpoint()
        if self.blind:
            return Observation(Source.PROCESS, Value.UNKNOWN, "process_unseen")
        if self.body is Body.GONE:
            gone = (Value.BAD, "process_gone")
            return Observation(Source.PROCESS, *gone, process=self.process, exit=self._exit)
        return Observation(Source.PROCESS, Value.OK, "process_there", process=self.process)

    async def interrupt(self) -> None:
        """See the port; it changes nothing here."""
        await self._act("interrupt")

    async def stop(self) -> None:
        """See the port."""
        await self._act("stop")
        if self.obeys and self.body is Body.RUNNING and self._ends_at is None:
            self._ends_at = trio.current_time() + self.stop_s

    async def kill(self) -> None:
        """See the port."""
        await self._act("kill")
        if self.body is not Body.GONE:
            self.end(Exit(signal=9))

    async def spawn(self, key: str, hand_over: HandOver) -> None:
        """See the port. Raises `ControlError` "still_running" beside another incarnation."""
        await self._act("spawn")
        if key in self._keys:
            return
        if self.body is not Body.GONE:
            raise ControlError("still_running", f"{hand_over.agent} has not ended: stop it first")
        await trio.sleep(self.spawn_s)
        self._keys.add(key)
        self.hand_overs.append(hand_over)
        self._pid += 1
        self._body, self._exit, self._ends_at = Body.RUNNING, None, None

    async def _act(self, act: str) -> None:
        self.acts.append(act)
        await trio.lowlevel.checkpoint()
        for index, (wanted, error) in enumerate(self._failures):
            if wanted == act:
                del self._failures[index]
                raise error
