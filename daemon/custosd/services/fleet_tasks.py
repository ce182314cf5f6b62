"""The fleet's tasks and who is at them, as landed work needs them: store, desk and steerer."""

from collections.abc import Collection, Mapping

from custosd.core.acts import ActOutcome
from custosd.core.agents import AgentId
from custosd.core.forge import Told
from custosd.core.steering import InterventionState
from custosd.core.task_forms import Asker
from custosd.core.tasks import Task, TaskId
from custosd.ports import TaskStore
from custosd.services.steerer import Steerer
from custosd.services.tasks import TaskDesk


class FleetTasks:
    """`services.landing.LandingTasks`; without a store and a desk there are no tasks."""

    def __init__(self, store: TaskStore | None, desk: TaskDesk | None, steerer: Steerer) -> None:
        self._store = store
        self._desk = desk
        self._steerer = steerer

    async def find(self, ids: Collection[TaskId]) -> Mapping[TaskId, Task]:
        """See the protocol."""
        return await self._store.tasks(ids) if self._store is not None and ids else {}

    async def complete(self, task: TaskId, by: str, result: str) -> bool:
        """See the protocol. The desk tells of it, as of every change of a task."""
        if self._desk is None:
            return True
        asker = Asker(by, commands=True)
        answer = await self._desk.ask("complete", {"task": task, "result": result}, asker)
        return answer.outcome is not ActOutcome.FAILED

    async def inform(self, agent: AgentId, text: str, by: str, key: str) -> tuple[Told | None, str]:
        """See the protocol."""
        answer = await self._steerer.inform(agent, text, by, key)
        match answer.outcome:
            case ActOutcome.FAILED if "state" not in answer.detail:
                # Not stored, or not known to be; of one that failed in its life the steerer tells.
                return None, answer.message
            case ActOutcome.REFUSED | ActOutcome.UNKNOWN_SUBJECT:
                return Told.REFUSED, answer.message
            case _:
                proposed = answer.detail.get("state") == InterventionState.PROPOSED.value
                return (Told.PROPOSED if proposed else Told.QUEUED), ""
