"""Does what people ask for: one table from the act to what it does, and a fact for each request.

    ActRequest ──► [ subject, arguments ] ──► handler ──► holds, restarter, steerer, reload
                                                └── ActAnswer ──► who asked
                                                └── ActPerformed ──► board

Laws:

1. Whatever was asked, by whom, and what came of it, is a fact: also what was refused, failed
   or only tried. Whom a door turns away (no token, no scope) never asked: that is in the log.
   Acts that only tell (`why`, `forecast`, `tasks`, `budget`) are no facts: they change nothing.
2. With `dry_run` nothing is changed: nothing placed, stored, lifted or sent but that fact.
3. `perform` never raises for what it is asked, and ends within its time.
4. An argument that an act does not know is refused: a misspelt limit must not mean no limit.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog
import trio

from custosd.core.act_arguments import (
    LONGEST_REASON,
    RefusedAct,
    check,
    deadline_of,
    end_of,
    kind_of_message,
    reason_of,
    wait_of,
)
from custosd.core.acts import TELLING, Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.agents import AgentId
from custosd.core.changes import HELD, in_words, rfc3339
from custosd.core.errors import CustosdError, StoreError
from custosd.core.explanations import Explanation
from custosd.core.facts import ActPerformed, ConfigReloaded, Fact
from custosd.core.holds import FLEET, Hold, HoldKind
from custosd.core.steering import Intervention, InterventionState
from custosd.core.subjects import UnknownSubject, one_with_part, one_with_prefix
from custosd.core.verdicts import SteeringKind
from custosd.core.view import FleetView
from custosd.flow.task_tree import task_tree
from custosd.services.cycle import CyclePorts, cycle_form, cycle_words, run_cycle
from custosd.services.emergency import Emergency, Missing, report_form, summary
from custosd.services.explainer import Explainer
from custosd.services.holds import Holds

log = structlog.get_logger()

TIMEOUT_S = 30.0
"""How long an act may take; then whoever asked is told that its end is not known."""

SILENCE_S = 3600.0
"""How long a silence lasts where nothing else is said."""

LONGEST_SUBJECT_LOGGED = 200

MOST_TASKS_TOLD = 2_000
"""Of how many tasks an answer tells; SIGUSR2 has all of them written."""

MOST_AGENTS = 100
"""Of how many agents an emergency can be."""

PAST_DEADLINE_S = 10.0
"""How long an act with a deadline of its own may take beyond it, to say what it has."""

_TELL_TIMEOUT_S = 5.0

_WITH_DEADLINE = frozenset({Act.EMERGENCY, Act.CYCLE})
_GOOD = frozenset({ActOutcome.DONE, ActOutcome.WOULD_BE_DONE})


class Restarter(Protocol):
    """What is asked of whoever restarts agents."""

    async def order(
        self, agent: AgentId, by: str, reason: str, *, dry_run: bool = False
    ) -> ActAnswer:
        """Restart an agent because a person wants it; returns when that is under way."""
        ...

    def released(self, agent: AgentId) -> None:
        """Forget what an agent's restarts had come to: a person let it go on."""
        ...


class Steerer(Protocol):
    """What is asked of whoever sends messages to agents."""

    def interventions(self) -> tuple[Intervention, ...]:
        """All that are open, and the past ones that are remembered; oldest first."""
        ...

    async def steer(
        self,
        agent: AgentId,
        text: str,
        by: str,
        kind: SteeringKind = ...,
        *,
        dry_run: bool = False,
        key: str = "",
        wait_s: float = 0.0,
    ) -> ActAnswer:
        """Send a person's message to an agent; returns when it is stored, or has arrived."""
        ...

    async def approve(self, intervention_id: str, by: str, *, dry_run: bool = False) -> ActAnswer:
        """Let a proposed message go out."""
        ...

    async def reject(self, intervention_id: str, by: str, *, dry_run: bool = False) -> ActAnswer:
        """Keep a proposed message from going out."""
        ...


class Enrolment(Protocol):
    """What is asked of whoever takes agents in for a while, as a drill needs them."""

    def refusal(self, agent: AgentId, form: Mapping[str, str | int | float | bool]) -> str:
        """Why an agent would not be taken in with this form; "" where it would be."""
        ...

    def enrol(self, agent: AgentId, form: Mapping[str, str | int | float | bool]) -> str:
        """Watch an agent for a while, as its form says; "" or why not."""
        ...

    def dismiss(self, agent: AgentId) -> bool:
        """Watch it no longer; False for one that is not here for a while."""
        ...

    def guests(self) -> Collection[AgentId]:
        """Who is here for a while."""
        ...


@dataclass(frozen=True, slots=True)
class ActPorts:
    """Everybody who does a part of what may be asked for. `enrolment` None: nobody comes in.

    `budget` tells of every limit of what judging may cost; None: nothing is known of money.
    `emergency` and `cycle` None: nobody judges here.
    """

    holds: Holds
    restarter: Restarter
    steerer: Steerer
    explainer: Explainer
    reload: Callable[[], Awaitable[ConfigReloaded]]
    enrolment: Enrolment | None = None
    budget: Callable[[], Explanation] | None = None
    emergency: Emergency | None = None
    cycle: CyclePorts | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """How an act is done: whom it can be about, what it does, which arguments it knows."""

    subject: Callable[[str], Awaitable[str]]
    handler: Callable[[ActRequest], Awaitable[ActAnswer]]
    arguments: frozenset[str] = frozenset({"reason"})


_UNTIL = frozenset({"reason", "for_s", "until"})

FORM = frozenset(
    {"ttl_s", "control_url", "letter_url", "workspace", "beat_interval_s", "hang_after_s"}
)
"""What the form of an agent that comes for a while may say; see `services.enrolments`."""


class Acts:
    """`ports.ActDoor`: what all doors for acts hand over to.

    Arguments: `reason` (text; `text` of the request will do too, but for `steer`), `for_s`
    (seconds, at most 30 days; 0 ends a silence) or `until` (RFC 3339) of pause, silence and
    ack; of steer `kind` ("guidance", "correction", "emergency"), `key` (of one there is one
    message) and `wait_s` (how long the answer waits for the delivery, at most 20 s); of emergency
    and cycle `deadline_s` (1 to 300, 60 unless given).
    """

    def __init__(
        self,
        ports: ActPorts,
        view: Callable[[], FleetView],
        facts: trio.MemorySendChannel[Fact],
        now_utc: Callable[[], datetime],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._ports = ports
        self._view = view
        self._facts = facts
        self._now_utc = now_utc
        self._timeout_s = timeout_s
        none = frozenset[str]()
        self._ways: Mapping[Act, _Way] = {
            Act.WHY: _Way(self._agent, self._why, none),
            Act.FORECAST: _Way(self._agent, self._forecast, none),
            Act.TASKS: _Way(self._nobody, self._tasks, none),
            Act.BUDGET: _Way(self._nobody, self._budget, none),
            Act.STEER: _Way(self._agent, self._steer, frozenset({"kind", "key", "wait_s"})),
            Act.APPROVE: _Way(self._intervention, self._approve),
            Act.REJECT: _Way(self._intervention, self._reject),
            Act.RESTART: _Way(self._agent, self._restart),
            Act.QUARANTINE: _Way(self._agent, self._quarantine),
            Act.RELEASE: _Way(self._agent, self._release),
            Act.PAUSE: _Way(self._agent_or_fleet, self._pause, _UNTIL),
            Act.RESUME: _Way(self._agent_or_fleet, self._resume),
            Act.ESTOP: _Way(self._fleet, self._estop),
            Act.THAW: _Way(self._fleet, self._thaw),
            Act.SILENCE: _Way(self._silenced, self._silence, _UNTIL),
            Act.ACK: _Way(self._concern, self._ack, _UNTIL),
            Act.RELOAD: _Way(self._nobody, self._reload),
            Act.ENROL: _Way(self._newcomer, self._enrol, frozenset({"reason", *FORM})),
            Act.DISMISS: _Way(self._guest, self._dismiss),
            Act.EMERGENCY: _Way(self._named, self._emergency, frozenset({"reason", "deadline_s"})),
            Act.CYCLE: _Way(self._nobody, self._cycle, frozenset({"reason", "deadline_s"})),
        }

    async def perform(self, request: ActRequest) -> ActAnswer:
        """Do it, or say why not; see the laws of this module."""
        subject = request.subject
        timeout_s = self._timeout_of(request)
        words = f"not done within {timeout_s:g} s; it may have been done in part"
        answer = ActAnswer(ActOutcome.FAILED, words)
        with trio.move_on_after(timeout_s):
            subject, answer = await self._done(request)
        if request.act not in TELLING:
            await self._tell(replace(request, subject=subject), answer)
        return answer

    def _timeout_of(self, request: ActRequest) -> float:
        if request.act not in _WITH_DEADLINE:
            return self._timeout_s
        try:
            return deadline_of(request) + PAST_DEADLINE_S
        except RefusedAct:
            return self._timeout_s

    async def _done(self, request: ActRequest) -> tuple[str, ActAnswer]:
        """Whom it was about, and what came of it."""
        subject = request.subject
        detail: Mapping[str, object] = {}
        try:
            way = self._ways[request.act]
            check(request, way.arguments)
            subject = await way.subject(request.subject)
            return subject, await way.handler(replace(request, subject=subject))
        except UnknownSubject as error:
            outcome, words = ActOutcome.UNKNOWN_SUBJECT, str(error)
            detail = {"candidates": list(error.candidates)}
        except RefusedAct as error:
            outcome, words = ActOutcome.REFUSED, str(error)
        except StoreError as error:
            outcome, words = ActOutcome.FAILED, f"the database did not take it: {error}"
        except CustosdError as error:
            outcome, words = ActOutcome.FAILED, str(error)
        except Exception as error:
            log.exception("act.failed", act=request.act, author=request.author)
            words = f"an error that nobody expected ({type(error).__name__}); see the log"
            outcome = ActOutcome.FAILED
        return subject, ActAnswer(outcome, words, detail)

    async def _tell(self, request: ActRequest, answer: ActAnswer) -> None:
        log.info(
            "act.performed",
            act=request.act,
            author=request.author,
            subject=request.subject[:LONGEST_SUBJECT_LOGGED],
            outcome=answer.outcome,
            dry_run=request.dry_run,
        )
        # Of what judges, it is told what came of it too.
        done = answer.outcome in _GOOD and request.act not in _WITH_DEADLINE
        fact = ActPerformed(
            request.act,
            request.author,
            request.subject[:LONGEST_SUBJECT_LOGGED],
            answer.outcome,
            request.dry_run,
            reason_of(request) if done else answer.message[:LONGEST_REASON],
        )
        # It was done: so it is told, also when whoever asked has no time left.
        with trio.CancelScope(deadline=trio.current_time() + _TELL_TIMEOUT_S, shield=True) as scope:
            try:
                await self._facts.send(fact)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel()
                await trio.lowlevel.checkpoint_if_cancelled()
        if scope.cancelled_caught:
            log.warning("act.untold", act=request.act, author=request.author)

    # --- whom an act is about --------------------------------------------------------------

    async def _agent(self, part: str) -> str:
        return one_with_part(part, self._agents(), "agent")

    async def _agent_or_fleet(self, part: str) -> str:
        return FLEET if part == FLEET else one_with_part(part, self._agents(), "agent")

    async def _fleet(self, part: str) -> str:
        if part not in {"", FLEET}:
            raise RefusedAct(f"this is for the whole fleet, never for {part!r} alone; see `pause`")
        return FLEET

    async def _nobody(self, part: str) -> str:
        if part:
            raise RefusedAct(f"this is about the daemon itself, not about {part!r}")
        return ""

    async def _silenced(self, part: str) -> str:
        """The fleet, a concern or an agent."""
        agents, concerns = self._agents(), self._concerns()
        if part == FLEET or part in concerns or part in agents:
            return part
        try:
            return one_with_part(part, agents, "agent")
        except UnknownSubject as no_agent:
            try:
                return one_with_prefix(part, concerns, "concern")
            except UnknownSubject:
                raise no_agent from None

    async def _concern(self, part: str) -> str:
        return one_with_prefix(part, self._concerns(), "concern")

    async def _intervention(self, part: str) -> str:
        known = self._ports.steerer.interventions()
        waiting = [one.id for one in known if one.state is InterventionState.PROPOSED]
        # One that is past approval is named all the same, so that it can be said what it is.
        exact = any(one.id == part for one in known)
        return part if exact else one_with_prefix(part, waiting, "proposed message")

    def _agents(self) -> Collection[str]:
        view = self._view()
        return view.agents.keys() | view.hands.lives.keys()

    def _concerns(self) -> Collection[str]:
        hands = self._view().hands
        incidents = {subject for kind, subject in hands.holds if kind is HoldKind.INCIDENT}
        # An incident that a person was asked about is one thing, by the concern's name.
        named = {concern.partition(":")[2] for concern in hands.concerns}
        return hands.concerns.keys() | (incidents - named)

    async def _guest(self, name: str) -> str:
        enrolment = self._ports.enrolment
        return one_with_part(name, enrolment.guests() if enrolment else (), "agent for a while")

    async def _newcomer(self, name: str) -> str:
        """Whoever is not known yet, and so is named in full."""
        if not name:
            raise RefusedAct("it takes the full name of an agent")
        return name

    # --- acts that tell --------------------------------------------------------------------

    async def _why(self, request: ActRequest) -> ActAnswer:
        return _told(await self._ports.explainer.why(AgentId(request.subject)))

    async def _forecast(self, request: ActRequest) -> ActAnswer:
        return _told(self._ports.explainer.forecast(AgentId(request.subject)))

    async def _tasks(self, _request: ActRequest) -> ActAnswer:
        lines = task_tree(most=MOST_TASKS_TOLD).splitlines()
        return ActAnswer(ActOutcome.DONE, "the daemon's tasks", {"lines": lines})

    async def _budget(self, _request: ActRequest) -> ActAnswer:
        if self._ports.budget is None:
            raise RefusedAct("this daemon knows nothing of money")
        return _told(self._ports.budget())

    # --- acts on one agent -----------------------------------------------------------------

    async def _steer(self, request: ActRequest) -> ActAnswer:
        text = request.text.strip()
        if not text:
            raise RefusedAct("there is nothing to tell: the text is empty")
        return await self._ports.steerer.steer(
            AgentId(request.subject),
            text,
            request.author,
            kind_of_message(request),
            dry_run=request.dry_run,
            key=str(request.arguments.get("key", "")),
            wait_s=wait_of(request),
        )

    async def _approve(self, request: ActRequest) -> ActAnswer:
        return await self._ports.steerer.approve(
            request.subject, request.author, dry_run=request.dry_run
        )

    async def _reject(self, request: ActRequest) -> ActAnswer:
        return await self._ports.steerer.reject(
            request.subject, request.author, dry_run=request.dry_run
        )

    async def _restart(self, request: ActRequest) -> ActAnswer:
        agent, reason = AgentId(request.subject), reason_of(request)
        return await self._ports.restarter.order(
            agent, request.author, reason, dry_run=request.dry_run
        )

    async def _quarantine(self, request: ActRequest) -> ActAnswer:
        words = "it is watched, and neither restarted nor told anything until it is released"
        return await self._place(request, HoldKind.QUARANTINE, None, words)

    async def _release(self, request: ActRequest) -> ActAnswer:
        agent = request.subject
        if self._ports.holds.get(HoldKind.QUARANTINE, agent) is None:
            return _nothing(f"{agent} is not quarantined")
        if request.dry_run:
            return _would(f"{agent} would be released, and its count of restarts begun anew")
        await self._ports.holds.lift(
            HoldKind.QUARANTINE, agent, request.author, reason_of(request) or "released"
        )
        self._ports.restarter.released(AgentId(agent))
        return ActAnswer(ActOutcome.DONE, f"{agent} is released")

    # --- acts that hold and lift -----------------------------------------------------------

    async def _pause(self, request: ActRequest) -> ActAnswer:
        until = end_of(request, self._now_utc())
        words = "watching goes on; no restart, no message"
        return await self._place(request, HoldKind.PAUSE, until, words)

    async def _resume(self, request: ActRequest) -> ActAnswer:
        holds, subject = self._ports.holds, request.subject
        if holds.get(HoldKind.PAUSE, subject) is None and holds.get(HoldKind.PAUSE, FLEET):
            return _nothing(f"{subject} is not paused by itself; the fleet is: resume fleet")
        return await self._lift(request, HoldKind.PAUSE)

    async def _estop(self, request: ActRequest) -> ActAnswer:
        words = "no act on any agent until it is thawed; watching goes on"
        return await self._place(request, HoldKind.ESTOP, None, words)

    async def _thaw(self, request: ActRequest) -> ActAnswer:
        return await self._lift(request, HoldKind.ESTOP)

    async def _silence(self, request: ActRequest) -> ActAnswer:
        if request.arguments.get("for_s") == 0:
            return await self._lift(request, HoldKind.SILENCE)
        now = self._now_utc()
        until = end_of(request, now) or now + timedelta(seconds=SILENCE_S)
        return await self._place(request, HoldKind.SILENCE, until, "no notice about it")

    async def _ack(self, request: ActRequest) -> ActAnswer:
        until = end_of(request, self._now_utc())
        words = "no further notice of it until it has been resolved"
        return await self._place(request, HoldKind.ACK, until, words)

    async def _place(
        self, request: ActRequest, kind: HoldKind, until: datetime | None, effect: str
    ) -> ActAnswer:
        standing = self._ports.holds.get(kind, request.subject)
        now, reason = self._now_utc(), reason_of(request)
        end = "" if until is None else f" for {in_words((until - now).total_seconds())}"
        named = "the fleet" if request.subject == FLEET else request.subject
        if standing is not None and standing.until_utc == until:
            already = f"{named} is {HELD[kind]} by {standing.by} already"
            return ActAnswer(ActOutcome.NOTHING_TO_DO, already, _held(standing))
        if standing is not None and _ends_sooner(until, standing):
            # Whoever wants it for longer must not find it gone because of somebody else.
            until_then = "" if standing.until_utc is None else f" until {standing.until_utc:%H:%M}"
            longer = f"{named} is {HELD[kind]} by {standing.by}{until_then}: lift that first"
            return ActAnswer(ActOutcome.REFUSED, longer, _held(standing))
        hold = Hold(kind, request.subject, request.author, reason, now, until)
        if request.dry_run:
            return _would(f"{named} would be {HELD[kind]}{end}: {effect}", _held(hold))
        stored = await self._ports.holds.place(hold)
        unsure = "" if stored else " (in force; the database does not take it yet)"
        words = f"{named} is {HELD[kind]}{end}: {effect}{unsure}"
        return ActAnswer(ActOutcome.DONE, words, {**_held(hold), "stored": stored})

    async def _lift(self, request: ActRequest, kind: HoldKind) -> ActAnswer:
        standing = self._ports.holds.get(kind, request.subject)
        named = "the fleet" if request.subject == FLEET else request.subject
        if standing is None:
            return _nothing(f"{named} is not {HELD[kind]}")
        if request.dry_run:
            return _would(f"{named} would no longer be {HELD[kind]}", _held(standing))
        await self._ports.holds.lift(kind, request.subject, request.author, reason_of(request))
        return ActAnswer(ActOutcome.DONE, f"{named} is no longer {HELD[kind]}", _held(standing))

    # --- agents for a while ----------------------------------------------------------------

    async def _enrol(self, request: ActRequest) -> ActAnswer:
        enrolment, agent = self._ports.enrolment, AgentId(request.subject)
        if enrolment is None:
            raise RefusedAct("this daemon takes nobody in")
        form = {key: value for key, value in request.arguments.items() if key in FORM}
        if refused := (enrolment.refusal if request.dry_run else enrolment.enrol)(agent, form):
            raise RefusedAct(refused)
        if request.dry_run:
            return _would(f"{agent} would be watched for a while")
        return ActAnswer(ActOutcome.DONE, f"{agent} is watched for a while")

    async def _dismiss(self, request: ActRequest) -> ActAnswer:
        agent = AgentId(request.subject)
        if request.dry_run:
            return _would(f"{agent} would be watched no longer")
        if self._ports.enrolment is not None:
            self._ports.enrolment.dismiss(agent)
        return ActAnswer(ActOutcome.DONE, f"{agent} is watched no longer")

    # --- judging now -----------------------------------------------------------------------

    async def _named(self, names: str) -> str:
        """Several agents, one a line; who they are is found out for each."""
        wanted = [name for line in names.split("\n") if (name := line.strip())]
        if not wanted:
            raise RefusedAct("an emergency is about agents: name them")
        if len(wanted) > MOST_AGENTS:
            raise RefusedAct(f"an emergency is about at most {MOST_AGENTS} agents")
        known: dict[str, None] = {}
        unknown: list[UnknownSubject] = []
        for name in wanted:
            try:
                known[one_with_part(name, self._agents(), "agent")] = None
            except UnknownSubject as error:
                known[name] = None
                unknown.append(error)
        if len(unknown) == len(wanted):
            words = "; ".join(str(error) for error in unknown)[:LONGEST_REASON]
            raise UnknownSubject(words, unknown[0].candidates)
        return "\n".join(known)

    async def _emergency(self, request: ActRequest) -> ActAnswer:
        if self._ports.emergency is None:
            raise RefusedAct("nobody judges here")
        deadline_s = deadline_of(request)
        agents: dict[AgentId, None] = {}
        unknown: list[Missing] = []
        for name in request.subject.split("\n"):
            try:
                agents[AgentId(one_with_part(name, self._agents(), "agent"))] = None
            except UnknownSubject as error:
                unknown.append(Missing(name, "unknown_agent", str(error)))
        if request.dry_run:
            names = ", ".join(agents)
            words = f"would be judged now, at most {deadline_s:g} s: {names}"
            missing = [one.form() for one in unknown]
            return _would(words, {"agents": list(agents), "missing": missing})
        report = await self._ports.emergency.analyse(list(agents), deadline_s, unknown)
        outcome = ActOutcome.DONE
        if report.missing:
            some = report.analysed() or report.fleet
            outcome = ActOutcome.PARTLY_DONE if some else ActOutcome.FAILED
        return ActAnswer(outcome, summary(report), report_form(report))

    async def _cycle(self, request: ActRequest) -> ActAnswer:
        if self._ports.cycle is None:
            raise RefusedAct("nobody judges here")
        deadline_s = deadline_of(request)
        if request.dry_run:
            return _would(
                f"the guardian and the conductor would sweep now: {_count(self._agents())}"
            )
        report = await run_cycle(self._ports.cycle, deadline_s)
        outcome = ActOutcome.DONE
        if report.missing:
            some = report.guardian or report.conductor
            outcome = ActOutcome.PARTLY_DONE if some else ActOutcome.FAILED
        return ActAnswer(outcome, cycle_words(report), cycle_form(report))

    # --- acts on the daemon ----------------------------------------------------------------

    async def _reload(self, request: ActRequest) -> ActAnswer:
        if request.dry_run:
            return _would("the configuration would be read again; see `custosd check-config`")
        told = await self._ports.reload()
        detail = {"changed": list(told.changed), "after_restart": list(told.after_restart)}
        if told.failure:
            words = f"the configuration in force stays, the new one is wrong: {told.failure}"
            return ActAnswer(ActOutcome.FAILED, words, detail)
        if not told.changed and not told.after_restart:
            return ActAnswer(ActOutcome.NOTHING_TO_DO, "nothing in it has changed", detail)
        words = f"{len(told.changed)} keys changed"
        if told.after_restart:
            words += f"; after a restart too: {', '.join(told.after_restart)}"
        return ActAnswer(ActOutcome.DONE, words, detail)


def _told(explanation: Explanation) -> ActAnswer:
    detail = {**explanation.form, "lines": list(explanation.lines)}
    return ActAnswer(ActOutcome.DONE, explanation.lines[0], detail)


def _would(words: str, detail: Mapping[str, object] | None = None) -> ActAnswer:
    return ActAnswer(ActOutcome.WOULD_BE_DONE, words, detail or {})


def _count(agents: Collection[str]) -> str:
    return "1 agent" if len(agents) == 1 else f"{len(agents)} agents"


def _nothing(words: str) -> ActAnswer:
    return ActAnswer(ActOutcome.NOTHING_TO_DO, words)


def _ends_sooner(until: datetime | None, standing: Hold) -> bool:
    if until is None:
        return False
    return standing.until_utc is None or until < standing.until_utc


def _held(hold: Hold) -> dict[str, object]:
    return {
        "kind": hold.kind.value,
        "subject": hold.subject,
        "by": hold.by,
        "reason": hold.reason,
        "since_utc": rfc3339(hold.since_utc),
        "until_utc": None if hold.until_utc is None else rfc3339(hold.until_utc),
    }
