"""All tasks in one dictionary, by definition and not by bookkeeping: what any store must do.

Laws:

1. Nothing is counted incrementally: whether a task waits, and who waits for it, is looked
   up each time. It is slow and plainly right; the fast stores are held to it.
2. Every method does all or nothing, and takes the time as an argument.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from custosd.core.agents import AgentId
from custosd.core.tasks import (
    ENDED,
    OPEN,
    Claimed,
    ClaimRequest,
    Expiry,
    Failure,
    FailureKind,
    Holder,
    NewTask,
    ScoredTask,
    Settlement,
    Settling,
    Task,
    TaskChange,
    TaskClaim,
    TaskCycle,
    TaskId,
    TaskQuery,
    TaskRefused,
    TaskRules,
    TaskState,
    check_claim,
    check_failure,
    check_new,
    find_cycle,
    in_ms,
    is_spent,
    lease_end,
    limit_rest_s,
    no_such_page,
    rest_s,
    score,
    unique_sorted,
)

Edge = tuple[TaskId, TaskId]
"""A task, and one that it waits for."""


class TaskBook:
    """The tasks. See `ports.TaskStore` for what each method promises."""

    def __init__(self, rules: TaskRules | None = None) -> None:
        self._rules = rules or TaskRules()
        self._tasks: dict[TaskId, Task] = {}

    # adding

    def add(
        self, tasks: Sequence[NewTask], author: str, now_utc: datetime
    ) -> tuple[TaskChange, ...]:
        """Add tasks that are not there yet, all or none."""
        check_new(tasks)
        fresh = [task for task in tasks if not is_repeated(task, self._tasks.get(task.id))]
        check_dependencies(fresh, {id_: task.state for id_, task in self._tasks.items()})
        for task in fresh:
            self._tasks[task.id] = fresh_task(task, author, now_utc)
        changes = []
        for task in fresh:
            state = TaskState.BLOCKED if self._unmet(self._tasks[task.id]) else TaskState.READY
            self._put(task.id, state=state)
            if state is TaskState.READY:
                self._make_ready(task.id, now_utc)
            changes.append(TaskChange(task.id, None, state))
        return sorted_changes(changes)

    def link(self, edges: Sequence[Edge]) -> tuple[TaskChange, ...]:
        """Let tasks that nobody has begun wait for others, all or none."""
        fresh = check_edges(edges, self._tasks)
        waits = {id_: set(task.depends_on) for id_, task in self._tasks.items()}
        for waiter, dependency in fresh:
            waits[waiter].add(dependency)
        if path := find_cycle(waits):
            raise TaskCycle(path)
        changes = []
        for id_ in sorted({waiter for waiter, _ in fresh}):
            task = self._tasks[id_]
            self._put(id_, depends_on=tuple(sorted(waits[id_])))
            if task.state is TaskState.READY and self._unmet(self._tasks[id_]):
                self._put(id_, state=TaskState.BLOCKED, ready_utc=None)
                changes.append(TaskChange(id_, TaskState.READY, TaskState.BLOCKED))
        return sorted_changes(changes)

    # claiming

    def next_tasks(
        self, limit: int, capabilities: Collection[str], now_utc: datetime
    ) -> tuple[ScoredTask, ...]:
        """The most urgent ready tasks that these capabilities suffice for."""
        able = set(capabilities)
        scored = [
            ScoredTask(self._told(task), score(self._told(task), now_utc, self._rules.score))
            for task in self._tasks.values()
            if task.state is TaskState.READY
            and task.ready_utc is not None
            and task.ready_utc <= now_utc
            and able.issuperset(task.capabilities)
        ]
        scored.sort(key=lambda one: (-one.score, one.task.ready_utc, one.task.id))
        return tuple(scored[:limit])

    def claim(self, request: ClaimRequest, now_utc: datetime) -> Claimed:
        """Lease the most urgent ones to an agent."""
        check_claim(request)
        if request.key and (held := self._held_under(request)):
            return Claimed(tuple(held), repeated=True)
        tasks = []
        for found in self.next_tasks(request.limit, request.capabilities, now_utc):
            task = self._tasks[found.task.id]
            until_utc = lease_end(now_utc, now_utc, request.lease_s, task.timeout_s)
            limit_s = task.timeout_s
            claim = TaskClaim(
                request.agent,
                request.epoch,
                task.fence + 1,
                now_utc,
                until_utc,
                None if limit_s is None else now_utc + in_ms(limit_s),
                request.key,
            )
            self._put(
                task.id,
                state=TaskState.CLAIMED,
                claim=claim,
                agent=request.agent,
                fence=claim.fence,
                attempts=task.attempts + 1,
            )
            tasks.append(self._told(self._tasks[task.id]))
        return Claimed(tuple(tasks))

    def _held_under(self, request: ClaimRequest) -> list[Task]:
        held = [
            task
            for task in self._tasks.values()
            if task.claim and (task.claim.agent, task.claim.key) == (request.agent, request.key)
        ]
        return [self._told(task) for task in sorted(held, key=lambda task: task.id)]

    def extend(self, id_: TaskId, holder: Holder, lease_s: float, now_utc: datetime) -> Settlement:
        """Let a claim last on."""
        task = self._tasks.get(id_)
        if task is None or task.claim is None or not is_held_by(task, holder):
            outcome = Settling.UNKNOWN if task is None else Settling.LOST
            return Settlement(outcome, None if task is None else self._told(task))
        claim = task.claim
        until_utc = lease_end(claim.claimed_utc, now_utc, lease_s, task.timeout_s)
        self._put(id_, claim=replace(claim, until_utc=until_utc))
        return Settlement(Settling.DONE, self._told(self._tasks[id_]))

    # ending

    def complete(self, id_: TaskId, holder: Holder, result: str, now_utc: datetime) -> Settlement:
        """End a task well, and free whoever waited for it alone."""
        task = self._tasks.get(id_)
        if task is None or not may_settle(task, holder):
            return self._not_settled(task, holder)
        fence = task.fence if task.claim else 0
        changes = [TaskChange(id_, task.state, TaskState.SUCCEEDED, task.agent, fence)]
        self._end(id_, TaskState.SUCCEEDED, now_utc)
        self._put(id_, result=result, settled_fence=holder.fence or task.settled_fence)
        for waiter in self._waiters(id_):
            if waiter.state is TaskState.BLOCKED and not self._unmet(waiter):
                self._put(waiter.id, state=TaskState.READY)
                self._make_ready(waiter.id, now_utc)
                changes.append(TaskChange(waiter.id, TaskState.BLOCKED, TaskState.READY))
        return Settlement(Settling.DONE, self._told(self._tasks[id_]), sorted_changes(changes))

    def fail(self, id_: TaskId, holder: Holder, failure: Failure, now_utc: datetime) -> Settlement:
        """End an attempt badly; the task with it, where no attempt is left or nobody has it."""
        check_failure(failure)
        task = self._tasks.get(id_)
        if task is None or not may_settle(task, holder):
            return self._not_settled(task, holder)
        kind = failure.kind if task.claim else FailureKind.PERMANENT
        self._put(id_, settled_fence=holder.fence or task.settled_fence)
        words = failure.reason or kind.value
        changes = self._over({id_: (kind, words)}, now_utc, failure.after_s)
        return Settlement(Settling.DONE, self._told(self._tasks[id_]), changes)

    def cancel(
        self, ids: Collection[TaskId], reason: str, now_utc: datetime
    ) -> tuple[TaskChange, ...]:
        """End tasks that are open, and what waits for them."""
        roots = [id_ for id_ in sorted(set(ids)) if self._is_open(id_)]
        for id_ in roots:
            self._put(id_, failure_kind=FailureKind.CANCELLED, failure=reason)
        return self._fall(roots, TaskState.CANCELLED, now_utc)

    def release(self, dead: Mapping[AgentId, int], now_utc: datetime) -> tuple[TaskChange, ...]:
        """Take away what incarnations hold that are known to be dead."""
        over = {
            id_: (FailureKind.AGENT_DEAD, LOST_WORDS[FailureKind.AGENT_DEAD])
            for id_, task in self._tasks.items()
            if task.claim is not None and task.claim.epoch <= dead.get(task.claim.agent, -1)
        }
        return self._over(over, now_utc)

    def expire(self, now_utc: datetime) -> Expiry:
        """Take away what ran out; say when the next will."""
        over = {}
        for id_, task in self._tasks.items():
            claim = task.claim
            if claim is not None and claim.until_utc <= now_utc:
                timed_out = claim.times_out_utc is not None and claim.times_out_utc <= now_utc
                kind = FailureKind.TIMEOUT if timed_out else FailureKind.LEASE_LOST
                over[id_] = (kind, LOST_WORDS[kind])
        changes = self._over(over, now_utc)
        return Expiry(changes, self._next_due_s(now_utc))

    def _next_due_s(self, now_utc: datetime) -> float | None:
        due_utc = [task.claim.until_utc for task in self._tasks.values() if task.claim]
        due_utc += [
            task.deadline_utc
            for task in self._tasks.values()
            if task.state is TaskState.READY and task.deadline_utc and task.deadline_utc > now_utc
        ]
        return (min(due_utc) - now_utc).total_seconds() if due_utc else None

    def _over(
        self,
        over: Mapping[TaskId, tuple[FailureKind, str]],
        now_utc: datetime,
        after_s: float = 0.0,
    ) -> tuple[TaskChange, ...]:
        """End attempts: their tasks rest and are ready again, or have failed."""
        changes = []
        spent = []
        for id_, (kind, words) in sorted(over.items()):
            task = self._tasks[id_]
            self._put(id_, failure_kind=kind, failure=words)
            if is_spent(task, kind):
                spent.append(id_)
                continue
            counted = kind is not FailureKind.USAGE_LIMIT
            rules = self._rules.retry
            left_s = rest_s(id_, task.attempts, rules) if counted else limit_rest_s(after_s, rules)
            self._put(
                id_,
                state=TaskState.READY,
                attempts=task.attempts if counted else task.attempts - 1,
                ready_utc=now_utc + in_ms(left_s),
                claim=None,
                agent=None,
            )
            before, after = TaskState.CLAIMED, TaskState.READY
            changes.append(TaskChange(id_, before, after, task.agent, task.fence, kind))
        return sorted_changes([*changes, *self._fall(spent, TaskState.FAILED, now_utc)])

    def _fall(
        self, roots: Sequence[TaskId], state: TaskState, now_utc: datetime
    ) -> tuple[TaskChange, ...]:
        """End tasks badly, and with them all that waits for them, near and far."""
        changes = []
        for id_ in roots:
            task = self._tasks[id_]
            fence = task.fence if task.claim else 0
            changes.append(TaskChange(id_, task.state, state, task.agent, fence, task.failure_kind))
            self._end(id_, state, now_utc)
        for root in sorted(roots):
            falling = [root]
            while falling:
                for waiter in self._waiters(falling.pop()):
                    if waiter.state is TaskState.BLOCKED:
                        kind = FailureKind.DEPENDENCY
                        self._put(waiter.id, failure_kind=kind, failure=fall_words(root, state))
                        self._end(waiter.id, state, now_utc)
                        before = TaskState.BLOCKED
                        changes.append(TaskChange(waiter.id, before, state, kind=kind, root=root))
                        falling.append(waiter.id)
        return sorted_changes(changes)

    def _end(self, id_: TaskId, state: TaskState, now_utc: datetime) -> None:
        self._put(id_, state=state, ended_utc=now_utc, claim=None)

    def _is_open(self, id_: TaskId) -> bool:
        return id_ in self._tasks and self._tasks[id_].state in OPEN

    def _not_settled(self, task: Task | None, holder: Holder) -> Settlement:
        outcome = unsettled(task, holder)
        return Settlement(outcome, None if task is None else self._told(task))

    # reading

    def tasks(self, ids: Collection[TaskId]) -> dict[TaskId, Task]:
        """Those of them that there are."""
        return {id_: self._told(self._tasks[id_]) for id_ in sorted(ids) if id_ in self._tasks}

    def find(self, query: TaskQuery) -> tuple[Task, ...]:
        """Tasks by state, agent and end, newest first. Raises `TaskRefused` as the port says."""
        found = [
            task
            for task in self._tasks.values()
            if (not query.states or task.state in query.states)
            and (not query.agents or task.agent in query.agents)
            and not (query.own_ends and task.failure_kind is FailureKind.DEPENDENCY)
            and (
                query.ended_after_utc is None
                or (task.ended_utc is not None and task.ended_utc > query.ended_after_utc)
            )
        ]
        found.sort(key=_age, reverse=True)
        if query.after is not None:
            if query.after not in self._tasks:
                raise no_such_page(query.after)
            last = _age(self._tasks[query.after])
            found = [task for task in found if _age(task) < last]
        return tuple(self._told(task) for task in found[: query.limit])

    def assigned(self, agents: Collection[AgentId]) -> dict[AgentId, tuple[Task, ...]]:
        """What each of these agents has claimed, by id."""
        return {
            agent: tuple(
                self._told(self._tasks[id_])
                for id_ in sorted(self._tasks)
                if self._tasks[id_].claim and self._tasks[id_].agent == agent
            )
            for agent in agents
        }

    def prune(self, before_utc: datetime) -> int:
        """Forget what ended before this time."""
        gone = {
            id_
            for id_, task in self._tasks.items()
            if task.ended_utc is not None and task.ended_utc < before_utc
        }
        for id_ in gone:
            del self._tasks[id_]
        for id_, task in self._tasks.items():
            kept = tuple(other for other in task.depends_on if other not in gone)
            self._put(id_, depends_on=kept)
        return len(gone)

    def _put(self, id_: TaskId, **new: object) -> None:
        self._tasks[id_] = replace(self._tasks[id_], **new)  # type: ignore[arg-type] # a plain model

    def _make_ready(self, id_: TaskId, now_utc: datetime) -> None:
        wished_utc = self._tasks[id_].not_before_utc
        self._put(id_, ready_utc=max(now_utc, wished_utc) if wished_utc else now_utc)

    def _waiters(self, id_: TaskId) -> list[Task]:
        return [task for _, task in sorted(self._tasks.items()) if id_ in task.depends_on]

    def _unmet(self, task: Task) -> int:
        needed = (self._tasks[id_].state for id_ in task.depends_on)
        return sum(state is not TaskState.SUCCEEDED for state in needed)

    def _told(self, task: Task) -> Task:
        """The task with its counts, which are those of open tasks only."""
        if task.state in ENDED:
            return replace(task, unmet=0, blocking=0)
        blocking = sum(waiter.state in OPEN for waiter in self._waiters(task.id))
        return replace(task, unmet=self._unmet(task), blocking=blocking)


# the judgements that every store shares

LOST_WORDS: Mapping[FailureKind, str] = {
    FailureKind.TIMEOUT: "the attempt took longer than the task allows",
    FailureKind.LEASE_LOST: "the lease ran out: nothing was heard of the attempt",
    FailureKind.AGENT_DEAD: "the agent that had it was found dead",
}


def fall_words(root: TaskId, state: TaskState) -> str:
    """Why a task ended that waited for `root`."""
    return f"it waited for {root}, which was {state.value}"


def fresh_task(task: NewTask, author: str, now_utc: datetime) -> Task:
    """A task as it is when it was just added; whether it is ready comes after."""
    return Task(
        task.id,
        task.title,
        TaskState.BLOCKED,
        now_utc,
        author,
        task.goal,
        task.priority,
        tuple(map(TaskId, unique_sorted(task.depends_on))),
        unique_sorted(task.capabilities),
        max_attempts=task.max_attempts,
        not_before_utc=task.not_before_utc,
        deadline_utc=task.deadline_utc,
        timeout_s=None if task.timeout_s is None else round(task.timeout_s, 3),
    )


def is_repeated(task: NewTask, known: Task | None) -> bool:
    """Whether a task to add is there already, as it was added; `TaskRefused` if as another.

    What it waits for may have grown since.
    """
    if known is None:
        return False
    same = fresh_task(task, known.created_by, known.created_utc)
    pairs = (
        (same.title, known.title),
        (same.goal, known.goal),
        (same.priority, known.priority),
        (same.capabilities, known.capabilities),
        (same.not_before_utc, known.not_before_utc),
        (same.deadline_utc, known.deadline_utc),
        (same.timeout_s, known.timeout_s),
        (same.max_attempts, known.max_attempts),
    )
    if any(mine != theirs for mine, theirs in pairs):
        raise TaskRefused("exists", f"there is another task {task.id}: choose a new id")
    return True


def check_dependencies(fresh: Sequence[NewTask], known: Mapping[TaskId, TaskState]) -> None:
    """Raise `TaskRefused` where new tasks wait for nothing, for the failed, or in a circle.

    No task that is there can wait for one that is not: a circle lies within the new ones.
    """
    new = {task.id for task in fresh}
    for task in fresh:
        for dependency in sorted(set(task.depends_on) - new):
            _check_dependency(task.id, dependency, known.get(dependency))
    waits = {task.id: set(task.depends_on) & new for task in fresh}
    if path := find_cycle(waits):
        raise TaskCycle(path)


def check_edges(edges: Iterable[Edge], known: Mapping[TaskId, Task]) -> list[Edge]:
    """Those of the edges that are new; `TaskRefused` where one cannot be. Cycles come after."""
    fresh = []
    for id_, dependency in sorted(set(edges)):
        task = known.get(id_)
        if task is None:
            raise TaskRefused("unknown_task", f"there is no task {id_[:200]!a}")
        if dependency in task.depends_on:
            continue
        if id_ == dependency:
            raise TaskCycle((id_, id_))
        if task.state not in {TaskState.BLOCKED, TaskState.READY}:
            raise TaskRefused("begun", f"{id_} is {task.state}: it can wait for nothing more")
        other = known.get(dependency)
        _check_dependency(id_, dependency, None if other is None else other.state)
        fresh.append((id_, dependency))
    return fresh


def _check_dependency(id_: TaskId, dependency: TaskId, state: TaskState | None) -> None:
    if state is None:
        raise TaskRefused(
            "unknown_dependency", f"{id_} waits for {dependency[:200]!a}, which is no task"
        )
    if state in ENDED - {TaskState.SUCCEEDED}:
        raise TaskRefused(
            "dependency_ended", f"{id_} waits for {dependency}, which was {state.value}"
        )


def is_held_by(task: Task, holder: Holder) -> bool:
    """Whether a claim is there and the speaker's."""
    return (
        task.claim is not None
        and holder.fence in {None, task.claim.fence}
        and holder.agent in {None, task.claim.agent}
    )


def may_settle(task: Task, holder: Holder) -> bool:
    """Whether the speaker may end this: its own claim; with authority, whatever is open."""
    if holder.fence is None and holder.agent is None:
        return task.state in OPEN
    return is_held_by(task, holder)


def unsettled(task: Task | None, holder: Holder) -> Settling:
    """What a word about a task is answered that changes nothing (`may_settle` said no)."""
    if task is None:
        return Settling.UNKNOWN
    if holder.fence is not None and holder.fence == task.settled_fence:
        return Settling.REPEATED
    return Settling.ENDED if holder == Holder() else Settling.LOST


def sorted_changes(changes: Iterable[TaskChange]) -> tuple[TaskChange, ...]:
    """Changes in an order that does not depend on how they came about."""
    return tuple(sorted(changes, key=lambda change: change.task))


def _age(task: Task) -> tuple[datetime, TaskId]:
    return task.created_utc, task.id
