"""Trajectories held in memory: those that grew lately. The others rest in the store.

Laws: a trajectory that is not stored yet (`dirty`) is never let go. Least recently
used ones go first, beyond `hot` of them.
"""

from collections import OrderedDict

from custosd.core.agents import AgentId, AgentRef
from custosd.core.trajectory import Trajectory


class Folds:
    """The hot trajectories, by agent, each with the run that it folds."""

    def __init__(self, hot: int) -> None:
        self._hot = hot
        self._folds: OrderedDict[AgentId, tuple[AgentRef, Trajectory]] = OrderedDict()
        self._dirty: set[AgentId] = set()

    def __len__(self) -> int:
        return len(self._folds)

    def get(self, ref: AgentRef) -> Trajectory | None:
        """The trajectory of exactly this run, if it is in memory."""
        held = self._folds.get(ref.agent)
        if held is None or held[0] != ref:
            return None
        self._folds.move_to_end(ref.agent)
        return held[1]

    def keep(self, ref: AgentRef, trajectory: Trajectory, *, dirty: bool = False) -> None:
        """Hold a trajectory; one of an earlier run of the agent gives way."""
        self._folds[ref.agent] = (ref, trajectory)
        self._folds.move_to_end(ref.agent)
        if dirty:
            self._dirty.add(ref.agent)
        self._let_go()

    def stored(self, agent: AgentId) -> None:
        """The agent's trajectory is in the store as it is now; it may be let go."""
        self._dirty.discard(agent)
        self._let_go()

    def _let_go(self) -> None:
        if len(self._folds) - len(self._dirty) <= self._hot:
            return
        for agent in [a for a in self._folds if a not in self._dirty]:
            if len(self._folds) - len(self._dirty) <= self._hot:
                return
            del self._folds[agent]
