"""Carries out one restart, step by step; each step is written down before it is done.

    Restart (intended) --> lease --> evidence again --> stop --> verified dead --> spawn
        --> first beat --> handed over --> Restart (ended)

Laws:

1. Nothing is done to an agent before the store has it in writing, under our lease and
   fence. A store that is away is waited for; the act is not done meanwhile.
2. Right before each act, in this order: the lease is renewed, holds are asked, and evidence
   that has grown old is taken anew. What is not known stops nothing and starts nothing.
3. A cut between any two instructions leaves a row from which `Procedure.run` goes on: what
   was verified dead is spawned, what was spawned is recognised, nothing is done twice.
4. Cancellation leaves the row open for whoever comes next.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import structlog
import trio

from custosd.core.agents import AgentId
from custosd.core.errors import ControlError, CustosdError, StoreError
from custosd.core.evidence import (
    Condition,
    Health,
    Observation,
    ProcessIdentity,
    Source,
    Value,
)
from custosd.core.facts import Fact, RestartChanged, RestartStepped
from custosd.core.restarts import (
    Cause,
    Restart,
    RestartState,
    RestartStep,
    Sample,
    StepRecord,
    StepState,
    attempts,
    begun,
    objection,
    passed,
    progressed,
    stepped,
    stop_begun,
    woke_up,
)
from custosd.ports import ActionStore, AgentControl, HandOver, Lease, Prober
from custosd.services.store_absence import STORE_RETRIES, until_answered

log = structlog.get_logger()

RETRIES = replace(STORE_RETRIES, longest_delay_s=5.0)
"""A restart that is under way asks a store that is away more often than others do."""

LOOK_S = 0.5
"""How often a process that is to end, or to begin, is looked at."""

ENDS = "unit_deactivating"
"""What a control says of a process that was told to end and is about to."""

_PROBED = frozenset(Source) - {Source.BEAT}


class LivesOfAgents(Protocol):
    """What a restart asks of, and tells to, those who watch lives. Nothing here waits."""

    def health(self, agent: AgentId, now: float) -> Health:
        """The liveness verdict, now."""
        ...

    def process(self, agent: AgentId) -> ProcessIdentity | None:
        """The process that is known to work for an agent."""
        ...

    def saw(
        self, agent: AgentId, seen: Iterable[Observation], now: float, since: float | None = None
    ) -> Sequence[Fact]:
        """Take in what a look that began at `since` saw of an agent."""
        ...

    def heard(self, agent: AgentId, epoch: int) -> bool:
        """Whether a beat of this incarnation was let in."""
        ...

    def expect(self, agent: AgentId, epoch: int) -> None:
        """Let in beats of this incarnation, which is about to begin."""
        ...

    def restart_began(self, agent: AgentId, now: float) -> Sequence[Fact]:
        """From now on the silence of an agent is our doing."""
        ...

    def spawned(self, agent: AgentId, epoch: int, now: float) -> Sequence[Fact]:
        """A new incarnation was started."""
        ...

    def restart_ended(self, agent: AgentId, ok: bool, now: float) -> Sequence[Fact]:  # noqa: FBT001 - the outcome, not an option
        """The restart is over; `ok`: the new incarnation is up."""
        ...


class LeaseLost(CustosdError):
    """Another daemon has, or may have, taken this restart over: nothing more is done here."""


@dataclass(frozen=True, slots=True)
class ProcedureLimits:
    """How long each step may take, seconds. `act_s` must be shorter than `lease_s`.

    `samples_s` lies between two samples of evidence, which counts for `fresh_s`. An agent
    that does not beat must stay for `stays_s`, or for `first_beat_s` where that is less. What
    a daemon before this one told to end has `graceful_s`, and `ending_s` while it is seen to.
    """

    interrupt_s: float = 10.0
    graceful_s: float = 10.0
    verify_s: float = 10.0
    first_beat_s: float = 60.0
    ending_s: float = 120.0
    samples_s: float = 2.0
    probe_s: float = 5.0
    fresh_s: float = 5.0
    stays_s: float = 10.0
    lease_s: float = 60.0
    act_s: float = 45.0
    spawn_attempts: int = 3
    spawn_pause_s: float = 5.0

    @property
    def must_stay_s(self) -> float:
        """How long a new incarnation that does not beat must be seen before it counts."""
        return min(self.stays_s, self.first_beat_s)


@dataclass(frozen=True, slots=True)
class ProcedurePorts:
    """What one restart of one agent works with.

    `withheld` says why the agent may not be acted upon right now ("": it may); it is asked
    right before each act. `beats`: whether the agent sends heartbeats. `ended` says whether
    a daemon, by the name that it has in leases, is known to be no more.
    """

    store: ActionStore
    control: AgentControl
    prober: Prober
    lives: LivesOfAgents
    facts: trio.MemorySendChannel[Fact]
    now_utc: Callable[[], datetime]
    withheld: Callable[[Restart], str]
    hand_over: Callable[[Restart], HandOver]
    beats: bool = True
    ended: Callable[[str], bool] = lambda _owner: False


class _Ended(Exception):
    def __init__(self, state: RestartState, code: str, step: StepState) -> None:
        super().__init__(code)
        self.state = state
        self.code = code
        self.step = step


def _failed(code: str) -> _Ended:
    return _Ended(RestartState.FAILED, code, StepState.FAILED)


def _abandoned(code: str) -> _Ended:
    return _Ended(RestartState.ABANDONED, code, StepState.SKIPPED)


@dataclass(slots=True)
class Procedure:
    """One restart under way. `code` says how it ended, or why, once `run` has returned."""

    restart: Restart
    ports: ProcedurePorts
    limits: ProcedureLimits
    owner: str
    code: str = ""
    _leased_at: float = 0.0
    _told_began: bool = False
    _vouched_at: float = field(default=float("-inf"))
    _step_at: float = 0.0

    async def run(self) -> Restart:
        """Go on from where the restart stands, to its end; return it as it is stored.

        Raises: `LeaseLost` (another daemon has it), `StoreRefused` (it cannot be written);
        in both cases nothing more was done. The restart is open then, as after a cancellation.
        """
        await self._take_lease()
        state, code = RestartState.SUCCEEDED, ""
        try:
            if not passed(self.restart, RestartStep.VERIFY_DEAD):
                await self._bring_down()
            else:
                await self._tell_began()
            if not passed(self.restart, RestartStep.SPAWN):
                await self._spawn()
            else:
                await self._tell_spawned()
            if not passed(self.restart, RestartStep.FIRST_BEAT):
                await self._see_first_beat()
            await self._begin(RestartStep.HAND_OVER)
            # What there was to tell went with the spawn; that it is there, the beat has shown.
            await self._end(StepState.DONE, "given_with_spawn")
        except _Ended as ended:
            state, code = ended.state, ended.code
            await self._end(ended.step, code)
        await self._finish(state, code)
        return self.restart

    # --- the steps -------------------------------------------------------------------------

    async def _take_lease(self) -> None:
        started_utc = self.ports.now_utc()
        lease = await until_answered(self._ask_lease, "lease", policy=RETRIES)
        if lease is None and self.restart.owner and self.ports.ended(self.restart.owner):
            # It was killed in the middle: its lease is nobody's, and the agent may be down.
            lease = await until_answered(self._inherit_lease, "lease", policy=RETRIES)
        if lease is None:
            raise LeaseLost(f"{self.restart.agent} is being restarted by another daemon")
        # Whoever had the lease before may have gone on since this was read.
        stored = await until_answered(self._read, "restart", policy=RETRIES)
        if stored is None or stored.ended:
            raise LeaseLost(f"the restart {self.restart.id} is over")
        self.restart = stored
        number = len(attempts(self.restart, RestartStep.LEASE)) + 1
        taken = StepRecord(
            RestartStep.LEASE, number, StepState.DONE, started_utc, self.ports.now_utc(), "taken"
        )
        first = self.restart.state is RestartState.INTENDED
        self.restart = replace(
            self.restart.with_step(taken),
            state=RestartState.RUNNING,
            owner=self.owner,
            fence=lease.fence,
            started_utc=self.restart.started_utc or started_utc,
        )
        await self._save()
        if first:
            await self._tell_changed("")

    async def _bring_down(self) -> None:
        """Stop the old incarnation, and prove that it is gone."""
        if stop_begun(self.restart):
            # Its end may come at any time, and is our doing: whoever watches it must know.
            await self._tell_began()
            await self._wait_end()
        seen = await self._take_evidence()
        await self._tell_began()
        if seen is not Value.BAD:
            seen = await self._stop_gracefully()
        else:
            await self._skip(RestartStep.GRACEFUL_STOP)
        if seen is not Value.BAD:
            await self._kill()
        else:
            await self._skip(RestartStep.FORCED_STOP)
        await self._begin(RestartStep.VERIFY_DEAD)
        seen = await self._wait_sight(self.limits.verify_s, Value.BAD)
        if seen is Value.BAD:
            await self._end(StepState.DONE, "gone")
        else:
            raise _failed("still_there" if seen is Value.OK else "not_seen")

    async def _take_evidence(self) -> Value:
        """Two samples that both speak for it, or the end; returns the sight of the last."""
        told_to_end = stop_begun(self.restart)
        await self._begin(RestartStep.EVIDENCE)
        requested = self._requested
        first = await self._sample_untouched()
        await trio.sleep(self.limits.samples_s)
        second = await self._sample_untouched()
        against = objection(first, second, requested=requested, told_to_end=told_to_end)
        if against:
            raise _abandoned(against)
        hung = second.health.condition is Condition.HUNG and second.sight is Value.OK
        if hung and not requested and not told_to_end and self.limits.interrupt_s > 0:
            second = await self._interrupt(second)
        self._vouched_at = trio.current_time()
        condition = second.health.condition
        await self._end(StepState.DONE, f"seen_{condition}" if not requested else "requested")
        return second.sight

    async def _interrupt(self, before: Sample) -> Sample:
        """Ask a hung agent to leave off; if it does, it is left alone."""
        await self._ask_leave()
        await self._act(self.ports.control.interrupt)
        ends_at = trio.current_time() + self.limits.interrupt_s
        after = before
        while (left_s := ends_at - trio.current_time()) > 0:
            await trio.sleep(min(self.limits.samples_s, left_s))
            after = await self._sample()
            if after.health.value is Value.OK or progressed(before, after) or woke_up(after):
                raise _abandoned("interrupted")
            if after.sight is Value.BAD:
                break
        if after.sight is Value.UNKNOWN or not after.health.authorises_restart:
            raise _abandoned("not_known")
        return after

    async def _stop_gracefully(self) -> Value:
        await self._begin_authorised(RestartStep.GRACEFUL_STOP)
        failure = await self._act(self.ports.control.stop)
        seen = await self._wait_sight(0.0 if failure else self.limits.graceful_s, Value.BAD)
        self._vouched_at = trio.current_time()
        if failure:
            await self._end(StepState.FAILED, failure)
        else:
            await self._end(StepState.DONE, "stopped" if seen is Value.BAD else "still_there")
        return seen

    async def _kill(self) -> None:
        await self._begin_authorised(RestartStep.FORCED_STOP)
        failure = await self._act(self.ports.control.kill)
        # Not known whether it worked: the next step looks.
        await self._end(StepState.FAILED if failure else StepState.DONE, failure or "killed")

    async def _spawn(self) -> None:
        tried = bool(attempts(self.restart, RestartStep.SPAWN))
        failure = ""
        for attempt in range(self.limits.spawn_attempts):
            if attempt:
                await trio.sleep(self.limits.spawn_pause_s)
            await self._begin(RestartStep.SPAWN)
            await self._ask_leave()
            seen = await self._wait_sight(self.limits.verify_s, Value.OK, Value.BAD)
            if seen is Value.OK and not tried:
                # Verified dead, and there again: somebody else was faster. One is enough.
                raise _abandoned("came_back")
            if seen is Value.OK:
                self._expect()
                await self._spawned("rolled_forward")
                return
            if seen is Value.UNKNOWN:
                raise _failed("not_seen")
            # Looking may have taken a while.
            await self._ask_leave()
            self._expect()
            tried = True
            failure = await self._act(self._start)
            if not failure:
                await self._spawned("spawned")
                return
            await self._end(StepState.FAILED, failure)
        raise _failed(f"spawn_{failure}")

    async def _start(self) -> None:
        await self.ports.control.spawn(self.restart.id, self.ports.hand_over(self.restart))

    async def _spawned(self, result: str) -> None:
        await self._end(StepState.DONE, result)
        await self._tell_spawned()

    async def _tell_spawned(self) -> None:
        agent, epoch = self.restart.agent, self.restart.next_epoch
        await self._tell(self.ports.lives.spawned(agent, epoch, trio.current_time()))

    async def _see_first_beat(self) -> None:
        await self._begin(RestartStep.FIRST_BEAT)
        seen_at: float | None = None
        ends_at = trio.current_time() + self.limits.first_beat_s
        while True:
            if self.ports.beats and self._heard():
                await self._end(StepState.DONE, "heard")
                return
            seen, now = await self._sight(), trio.current_time()
            if seen is Value.BAD and seen_at is not None:
                raise _failed("died_at_once")
            if seen is Value.OK:
                seen_at = now if seen_at is None else seen_at
                if not self.ports.beats and now - seen_at >= self.limits.must_stay_s:
                    await self._end(StepState.DONE, "stays")
                    return
            if now >= ends_at:
                raise _failed("not_seen" if seen_at is None else "not_heard")
            await trio.sleep(LOOK_S)
            await self._keep_lease()

    async def _finish(self, state: RestartState, code: str) -> None:
        self.code = code
        failed = state is RestartState.FAILED
        self.restart = replace(
            self.restart,
            state=state,
            failure=code if failed else "",
            ended_utc=self.ports.now_utc(),
        )
        await self._save()
        if self._told_began or stop_begun(self.restart):
            ok = state is RestartState.SUCCEEDED
            now = trio.current_time()
            await self._tell(self.ports.lives.restart_ended(self.restart.agent, ok, now))
        await self._tell_changed(code)
        try:
            await self.ports.store.release_lease(self._lease_name, self.owner)
        except StoreError as error:
            # It runs out by itself.
            log.info("lease.unreleased", lease=self._lease_name, error=str(error))

    # --- leave to act ----------------------------------------------------------------------

    async def _begin_authorised(self, step: RestartStep) -> None:
        """Begin a step that stops a process, with evidence that is not old."""
        while True:
            await self._begin(step)
            await self._ask_leave()
            now = trio.current_time()
            if self._requested or now - self._vouched_at <= self.limits.fresh_s:
                return
            await self._end(StepState.SKIPPED, "evidence_old")
            await self._take_evidence()

    async def _ask_leave(self) -> None:
        """Renew the lease, then ask holds; raises where one of them says no."""
        await self._renew_lease()
        # A slow answer may have used up what the act needs.
        while trio.current_time() - self._leased_at > self.limits.lease_s - self.limits.act_s:
            await self._renew_lease()
        if why := self.ports.withheld(self.restart):
            raise _abandoned(why)

    async def _act(self, act: Callable[[], Awaitable[None]]) -> str:
        """Do it within `act_s`; returns "" or why it could not be done, as a code."""
        try:
            with trio.fail_after(self.limits.act_s):
                await act()
        except ControlError as error:
            log.warning(
                "control.failed",
                agent=self.restart.agent,
                restart=self.restart.id,
                reason=error.reason,
                error=str(error),
            )
            return error.reason
        except trio.TooSlowError:
            return "timeout"
        return ""

    @property
    def _requested(self) -> bool:
        return self.restart.cause is Cause.REQUESTED

    # --- seeing ----------------------------------------------------------------------------

    async def _sight(self) -> Value:
        return (await self._look()).value

    async def _look(self) -> Observation:
        try:
            with trio.fail_after(self.limits.probe_s):
                return await self.ports.control.sight()
        except (ControlError, trio.TooSlowError) as error:
            return Observation(Source.PROCESS, Value.UNKNOWN, type(error).__name__)

    async def _wait_sight(self, limit_s: float, *wanted: Value) -> Value:
        """Look until one of the wanted is seen, for so long; returns what was seen last."""
        ends_at = trio.current_time() + limit_s
        while True:
            seen = await self._sight()
            if seen in wanted or trio.current_time() >= ends_at:
                return seen
            await trio.sleep(min(LOOK_S, ends_at - trio.current_time()))
            await self._keep_lease()

    async def _wait_end(self) -> None:
        """Wait for what was told to end; it may need longer than it took us to come back."""
        began_at = trio.current_time()
        while True:
            seen = await self._look()
            limit_s = self.limits.ending_s if seen.detail == ENDS else self.limits.graceful_s
            left_s = began_at + limit_s - trio.current_time()
            if seen.value is Value.BAD or left_s <= 0:
                return
            await trio.sleep(min(LOOK_S, left_s))
            await self._keep_lease()

    async def _sample_untouched(self) -> Sample:
        """A sample of one to whom we have done nothing yet: its end is not our doing.

        What its unit says of it is told to those who judge. They look at it, too, but may come
        late; and one that somebody has stopped is dead by its process alone.
        """
        since = trio.current_time()
        sample = await self._sample()
        units = [one for one in sample.observations if one.source is Source.UNIT]
        agent, now = self.restart.agent, trio.current_time()
        await self._tell(self.ports.lives.saw(agent, units, now, since))
        return replace(sample, health=self._health())

    async def _sample(self) -> Sample:
        agent = self.restart.agent
        seen = await self._sight()
        process = self.ports.lives.process(agent)
        with trio.move_on_after(self.limits.probe_s):
            observations = await self.ports.prober.probe(agent, process, _PROBED)
            return Sample(seen, self._health(), observations)
        return Sample(seen, self._health())

    def _health(self) -> Health:
        return self.ports.lives.health(self.restart.agent, trio.current_time())

    def _heard(self) -> bool:
        return self.ports.lives.heard(self.restart.agent, self.restart.next_epoch)

    def _expect(self) -> None:
        self.ports.lives.expect(self.restart.agent, self.restart.next_epoch)

    # --- writing and telling ---------------------------------------------------------------

    async def _begin(self, step: RestartStep) -> None:
        self._step_at = trio.current_time()
        self.restart = begun(self.restart, step, self.ports.now_utc())
        await self._save()

    async def _end(self, state: StepState, result: str) -> None:
        if all(record.state is not StepState.RUNNING for record in self.restart.steps):
            return
        self.restart = stepped(self.restart, state, result, self.ports.now_utc())
        await self._save()
        record = self.restart.steps[-1]
        took_s = trio.current_time() - self._step_at
        log.info(
            "restart.stepped",
            agent=self.restart.agent,
            restart=self.restart.id,
            step=record.step,
            state=state,
            result=result,
            duration_s=round(took_s, 3),
        )
        stepped_fact = RestartStepped(
            self.restart.id, self.restart.agent, record.step, record.attempt, state, result, took_s
        )
        await self._tell((stepped_fact,))

    async def _skip(self, step: RestartStep) -> None:
        """There is nothing to do, so nothing that must be in writing before."""
        self._step_at = trio.current_time()
        self.restart = begun(self.restart, step, self.ports.now_utc())
        await self._end(StepState.SKIPPED, "gone")

    async def _save(self) -> None:
        """Write the restart as it stands; raises `LeaseLost` where it is not ours any more."""
        if not await until_answered(self._save_once, "restart", policy=RETRIES):
            raise LeaseLost(f"the restart of {self.restart.agent} was taken over, or is over")

    async def _read(self) -> Restart | None:
        return await self.ports.store.intend_restart(self.restart)

    async def _save_once(self) -> bool:
        return await self.ports.store.save_restart(self.restart)

    async def _ask_lease(self) -> Lease | None:
        # It runs from some time after the question on: reckoned from before, it is never longer.
        self._leased_at = trio.current_time()
        return await self.ports.store.take_lease(self._lease_name, self.owner, self.limits.lease_s)

    async def _inherit_lease(self) -> Lease | None:
        await self.ports.store.release_lease(self._lease_name, self.restart.owner)
        return await self._ask_lease()

    async def _keep_lease(self) -> None:
        """Renew a lease that has used up half its time, so that a long wait does not lose it."""
        if trio.current_time() - self._leased_at > self.limits.lease_s / 2:
            await self._renew_lease()

    async def _renew_lease(self) -> None:
        lease = await until_answered(self._ask_lease, "lease", policy=RETRIES)
        # Another fence: it had run out, and whatever happened meanwhile is not known here.
        if lease is None or lease.fence != self.restart.fence:
            raise LeaseLost(f"the lease on the restart of {self.restart.agent} ran out")

    @property
    def _lease_name(self) -> str:
        return f"restart:{self.restart.agent}"

    async def _tell_began(self) -> None:
        self._told_began = True
        agent, now = self.restart.agent, trio.current_time()
        await self._tell(self.ports.lives.restart_began(agent, now))

    async def _tell_changed(self, failure: str) -> None:
        restart = self.restart
        log.info(
            "restart.changed",
            agent=restart.agent,
            restart=restart.id,
            state=restart.state,
            cause=restart.cause,
            epoch=restart.epoch,
            next_epoch=restart.next_epoch,
            requested_by=restart.requested_by,
            failure=failure,
        )
        await self._tell((changed(restart, failure),))

    async def _tell(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            await self.ports.facts.send(fact)


def changed(restart: Restart, failure: str = "") -> RestartChanged:
    """The fact that a restart stands as it does; `failure` says why it ended so."""
    return RestartChanged(
        restart.id,
        restart.agent,
        restart.epoch,
        restart.next_epoch,
        restart.state,
        restart.cause,
        restart.requested_by,
        restart.reason,
        failure or restart.failure,
    )
