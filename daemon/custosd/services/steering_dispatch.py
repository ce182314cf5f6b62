"""Brings queued messages to their agents, and asks what became of them.

    QUEUED --> [ clearance ] --> attempt stored --> holds? --> SteeringChannel.deliver
    DELIVERED, ACKNOWLEDGED <-- proof stored <-- Receipt ──────────┘

Laws:

1. An attempt is stored before it is made, its proof after it. What is not known to have
   arrived is delivered again under the same id, also by the next incarnation of the daemon;
   the channel drops what it has. A proof that could not be stored yet is kept, not redone.
2. Holds are asked last: nothing is awaited between that and the channel's `deliver`.
3. One message at a time is on its way to an agent, so many to all.
4. An agent may be dismissed, or get another channel, whenever something is awaited: its
   messages wait for a channel until they run out, and a person is told of what ran out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog
import trio

from custosd.core.agents import AgentId, RunId
from custosd.core.errors import ChannelError, StoreError
from custosd.core.holds import Hold, HoldKind
from custosd.core.steering import (
    Delivery,
    Intervention,
    InterventionState,
    Letter,
    Receipt,
    by_person,
    marked,
    moved,
    way,
)
from custosd.core.steering_policy import (
    Clearance,
    Scene,
    SteeringLimits,
    clearance,
    kept_back,
    most_urgent_first,
    retry_s,
)
from custosd.core.view import AgentView, FleetView
from custosd.flow.adaptive import AdaptiveLimit, Fixed
from custosd.flow.alarm import Alarm
from custosd.flow.latest import Latest
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse
from custosd.ports import SteeringChannel
from custosd.services.holds import Holds
from custosd.services.steering_record import SteeringRecord

log = structlog.get_logger()

STORE_RETRY_S = 5.0
"""How soon a store that was away is asked again."""

_S = InterventionState
_HOLDS = (HoldKind.ESTOP, HoldKind.PAUSE, HoldKind.QUARANTINE)


@dataclass(frozen=True, slots=True)
class DispatchPorts:
    """What letters pass by on their way."""

    channels: Mapping[AgentId, SteeringChannel]
    view: Latest[FleetView]
    holds: Holds
    now_utc: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an agent's trajectory was when it was told something."""

    run: RunId
    steps: int


@dataclass(slots=True)
class Shift:
    """What one incarnation of the service has under way; gone with it.

    `pulse` is that of its turns, which send and look; not of the deliveries that they begin.
    """

    nursery: trio.Nursery
    limit: AdaptiveLimit[Fixed]
    pulse: Pulse
    sending: dict[AgentId, Intervention] = field(default_factory=dict)
    polling: set[AgentId] = field(default_factory=set)
    polled_at: dict[AgentId, float] = field(default_factory=dict)


class Dispatch:
    """The way to the agents and back, for one steerer."""

    def __init__(
        self, ports: DispatchPorts, record: SteeringRecord, alarm: Alarm, limits: SteeringLimits
    ) -> None:
        self.limits = limits
        self._ports = ports
        self._record = record
        self._alarm = alarm
        self._proofs: dict[str, tuple[Receipt, datetime]] = {}
        self._retry_at: dict[str, float] = {}
        self._places: dict[str, _Place] = {}
        self._mute: set[AgentId] = set()

    def held(self, agent: AgentId) -> Hold | None:
        """What stands between us and this agent, now."""
        return self._ports.holds.holding(agent, *_HOLDS)

    def outlook(self, item: Intervention) -> Clearance:
        """What an open intervention waits for: "" only where nothing is in its way."""
        if item.state is not _S.QUEUED:
            return Clearance(item.state.value)
        if item.agent not in self._ports.channels:
            return Clearance("no_channel")
        if (hold := self.held(item.agent)) is not None:
            return Clearance(hold.kind.value, hold.until_utc)
        return clearance(item, self._scene(item.agent), self.limits, self._ports.now_utc())

    def in_hand(self, item: Intervention, shift: Shift) -> bool:
        """Whether it is on its way, or has arrived and only the store does not know it yet."""
        return item.agent in shift.sending or item.id in self._proofs

    def went_on(self, item: Intervention, agent: AgentView) -> bool:
        """Whether the trajectory has grown since the message was known to be there."""
        if agent.digest is None:
            return False
        place = self._places.get(item.id)
        if place is not None:
            return agent.ref.run == place.run and agent.digest.steps > place.steps
        since_utc = item.acknowledged_utc or item.delivered_utc
        last_utc = agent.digest.last_step_utc
        return since_utc is not None and last_utc is not None and last_utc > since_utc

    def place(self, item: Intervention) -> _Place | None:
        """The run, and how many steps it had, when its agent was told; None: not known."""
        return self._places.get(item.id)

    def _take_place(self, item: Intervention) -> None:
        agent = self._ports.view.value.agents.get(item.agent)
        if agent is not None and agent.digest is not None:
            self._places[item.id] = _Place(agent.ref.run, agent.digest.steps)

    def tidy(self) -> None:
        """Forget what is only needed of messages that are not over."""
        ledger = self._record.ledger
        alive = {item.id for item in (*ledger.open(), *ledger.unmeasured())}
        for kept in (self._places, self._retry_at):
            for name in kept.keys() - alive:
                del kept[name]

    async def save_proofs(self, shift: Shift) -> None:
        """Store what was proved while the store was away; raises `StoreError`."""
        for name in list(self._proofs):
            item = self._record.ledger.get(name)
            # The delivery that is under way stores its own.
            if item is None or item.agent not in shift.sending:
                await self._save_proof(name, shift.pulse)

    async def send_due(self, shift: Shift) -> None:
        """Begin the delivery of every queued message that may go, the urgent ones first."""
        queued = [item for item in self._record.ledger.open() if item.state is _S.QUEUED]
        for item in most_urgent_first(queued):
            channel = self._ports.channels.get(item.agent)
            if (
                channel is None
                or self.in_hand(item, shift)
                or item.id in self._record.refused
                or self.held(item.agent) is not None
            ):
                continue
            pause_s = self._retry_at.get(item.id, 0.0) - trio.current_time()
            if pause_s > 0:
                self._alarm.after(pause_s)
            else:
                await self._send(item, channel, shift)

    async def _send(self, item: Intervention, channel: SteeringChannel, shift: Shift) -> None:
        now_utc = self._ports.now_utc()
        ours = sum(1 for sending in shift.sending.values() if not by_person(sending))
        sent_utc = self._record.ledger.sent_utc(now_utc, self.limits.fleet_period_s)
        scene = self._scene(item.agent, sent_utc + (now_utc,) * ours)
        cleared = clearance(item, scene, self.limits, now_utc)
        if cleared.until_utc is not None:
            self._alarm.after((cleared.until_utc - now_utc).total_seconds())
        if cleared.void:
            await self._record.save(moved(item, _S.EXPIRED, now_utc), "steerer", shift.pulse)
        elif not cleared.why and item.hold_out:
            held_out = kept_back(item, channel.name, now_utc)
            if await self._record.save(held_out, "draw", shift.pulse):
                self._take_place(item)
                self._alarm.after(self.limits.outcome_s)
        elif not cleared.why:
            shift.sending[item.agent] = item
            shift.nursery.start_soon(self._deliver, item, channel, shift)

    def _scene(self, agent: AgentId, recent_utc: tuple[datetime, ...] = ()) -> Scene:
        view, channel = self._ports.view.value, self._ports.channels.get(agent)
        life = view.hands.lives.get(agent)
        return Scene(
            channel.name if channel is not None else "",
            view.agents.get(agent),
            life.state if life is not None else None,
            agent in view.hands.restarting,
            self._record.ledger.spoken_utc(agent),
            recent_utc,
        )

    async def _deliver(self, item: Intervention, channel: SteeringChannel, shift: Shift) -> None:
        """One attempt: stored, made, and its proof stored."""
        try:
            async with shift.limit.slot() as slot:
                tried = replace(item, attempts=item.attempts + 1, channel=channel.name)
                if await self._record.save(tried, channel.name):
                    await self._attempt(tried, channel, slot.queued_s)
        except StoreError as error:
            log.warning("store.lost", during="delivery", error=str(error), waiting=1)
            self._retry_at[item.id] = trio.current_time() + STORE_RETRY_S
        finally:
            del shift.sending[item.agent]
            self._alarm.ring()

    async def _attempt(self, item: Intervention, channel: SteeringChannel, queued_s: float) -> None:
        life = self._ports.view.value.hands.lives.get(item.agent)
        text = marked(item.kind, item.reason, item.message, item.id)
        epoch = life.epoch if life is not None else 0
        letter = Letter(item.id, item.agent, epoch, item.kind, text, item.expires_utc)
        if self.outlook(item).why or self._ports.channels.get(item.agent) is not channel:
            return
        try:
            async with operation(Kind.NETWORK, "letter", queued_s):
                with trio.fail_after(self.limits.deliver_timeout_s):
                    receipt = await channel.deliver(letter)
        except trio.TooSlowError:
            await self._not_delivered(item, ChannelError("timeout", retry=True))
        except ChannelError as error:
            await self._not_delivered(item, error)
        else:
            self._proofs[item.id] = (receipt, self._ports.now_utc())
            self._take_place(item)
            await self._save_proof(item.id)

    async def _not_delivered(self, item: Intervention, error: ChannelError) -> None:
        again = error.retry and item.attempts < self.limits.most_attempts
        pause_s = retry_s(item.attempts, self.limits)
        self._retry_at[item.id] = trio.current_time() + pause_s
        log.warning(
            "delivery.failed",
            intervention=item.id,
            agent=item.agent,
            channel=item.channel,
            reason=error.reason,
            attempt=item.attempts,
            again_in_s=pause_s if again else None,
        )
        if not again:
            failed = moved(item, _S.FAILED, self._ports.now_utc(), failure=error.reason)
            await self._record.save(failed, item.channel)

    async def _save_proof(self, intervention_id: str, pulse: Pulse | None = None) -> None:
        receipt, at_utc = self._proofs[intervention_id]
        item = self._record.ledger.get(intervention_id)
        read = receipt.delivery is Delivery.ACKNOWLEDGED
        state = _S.ACKNOWLEDGED if read else _S.DELIVERED
        if item is not None and item.closed_utc is None and way(item.state, state):
            await self._record.save(moved(item, state, at_utc), item.channel, pulse)
        # Where it was not saved another state is stored, which is read before anything else.
        self._proofs.pop(intervention_id, None)

    def poll_due(self, shift: Shift) -> None:
        """Ask the channels what became of letters that are out, each at its time."""
        out: dict[AgentId, list[str]] = {}
        for item in self._record.ledger.open():
            if item.state is _S.DELIVERED and item.agent in self._ports.channels:
                out.setdefault(item.agent, []).append(item.id)
        now_at = trio.current_time()
        for agent, ids in out.items():
            due_at = shift.polled_at.setdefault(agent, now_at) + self.limits.receipts_s
            if due_at <= now_at:
                due_at = now_at + self.limits.receipts_s
                if agent not in shift.polling:
                    shift.polling.add(agent)
                    shift.polled_at[agent] = now_at
                    channel = self._ports.channels[agent]
                    shift.nursery.start_soon(self._poll, agent, channel, tuple(ids), shift)
            self._alarm.after(due_at - now_at)
        for agent in shift.polled_at.keys() - out.keys():
            del shift.polled_at[agent]

    async def _poll(
        self, agent: AgentId, channel: SteeringChannel, ids: tuple[str, ...], shift: Shift
    ) -> None:
        try:
            for receipt in await self._receipts(agent, channel, ids, shift.limit):
                await self._read(receipt)
        except StoreError as error:
            log.warning("store.lost", during="receipts", error=str(error), waiting=len(ids))
            self._alarm.ring()
        finally:
            shift.polling.discard(agent)

    async def _read(self, receipt: Receipt) -> None:
        item = self._record.ledger.get(receipt.id)
        if item is None or item.state is not _S.DELIVERED:
            return
        if receipt.delivery is not Delivery.ACKNOWLEDGED:
            return
        # A letter that lay there while the agent worked is acted upon from now on; one that
        # came between two turns was the first thing in the next one.
        if item.channel in self.limits.keeping:
            self._take_place(item)
        read = moved(item, _S.ACKNOWLEDGED, self._ports.now_utc())
        await self._record.save(read, item.channel)
        self._alarm.ring()

    async def _receipts(
        self,
        agent: AgentId,
        channel: SteeringChannel,
        ids: tuple[str, ...],
        limit: AdaptiveLimit[Fixed],
    ) -> Iterable[Receipt]:
        """What a channel says; nothing where it fails, which is told once until it works."""
        try:
            async with limit.slot() as slot, operation(Kind.NETWORK, "receipts", slot.queued_s):
                with trio.fail_after(self.limits.deliver_timeout_s):
                    receipts = await channel.receipts(ids)
        except (trio.TooSlowError, ChannelError) as error:
            if agent not in self._mute:
                self._mute.add(agent)
                reason = error.reason if isinstance(error, ChannelError) else "timeout"
                log.warning("receipts.failed", agent=agent, channel=channel.name, reason=reason)
            return ()
        self._mute.discard(agent)
        return receipts
