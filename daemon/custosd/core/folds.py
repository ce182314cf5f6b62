"""Trajectories held in memory: those that grew lately. The others rest in the store.

Laws: a trajectory that is not stored yet (`dirty`) is never let go. Of the others `hot`
are kept, the least recently used goes first. All operations take constant time.
"""

from collections import OrderedDict

from custosd.core.agents import AgentRef
from custosd.core.trajectory import Trajectory


class Folds:
    """The trajectories in memory, by run."""

    def __init__(self, hot: int) -> None:
        self._hot = hot
        self._clean: OrderedDict[AgentRef, Trajectory] = OrderedDict()
        self._dirty: dict[AgentRef, Trajectory] = {}

    def __len__(self) -> int:
        return len(self._clean) + len(self._dirty)

    def get(self, ref: AgentRef) -> Trajectory | None:
        """The trajectory of this run, if it is in memory."""
        if ref in self._clean:
            self._clean.move_to_end(ref)
            return self._clean[ref]
        return self._dirty.get(ref)

    def keep_dirty(self, ref: AgentRef, trajectory: Trajectory) -> None:
        """Hold a trajectory that the store does not have as it is now."""
        self._clean.pop(ref, None)
        self._dirty[ref] = trajectory

    def stored(self, ref: AgentRef) -> None:
        """The run's trajectory is in the store as it is now; it may be let go."""
        if ref in self._dirty:
            self._clean[ref] = self._dirty.pop(ref)
        while len(self._clean) > self._hot:
            self._clean.popitem(last=False)

    def forget(self, ref: AgentRef) -> None:
        """Nobody needs this run's trajectory any more."""
        self._clean.pop(ref, None)
        self._dirty.pop(ref, None)
