"""Folds what transcripts tell into trajectories, and stores both together.

    TranscriptSource --> Growth --> [ Intake ] --> TrajectoryAdvanced
                                       └── Progress --> Store (position and folds at once)

Laws:

1. A position and the folds up to it change in one step without an await, and are stored
   in one transaction: after a crash at any moment every step is counted once.
2. An unreachable store stops the folding of none but those whose folds it has; what waits
   for it, and what waits to be stored, is bounded: then reading pauses, and says so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from custosd.core.agents import AgentRef
from custosd.core.errors import StoreConflict, StoreError, StoreRefused, StoreUnavailable
from custosd.core.facts import AgentSeen, Fact, SourceTroubled
from custosd.core.trajectory import Trajectory
from custosd.flow.monitor import Kind, operation
from custosd.flow.pulse import Pulse, Pulses
from custosd.ports import Growth, Progress, Store, TrajectoryCodec, TranscriptSource
from custosd.services.intake import Intake, Plan
from custosd.services.store_absence import STORE_RETRIES, StoreAbsence, until_answered

log = structlog.get_logger()

LARGEST_BACKLOG = 4_096
"""Transcripts that may wait to be stored, and growths for their folds, before reading pauses."""


async def follow_transcripts(
    source: TranscriptSource,
    facts: trio.MemorySendChannel[Fact],
    intake: Intake,
    store: Store,
    codec: TrajectoryCodec,
    pulses: Pulses,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take in growth for ever; never returns unless cancelled. Closes `facts` at its end.

    Started: at once. Back-pressure: reads no faster than `facts` takes; pauses at
    `LARGEST_BACKLOG`. At cancellation the last changes are left in `intake`, for
    `store_rest`; what is not stored then is read again at the next start. Raises
    `StoreError` where trying again cannot help.
    """
    changed, room = trio.Event(), trio.Event()
    async with facts, trio.open_nursery() as nursery:

        async def save() -> None:
            nonlocal changed, room
            with pulses.watched("ingest.save") as pulse:
                while True:
                    with pulse.waiting():
                        await changed.wait()
                    changed = trio.Event()
                    await _save_all(intake, store, pulse)
                    room.set()
                    room = trio.Event()

        nursery.start_soon(save)
        task_status.started()
        with pulses.watched("ingest.fold") as pulse:
            held = _Held()
            while True:
                growths = await _next(source, intake, held, pulse)
                async with operation(Kind.PIPELINE, "growth") as folding:
                    folding.used("events", sum(len(growth.events) for growth in growths))
                    facts_found = await _folded(growths, held, intake, store, codec)
                for fact in facts_found:
                    if isinstance(fact, AgentSeen):
                        log.info("agent.seen", agent=fact.ref.agent, path=fact.path)
                    await facts.send(fact)
                pulse.beat()
                changed.set()
                if intake.backlog >= LARGEST_BACKLOG:
                    log.warning("progress.held", backlog=intake.backlog)
                    with pulse.waiting():
                        await room.wait()


@dataclass(slots=True)
class _Held:
    """Growth whose folds only the store has, while it is away; and when it is asked again."""

    plans: list[Plan] = field(default_factory=list[Plan])
    absence: StoreAbsence = field(default_factory=lambda: StoreAbsence("fetch"))
    ask_at: float = -math.inf
    failures: int = 0

    def lost(self, error: StoreError, waiting: int) -> None:
        """The store did not answer: ask again after a pause that grows."""
        self.absence.lost(error, waiting)
        self.failures += 1
        self.ask_at = trio.current_time() + STORE_RETRIES.longest_pause_s(self.failures)

    def answered(self) -> None:
        """The store is there (again)."""
        self.absence.answered()
        self.failures = 0


async def _next(
    source: TranscriptSource, intake: Intake, held: _Held, pulse: Pulse
) -> Sequence[Growth]:
    """Wait for growth, for the end of a turn, or for the time to ask the store again."""
    # While the store is away turns do not end: their folds may be there alone.
    wake_at = held.ask_at if held.absence.away else intake.next_settling()
    with pulse.waiting(), trio.move_on_at(wake_at):
        if len(held.plans) >= LARGEST_BACKLOG:
            await trio.sleep_forever()
        # A cancelled `next_batch` loses nothing (see the port).
        return await source.next_batch()
    return ()


async def _folded(
    growths: Sequence[Growth], held: _Held, intake: Intake, store: Store, codec: TrajectoryCodec
) -> list[Fact]:
    """Fold what can be folded now; hold back what waits for the store, in order."""
    facts: list[Fact] = []
    plans, held.plans = held.plans, []
    for growth in growths:
        facts += _troubles(growth)
        plan = intake.admit(growth)
        if plan is not None:
            plans.append(plan)
    fetched = await _fetch(intake, plans, held, store, codec)
    blocked: set[str] = set()
    for plan in plans:
        if fetched is None and (plan.key in blocked or intake.needs(plan)):
            blocked.add(plan.key)
            held.plans.append(plan)
        else:
            facts += _taken(plan, fetched or {}, intake)
    if fetched is not None:
        facts += intake.settle(fetched)
    return facts


def _troubles(growth: Growth) -> list[Fact]:
    for incident in growth.incidents:
        log.warning(
            "transcript.troubled",
            kind=incident.kind,
            path=incident.path,
            line=incident.line,
            **incident.detail,
        )
    return [SourceTroubled(i.kind, i.path, i.line) for i in growth.incidents]


def _taken(plan: Plan, fetched: Mapping[AgentRef, Trajectory], intake: Intake) -> list[Fact]:
    """What one plan comes to. A defect of ours in one transcript leaves only that one out."""
    try:
        return intake.take(plan, fetched)
    except Exception:  # the fold never raises; if it does, the other agents must not suffer
        log.exception("transcript.refused", path=plan.position.path)
        intake.refuse(plan.key)
        return [SourceTroubled("refused", plan.position.path, 0)]


async def _fetch(
    intake: Intake, plans: Sequence[Plan], held: _Held, store: Store, codec: TrajectoryCodec
) -> Mapping[AgentRef, Trajectory] | None:
    """The folds that these plans continue, in one round trip; None while the store is away."""
    missing = intake.missing(plans)
    if not missing:
        return {}
    if trio.current_time() < held.ask_at:
        return None
    try:
        stored = await store.trajectories(missing)
    except (StoreUnavailable, StoreConflict) as error:
        # Going on with an empty fold would count steps from nought.
        held.lost(error, len(missing))
        return None
    held.answered()
    fetched: dict[AgentRef, Trajectory] = {}
    for ref, data in stored.items():
        try:
            fetched[ref] = codec.decode(data)
        except StoreRefused as error:
            log.error("trajectory.discarded", agent=ref.agent, error=str(error))
    return fetched


async def _save_all(intake: Intake, store: Store, pulse: Pulse) -> None:
    async def save_some() -> None:
        # Each time anew: what has grown meanwhile goes along.
        batch, taken = intake.unsaved()
        try:
            refused = await _save(batch, store)
        except (trio.Cancelled, StoreConflict, StoreUnavailable):
            # At a stop, too: `store_rest` stores it, for the verdicts on it are stored as well.
            intake.put_back(taken)
            raise
        pulse.beat()
        intake.saved({key: what for key, what in taken.items() if key not in refused})
        for key in refused:
            intake.refuse(key)

    async with operation(Kind.BATCH, "progress", slow_s=math.inf):
        while intake.backlog:
            await until_answered(
                save_some, "save", waiting=lambda: intake.backlog, pause=pulse.sleep
            )


async def _save(batch: Sequence[Progress], store: Store) -> set[str]:
    """Store a batch; of one that is refused, all but what is bad: halve until it stands alone.

    Returns the keys of the transcripts that were refused. Repeating the rest does no harm,
    so any other error may be answered by storing the whole batch again.
    """
    try:
        await store.save_progress(batch)
    except StoreRefused as error:
        if len(batch) == 1:
            position = batch[0].position
            log.error("progress.refused", path=position.path, error=str(error))
            return {position.key}
        middle = len(batch) // 2
        return await _save(batch[:middle], store) | await _save(batch[middle:], store)
    return set()


async def store_rest(intake: Intake, store: Store) -> None:
    """Store what is folded and not stored yet, once, at a stop; gives up if it can not be.

    What is given up is read again at the next start.
    """
    while intake.backlog:
        batch, taken = intake.unsaved()
        try:
            await _save(batch, store)
        except StoreError as error:
            log.warning("store.lost", during="stop", error=str(error), waiting=len(batch))
            return
        intake.saved(taken)
