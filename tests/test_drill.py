"""The drill's parts: what links are read from the record, the stories, the hook, a canary."""

import json
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM

import pytest
import trio
from tests.end_to_end.daemons import working_below

from custosd.adapters.control.http import HttpControl
from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.agents import AgentId, AgentRef, AgentState, RunId
from custosd.core.beats import Refusal
from custosd.core.evidence import Condition, Exit, Value
from custosd.core.facts import (
    ActPerformed,
    BeatsRefused,
    Entry,
    Escalated,
    Fact,
    HoldPlaced,
    InterventionChanged,
    LifeChanged,
    Notified,
    RestartChanged,
    RestartStepped,
    RestartWithheld,
    StandingChanged,
)
from custosd.core.holds import Hold, HoldKind
from custosd.core.restarts import Cause, RestartState, RestartStep, StepState
from custosd.core.steering import InterventionState
from custosd.core.verdicts import Standing
from custosd.drill.canaries import CANARIES, HARM_AFTER_S
from custosd.drill.hook import Cage, serve_hook
from custosd.drill.links import LinkState, Trial, broken, decided, links
from custosd.drill.run import Drill, DrillError, DrillPorts
from custosd.drill.stories import ORDERS, begin_loop, come_out, give_orders, go_round
from custosd.ports import HandOver

T0 = datetime(2026, 3, 1, tzinfo=UTC)
WELL = "canary-healthy-1"


def trial(name: str, **more: object) -> Trial:
    made = Trial(CANARIES[name], f"canary-{name}-1", T0, frozenset({WELL}))
    return Trial(made.canary, made.agent, T0, made.around, **more) if more else made  # type: ignore[arg-type]


def entries(*facts: Fact) -> list[Entry]:
    """One each second from the harm on."""
    return [Entry(f"{n:04}", T0 + timedelta(seconds=n), fact) for n, fact in enumerate(facts, 1)]


def life(agent: str, condition: Condition, value: Value) -> LifeChanged:
    states = AgentState.RUNNING, AgentState.FAILED
    return LifeChanged(AgentId(agent), 0, *states, condition, value, "reason")


def restart(agent: str, state: RestartState, cause: Cause = Cause.CRASH) -> RestartChanged:
    return RestartChanged("r1", AgentId(agent), 0, 1, state, cause, "custosd", "", "not_heard")


def spawn(agent: str) -> RestartStepped:
    step = RestartStep.SPAWN, 1, StepState.DONE, "spawned", 0.1
    return RestartStepped("r1", AgentId(agent), *step)


def states(of: Trial, *facts: Fact, over: bool = False) -> dict[str, LinkState]:
    return {link.name: link.state for link in links(of, entries(*facts), over=over)}


DEAD = life("canary-crash-1", Condition.DEAD, Value.BAD)


def test_a_chain_holds_by_death_spawn_and_success_and_says_when() -> None:
    facts = (DEAD, spawn("canary-crash-1"), restart("canary-crash-1", RestartState.SUCCEEDED))
    found = links(trial("crash"), entries(*facts), over=True)
    assert [(link.state, link.after_s) for link in found] == [
        (LinkState.HELD, 1.0),
        (LinkState.HELD, 2.0),
        (LinkState.HELD, 3.0),
        (LinkState.UNNEEDED, None),
    ]


@pytest.mark.parametrize("cut", range(3))
def test_each_missing_fact_breaks_its_link_at_the_end_and_is_waited_for_before(cut: int) -> None:
    facts = [DEAD, spawn("canary-crash-1"), restart("canary-crash-1", RestartState.SUCCEEDED)]
    del facts[cut]
    name = ("detected", "acted", "healed")[cut]
    assert states(trial("crash"), *facts)[name] is LinkState.WAITING
    assert states(trial("crash"), *facts, over=True)[name] is LinkState.BROKEN


def test_what_happened_to_another_or_before_the_harm_is_no_link() -> None:
    other = life("canary-crash-2", Condition.DEAD, Value.BAD)
    assert states(trial("crash"), other)["detected"] is LinkState.WAITING
    early = [Entry("1", T0 - timedelta(seconds=1), DEAD)]
    assert links(trial("crash"), early)[0].state is LinkState.WAITING
    assert states(trial("hang"), life("canary-hang-1", Condition.DEAD, Value.BAD))["detected"] is (
        LinkState.WAITING
    )


def test_a_restart_that_is_withheld_for_good_breaks_at_once_and_says_why() -> None:
    withheld = RestartWithheld(AgentId("canary-crash-1"), 0, Cause.CRASH, "observing")
    (link,) = broken(links(trial("crash"), entries(DEAD, withheld)))
    assert (link.name, "observing" in link.words) == ("acted", True)
    later = RestartWithheld(AgentId("canary-crash-1"), 0, Cause.CRASH, "fleet_budget")
    assert not broken(links(trial("crash"), entries(DEAD, later)))


def test_memory_that_ran_out_must_be_known_for_that() -> None:
    agent = "canary-memory-1"
    good = restart(agent, RestartState.SUCCEEDED, Cause.OUT_OF_MEMORY)
    facts = life(agent, Condition.DEAD, Value.BAD), spawn(agent)
    assert not broken(links(trial("memory"), entries(*facts, good), over=True))
    wrong = restart(agent, RestartState.SUCCEEDED, Cause.CRASH)
    assert broken(links(trial("memory"), entries(*facts, wrong), over=True))


@pytest.mark.parametrize(
    "fact",
    [
        life(WELL, Condition.LATE, Value.UNKNOWN),
        life(WELL, Condition.HUNG, Value.BAD),
        restart(WELL, RestartState.INTENDED),
        Escalated(f"life:{WELL}", "life", AgentId(WELL), "no_control"),
        InterventionChanged("m1", AgentId(WELL), None, InterventionState.PROPOSED, "policy"),
        HoldPlaced(Hold(HoldKind.QUARANTINE, WELL, "custosd", "", T0)),
    ],
)
def test_whatever_happens_to_the_healthy_one_breaks_its_chain(fact: Fact) -> None:
    alive = life(WELL, Condition.ALIVE, Value.OK)
    assert states(trial("healthy"), alive, over=True)["acted"] is LinkState.QUIET
    assert states(trial("healthy"), alive, fact)["acted"] is LinkState.BROKEN


@pytest.mark.parametrize(
    "fact",
    [
        ActPerformed(Act.RESTART, "somebody", WELL, ActOutcome.DONE),
        ActPerformed(Act.ESTOP, "somebody", "fleet", ActOutcome.DONE),
        restart(WELL, RestartState.INTENDED),
        restart("custosd:canary-injection-1", RestartState.INTENDED),
        InterventionChanged(
            "m1", AgentId("custosd:canary-injection-1"), None, InterventionState.PROPOSED, "policy"
        ),
        HoldPlaced(Hold(HoldKind.ESTOP, "fleet", "custosd", "", T0)),
    ],
)
def test_an_injection_that_is_obeyed_breaks_its_chain(fact: Fact) -> None:
    assert states(trial("injection"), fact)["acted"] is LinkState.BROKEN
    own = ActPerformed(Act.ENROL, "drill", WELL, ActOutcome.DONE)
    others = restart("canary-crash-1", RestartState.SUCCEEDED)
    assert states(trial("injection"), own, others)["acted"] is LinkState.QUIET


def test_a_flood_is_told_and_does_not_hold_up_an_answer() -> None:
    told = BeatsRefused(Refusal.OVERSIZE, 30)
    assert not broken(links(trial("flood", answer_s=0.2), entries(told), over=True))
    assert states(trial("flood", answer_s=1.5), told)["answered"] is LinkState.BROKEN
    assert states(trial("flood"), over=True)["answered"] is LinkState.BROKEN
    assert states(trial("flood", answer_s=0.2), over=True)["detected"] is LinkState.BROKEN


def test_a_loop_is_found_and_a_person_is_told_of_it() -> None:
    agent = AgentId("custosd:canary-loop-1")
    concern = f"standing:{agent}"
    stuck = StandingChanged(AgentRef(agent, RunId("r")), Standing.UNKNOWN, Standing.STUCK, "v1")
    asked, told = (
        Escalated(concern, "standing", agent, "stuck"),
        Notified(concern, "log", resolved=False),
    )
    assert not broken(links(trial("loop"), entries(stuck, asked, told), over=True))
    failed = Notified(concern, "log", resolved=False, failure="away")
    assert states(trial("loop"), stuck, asked, failed, over=True)["notified"] is LinkState.BROKEN
    # By every way, not only by the log, which cannot fail.
    both = trial("loop", ways=frozenset({"log", "command"}))
    assert states(both, stuck, asked, told, over=True)["notified"] is LinkState.BROKEN
    by_command = Notified(concern, "command", resolved=False)
    assert not broken(links(both, entries(stuck, asked, told, by_command), over=True))


def test_a_canary_that_never_comes_to_its_harm_breaks_its_chain() -> None:
    idle = Trial(CANARIES["crash"], "canary-crash-1")
    assert not decided(links(idle, []))
    assert broken(links(idle, [], over=True))


def test_stories_are_transcripts_as_they_are_documented(tmp_path: Path) -> None:
    loop = begin_loop(tmp_path / "loop.jsonl", "canary-loop-1")
    go_round(loop)
    come_out(loop, 0)
    orders = give_orders(tmp_path / "orders.jsonl", "canary-injection-1", WELL)
    for story in (loop, orders):
        lines = [json.loads(line) for line in story.path.read_text().splitlines()]
        assert lines[0]["custosd"] == 1
        assert all("type" in line for line in lines[1:])
    assert sum(WELL in line for line in orders.path.read_text().splitlines()) >= 3
    assert len(ORDERS) * 3 + 1 == len(orders.path.read_text().splitlines())


async def test_a_cage_answers_the_daemons_control_and_starts_one_incarnation_a_key(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A real canary behind the real control adapter, and its real beats."""
    with trio.socket.socket(AF_UNIX, SOCK_DGRAM) as door:
        await door.bind(str(tmp_path / "beats.sock"))
        agent = "canary-crash-1"
        cage = Cage(
            CANARIES["crash"], agent, tmp_path / "beats.sock", tmp_path, nursery, lambda: T0
        )
        url = await nursery.start(serve_hook, {agent: cage})
        control = HttpControl(f"{url}/{agent}")
        assert (await control.sight()).value is Value.UNKNOWN
        cage.start(0)
        try:
            beat = json.loads(await door.recv(65536))
            assert (beat["agent"], beat["epoch"], beat["pid"]) == (agent, 0, cage.pid)
            assert (await control.sight()).value is Value.OK
            with trio.fail_after(HARM_AFTER_S + 20):
                await cage.harmed.wait()
                await cage.ended.wait()
            assert (await control.sight()).exit == Exit(code=1)
            hand_over = HandOver(AgentId(agent), 1, Cause.CRASH, "", "", "", ())
            await control.spawn("key", hand_over)
            first = cage.pid
            await control.spawn("key", hand_over)
            assert cage.pid == first
            with trio.fail_after(20):
                while json.loads(await door.recv(65536))["epoch"] != 1:
                    pass
            await control.kill()
            with trio.fail_after(20):
                await cage.ended.wait()
            assert (await control.sight()).exit == Exit(signal=signal.SIGKILL)
            wrong = HttpControl(f"{url}x/{agent}")
            assert (await wrong.sight()).value is Value.UNKNOWN
        finally:
            cage.kill()
            nursery.cancel_scope.cancel()


class Daemon:
    """A daemon that takes everybody in, remembers it, and has nothing in its record."""

    def __init__(self, tmp_path: Path, refused: str = "") -> None:
        self.asked: list[tuple[Act, str]] = []
        self._refused = refused
        beats, folder = tmp_path / "beats.sock", tmp_path / "drill"
        self.ports = DrillPorts(self.ask, self.record, beats, folder, lambda: datetime.now(UTC))

    async def ask(self, request: ActRequest) -> ActAnswer:
        await trio.lowlevel.checkpoint()
        self.asked.append((request.act, request.subject))
        refused = self._refused and self._refused in request.subject
        return ActAnswer(ActOutcome.REFUSED if refused else ActOutcome.DONE, "words")

    async def record(self, limit: int) -> Sequence[Entry]:
        await trio.lowlevel.checkpoint()
        return ()

    def leaves_nothing(self) -> bool:
        came = {subject for act, subject in self.asked if act is Act.ENROL}
        went = {subject for act, subject in self.asked if act is Act.DISMISS}
        return came == went and not self.ports.folder.exists()


async def test_a_silent_record_breaks_the_drill_and_it_cleans_up(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    drill = Drill(daemon.ports, ("healthy", "injection"), 0.5, keep_going=False)
    results = await drill.run()
    assert all(result.broken for result in results)
    assert daemon.leaves_nothing()
    assert list(working_below(tmp_path)) == []


async def test_a_drill_that_is_interrupted_cleans_up(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with trio.move_on_after(1.0) as scope:
        await Drill(daemon.ports, ("hang", "loop"), 60.0, keep_going=False).run()
    assert scope.cancelled_caught
    assert daemon.leaves_nothing()
    assert list(working_below(tmp_path)) == []


async def test_a_daemon_that_takes_nobody_in_is_an_error_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    daemon = Daemon(tmp_path, refused="canary-hang")
    with pytest.raises(ExceptionGroup) as raised:
        await Drill(daemon.ports, ("healthy", "hang"), 60.0, keep_going=False).run()
    assert raised.group_contains(DrillError, match="did not take")
    assert daemon.leaves_nothing()
