"""What a fold remembers of many steps: bounded records, oldest forgotten first.

Laws:

1. Every collection here has a bound; adding is O(1). What is forgotten is counted as
   never seen, so forgetting can hide a repeat and never invent one.
2. Records are tuples of plain values: the fold's state is stored as it stands.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from custosd.core.footprints import NO_TRACK, Track
from custosd.core.transcript import ErrorClass, StepKind

WINDOW_STEPS = 32
EFFECTS_KEPT = 80
KEY_CHARS = 12
FILES_KEPT = 40
STEPS_SHOWN = 8
RETRY_STEPS = 8
CONTENTS_KEPT = 6
PATH_CHARS = 96


class Mark(NamedTuple):
    """One recent step, as the detectors look at it.

    `effect` is the key of what it came to; `repeat` says that the same effect was seen
    before with nothing relevant changed since, `novel` that it brought something new:
    an observation not seen before, or an edit to a state not seen before.
    """

    step: int
    kind: StepKind
    verb: str
    target: str
    effect: str
    attempt: str
    failed: bool
    repeat: bool
    novel: bool
    wrote: bool
    again: bool


class Effect(NamedTuple):
    """How often one effect was had since the world last changed, and at which steps."""

    times: int
    world: int
    steps: tuple[int, ...]


class FileRecord(NamedTuple):
    """What was done to one file.

    `runs` counts the commands that named it, `own` says that this run created it.
    `rewrites` counts the latest edits in a row that wrote over lines written just
    before, `returns` the edits that brought back an earlier content, `refused` the
    latest failed edits in a row. `contents` are digests of the latest contents. `track` is
    where in the file, and when, it was changed.
    """

    reads: int = 0
    runs: int = 0
    writes: int = 0
    creations: int = 0
    rewrites: int = 0
    returns: int = 0
    refused: int = 0
    own: bool = False
    first_line: int = 0
    last_line: int = 0
    written_step: int = -1
    contents: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    refused_steps: tuple[int, ...] = ()
    track: Track = NO_TRACK


class ErrorStreak(NamedTuple):
    """The failed steps in a row up to now. `same` counts those of the latest class."""

    kind: ErrorClass | None = None
    same: int = 0
    steps: tuple[int, ...] = ()
    length: int = 0


def latest(steps: tuple[int, ...], step: int, keep: int = STEPS_SHOWN) -> tuple[int, ...]:
    """Step numbers with one more, only the last `keep`."""
    return (*steps, step)[-keep:]


def tail_of(path: str) -> str:
    """A path's end, at most PATH_CHARS characters, cut at a separator."""
    path = printable(path).replace("\\", "/").removeprefix("./")
    if len(path) <= PATH_CHARS:
        return path
    cut = path[-PATH_CHARS:]
    return cut[cut.find("/") + 1 :] if "/" in cut else cut


def printable(text: str) -> str:
    """A text without lone surrogates and NULs, so that it can be stored."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


@dataclass(slots=True)
class EffectHistory:
    """The latest effects by key, least recently had first."""

    seen: dict[str, Effect] = field(default_factory=dict[str, Effect])

    def note(self, key: str, step: int, world: int) -> Effect:
        """Count one more of an effect; starts anew when the world changed since."""
        had = self.seen.pop(key, None)
        if had is None or had.world != world:
            new = Effect(1, world, (step,))
        else:
            new = Effect(had.times + 1, world, latest(had.steps, step))
        self.seen[key] = new
        if len(self.seen) > EFFECTS_KEPT:
            del self.seen[next(iter(self.seen))]
        return new


@dataclass(slots=True)
class FileHistory:
    """The latest files by the tail of their path, least recently touched first."""

    seen: dict[str, FileRecord] = field(default_factory=dict[str, FileRecord])

    def get(self, path: str) -> FileRecord:
        """What is known of a file; an empty record where nothing is."""
        return self.seen.get(tail_of(path), FileRecord())

    def put(self, path: str, record: FileRecord) -> None:
        """Remember a file as the one touched last."""
        tail = tail_of(path)
        self.seen.pop(tail, None)
        self.seen[tail] = record
        if len(self.seen) > FILES_KEPT:
            # Files only read go first: what was written is what detectors ask about.
            read = (t for t, r in list(self.seen.items())[:-1] if not r.writes)
            del self.seen[next(read, next(iter(self.seen)))]
