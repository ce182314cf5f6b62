"""Whatever happens to tasks, in whatever order: a store answers as the plain model does.

`machine_of(open_store)` makes a Hypothesis state machine whose every step is done to a store
and to a `TaskBook`, and whose answers must be equal, to the last microsecond and digit.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.contracts.task_contract import Clock

from custosd.core.agents import AgentId
from custosd.core.task_book import TaskBook
from custosd.core.tasks import (
    TELLABLE,
    ClaimRequest,
    Failure,
    FailureKind,
    Holder,
    NewTask,
    TaskId,
    TaskPriority,
    TaskQuery,
    TaskRefused,
    TaskState,
)
from custosd.ports import TaskStore


class Stage(Protocol):
    """Where stores live: `fresh` empties one and gives it, `run` awaits on it."""

    def fresh(self, clock: Clock) -> TaskStore: ...

    def run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any: ...


NAMES = [TaskId(name) for name in "abcdefg"]
AGENTS = [AgentId(name) for name in ("ada", "bob", "eve")]
names = st.sampled_from(NAMES)
agents = st.sampled_from(AGENTS)
skills = st.sets(st.sampled_from(["gpu", "rust"])).map(lambda found: tuple(sorted(found)))
spans_s = st.sampled_from([0.0, 0.5, 1.0, 30.0, 600.0, 3_600.0, 9_000.0])
maybe_spans_s = st.none() | spans_s
holders = st.builds(Holder, st.none() | agents, st.none() | st.integers(min_value=1, max_value=4))


def machine_of(stage: Stage) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.clock = Clock()
            self.book = TaskBook()
            self.store = stage.fresh(self.clock)

        def both(self, call: str, *args: Any, timed: bool = True) -> Any:
            now = (self.clock(),) if timed else ()
            try:
                expected = getattr(self.book, call)(*args, *now)
            except TaskRefused as refusal:
                expected = refusal.reason, str(refusal) if refusal.reason != "cycle" else ""
            try:
                found = stage.run(getattr(self.store, call), *args)
            except TaskRefused as refusal:
                found = refusal.reason, str(refusal) if refusal.reason != "cycle" else ""
            assert found == expected, (call, args, found, expected)
            return expected

        @rule(
            ids=st.lists(names, unique=True, min_size=1, max_size=4),
            data=st.data(),
            priority=st.sampled_from(TaskPriority),
            needs=skills,
            before_s=maybe_spans_s,
            deadline_s=maybe_spans_s,
            timeout_s=st.sampled_from([None, 0.25, 45.0]),
            attempts=st.integers(min_value=1, max_value=4),
        )
        def add(
            self, ids, data, priority, needs, before_s, deadline_s, timeout_s, attempts
        ) -> None:
            times = [None if s is None else self.later_utc(s) for s in (before_s, deadline_s)]
            tasks = []
            for id_ in ids:
                # Mostly of what is there, or is added with it; else hardly any task would be.
                known = st.sampled_from([*self.book.tasks(NAMES), *ids])
                waits = tuple(data.draw(st.lists(known | known | names, unique=True, max_size=3)))
                if id_ not in waits:
                    tasks.append(
                        NewTask(id_, id_, "", priority, waits, needs, *times, timeout_s, attempts)
                    )
            if tasks:
                self.both("add", tasks, "eve")

        def later_utc(self, seconds: float):
            later = Clock()
            later.now_utc = self.clock.now_utc
            later.advance(seconds)
            return later.now_utc

        @rule(edges=st.lists(st.tuples(names, names), min_size=1, max_size=3))
        def link(self, edges) -> None:
            self.both("link", edges, timed=False)

        @rule(
            agent=agents,
            limit=st.integers(min_value=1, max_value=4),
            epoch=st.integers(min_value=0, max_value=2),
            able=skills,
            lease_s=st.sampled_from([0.5, 30.0, 600.0]),
            key=st.sampled_from(["", "k"]),
        )
        def claim(self, agent, limit, epoch, able, lease_s, key) -> None:
            self.both("claim", ClaimRequest(agent, lease_s, limit, epoch, able, key))

        @rule(id_=names, holder=holders, lease_s=st.sampled_from([0.5, 30.0, 600.0]))
        def extend(self, id_, holder, lease_s) -> None:
            self.both("extend", id_, holder, lease_s)

        @rule(id_=names, holder=holders)
        def complete(self, id_, holder) -> None:
            self.both("complete", id_, holder, "done")

        @rule(data=st.data(), word=st.sampled_from(["complete", "fail", "fail", "extend"]))
        def speak_of_a_claim(self, data, word) -> None:
            claimed = [task for task in self.book.find(TaskQuery()) if task.claim]
            if claimed:
                task = data.draw(st.sampled_from(claimed))
                late = data.draw(st.sampled_from([0, 0, 0, 1]))
                mine = Holder(task.claim.agent, max(task.claim.fence - late, 1))
                kind = data.draw(st.sampled_from(sorted(TELLABLE)))
                more = {"complete": "mine", "fail": Failure(kind, "oops"), "extend": 60.0}
                self.both(word, task.id, mine, more[word])

        @rule(
            id_=names,
            holder=holders,
            kind=st.sampled_from(FailureKind),
            reason=st.sampled_from(["", "oops"]),
            after_s=spans_s,
        )
        def fail(self, id_, holder, kind, reason, after_s) -> None:
            self.both("fail", id_, holder, Failure(kind, reason, after_s))

        @rule(ids=st.lists(names, unique=True, max_size=3))
        def cancel(self, ids) -> None:
            self.both("cancel", ids, "not wanted")

        @rule(dead=st.dictionaries(agents, st.integers(min_value=0, max_value=2)))
        def release(self, dead) -> None:
            self.both("release", dead)

        @rule()
        def expire(self) -> None:
            self.both("expire")

        @rule(seconds=spans_s)
        def time_passes(self, seconds) -> None:
            self.clock.advance(seconds)

        @rule(before_s=spans_s)
        def prune(self, before_s) -> None:
            self.both("prune", self.later_utc(-before_s), timed=False)

        @invariant()
        def all_is_equal(self) -> None:
            if not hasattr(self, "book"):
                return
            self.both("tasks", NAMES, timed=False)
            self.both("next_tasks", 3, ("gpu",))
            self.both("assigned", AGENTS, timed=False)
            self.both("find", TaskQuery(frozenset({TaskState.READY}), limit=3), timed=False)

    return Machine
