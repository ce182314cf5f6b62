"""Transcripts that grow as they are told to: the shipped fake of `TranscriptSource`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import trio

from custosd.core.transcript import TranscriptEvent
from custosd.ports import Growth, Incident, TranscriptPosition, TranscriptSource


@dataclass(slots=True)
class _Tale:
    events: list[TranscriptEvent] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    told: int = 0
    rewound: bool = False
    grown_utc: datetime | None = None


class ScriptedSource(TranscriptSource):
    """Transcripts in memory; an offset counts events.

    A source made with stored positions goes on behind them, once the same events have
    been told to it again: it is the file that survives a crash, not its reader.
    """

    def __init__(
        self, now_utc: Callable[[], datetime], positions: Iterable[TranscriptPosition] = ()
    ) -> None:
        self._now_utc = now_utc
        self._tales: dict[str, _Tale] = {p.key: _Tale(told=p.offset) for p in positions}
        self._changed = trio.Event()

    def grow(self, key: str, *events: TranscriptEvent, grown_utc: datetime | None = None) -> None:
        """Append events to a transcript, now or when it is said to have grown."""
        tale = self._tales.setdefault(key, _Tale())
        tale.events.extend(events)
        self._touch(tale)
        tale.grown_utc = grown_utc or tale.grown_utc

    def rewrite(self, key: str, *events: TranscriptEvent) -> None:
        """Replace a transcript as a whole."""
        tale = self._tales.setdefault(key, _Tale())
        tale.events, tale.told, tale.rewound = list(events), 0, True
        self._touch(tale)

    def trouble(self, key: str, incident: Incident) -> None:
        """Have an incident told with the transcript's next growth."""
        tale = self._tales.setdefault(key, _Tale())
        tale.incidents.append(incident)
        self._touch(tale)

    def _touch(self, tale: _Tale) -> None:
        tale.grown_utc = self._now_utc()
        self._changed.set()

    async def next_batch(self) -> Sequence[Growth]:
        """See the port."""
        # First: what is marked as told below must reach the caller.
        await trio.lowlevel.checkpoint()
        while not (batch := self._news()):
            self._changed = trio.Event()
            await self._changed.wait()
        return batch

    def _news(self) -> list[Growth]:
        batch: list[Growth] = []
        for key, tale in self._tales.items():
            if not (tale.rewound or tale.incidents or tale.told < len(tale.events)):
                continue
            events = tuple(tale.events[tale.told :])
            rewound, incidents = tale.rewound, tuple(tale.incidents)
            tale.told, tale.rewound, tale.incidents = len(tale.events), False, []
            position = TranscriptPosition(key, key, "scripted", "", tale.told, b"")
            grown_utc = tale.grown_utc or self._now_utc()
            batch.append(Growth(position, events, rewound, grown_utc, incidents))
        return batch
