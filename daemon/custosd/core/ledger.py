"""Everything that is known of one agent's life, and the verdict that follows from it.

    signs (beats, growth, looks, deaths) ──► [ Ledger ] ──judge──► Health

Laws:

1. `judge` is a pure function of the ledger and the time.
2. Bad takes positive evidence: a process seen to be gone, one that stands stopped, or two
   kinds of sources that agree that nothing moves while none says that something does.
   Silence is no evidence, and what could not be seen is none either.
3. "Nothing moves" is said of a source only when looks at it, far enough apart, measured the
   same. An agent's word that it works is not work; but while it says so in ever new words,
   it is at worst not known how it is.
4. Words of the dead may arrive late, and a process may be taken for an agent's that is not:
   where a death and later signs of life contradict each other, nothing is known until it
   has been looked at again.
"""

import math
from dataclasses import dataclass, field

from custosd.core.agents import AgentId
from custosd.core.beats import BeatStatus, WaitKind
from custosd.core.evidence import (
    Condition,
    Evidence,
    Exit,
    Health,
    Observation,
    ProcessIdentity,
    Source,
    Value,
)
from custosd.core.ladder import (
    SUSPECT,
    Gaps,
    LivenessLimits,
    interval_of,
    suspect_s,
)

GONE = frozenset({"process_gone", "unit_failed", "unit_gone"})
"""What an observation says of a process that is no more, for whatever reason."""

INACTIVE = "unit_inactive"
"""A unit that was stopped, or ended by itself, without a fault."""

STOPPED = "process_stopped"

LOOK_AGAIN_S = 30.0
"""How long after one look at an agent in trouble the next one follows."""

LOOK_FRESH_S = 4 * LOOK_AGAIN_S
"""How long what was seen in a look counts."""

BUSY_SHARE = 0.02
"""The share of a processor below which its use is no sign of work: a thread that only beats."""

CHILD_ENDED_S = 0.05
"""Used processor time that falls by more than this: a child ended, which is a sign of work."""

AFTERGLOW_S = 10.0
"""What an agent wrote is read later than it was written; only growth after this refutes a death."""

PROTESTS = 2
"""So many signs of life after a death refute it, as long as they go on."""

WORKING = frozenset({BeatStatus.RUNNING, BeatStatus.MONITORING, BeatStatus.STARTING})
ENDING = frozenset({BeatStatus.STOPPING, BeatStatus.FINISHED})
PRESENCE = frozenset({Source.PROCESS, Source.UNIT})
SHOW_WORK = frozenset({Source.PROCESS, Source.TRANSCRIPT, Source.WORKSPACE})

FINISHED = "finished"
ENDED_AS_TOLD = "ended_as_told"
"""It said that it would end, and was not heard or seen any more."""

ENDS = frozenset({FINISHED, INACTIVE, ENDED_AS_TOLD})
"""Reasons of a health that say that the agent has ended, as it should."""

NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Watched:
    """What can be known of an agent. `sources` has those that it can be looked at by, too.

    `beats`: whether it is expected to beat. `interval_s` None: by its status, or as it
    declares. `hang_after_s` None: as for all. `stranger`: nobody has configured it; it is
    let go when it has ended, or was silent for long.
    """

    agent: AgentId
    host: str = ""
    sources: frozenset[Source] = frozenset({Source.BEAT})
    beats: bool = True
    interval_s: float | None = None
    hang_after_s: float | None = None
    stranger: bool = False


@dataclass(slots=True)
class Look:
    """What the looks at one source have shown. Times are of looks, not of their answers.

    `measure` has had its value since `since`, and had it still at `measured_at`; `moved_at`:
    when it was last seen to have changed. `of_processor`: it is processor seconds.
    `stopped_since`: the process stands.
    """

    value: Value
    detail: str
    at: float
    measure: float | None = None
    of_processor: bool = False
    since: float = NEVER
    measured_at: float = NEVER
    moved_at: float = NEVER
    stopped_since: float | None = None

    def seen(self, observation: Observation, at: float) -> bool:
        """Take in another look; returns whether it shows that work was done since the last."""
        if at < self.at:
            return False  # its answer was overtaken by that of a later one
        self.value, self.detail, self.at = observation.value, observation.detail, at
        if observation.value is Value.UNKNOWN:
            return False
        if observation.detail != STOPPED:
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = at
        return observation.progress is not None and self._measure(observation, at)

    def _measure(self, observation: Observation, at: float) -> bool:
        value = observation.progress
        known, elapsed_s = self.measure, at - self.measured_at
        if value is None or elapsed_s < 0:
            return False
        if known is None or self.of_processor is not observation.is_processor_time:
            self.measure, self.since, self.measured_at = value, at, at
            self.of_processor = observation.is_processor_time
            return False
        if self.of_processor:
            used_s = value - known
            moved = used_s < -CHILD_ENDED_S or used_s > BUSY_SHARE * max(elapsed_s, 1.0)
        else:
            moved = value != known
        self.measured_at = at
        # The use of a processor is compared with the last look, so that a trickle stays one.
        if moved or self.of_processor:
            self.measure = value
        if moved:
            self.since = self.moved_at = at
        return moved

    def still_s(self, now: float, rested_at: float) -> float:
        """For how long it was seen not to move; 0 where the last measure is not fresh."""
        if self.measure is None or now - self.measured_at > LOOK_FRESH_S:
            return 0.0
        return max(0.0, self.measured_at - max(self.since, rested_at))

    def credit(self, gap_s: float, now: float) -> None:
        """Leave a gap of our own out of the time in which nothing moved."""
        self.since = min(now, self.since + gap_s)
        if self.stopped_since is not None:
            self.stopped_since = min(now, self.stopped_since + gap_s)


@dataclass(slots=True)
class Ledger:
    """What is known of one agent. Times are trio's clock; `NEVER` where there was none.

    `quiet_from`: from when on silence counts (the last beat, the end of a grace or a wait).
    `rested_at`: from when on a lack of progress counts. `worked_at`: when work was last seen,
    by anything but the agent's own word; `beyond_cpu_at`: by anything but a busy processor.
    `claimed_at`: when it last said something new about its progress.
    """

    watched: Watched
    epoch: int = 0
    sequence: int = 0
    began_at: float = 0.0
    heard_epoch: int = -1
    heard_at: float = NEVER
    quiet_from: float = 0.0
    rung: int = 0
    suspect_at: float = NEVER
    status: BeatStatus = BeatStatus.STARTING
    declared_s: float | None = None
    gaps: Gaps | None = None
    wait_kind: WaitKind | None = None
    wait_until: float = NEVER
    task: str = ""
    rested_at: float = 0.0
    worked_at: float = NEVER
    beyond_cpu_at: float = NEVER
    grown_at: float = NEVER
    claim: str = ""
    claimed_at: float = NEVER
    process: ProcessIdentity | None = None
    former: ProcessIdentity | None = None
    exit: Exit | None = None
    gone: Evidence | None = None
    gone_since: float = NEVER
    protests: int = 0
    absent_by: Source | None = None
    """What has seen that it is gone as a whole: not one of its processes, all of it."""
    ended: str = ""
    """Why it is no longer expected to live; "" it is."""
    ours: bool = False
    """We were about to stop it: that it ended is not its own doing."""
    restarting: bool = False
    looks: dict[Source, Look] = field(default_factory=dict)
    looked_at: float = NEVER
    """When the last round of looks began."""
    looking_since: float | None = None
    """Since when a round of looks is under way."""
    attended: bool = False
    """Whether the end of its process is told the moment it happens."""

    # Spans

    def interval_s(self, limits: LivenessLimits) -> float:
        """When its next beat is expected after the last."""
        return interval_of(self.status, self.declared_s, self.watched.interval_s, limits)[0]

    def suspect_s(self, limits: LivenessLimits) -> float:
        """After how much silence it is a suspect (without our own slowness)."""
        usual_s = 0.0 if self.gaps is None else self.gaps.usual_s
        return suspect_s(self.interval_s(limits), usual_s, limits)

    def hang_s(self, limits: LivenessLimits) -> float:
        """For how long no work may be seen of it while it is heard."""
        own_s = self.watched.hang_after_s
        return limits.hang_after_s if own_s is None else own_s

    def vouched_s(self, limits: LivenessLimits) -> float:
        """For how long work that was seen speaks for it: less while it is silent."""
        hang_s = self.hang_s(limits)
        return min(hang_s, limits.longest_deadline_s) if self.rung >= SUSPECT else hang_s

    # Signs of life

    def begin(self, now: float, limits: LivenessLimits) -> None:
        """A new incarnation, or the first that is met: nothing is known, and it has its grace."""
        self.began_at = now
        self.heard_at, self.rung, self.suspect_at = NEVER, 0, NEVER
        self.status, self.declared_s = BeatStatus.STARTING, None
        self.wait_kind, self.wait_until, self.claim, self.claimed_at = None, NEVER, "", NEVER
        self.former = self.process or self.former
        self.process = self.exit = self.gone = self.absent_by = None
        self.protests, self.ended, self.ours = 0, "", False
        self.looks.clear()
        self.worked_at = self.beyond_cpu_at = self.grown_at = NEVER
        self.quiet_from = self.rested_at = now + limits.startup_grace_s

    def rest(self, until: float) -> None:
        """What was not done until then is no lack of progress."""
        self.rested_at = max(self.rested_at, until)

    def worked(self, at: float) -> None:
        """Work was seen to be done, by something else than a busy processor."""
        self.worked_at = max(self.worked_at, at)
        self.beyond_cpu_at = max(self.beyond_cpu_at, at)

    def protest(self, at: float, limits: LivenessLimits) -> None:
        """A sign of life; where it contradicts what was seen, that is to be looked at at once."""
        if self.gone is None or at <= self.gone_since:
            return
        self.protests += 1
        if self.contradicted(at, limits) is None:
            self.looked_at = NEVER

    def take_look(self, seen: Observation, at: float, limits: LivenessLimits) -> None:
        """Take in what a look that began at `at` saw."""
        if seen.source in PRESENCE and not self._take_presence(seen, at, limits):
            return
        look = self.looks.get(seen.source)
        if look is None:
            look = self.looks[seen.source] = Look(seen.value, seen.detail, at)
        if not look.seen(seen, at):
            return
        if not seen.is_processor_time:
            self.worked(at)
        elif at - max(self.beyond_cpu_at, self.began_at) <= limits.busy_limit_s:
            self.worked_at = max(self.worked_at, at)

    def _take_presence(self, seen: Observation, at: float, limits: LivenessLimits) -> bool:
        """Who is there, or gone; False: it is about a process that is not its own any more."""
        if seen.process is not None and seen.process == self.former:
            return False
        if seen.value is Value.BAD and (seen.detail in GONE or seen.detail == INACTIVE):
            return self._take_absence(seen, at)
        if seen.value is not Value.OK:
            return True
        back = self._is_back(seen, at)
        if self.absent_by is seen.source:
            self.absent_by = None
        if seen.process is not None and seen.process != self.process:
            if self.process is None or self.gone is not None or back:
                self.adopt(seen.process)
            elif seen.source is Source.PROCESS:
                return False  # a unit may have several processes; this is not the one
        elif self.gone is not None and at >= self.gone.at:
            self.gone, self.protests = None, 0
        if back:
            self._come_back(at, limits)
        return True

    def _is_back(self, seen: Observation, at: float) -> bool:
        """Whether it had ended, and what is seen there was started since.

        What said that it had finished may stay for a while: it must have been seen to be gone
        as a whole, and by the same source.
        """
        if not self.ended or (self.gone is not None and at < self.gone.at):
            return False
        return self.ended == INACTIVE or self.absent_by is seen.source

    def _come_back(self, at: float, limits: LivenessLimits) -> None:
        """Somebody started it again, in the same incarnation: it has its grace as at any start."""
        self.ended = ""
        if self.signed_at > self.gone_since:
            return  # it speaks for itself already
        self.status, self.rung, self.suspect_at = BeatStatus.STARTING, 0, NEVER
        self.wait_kind, self.wait_until = None, NEVER
        self.quiet_from = max(self.quiet_from, at + limits.startup_grace_s)
        self.rest(at + limits.startup_grace_s)

    def _take_absence(self, seen: Observation, at: float) -> bool:
        if seen.process is not None and self.process not in {None, seen.process}:
            return False
        self.exit = seen.exit or self.exit
        if seen.source is Source.UNIT or seen.process is None:
            self.absent_by = seen.source
        if seen.detail == INACTIVE and not self.ours:
            self.ended = self.ended or INACTIVE
        self.is_gone(Evidence(seen.source, Value.BAD, at, math.inf, seen.detail))
        return True

    def adopt(self, process: ProcessIdentity) -> None:
        """This process works for the agent; what was seen of an earlier one is void."""
        if self.process is not None:
            self.looks.pop(Source.PROCESS, None)
        self.process, self.exit = process, None
        self.gone, self.protests = None, 0

    def is_gone(self, gone: Evidence) -> None:
        """Its process was seen to be gone."""
        if self.gone is None:
            self.gone_since, self.protests = gone.at, 0
        if self.gone is None or gone.at >= self.gone.at:
            self.gone = gone
        if self.status in ENDING and not self.ours:
            self.ended = self.ended or FINISHED

    def credit(self, gap_s: float, now: float) -> None:
        """Leave a gap of our own, which ends now, out of every silence and stand-still."""
        for look in self.looks.values():
            look.credit(gap_s, now)
        self.quiet_from = max(self.quiet_from, now)
        self.rested_at = max(self.rested_at, min(now, self.rested_at + gap_s))
        self.claimed_at = max(self.claimed_at, min(now, self.claimed_at + gap_s))

    # What follows

    @property
    def signed_at(self) -> float:
        """The last sign of life that could refute a death."""
        return max(self.heard_at, self.grown_at - AFTERGLOW_S)

    def excused(self, now: float, limits: LivenessLimits) -> bool:
        """Whether it is silent for longer than it may be, and that does not count (yet)."""
        if self.rung >= SUSPECT:
            return now < self.quiet_from + self.suspect_s(limits)
        return now - self.heard_at > self.suspect_s(limits)

    def silent(self, now: float, limits: LivenessLimits) -> bool:
        """Whether it is a suspect: silent beyond every deadline."""
        return self.watched.beats and self.rung >= SUSPECT and not self.excused(now, limits)

    def works_now(self) -> bool:
        """Whether it says, or its transcript does, that it works."""
        if self.watched.beats:
            return self.status in WORKING
        return self.status is BeatStatus.RUNNING

    def moves(self, now: float, limits: LivenessLimits) -> bool:
        """Whether work was seen to be done not too long ago."""
        return now - self.worked_at < self.vouched_s(limits)

    def still(self, now: float, limits: LivenessLimits) -> frozenset[Source]:
        """Sources that show, by looks far enough apart, that nothing moves."""
        hang_s = self.hang_s(limits)
        return frozenset(
            source
            for source, look in self.looks.items()
            if look.still_s(now, self.rested_at) >= hang_s
        )

    def stands(self, now: float, limits: LivenessLimits) -> bool:
        """Whether its process stands stopped, seen not long ago, and nothing moved since."""
        look = self.looks.get(Source.PROCESS)
        if look is None or look.stopped_since is None or now - look.at > LOOK_FRESH_S:
            return False
        suspect_s = self.suspect_s(limits)
        if look.value is Value.UNKNOWN or self.worked_at > look.at:
            return False
        if now - self.worked_at < suspect_s:
            return False
        # Of a silent one it is known for how long; of another one it must be seen so long.
        silent = self.watched.beats and self.rung >= SUSPECT
        return silent or look.at - look.stopped_since >= suspect_s

    def contradicted(self, now: float, limits: LivenessLimits) -> bool | None:
        """Whether signs of life refute that it is gone; None: that must be looked at again."""
        if self.gone is None or not self.protests:
            return False
        beats = self.watched.beats
        goes_on = self.rung < SUSPECT if beats else now - self.signed_at < self.hang_s(limits)
        if self.protests >= PROTESTS and goes_on:
            return True
        return None if self.signed_at > self.gone.at else False

    def evidence(self, now: float, limits: LivenessLimits) -> tuple[Evidence, ...]:
        """One piece for each source that has said something, the most telling."""
        still, hang_s = self.still(now, limits), self.hang_s(limits)
        told: dict[Source, Evidence] = {}
        for source, look in self.looks.items():
            piece = Evidence(source, look.value, look.at, LOOK_FRESH_S, look.detail)
            if look.value is not Value.UNKNOWN and look.detail != STOPPED:
                if source in still:
                    measured_at = look.measured_at
                    piece = Evidence(source, Value.BAD, measured_at, LOOK_FRESH_S, "no_progress")
                elif now - look.moved_at < hang_s:
                    piece = Evidence(source, Value.OK, look.moved_at, hang_s, "progress_seen")
            told[source] = piece
        grown = told.get(Source.TRANSCRIPT)
        if self.grown_at > NEVER and (grown is None or grown.at <= self.grown_at):
            told[Source.TRANSCRIPT] = Evidence(
                Source.TRANSCRIPT, Value.OK, self.grown_at, hang_s, "transcript_grew"
            )
        if self.gone is not None:
            told[self.gone.source] = self.gone
        if self.heard_at > NEVER:
            fresh_s = self.suspect_s(limits)
            told[Source.BEAT] = Evidence(
                Source.BEAT, Value.OK, self.heard_at, fresh_s, "beat_heard"
            )
        return tuple(told[source] for source in sorted(told))


def judge(ledger: Ledger, limits: LivenessLimits, now: float) -> Health:
    """The liveness verdict. The reason is a snake-case code; cases in order, the first counts.

    ended: `finished`, `unit_inactive`, `ended_as_told`.
    dead: `process_gone`, `unit_failed`, `unit_gone`.
    hung: `stopped`, `no_progress`, `silent_and_stopped`, `silent_and_no_progress`.
    late: `silent`, `silent_but_there`, `cannot_be_known`, `amnesty`, `only_claims_progress`,
    `contradicted`. alive: `waits_…`, `heard`, `seen`, `beats_lost_progress_seen`, and of
    unknown value `no_progress_seen`. unknown: `not_heard_yet`, `excused`, `not_seen`.
    """
    condition, value, reason = _verdict(ledger, limits, now)
    return Health(condition, value, reason, ledger.evidence(now, limits))


_Verdict = tuple[Condition, Value, str]


def _verdict(ledger: Ledger, limits: LivenessLimits, now: float) -> _Verdict:  # noqa: PLR0911 - cases in order, the first counts
    contradicted = ledger.contradicted(now, limits)
    if ledger.ended and (ledger.ended != INACTIVE or contradicted is False):
        return Condition.UNKNOWN, Value.UNKNOWN, ledger.ended
    if contradicted is None:
        return Condition.LATE, Value.UNKNOWN, "contradicted"
    if ledger.gone is not None and not contradicted:
        return Condition.DEAD, Value.BAD, ledger.gone.detail
    if ledger.wait_until > now:
        kind = "" if ledger.wait_kind is None else f"_{ledger.wait_kind}"
        return Condition.ALIVE, Value.OK, f"waits{kind}"
    if not ledger.watched.beats:
        return _unbeating(ledger, limits, now)
    if ledger.rung >= SUSPECT:
        return _silent(ledger, limits, now)
    if ledger.excused(now, limits):
        heard = ledger.heard_at > NEVER
        return Condition.UNKNOWN, Value.UNKNOWN, "excused" if heard else "not_heard_yet"
    return _heard(ledger, limits, now)


def _heard(ledger: Ledger, limits: LivenessLimits, now: float) -> _Verdict:  # noqa: PLR0911 - cases in order, the first counts
    """It speaks; whether it also works is another question."""
    if not ledger.works_now() or ledger.moves(now, limits):
        return Condition.ALIVE, Value.OK, "heard"
    hang_s = ledger.hang_s(limits)
    if ledger.stands(now, limits):
        return Condition.HUNG, Value.BAD, "stopped"
    still = ledger.still(now, limits)
    new_words = ledger.claim and now - ledger.claimed_at < hang_s
    if new_words:
        if len(still) > 1:
            return Condition.LATE, Value.UNKNOWN, "only_claims_progress"
        return Condition.ALIVE, Value.OK, "heard"
    # That it says nothing new about its progress, where it used to, is one kind among others.
    says_nothing = bool(ledger.claim) and now - max(ledger.claimed_at, ledger.rested_at) >= hang_s
    if len(still) + says_nothing > 1:
        return Condition.HUNG, Value.BAD, "no_progress"
    could_be_seen = bool(ledger.claim or ledger.watched.sources & SHOW_WORK)
    if could_be_seen and now - ledger.rested_at >= hang_s:
        return Condition.ALIVE, Value.UNKNOWN, "no_progress_seen"
    return Condition.ALIVE, Value.OK, "heard"


def _silent(ledger: Ledger, limits: LivenessLimits, now: float) -> _Verdict:  # noqa: PLR0911 - cases in order, the first counts
    """It was a suspect: what others have seen of it since."""
    moves = ledger.moves(now, limits)
    if moves and ledger.worked_at > ledger.heard_at and not ledger.stands(now, limits):
        return Condition.ALIVE, Value.OK, "beats_lost_progress_seen"
    if ledger.excused(now, limits):
        return Condition.LATE, Value.UNKNOWN, "amnesty"
    there = any(
        look.value is Value.OK and now - look.at <= LOOK_FRESH_S for look in ledger.looks.values()
    )
    if ledger.status is BeatStatus.STOPPING and not there:
        return Condition.UNKNOWN, Value.UNKNOWN, ENDED_AS_TOLD
    if ledger.stands(now, limits):
        return Condition.HUNG, Value.BAD, "silent_and_stopped"
    worked_lately = now - ledger.worked_at < ledger.hang_s(limits)
    if not worked_lately and ledger.works_now() and len(ledger.still(now, limits)) > 1:
        return Condition.HUNG, Value.BAD, "silent_and_no_progress"
    looks = ledger.watched.sources - {Source.BEAT}
    if looks and ledger.looked_at < ledger.suspect_at:
        return Condition.LATE, Value.UNKNOWN, "silent"
    if there and now - ledger.suspect_at < ledger.hang_s(limits) + LOOK_AGAIN_S:
        return Condition.LATE, Value.UNKNOWN, "silent_but_there"
    return Condition.LATE, Value.UNKNOWN, "cannot_be_known"


def _unbeating(ledger: Ledger, limits: LivenessLimits, now: float) -> _Verdict:
    """It was never meant to beat: its other sources are all there is."""
    if ledger.moves(now, limits):
        return Condition.ALIVE, Value.OK, "seen"
    if ledger.stands(now, limits):
        return Condition.HUNG, Value.BAD, "stopped"
    works = ledger.works_now()
    if works and len(ledger.still(now, limits)) > 1:
        return Condition.HUNG, Value.BAD, "no_progress"
    there = any(
        source in PRESENCE and look.value is Value.OK and now - look.at <= LOOK_FRESH_S
        for source, look in ledger.looks.items()
    )
    if there:
        resting = not works or now - ledger.rested_at < ledger.hang_s(limits)
        if resting:
            return Condition.ALIVE, Value.OK, "seen"
        return Condition.ALIVE, Value.UNKNOWN, "no_progress_seen"
    return Condition.UNKNOWN, Value.UNKNOWN, "not_seen"
