"""What the conductor found between two agents: opened once, kept while it lasts, resolved.

Laws:

1. Of one kind and one pair at most one finding is open. What is seen again is the same
   finding, seen once more; what comes back after it was resolved is a new one.
2. It is resolved when one of the two is no longer at work, or when it was looked for and
   not seen `MISSES` times in a row. What could not be looked at is neither seen nor missed.
3. What a person said of a finding stays with it while it is what it was: of one that is
   known, and grew (see `grew`), a person is told anew, by another name of its concern.
"""

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from custosd.core.agents import AgentId
from custosd.core.transcript import digest_of

MISSES = 2

PATHS_KEPT = 8


class FindingKind(StrEnum):
    """DUPLICATE: both do the same work. CONFLICT: they are in each other's way in a file."""

    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


class Resolution(StrEnum):
    """Why a finding is over."""

    AGENT_GONE = "agent_gone"
    NOT_SEEN = "not_seen"
    JUDGED_APART = "judged_apart"


Key = tuple[FindingKind, AgentId, AgentId]
"""A kind and a pair, the lesser name first."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One finding as one sweep sees it; `one` < `other`.

    `likeness` of the goals and `confidence` are 0..1. `paths` and `summary` may hold agent
    text: stored and shown, never logged. Lines are 0 where the whole file is meant.
    `summary` is ours, `said` what a model added. `revision` counts what law 3 calls new.
    """

    kind: FindingKind
    one: AgentId
    other: AgentId
    likeness: float
    confidence: float
    paths: tuple[str, ...] = ()
    first_line: int = 0
    last_line: int = 0
    judge: str = ""
    summary: str = ""
    said: str = ""
    revision: int = 1

    @property
    def key(self) -> Key:
        """What may be open once."""
        return self.kind, self.one, self.other


@dataclass(frozen=True, slots=True)
class Finding:
    """A sighting with its life. `sightings` counts the sweeps that saw it."""

    id: str
    sighting: Sighting
    first_seen_utc: datetime
    last_seen_utc: datetime
    sightings: int = 1
    missed: int = 0
    resolved_utc: datetime | None = None
    resolution: Resolution | None = None

    @property
    def key(self) -> Key:
        """What may be open once."""
        return self.sighting.key

    @property
    def open(self) -> bool:
        """Whether it lasts."""
        return self.resolved_utc is None

    @property
    def concern(self) -> str:
        """The name under which a person is told of it, and says that it is known."""
        again = f".{self.sighting.revision}" if self.sighting.revision > 1 else ""
        return f"finding:{self.id}{again}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What one sweep did to the findings; all of them together are what is to be stored.

    `grown` are those of `seen` that were known and are news again, each as it was before.
    """

    opened: tuple[Finding, ...] = ()
    seen: tuple[Finding, ...] = ()
    missed: tuple[Finding, ...] = ()
    resolved: tuple[Finding, ...] = ()
    grown: tuple[tuple[Finding, Finding], ...] = ()

    @property
    def all(self) -> tuple[Finding, ...]:
        """Every finding that is another than before."""
        return (*self.opened, *self.seen, *self.missed, *self.resolved)


@dataclass(slots=True)
class FindingBook:
    """The open findings."""

    open: dict[Key, Finding] = field(default_factory=dict[Key, Finding])

    def recall(self, findings: Iterable[Finding]) -> None:
        """Take up what was stored."""
        self.open.update({finding.key: finding for finding in findings if finding.open})

    def after(
        self,
        sightings: Collection[Sighting],
        at_work: Collection[AgentId],
        undecided: Collection[Key],
        now_utc: datetime,
        apart: Collection[Key] = (),
        known: Container[str] = (),
    ) -> Changes:
        """What follows from a sweep's sightings; changes nothing (see `keep`).

        `undecided` are pairs that nobody could judge this time, `apart` those of which a
        judge said that it is nothing, `known` concerns of which a person knows. Of
        several sightings of one key the first counts.
        """
        seen: dict[Key, Sighting] = {}
        for sighting in sightings:
            seen.setdefault(sighting.key, sighting)
        opened = [
            Finding(_id(key, now_utc), sighting, now_utc, now_utc)
            for key, sighting in seen.items()
            if key not in self.open
        ]
        again: list[Finding] = []
        grown: list[tuple[Finding, Finding]] = []
        missed: list[Finding] = []
        resolved: list[Finding] = []
        for key, finding in self.open.items():
            _, one, other = key
            if key in seen:
                news = finding.concern in known and grew(finding.sighting, seen[key])
                again.append(_seen_again(finding, seen[key], now_utc, news=news))
                if news:
                    grown.append((finding, again[-1]))
            elif one not in at_work or other not in at_work:
                resolved.append(_over(finding, Resolution.AGENT_GONE, now_utc))
            elif key in apart:
                resolved.append(_over(finding, Resolution.JUDGED_APART, now_utc))
            elif key in undecided:
                continue
            elif finding.missed + 1 >= MISSES:
                resolved.append(_over(finding, Resolution.NOT_SEEN, now_utc))
            else:
                missed.append(replace(finding, missed=finding.missed + 1))
        return Changes(tuple(opened), tuple(again), tuple(missed), tuple(resolved), tuple(grown))

    def keep(self, changes: Changes) -> None:
        """Make these changes."""
        for finding in changes.all:
            if finding.open:
                self.open[finding.key] = finding
            else:
                self.open.pop(finding.key, None)


SURER = 0.25
"""So much more confidence is news to whoever knew."""


def grew(before: Sighting, now: Sighting) -> bool:
    """Whether there is more to it: another file, or clearly more confidence.

    Not other lines: these move with every step.
    """
    if now.confidence >= before.confidence + SURER:
        return True
    # A full list may leave out today what it showed yesterday, and the other way round.
    return len(before.paths) < PATHS_KEPT and not set(now.paths) <= set(before.paths)


def key_of(kind: FindingKind, one: AgentId, other: AgentId) -> Key:
    """The key of a pair, whichever of the two is named first."""
    return (kind, one, other) if one < other else (kind, other, one)


def superfluous(
    findings: Iterable[Finding], merit: Callable[[AgentId], float]
) -> Mapping[AgentId, AgentId]:
    """Agents whose work another one does too, with the one of their group that is to go on.

    That is the one of most merit, of equal ones the first by name.
    """
    groups: dict[AgentId, set[AgentId]] = {}
    for finding in findings:
        if finding.sighting.kind is FindingKind.DUPLICATE:
            one, other = finding.sighting.one, finding.sighting.other
            together = groups.get(one, {one}) | groups.get(other, {other})
            groups.update(dict.fromkeys(together, together))
    found: dict[AgentId, AgentId] = {}
    for agent, group in groups.items():
        best = min(group, key=lambda one: (-merit(one), one))
        if agent != best:
            found[agent] = best
    return found


def _seen_again(finding: Finding, sighting: Sighting, now_utc: datetime, *, news: bool) -> Finding:
    return replace(
        finding,
        sighting=replace(sighting, revision=finding.sighting.revision + news),
        last_seen_utc=now_utc,
        sightings=finding.sightings + 1,
        missed=0,
    )


def _over(finding: Finding, resolution: Resolution, now_utc: datetime) -> Finding:
    return replace(finding, resolved_utc=now_utc, resolution=resolution)


def _id(key: Key, now_utc: datetime) -> str:
    return digest_of("\x1f".join((*key, now_utc.isoformat())))[:12]
