"""A changed configuration is taken up as a whole; a wrong one changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio
import trio.testing
from structlog.testing import capture_logs

from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.config.in_force import InForce
from custosd.config.problems import InvalidConfig, Problem, ProblemKind
from custosd.config.reading import Origin, Reading
from custosd.config.settings import Config, GuardianSettings, TranscriptSettings
from custosd.core.agents import AgentId
from custosd.core.errors import ConfigError
from custosd.core.explanations import Setting
from custosd.core.facts import ConfigReloaded, Fact
from custosd.flow.latest import Latest
from custosd.flow.renewal import Renewal
from custosd.flow.supervise import RestartPolicy
from custosd.services.reload import Reload, answer_hangups

CHANGED = Config(
    guardian=GuardianSettings(interval_s=5.0), transcripts=TranscriptSettings(discover=False)
)
PLACES = {("guardian", "interval"): Origin("custosd.toml", 2)}
WRONG = InvalidConfig(
    [Problem("custosd.toml", 3, "guardian.interval", '"x"', "a duration", "", ProblemKind.VALUE)]
)


@dataclass
class Stage:
    """A daemon with one service, which is made of the guardian's settings."""

    files: Config | InvalidConfig = field(default_factory=Config)
    adopted: list[Config] = field(default_factory=list)
    adopt: Callable[[Config], None] | None = None
    runs: list[float] = field(default_factory=list)
    manager: RecordingServiceManager = field(default_factory=RecordingServiceManager)

    in_force: InForce = field(default_factory=lambda: InForce(Reading(Config(), {})))

    def read(self) -> Reading:
        if isinstance(self.files, InvalidConfig):
            raise self.files
        return Reading(self.files, PLACES)

    async def start(self, nursery: trio.Nursery) -> Reload:
        async def service(config: Config, task_status: trio.TaskStatus[None]) -> None:
            self.runs.append(config.guardian.interval_s)
            task_status.started()
            await trio.sleep_forever()

        self.renewal = Renewal(Config())
        await nursery.start(
            self.renewal.run,
            "guardian",
            lambda config: config.guardian,
            service,
            RestartPolicy(),
            lambda _failure: None,
        )
        told, self.told = trio.open_memory_channel[Fact](100)
        return Reload(
            self.read,
            self.in_force,
            self.adopt or self.adopted.append,
            self.renewal,
            told,
            self.manager,
            lambda: "2 agents",
        )


async def test_what_can_be_taken_up_is_and_the_rest_is_named(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    stage = Stage()
    reload = await stage.start(nursery)
    stage.files = CHANGED
    with capture_logs() as logs:
        told = await reload.reload()
    assert told == ConfigReloaded(("guardian.interval",), ("transcripts.discover",))
    assert stage.adopted == [CHANGED]
    assert stage.runs == [60.0, 5.0]
    in_force = stage.in_force.setting(AgentId("ada"), "guardian.interval")
    assert in_force == Setting("guardian.interval", '"5s"', "custosd.toml:2")
    assert logs[-1]["event"] == "config.reloaded"
    assert logs[-1]["services"] == ["guardian"]
    assert stage.told.receive_nowait() == told
    # Asked again: nothing has changed, and what waits for a restart still does.
    assert await reload.reload() == ConfigReloaded((), ("transcripts.discover",))
    stage.files = Config()
    assert await reload.reload() == ConfigReloaded(("guardian.interval",), ())


async def test_a_wrong_file_changes_nothing_and_every_problem_is_told(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    stage = Stage()
    reload = await stage.start(nursery)
    stage.files = WRONG
    with capture_logs() as logs:
        told = await reload.reload()
    assert "guardian.interval" in told.failure
    assert (stage.adopted, stage.runs) == ([], [60.0])
    assert stage.in_force.reading.config == Config()
    assert stage.renewal.value == Config()
    assert [log["event"] for log in logs] == ["config.refused"]
    # The next good one is compared with what is in force, not with the wrong one.
    stage.files = CHANGED
    assert (await reload.reload()).changed == ("guardian.interval",)


async def test_what_can_not_be_acted_upon_is_told_and_the_old_stays_in_force(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    stage = Stage()

    def refuse(_config: Config) -> None:
        raise ConfigError("agent ada: no such pane")

    stage.adopt = refuse
    reload = await stage.start(nursery)
    stage.files = CHANGED
    told = await reload.reload()
    assert told.failure == "agent ada: no such pane"
    assert (stage.runs, stage.renewal.value) == ([60.0], Config())
    assert stage.in_force.reading.config == Config()


async def test_the_service_manager_is_told_of_the_beginning_and_the_end_of_each_reload(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    stage = Stage()
    reload = await stage.start(nursery)
    for stage.files in (CHANGED, WRONG):
        before = len(stage.manager.messages)
        await reload.reload()
        words = [set(message) - {"STATUS"} for message in stage.manager.messages[before:]]
        assert words == [{"RELOADING", "MONOTONIC_USEC"}, {"READY"}]


async def test_several_hangups_at_once_are_one_reload_and_a_later_one_is_another(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    stage = Stage()
    reload = await stage.start(nursery)
    hangups = Latest(7)
    await nursery.start(answer_hangups, hangups, reload)
    await trio.testing.wait_all_tasks_blocked()
    assert stage.adopted == []
    hangups.publish(8)
    hangups.publish(9)
    await trio.testing.wait_all_tasks_blocked()
    assert len(stage.adopted) == 1
    hangups.publish(10)
    await trio.testing.wait_all_tasks_blocked()
    assert len(stage.adopted) == 2
