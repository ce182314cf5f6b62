"""Keeps the fleet's tasks: asks the store, tells what changed, takes back what was lost.

    doors ──► TaskDesk.ask ──► TaskStore         view (lives) ──► keep_tasks ──► TaskStore
                  └── TaskChanged, Escalated ──► board ◄────────────┘

Laws:

1. Every change is a fact with its author, told after the store has it. The store decides;
   nothing about tasks is remembered here but what was told to persons. Who waits for an answer
   waits for room in the facts for 5 s; what found none then is counted in the log.
2. A claim belongs to one incarnation. It ends when its lease or its time limit does, when its
   agent is found dead, and when a later incarnation of it is there. Who comes after claims
   anew; a word of the one before is answered "lost".
3. Leases end by due time, whoever gave them: a claim made here wakes the keeper, those of other
   daemons are looked for each `LOOK_S`.
4. A task that has failed for good is a concern for `NOTICE_S`, once: what fell with it is
   counted there and told of by facts alone. Concerns go before all other facts, and one that
   found no room is owed until it was told.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import structlog
import trio

from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.agents import AgentId, AgentState
from custosd.core.errors import StoreError, StoreUnavailable
from custosd.core.evidence import Condition
from custosd.core.facts import ConcernResolved, Escalated, Fact, TaskChanged
from custosd.core.lives import LifeView
from custosd.core.task_forms import (
    ORDERING,
    READING,
    WORKING,
    Asker,
    Form,
    cancelled_of,
    change_forms,
    claim_of,
    edges_of,
    names_of,
    new_tasks_of,
    next_of,
    query_of,
    scored_form,
    task_form,
    word_of,
)
from custosd.core.tasks import (
    AUTHORITY,
    ClaimRequest,
    FailureKind,
    Settlement,
    Settling,
    Task,
    TaskChange,
    TaskCycle,
    TaskId,
    TaskQuery,
    TaskRefused,
    TaskState,
)
from custosd.core.view import FleetView
from custosd.flow.alarm import Alarm
from custosd.flow.latest import Latest
from custosd.flow.pulse import Pulse
from custosd.ports import ActDoor, TaskStore
from custosd.services.store_absence import StoreAbsence, past_conflicts

log = structlog.get_logger()

BY = "custosd"
LOOK_S = 30.0
"""How often leases are looked for that this daemon did not give."""

STORE_RETRY_S = 5.0
NOTICE_S = 86_400.0
"""For how long a task that failed for good is a person's concern."""

MOST_RECALLED = 1_000
"""Of so many tasks that failed for good, those made last, the concerns outlive a daemon."""

MOST_ATTEMPTS = 5
"""How often is asked what other transactions are in the way of."""

_TELL_TIMEOUT_S = 5.0
_SHORTEST_S = 0.05

_GONE = frozenset({AgentState.TERMINATED})
_UNFIT = frozenset({AgentState.QUARANTINED})


@dataclass(frozen=True, slots=True)
class TaskTimes:
    """What is given where nothing is asked for, and how much at most; seconds."""

    lease_s: float = 300.0
    longest_lease_s: float = 3600.0
    max_attempts: int = 4


class TaskDesk:
    """Where everything about tasks is asked for. One for each daemon; `close` ends its telling."""

    def __init__(
        self,
        store: TaskStore,
        view: Latest[FleetView],
        facts: trio.MemorySendChannel[Fact],
        times: TaskTimes,
        now_utc: Callable[[], datetime],
    ) -> None:
        self.times = times
        self.alarm = Alarm(LOOK_S, _SHORTEST_S)
        self._look_at = trio.current_time()
        self._store = store
        self._view = view
        self._facts = facts
        self._now_utc = now_utc
        self._notices: dict[str, float] = {}
        self._owed: dict[str, tuple[Escalated, float]] = {}
        self._asked: Mapping[str, Callable[[Form, Asker], Awaitable[ActAnswer]]] = {
            "list": self._list,
            "show": self._show,
            "next": self._next,
            "assigned": self._assigned,
            "add": self._add,
            "link": self._link,
            "cancel": self._cancel,
            "claim": self._claim,
            "extend": self._settle,
            "complete": self._settle,
            "fail": self._settle,
        }

    async def ask(self, operation: str, form: Form, asker: Asker) -> ActAnswer:
        """Do what was asked, or say why not; `detail["error"]` is a code where it was not done.

        Never raises for what it is asked. Bounded by the store's own limits.
        """
        try:
            self._check(operation, form, asker)
            form = {**form, "operation": operation} if operation in WORKING else form
            work = partial(self._asked[operation], form, asker)
            return await past_conflicts(work, MOST_ATTEMPTS)
        except TaskCycle as cycle:
            return _not_done(cycle.reason, str(cycle), path=list(cycle.path))
        except TaskRefused as refusal:
            return _not_done(refusal.reason, str(refusal))
        except StoreUnavailable as error:
            words = f"the database did not answer: {error}"
            return ActAnswer(ActOutcome.FAILED, words, {"error": "unavailable"})
        except StoreError as error:
            words = f"the database did not take it: {error}"
            return ActAnswer(ActOutcome.FAILED, words, {"error": "store"})

    def _check(self, operation: str, form: Form, asker: Asker) -> None:
        if operation not in self._asked:
            known = ", ".join(sorted(self._asked))
            raise TaskRefused("malformed", f"there is no {operation[:50]!r}; there is: {known}")
        if operation in ORDERING and not asker.commands:
            raise TaskRefused("denied", f"{operation} takes authority over tasks")
        if operation in READING - {"assigned"} and not (asker.reads or asker.commands):
            raise TaskRefused("denied", f"{operation} takes a right to read")
        if operation in WORKING and not asker.commands:
            agent = form.get("agent")
            if not isinstance(agent, str) or not asker.speaks_for(AgentId(agent)):
                raise TaskRefused("denied", "this is for the agent itself: whose work it is")
            if operation != "claim" and not form.get("fence"):
                raise TaskRefused("malformed", "it is not said under which fence")

    # reading

    async def _list(self, form: Form, _asker: Asker) -> ActAnswer:
        return _told("tasks", [task_form(one) for one in await self._store.find(query_of(form))])

    async def _show(self, form: Form, _asker: Asker) -> ActAnswer:
        ids = [TaskId(name) for name in names_of(form, "tasks")]
        found = await self._store.tasks(ids)
        missing = [id_ for id_ in ids if id_ not in found]
        if missing:
            return _unknown(missing[0])
        return _told("tasks", [task_form(found[id_]) for id_ in ids])

    async def _next(self, form: Form, _asker: Asker) -> ActAnswer:
        found = await self._store.next_tasks(*next_of(form))
        return _told("tasks", [scored_form(one) for one in found])

    async def _assigned(self, form: Form, asker: Asker) -> ActAnswer:
        agents = [AgentId(name) for name in names_of(form, "agents")]
        if not (asker.reads or asker.commands or all(map(asker.speaks_for, agents))):
            raise TaskRefused("denied", "this is for the agents themselves")
        found = await self._store.assigned(agents)
        return _told("agents", {agent: [*map(task_form, held)] for agent, held in found.items()})

    # ordering

    async def _add(self, form: Form, asker: Asker) -> ActAnswer:
        tasks = new_tasks_of(form, self.times.max_attempts)
        changes = await self._store.add(tasks, asker.author)
        await self.tell(changes, asker.author)
        return _changed(f"{_counted(len(changes))} added", changes)

    async def _link(self, form: Form, asker: Asker) -> ActAnswer:
        changes = await self._store.link(edges_of(form))
        await self.tell(changes, asker.author)
        return _changed("linked", changes)

    async def _cancel(self, form: Form, asker: Asker) -> ActAnswer:
        ids, reason = cancelled_of(form)
        changes = await self._store.cancel(ids, reason)
        await self.tell(changes, asker.author)
        if not changes:
            words = "none of them is open"
            return ActAnswer(ActOutcome.NOTHING_TO_DO, words, {"changes": []})
        return _changed(f"{_counted(len(changes))} cancelled", changes)

    # working

    async def _claim(self, form: Form, asker: Asker) -> ActAnswer:
        given = {name: value for name, value in form.items() if name != "operation"}
        request = self._incarnated(claim_of(given, self.times.lease_s))
        claimed = await self._store.claim(request)
        if not claimed.repeated:
            before, after = TaskState.READY, TaskState.CLAIMED
            changes = [
                TaskChange(task.id, before, after, task.agent, task.fence) for task in claimed.tasks
            ]
            await self.tell(changes, asker.author)
        self._await_leases(claimed.tasks)
        forms = [task_form(task) for task in claimed.tasks]
        words = f"{_counted(len(forms))} claimed" if forms else "nothing is ready for this agent"
        outcome = ActOutcome.DONE if forms else ActOutcome.NOTHING_TO_DO
        return ActAnswer(outcome, words, {"tasks": forms, "repeated": claimed.repeated})

    def _incarnated(self, request: ClaimRequest) -> ClaimRequest:
        """The claim of the incarnation that lives; `TaskRefused` for one that is over."""
        lease_s = min(request.lease_s, self.times.longest_lease_s)
        life = self._view.value.hands.lives.get(request.agent)
        if life is None:
            return replace(request, lease_s=lease_s)
        epoch = request.epoch or life.epoch
        if epoch < life.epoch:
            raise TaskRefused("old_epoch", f"{request.agent} lives in epoch {life.epoch} by now")
        if life.state in _UNFIT:
            raise TaskRefused("quarantined", f"{request.agent} is in quarantine")
        return replace(request, lease_s=lease_s, epoch=epoch)

    async def _settle(self, form: Form, asker: Asker) -> ActAnswer:
        operation = form["operation"]
        given = {name: value for name, value in form.items() if name != "operation"}
        word = word_of(operation, given, self.times.lease_s)
        store = self._store
        if operation == "extend":
            lease_s = min(word.lease_s, self.times.longest_lease_s)
            settled = await store.extend(word.task, word.holder, lease_s)
        elif operation == "complete":
            settled = await store.complete(word.task, word.holder, word.result)
        else:
            settled = await store.fail(word.task, word.holder, word.failure)
        await self.tell(settled.changes, asker.author)
        if settled.task is not None and settled.task.state is not TaskState.SUCCEEDED:
            self._await_leases([settled.task])
        return _settled(operation, word.task, settled, by_authority=word.holder == AUTHORITY)

    def _await_leases(self, tasks: Sequence[Task]) -> None:
        """Let the keeper look when the first of these leases ends."""
        now_utc = self._now_utc()
        for task in tasks:
            if task.claim is not None:
                left_s = (task.claim.until_utc - now_utc).total_seconds()
                # It has set out for its next look: only who ends before that wakes it.
                if trio.current_time() + left_s < self._look_at:
                    self.alarm.ring()

    # telling

    async def tell(self, changes: Sequence[TaskChange], author: str) -> None:
        """Tell what the store has done; also when whoever asked has no time left."""
        if not changes:
            return
        self._owe_concerns(changes)
        log.info("tasks.changed", changes=len(changes), author=author, first=changes[0].task)
        told = 0
        with trio.CancelScope(deadline=trio.current_time() + _TELL_TIMEOUT_S, shield=True) as scope:
            try:
                await self.tell_owed()
                # Roots before what fell with them.
                for change in sorted(changes, key=lambda change: change.root is not None):
                    await self._facts.send(_fact_of(change, author))
                    told += 1
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel()
                await trio.lowlevel.checkpoint_if_cancelled()
        if scope.cancelled_caught:
            log.warning("task.untold", changes=len(changes) - told, author=author)
        if self._owed:
            self.alarm.ring()

    def _owe_concerns(self, changes: Sequence[TaskChange]) -> None:
        fallen = Counter(change.root for change in changes)
        for change in changes:
            if change.after is TaskState.FAILED and change.root is None:
                kind = change.kind or FailureKind.ERROR
                self._owe(change.task, kind, change.agent, fallen[change.task], NOTICE_S)

    def _owe(
        self, task: TaskId, kind: FailureKind, agent: AgentId | None, fallen: int, for_s: float
    ) -> None:
        concern = f"task:{task}"
        also = f"; {fallen} that waited for it with it" if fallen else ""
        words = f"task {task} failed for good ({kind.value.replace('_', ' ')}){also}"
        fact = Escalated(concern, "task_failed", agent, words)
        self._owed[concern] = fact, trio.current_time() + for_s

    async def tell_owed(self) -> None:
        """Tell what persons are owed; what was not told stays owed. Waits for room."""
        while self._owed:
            concern = next(iter(self._owed))
            fact, until = owed = self._owed.pop(concern)
            try:
                await self._facts.send(fact)
            except BaseException:
                self._owed[concern] = owed
                raise
            self._notices[concern] = until

    # what the keeper does

    def begin_look(self) -> None:
        """The keeper looks now, and again in `LOOK_S`, or when something is due before."""
        self.alarm.rewind()
        self._look_at = trio.current_time() + LOOK_S

    def _due_in(self, seconds: float) -> None:
        self.alarm.after(seconds)
        self._look_at = min(self._look_at, trio.current_time() + seconds)

    async def recall(self) -> None:
        """Take up the concerns of a daemon before this one."""
        now_utc = self._now_utc()
        failed = TaskQuery(
            frozenset({TaskState.FAILED}),
            limit=MOST_RECALLED,
            ended_after_utc=now_utc - timedelta(seconds=NOTICE_S),
            own_ends=True,
        )
        for task in await self._store.find(failed):
            if f"task:{task.id}" not in self._notices:
                kind = task.failure_kind or FailureKind.ERROR
                left_s = NOTICE_S - (now_utc - (task.ended_utc or now_utc)).total_seconds()
                self._owe(task.id, kind, task.agent, 0, left_s)

    async def resolve(self) -> None:
        """Tell the concerns that are owed, and end those whose time is over."""
        await self.tell_owed()
        now = trio.current_time()
        for concern, until in list(self._notices.items()):
            if until <= now:
                del self._notices[concern]
                await self._facts.send(ConcernResolved(concern, "a day has passed"))
            else:
                self._due_in(until - now)

    async def expire(self) -> None:
        """Take back what ran out; the alarm is set for the next."""
        expiry = await self._store.expire()
        await self.tell(expiry.changes, BY)
        if expiry.next_due_s is not None:
            self._due_in(expiry.next_due_s)

    async def release(self, dead: Mapping[AgentId, int]) -> None:
        """Take back what these incarnations had."""
        await self.tell(await self._store.release(dead), BY)


def _fact_of(change: TaskChange, author: str) -> TaskChanged:
    return TaskChanged(
        change.task,
        change.before,
        change.after,
        author,
        change.agent,
        change.fence,
        change.kind,
        change.root,
    )


class ActsAndTasks:
    """`ports.ActDoor`: tasks go to the desk, whose facts tell of them; all else to the acts.

    The subject of a request about tasks is the operation, its text the form as JSON.
    """

    def __init__(self, acts: ActDoor, desk: TaskDesk) -> None:
        self._acts = acts
        self._desk = desk

    async def perform(self, request: ActRequest) -> ActAnswer:
        """Do it, or say why not."""
        if request.act is not Act.TASK:
            return await self._acts.perform(request)
        if request.dry_run:
            return _not_done("malformed", "tasks are not tried; ask for `next` to see what comes")
        try:
            form = json.loads(request.text or "{}")
        except (ValueError, RecursionError):
            form = None
        if not isinstance(form, dict):
            return _not_done("malformed", "the text of a request about tasks is a JSON object")
        asker = Asker(request.author, commands=True, reads=True)
        return await self._desk.ask(request.subject, form, asker)


def gone_epochs(lives: Mapping[AgentId, LifeView]) -> dict[AgentId, int]:
    """Up to which epoch each agent's incarnations are over; -1 where none is."""
    return {
        agent: life.epoch
        if life.condition is Condition.DEAD or life.state in _GONE
        else life.epoch - 1
        for agent, life in lives.items()
    }


class _Keeper:
    """Levels of the view, and due times, against the store."""

    def __init__(self, desk: TaskDesk, view: Latest[FleetView]) -> None:
        self._desk = desk
        self._view = view
        self._released: dict[AgentId, int] = {}
        self._recalled = False
        self._absence = StoreAbsence("tasks")

    async def run(self, pulse: Pulse, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_view)
            task_status.started()
            while True:
                self._desk.begin_look()
                with pulse.waiting():
                    await self._look()
                pulse.beat()
                with pulse.waiting():
                    await self._desk.alarm.wait()

    async def _watch_view(self) -> None:
        lives: Mapping[AgentId, LifeView] | None = None
        async for view in self._view:
            if view.hands.lives is not lives:
                lives = view.hands.lives
                if self._newly_gone(lives):
                    self._desk.alarm.ring()

    def _newly_gone(self, lives: Mapping[AgentId, LifeView]) -> dict[AgentId, int]:
        return {
            agent: epoch
            for agent, epoch in gone_epochs(lives).items()
            if epoch > self._released.get(agent, -1)
        }

    async def _look(self) -> None:
        # Each by itself: what is refused of one keeps no other from being done.
        for part in self._to_ask():
            with self._absence.told(waiting=0):
                await past_conflicts(part, MOST_ATTEMPTS)
            if self._absence.away:
                self._desk.alarm.after(STORE_RETRY_S)
                break
        await self._desk.resolve()

    def _to_ask(self) -> Iterator[Callable[[], Awaitable[None]]]:
        if not self._recalled:
            yield self._recall
        lives = self._view.value.hands.lives
        if gone := self._newly_gone(lives):
            yield partial(self._release, gone, gone_epochs(lives))
        else:
            # Who lives again in the same epoch may be found dead in it again.
            self._released = gone_epochs(lives)
        yield self._desk.expire

    async def _recall(self) -> None:
        await self._desk.recall()
        self._recalled = True

    async def _release(self, gone: Mapping[AgentId, int], epochs: dict[AgentId, int]) -> None:
        await self._desk.release(gone)
        self._released = epochs


async def keep_tasks(
    desk: TaskDesk,
    view: Latest[FleetView],
    pulse: Pulse,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take back leases by due time and from the dead, for ever.

    A store that is away is told of once, and asked again each `STORE_RETRY_S`: leases last as
    long as it does. Back-pressure: waits for room in the facts, for 5 s an answer.
    """
    await _Keeper(desk, view).run(pulse, task_status)


def _told(name: str, forms: object) -> ActAnswer:
    return ActAnswer(ActOutcome.DONE, "the tasks", {name: forms})


def _unknown(task: str) -> ActAnswer:
    words = f"there is no task {task[:200]!a}"
    return ActAnswer(ActOutcome.UNKNOWN_SUBJECT, words, {"error": "unknown_task"})


def _changed(words: str, changes: Sequence[TaskChange]) -> ActAnswer:
    return ActAnswer(ActOutcome.DONE, words, {"changes": change_forms(changes)})


def _not_done(code: str, words: str, **more: object) -> ActAnswer:
    return ActAnswer(ActOutcome.REFUSED, words, {"error": code, **more})


def _counted(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _settled(operation: str, task: TaskId, settled: Settlement, *, by_authority: bool) -> ActAnswer:
    if settled.task is None:
        return _unknown(task)
    form = task_form(settled.task)
    match settled.outcome:
        case Settling.DONE | Settling.REPEATED:
            words = f"{task} is {settled.task.state.value}"
            if operation == "extend":
                words = f"the lease of {task} lasts on"
            detail = {"task": form, "changes": change_forms(settled.changes)}
            repeated = settled.outcome is Settling.REPEATED
            return ActAnswer(ActOutcome.DONE, words, {**detail, "repeated": repeated})
        case Settling.ENDED:
            outcome = ActOutcome.NOTHING_TO_DO if by_authority else ActOutcome.REFUSED
            words = f"{task} is {settled.task.state.value} already"
            return ActAnswer(outcome, words, {"error": "ended", "task": form})
        case _:
            return _not_done("lost", _lost_words(settled.task), task=form)


def _lost_words(task: Task) -> str:
    """What became of a claim that is not the speaker's any more."""
    if task.claim is not None:
        now = f"{task.claim.agent} has it, under fence {task.claim.fence}"
    else:
        now = f"it is {task.state.value}"
    kind = task.failure_kind.value.replace("_", " ") if task.failure_kind else ""
    why = f" ({kind})" if kind else ""
    return f"this claim of {task.id} is not yours any more{why}: {now}; nothing was changed"
