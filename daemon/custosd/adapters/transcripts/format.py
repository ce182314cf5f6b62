"""What a transcript adapter is: one maker's format, turned into the normal form.

Two shapes exist. A *line format* only ever grows at its end: `read(line, state)` takes
one line and returns the events it completes, keeping what it must remember (calls not
yet answered, ids already paid for) in `state`. A *document format* is rewritten as a
whole: `read(data)` takes all of it and returns all events; `Rereading` then says which
of them are new.

Laws:

1. State is plain data (a dataclass of str, int, float, bool, None, list, dict, and
   dataclasses of these), bounded, and complete: stored with the file's offset, it is
   all that is needed to go on after a crash, and the events that follow are the same.
2. `read` never raises but `GarbledRecord`, and after raising it, `state` is as before.
   What is well-formed but unknown is an `Unread` event, never an error.
3. The same bytes give the same events: no clock, no randomness, no environment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from custosd.core.errors import CustosdError
from custosd.core.transcript import Acted, Result, TranscriptEvent, digest_of

S = TypeVar("S")


class GarbledRecord(CustosdError):
    """A record that is not what its format promises (not JSON, wrong shape)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a file is recognised by: its path and its first bytes (64 KiB at most)."""

    path: str
    head: bytes


@dataclass(frozen=True, slots=True)
class LineFormat(Generic[S]):
    """A format of records a line; `state` makes an empty state for a new file.

    `settle(state)` returns the events that were held back (calls never answered) when it
    is known that nothing more will come: on `custosd analyze`, and when a run has ended.
    """

    name: str
    matches: Callable[[Sample], bool]
    state: Callable[[], S]
    state_type: type[S]
    read: Callable[[str, S], Sequence[TranscriptEvent]]
    settle: Callable[[S], Sequence[TranscriptEvent]]
    stored: msgspec.msgpack.Decoder[S] = field(init=False, compare=False, repr=False)
    """Reads a state back. Made here, for the whole process: msgspec learns a type when it
    first meets it, and a second thread that meets it meanwhile crashes the interpreter."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored", msgspec.msgpack.Decoder(self.state_type))


@dataclass(frozen=True, slots=True)
class DocumentFormat:
    """A format whose file is one document, rewritten at each change.

    `read` raises `GarbledRecord` for a half-written file: the next change brings the rest.
    Calls without an answer are returned as steps with `Result.UNANSWERED`.
    """

    name: str
    matches: Callable[[Sample], bool]
    read: Callable[[bytes], Sequence[TranscriptEvent]]


Format = LineFormat[Any] | DocumentFormat


@dataclass(slots=True)
class Rereading:
    """Which events of a rewritten document are new: those after the ones already told.

    `told` counts them and `chain` is a digest over them in order.
    """

    told: int = 0
    chain: str = ""

    def news(self, events: Sequence[TranscriptEvent], *, settled: bool = False) -> "News":
        """Split off what is new; `rewound` when what was told before has changed.

        Unanswered calls at the end are held back (they may be answered by the next
        writing), unless `settled`.
        """
        end = len(events) if settled else _settled_end(events)
        chain = ""
        for event in events[: self.told]:
            chain = _link(chain, event)
        rewound = self.told > end or chain != self.chain
        if rewound:
            chain = ""
        fresh = events[0 if rewound else self.told : end]
        for event in fresh:
            chain = _link(chain, event)
        self.told, self.chain = end, chain
        return News(tuple(fresh), rewound)


@dataclass(frozen=True, slots=True)
class News:
    """New events; `rewound` means that they replace all that was told before."""

    events: tuple[TranscriptEvent, ...] = field(default=())
    rewound: bool = False


def _settled_end(events: Sequence[TranscriptEvent]) -> int:
    end = len(events)
    while end:
        event = events[end - 1]
        if not (isinstance(event, Acted) and event.step.result is Result.UNANSWERED):
            break
        end -= 1
    return end


def _link(chain: str, event: TranscriptEvent) -> str:
    return digest_of(chain + msgspec.json.encode(event).decode())
