"""Tells agents what they should know, and finds out whether it arrived and helped.

    FleetView --> [ need, propose ] --> ActionStore --> dispatch --> SteeringChannel
                                           ^                │
    a person's steer, approve, reject ─────┘ <── receipts ──┘ --> InterventionChanged, Escalated

Who needs what, what may go when and what it was good for is decided in
`custosd.core.steering_policy`; `steering_record` keeps it stored, `steering_dispatch` brings
it there; this module puts them together and lets people in.

Laws:

1. The view is watched as a level: a change that was missed, or comes twice, does no harm.
2. A store that is away stops new messages and loses none. What needs a person is told all
   the same.
3. A standing that needs steering is a person's concern in every mode, whatever is sent.
"""

import math
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import structlog
import trio

from custosd.core.acts import ActAnswer, ActOutcome
from custosd.core.agents import AgentId
from custosd.core.errors import StoreError, StoreRefused
from custosd.core.facts import ConcernResolved, Escalated, Fact
from custosd.core.steering import (
    LONGEST_MESSAGE,
    Intervention,
    InterventionState,
    by_person,
    clean_message,
    end_of,
    marked,
    moved,
)
from custosd.core.steering_policy import (
    Clearance,
    Need,
    SteeringLimits,
    SteeringMode,
    after_outcome,
    approved_by_policy,
    ends_utc,
    is_too_long,
    may_propose,
    need,
    outcome_is_due,
    propose,
    ran_out,
    started_utc,
    told_by_person,
    unmeasured,
    vain,
    wanted,
)
from custosd.core.transcript import digest_of
from custosd.core.uplift import Uplift, improved
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason
from custosd.core.view import AgentView, FleetView
from custosd.flow.adaptive import AdaptiveLimit, Fixed
from custosd.flow.alarm import Alarm
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.ports import ActionStore, SteeringChannel
from custosd.services.holds import Holds
from custosd.services.steering_dispatch import STORE_RETRY_S, Dispatch, DispatchPorts, Shift
from custosd.services.steering_record import SteeringRecord
from custosd.services.store_absence import StoreAbsence

log = structlog.get_logger()

LONGEST_WAIT_S = 60.0
"""Times of interventions are the wall clock's, which may be set: it is read this often."""

SHORTEST_WAIT_S = 0.05

REFUSED_S = 30.0
"""How long a message that the store refused is not proposed again."""

REREAD_S = 5.0
"""How long a person waits for a message to be read again that was asked for before."""

LOOK_S = 1.0
"""The least time between two looks that only the view's changes ask for."""

_S = InterventionState
_UNDELIVERED = frozenset({_S.PROPOSED, _S.APPROVED, _S.QUEUED})
_LOST = frozenset({_S.EXPIRED, _S.FAILED})
_OURS = ("standing:", "letter:", "steering:", "steering_kind:")

Needs = Mapping[AgentId, tuple[AgentView, Need]]


def new_id() -> str:
    """16 hex digits, of which there are no two."""
    return uuid.uuid4().hex[:16]


class Steerer:
    """All interventions, and what a person may do about them; `keep_steering` runs it.

    Agents without a channel in `channels` are observed, in every mode. `adopt` takes other
    limits at any time. The methods for persons never raise, and are bounded in time by the
    store's own limits (and `wait_s`).
    """

    def __init__(
        self,
        store: ActionStore,
        channels: Mapping[AgentId, SteeringChannel],
        view: Latest[FleetView],
        holds: Holds,
        facts: trio.MemorySendChannel[Fact],
        limits: SteeringLimits,
        now_utc: Callable[[], datetime],
        name_message: Callable[[], str] = new_id,
    ) -> None:
        self.limits = limits
        self._channels = channels
        self._view = view
        self._facts = facts
        self._now_utc = now_utc
        self._name_message = name_message
        self._alarm = Alarm(LONGEST_WAIT_S, SHORTEST_WAIT_S)
        self._record = SteeringRecord(store, facts)
        self._ledger = self._record.ledger
        ports = DispatchPorts(channels, view, holds, now_utc)
        self._holds = holds
        self._dispatch = Dispatch(ports, self._record, self._alarm, limits)
        self._declined: dict[AgentId, str] = {}
        self._refused_at: dict[AgentId, float] = {}
        self._paused: set[AgentId] = set()
        self._recovered: dict[AgentId, datetime] = {}
        self._told: dict[str, Standing | None] = {}
        self._over: set[str] = set()
        self._absence = StoreAbsence("steering")
        self._room = 0
        self._pulse: Pulse | None = None

    def adopt(self, limits: SteeringLimits) -> None:
        """Go by other limits from now on; what is queued too."""
        self.limits = limits
        self._dispatch.limits = limits
        self._alarm.ring()

    # What persons, and programs for them, ask for.

    def get(self, intervention_id: str) -> Intervention | None:
        """One intervention as it stands."""
        return self._ledger.get(intervention_id)

    def interventions(self) -> tuple[Intervention, ...]:
        """All that are open, and the past ones that are remembered; oldest first."""
        return self._ledger.all()

    def uplifts(self) -> tuple[Uplift, ...]:
        """What each kind of message has been good for, for each reason."""
        return tuple(self._ledger.uplifts().values())

    def outlook(self, agent: AgentId) -> tuple[tuple[Intervention, Clearance], ...]:
        """The open interventions of an agent, and what each of them waits for."""
        unended = (item for item in self._ledger.of(agent) if item.closed_utc is None)
        return tuple((item, self._dispatch.outlook(item)) for item in unended)

    def mode_of(self, agent: AgentId) -> SteeringMode:
        """How an agent is steered: one without a channel is observed, in every mode."""
        return self.limits.mode if agent in self._channels else SteeringMode.OBSERVE

    def unproposed(self, agent: AgentId, kind: SteeringKind) -> str:
        """Why nothing is put to an agent now; "" where nothing speaks against it."""
        if (hold := self._dispatch.held(agent)) is not None:
            return f"{hold.kind} on {hold.subject}"
        if agent in self._paused:
            return "without_effect"
        return may_propose(self._ledger.of(agent), kind, self.limits, self._now_utc()).why

    async def proposed(
        self, agent: AgentId, reason: SteeringReason
    ) -> tuple[Intervention, Clearance]:
        """The open message of our own to an agent for this reason; waits until there is one."""
        while True:
            for item, clearance in self.outlook(agent):
                if item.reason is reason and not by_person(item):
                    return item, clearance
            await self._record.changed.wait()

    async def steer(
        self,
        agent: AgentId,
        text: str,
        by: str,
        kind: SteeringKind = SteeringKind.GUIDANCE,
        *,
        dry_run: bool = False,
        key: str = "",
        wait_s: float = 0.0,
    ) -> ActAnswer:
        """Have an agent told a person's own words, whatever the mode, unless it is held.

        Of one author's `key` there is one message to an agent, however often it is asked for;
        other words under that key are refused. `wait_s`: for how long to wait for its
        delivery; the answer says how far it got.
        """
        problem = self._why_not(agent) or _bad_text(text)
        if problem is not None:
            return problem
        name = "m-" + (digest_of(f"{by}\0{agent}\0{key}") if key else self._name_message())
        item = told_by_person(
            name,
            agent,
            clean_message(text),
            by,
            kind,
            self._view.value.agents.get(agent),
            self.limits,
            self._now_utc(),
        )
        if self._ledger.get(name) is None:
            problem = self._would_steer(item) if dry_run else await self._enqueue(item)
        if problem is None:
            problem = _other_words(item, self._ledger.get(name))
        if problem is not None:
            return problem
        await self._settled(name, wait_s)
        return self._how_far(name, wait_s)

    async def inform(self, agent: AgentId, text: str, by: str, key: str) -> ActAnswer:
        """Have an agent told what a program knows, as far as the mode allows.

        In mode ACT as `steer` does; else it is a proposal, which a person may approve in mode
        SUGGEST. Of one author's `key` there is one message, whatever the mode becomes.
        """
        if self.limits.mode is SteeringMode.ACT:
            return await self.steer(agent, text, by, key=key)
        problem = self._why_not(agent) or _bad_text(text)
        if problem is not None:
            return problem
        name = "m-" + digest_of(f"{by}\0{agent}\0{key}")
        now_utc = self._now_utc()
        if self._ledger.get(name) is None:
            item = Intervention(
                name,
                agent,
                name,
                SteeringKind.GUIDANCE,
                clean_message(text),
                by,
                now_utc,
                now_utc + timedelta(seconds=self.limits.ttl_s),
            )
            if (problem := await self._enqueue(item)) is not None:
                return problem
        return self._how_far(name)

    async def approve(self, intervention_id: str, by: str, *, dry_run: bool = False) -> ActAnswer:
        """Let a proposal be sent; refused in mode OBSERVE, under a hold, and when it is closed."""
        item = self._ledger.get(intervention_id)
        if item is None:
            return _unknown(intervention_id)
        if self.limits.mode is SteeringMode.OBSERVE:
            message = "the mode is observe: set [steering] mode, or say it yourself with steer"
            return ActAnswer(ActOutcome.REFUSED, message)
        if (problem := self._why_not(item.agent) or _not_proposed(item)) is not None:
            return problem
        now_utc = self._now_utc()
        if now_utc >= item.expires_utc:
            return ActAnswer(ActOutcome.REFUSED, f"{item.id} ran out at {item.expires_utc:%H:%M}")
        return await self._decide(moved(item, _S.QUEUED, now_utc, by=by), by, dry_run=dry_run)

    async def reject(self, intervention_id: str, by: str, *, dry_run: bool = False) -> ActAnswer:
        """Have a proposal not be sent, and not be made again in these words."""
        item = self._ledger.get(intervention_id)
        if item is None:
            return _unknown(intervention_id)
        if (problem := _not_proposed(item)) is not None:
            return problem
        rejected = moved(item, _S.FAILED, self._now_utc(), failure="rejected")
        return await self._decide(rejected, by, dry_run=dry_run)

    def _why_not(self, agent: AgentId) -> ActAnswer | None:
        if agent not in self._channels:
            view = self._view.value
            if agent not in view.agents and agent not in view.hands.lives:
                return ActAnswer(ActOutcome.UNKNOWN_SUBJECT, f"no agent {agent}")
            message = f"{agent} has no channel: give its [[agent]] table one"
            return ActAnswer(ActOutcome.REFUSED, message)
        if (hold := self._dispatch.held(agent)) is not None:
            message = f"{hold.kind} on {hold.subject} by {hold.by}: {hold.reason}; lift it first"
            return ActAnswer(ActOutcome.REFUSED, message)
        if not self._record.loaded:
            return ActAnswer(ActOutcome.FAILED, "earlier messages are not restored yet: try again")
        return None

    def _would_steer(self, item: Intervention) -> ActAnswer:
        why = self._dispatch.outlook(item).why
        text = marked(item.kind, item.reason, item.message, item.id)
        channel = self._channels[item.agent].name
        detail = {"channel": channel, "waits_for": why, "text": text}
        when = f"once it waits no longer ({why})" if why else "at once"
        message = f"{item.agent} would be told by {channel}, {when}"
        return ActAnswer(ActOutcome.WOULD_BE_DONE, message, detail)

    async def _enqueue(self, item: Intervention) -> ActAnswer | None:
        """Store a person's message, queued; an answer only where that went wrong."""
        try:
            if not await self._record.propose(item):
                # By an earlier request whose answer was lost: it is read with the next turn.
                self._record.stale = True
                self._alarm.ring()
                with trio.move_on_after(REREAD_S):
                    while self._ledger.get(item.id) is None:
                        await self._record.changed.wait()
        except StoreRefused:
            message = f"the store did not take {item.id}: see the log"
            return ActAnswer(ActOutcome.FAILED, message, {"id": item.id})
        except StoreError:
            message = (
                f"the store does not answer, so it is not known yet whether {item.id} was"
                " queued: ask again with the same key"
            )
            return ActAnswer(ActOutcome.FAILED, message, {"id": item.id})
        finally:
            self._alarm.ring()
        return None

    async def _decide(self, item: Intervention, by: str, *, dry_run: bool) -> ActAnswer:
        """Store a person's decision on a proposal."""
        done = "queued" if item.state is _S.QUEUED else "rejected"
        detail = {"id": item.id, "agent": item.agent}
        if dry_run:
            message = f"{item.id} would be {done}"
            return ActAnswer(ActOutcome.WOULD_BE_DONE, message, detail)
        try:
            saved = await self._record.save(item, by)
        except StoreError:
            return ActAnswer(ActOutcome.FAILED, "the store does not answer: ask again", detail)
        finally:
            self._alarm.ring()
        if not saved:
            return ActAnswer(ActOutcome.REFUSED, f"{item.id} changed in the meantime", detail)
        return ActAnswer(ActOutcome.DONE, f"{item.id} is {done}", detail)

    async def _settled(self, intervention_id: str, wait_s: float) -> None:
        with trio.move_on_after(wait_s):
            while True:
                item = self._ledger.get(intervention_id)
                if item is not None and item.state not in _UNDELIVERED:
                    return
                await self._record.changed.wait()

    def _how_far(self, intervention_id: str, waited_s: float = 0.0) -> ActAnswer:
        item = self._ledger.get(intervention_id)
        if item is None:
            message = f"{intervention_id} was queued by an earlier request"
            return ActAnswer(ActOutcome.DONE, message, {"id": intervention_id})
        detail = {
            "id": item.id,
            "state": item.state.value,
            "attempts": item.attempts,
            "failure": end_of(item),
            "waits_for": self._dispatch.outlook(item).why if item.state is _S.QUEUED else "",
        }
        if item.state in _LOST and item.delivered_utc is None:
            message = f"{item.id} did not arrive: {end_of(item)}"
            return ActAnswer(ActOutcome.FAILED, message, detail)
        waits = f" and waits: {detail['waits_for']}" if detail["waits_for"] else ""
        if waited_s > 0 and item.delivered_utc is None and not item.hold_out:
            # Whoever waits for it must not take "queued" for "arrived".
            message = f"{item.id} has not arrived within {waited_s:g} s: it is {item.state}{waits}"
            return ActAnswer(ActOutcome.FAILED, message, detail)
        return ActAnswer(ActOutcome.DONE, f"{item.id} is {item.state}{waits}", detail)

    # One turn of the service.

    async def run(self, pulse: Pulse, task_status: trio.TaskStatus[None]) -> None:
        """See `keep_steering`."""
        self._record.stale = True
        self._pulse = pulse
        started = False
        async with trio.open_nursery() as nursery:
            shift = Shift(nursery, AdaptiveLimit(Fixed(self.limits.concurrency)), pulse)
            nursery.start_soon(self._watch_view)
            nursery.start_soon(self._watch_holds)
            while True:
                # Before the turn: what comes during it is looked at in the next one.
                self._alarm.rewind()
                await self._turn(shift)
                pulse.beat()
                if self._record.loaded and not started:
                    started = True
                    task_status.started()
                with pulse.waiting():
                    await self._alarm.wait()

    async def _watch_view(self) -> None:
        async for _ in self._view:
            self._alarm.ring()
            await trio.sleep(LOOK_S)

    async def _watch_holds(self) -> None:
        while True:
            changed = self._holds.changed
            self._alarm.ring()
            await changed.wait()

    async def _turn(self, shift: Shift) -> None:
        view = self._view.value
        needs = {
            name: (agent, found)
            for name, agent in view.agents.items()
            if agent.verdict is not None
            and agent.verdict.judgement.needs_steering
            and (found := need(agent)) is not None
        }
        await self._record.tell()
        try:
            await self._work(view, needs, shift)
        except StoreError as error:
            self._alarm.after(STORE_RETRY_S)
            self._absence.lost(error, len(self._ledger.open()))
        else:
            self._absence.answered()
        await self._tell_concerns(view, needs)

    async def _work(self, view: FleetView, needs: Needs, shift: Shift) -> None:
        """Everything that is due; raises `StoreError`, and then goes on with the next turn."""
        if self._record.stale:
            now_utc, busy = self._now_utc(), shift.sending.keys()
            await self._record.load(now_utc, self.limits.history_s, busy, self._pulse)
        await self._dispatch.save_proofs(shift)
        for item in self._ledger.open():
            if not self._dispatch.in_hand(item, shift):
                await self._close(item, view.agents.get(item.agent))
        for item in self._ledger.unmeasured():
            await self._measure(item, view.agents.get(item.agent))
        self._make_room()
        self._paused &= needs.keys()
        for agent, found in needs.values():
            await self._propose(agent, found)
        if self.limits.mode is SteeringMode.ACT:
            for item in self._ledger.open():
                await self._approve_by_policy(item, view)
        await self._dispatch.send_due(shift)
        self._dispatch.poll_due(shift)
        self._dispatch.tidy()
        for kept in (self._declined, self._refused_at):
            for gone in kept.keys() - view.agents.keys():
                del kept[gone]
        self._ledger.prune(self._now_utc(), self.limits.history_s, self.limits.most_kept)

    async def _save(self, item: Intervention, by: str) -> bool:
        saved = await self._record.save(item, by, self._pulse)
        if not saved:
            self._alarm.after(SHORTEST_WAIT_S if self._record.stale else LONGEST_WAIT_S)
        return saved

    async def _close(self, item: Intervention, agent: AgentView | None) -> None:
        """End what is over: acted upon, out of date, or out of time."""
        now_utc = self._now_utc()
        gone_on = agent is not None and self._dispatch.went_on(item, agent)
        if item.state is _S.ACKNOWLEDGED and gone_on:
            await self._save(moved(item, _S.ACTED, now_utc), item.agent)
            return
        end_utc = ends_utc(item, self.limits)
        if now_utc >= end_utc:
            await self._save(ran_out(item, now_utc, went_on=gone_on), "time")
            return
        proposal = item.state is _S.PROPOSED and not by_person(item)
        if proposal and agent is not None and wanted(item, agent) is False:
            await self._save(moved(item, _S.EXPIRED, now_utc), "steerer")
            return
        self._alarm.after((end_utc - now_utc).total_seconds())

    async def _measure(self, item: Intervention, agent: AgentView | None) -> None:
        now_utc, place = self._now_utc(), self._dispatch.place(item)
        # Another run is another work: what is held of it tells nothing of this message.
        other_run = place is not None and agent is not None and agent.ref.run != place.run
        seen = None if other_run else agent
        steps_then = place.steps if place is not None else None
        if not outcome_is_due(item, seen, steps_then, self.limits, now_utc):
            if (began_utc := started_utc(item)) is not None:
                due_utc = began_utc + timedelta(seconds=self.limits.outcome_s)
                self._alarm.after((due_utc - now_utc).total_seconds())
            return
        measured = after_outcome(item, seen, now_utc)
        if await self._save(measured, "steerer"):
            log.info(
                "outcome.measured",
                intervention=item.id,
                agent=item.agent,
                kind=item.kind,
                reason=item.reason,
                hold_out=item.hold_out,
                before=item.standing_before,
                after=measured.standing_after,
                improved=improved(measured),
            )

    def _make_room(self) -> None:
        """How many more messages of our own may be queued: what cannot go soon is no use."""
        ours = [i for i in self._ledger.open() if i.state is _S.QUEUED and not by_person(i)]
        self._room = self.limits.most_open - len(ours)

    async def _propose(self, agent: AgentView, found: Need) -> None:
        name, limits, now_utc = agent.ref.agent, self.limits, self._now_utc()
        earlier = self._ledger.of(name)
        in_vain = vain(earlier, limits, now_utc, self._recovered.get(name))
        if in_vain >= limits.without_effect:
            self._paused.add(name)
            return
        self._paused.discard(name)
        # The last one that is allowed may have been sent already, and its effect be still open.
        patient = in_vain + unmeasured(earlier) < limits.without_effect
        if not patient or self._dispatch.held(name) is not None:
            return
        allowed = may_propose(earlier, found.kind, limits, now_utc)
        if allowed.until_utc is not None:
            self._alarm.after((allowed.until_utc - now_utc).total_seconds())
        if allowed.why or self._is_stopped(found):
            return
        act = limits.mode is SteeringMode.ACT and name in self._channels
        if act and self._room <= 0:
            return
        item = propose(agent, limits, now_utc, approve=act)
        if item is None or self._ledger.get(item.id) or self._declined.get(name) == item.key:
            return
        if self._refused_at.get(name, -math.inf) > trio.current_time() - REFUSED_S:
            return
        try:
            if await self._record.propose(item, self._pulse):
                self._room -= act
            else:
                self._declined[name] = item.key
        except StoreRefused:
            # A fault of ours, or a row that is not there yet; the others are proposed anyway.
            self._refused_at[name] = trio.current_time()

    def _is_stopped(self, found: Need) -> bool:
        uplift = self._ledger.uplifts().get((found.kind, found.reason))
        limits = self.limits
        return uplift is not None and uplift.is_vain(limits.least_arm, limits.least_uplift)

    async def _approve_by_policy(self, item: Intervention, view: FleetView) -> None:
        """What was proposed in another mode may go now, where it is still so."""
        agent = view.agents.get(item.agent)
        if (
            item.state is _S.PROPOSED
            and not by_person(item)
            and item.agent in self._channels
            and agent is not None
            and wanted(item, agent)
            and self._dispatch.held(item.agent) is None
            and self._room > 0
        ):
            approved = approved_by_policy(item, self.limits, self._now_utc())
            self._room -= await self._save(approved, approved.approved_by)

    # What a person has to know.

    async def _tell_concerns(self, view: FleetView, needs: Needs) -> None:
        """Escalate what needs a person and is not told yet; resolve what is over."""
        present = self._concerns(needs)
        for concern, (fact, standing) in present.items():
            if concern not in self._told:
                await self._facts.send(fact)
            self._told[concern] = standing
        shown = {name for name in view.hands.concerns if name.startswith(_OURS)}
        # The view is a moment old: what is over already may still stand in it.
        self._over &= shown
        for concern in sorted((self._told.keys() | (shown - self._over)) - present.keys()):
            # What only the store knows is not over because it has not been read yet.
            if self._record.loaded and not self._lasts(concern, view):
                await self._resolve(concern, view)

    def _concerns(self, needs: Needs) -> dict[str, tuple[Escalated, Standing | None]]:
        found: dict[str, tuple[Escalated, Standing | None]] = {}

        def add(
            kind: str, of: str, agent: AgentId | None, reason: str, standing: Standing | None = None
        ) -> None:
            name = f"{kind}:{of}"
            found[name] = (Escalated(name, kind, agent, reason), standing)

        for name, (_, wants) in needs.items():
            add("standing", name, name, wants.reason.value, wants.verdict.judgement.standing)
        for name in self._paused:
            add("steering", name, name, "without_effect")
        for letter in self._ledger.letters(self._now_utc(), self.limits.letter_s):
            add("letter", letter.id, letter.agent, end_of(letter))
        for refused in self._record.refused.values():
            add("letter", refused.id, refused.agent, "store_refused")
        for (kind, why), uplift in self._ledger.uplifts().items():
            if uplift.is_vain(self.limits.least_arm, self.limits.least_uplift):
                add("steering_kind", f"{kind}/{why}", None, "no_uplift")
        return found

    def _lasts(self, concern: str, view: FleetView) -> bool:
        """Whether a standing that was escalated is still held, though no verdict repeats it."""
        if not concern.startswith("standing:"):
            return False
        agent = view.agents.get(AgentId(concern.removeprefix("standing:")))
        if agent is None or agent.verdict is None:
            return False
        held = self._told.get(concern) is agent.standing
        return held or agent.verdict.judgement.standing is Standing.UNKNOWN

    async def _resolve(self, concern: str, view: FleetView) -> None:
        if concern.startswith("standing:"):
            name = AgentId(concern.removeprefix("standing:"))
            self._recovered[name] = self._now_utc()
            for gone in self._recovered.keys() - view.agents.keys():
                del self._recovered[gone]
        self._told.pop(concern, None)
        self._over.add(concern)
        await self._facts.send(ConcernResolved(concern, "over"))


async def keep_steering(
    steerer: Steerer,
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Follow the view and bring messages on their way; never returns unless cancelled.

    Started: when all interventions of before are restored; a store that is away is told of
    and tried again. Back-pressure: waits for room in the steerer's facts. A delivery that is
    cancelled is made again, under its id, by the next start. Raises nothing of its own.
    """
    await steerer.run(pulse, task_status)


def _bad_text(text: str) -> ActAnswer | None:
    if not clean_message(text):
        return ActAnswer(ActOutcome.REFUSED, "the message is empty")
    if is_too_long(text):
        message = f"the message is too long: at most {LONGEST_MESSAGE} characters are sent"
        return ActAnswer(ActOutcome.REFUSED, message)
    return None


def _other_words(asked: Intervention, known: Intervention | None) -> ActAnswer | None:
    """A refusal where the key of a message was used for another one."""

    def said(item: Intervention) -> tuple[str, AgentId, SteeringKind, str]:
        return item.proposed_by, item.agent, item.kind, item.message

    if known is None or said(known) == said(asked):
        return None
    message = f"the key stands for another message, {known.id}: choose a new key for this one"
    return ActAnswer(ActOutcome.REFUSED, message, {"id": known.id})


def _not_proposed(item: Intervention) -> ActAnswer | None:
    if item.state is _S.PROPOSED:
        return None
    return ActAnswer(ActOutcome.NOTHING_TO_DO, f"{item.id} is {item.state} already")


def _unknown(intervention_id: str) -> ActAnswer:
    return ActAnswer(ActOutcome.UNKNOWN_SUBJECT, f"no message {intervention_id} is known")
