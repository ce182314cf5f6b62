"""The whole daemon on the shipped fakes, living virtual hours."""

import ast
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import get_args
from urllib.parse import parse_qsl, urlsplit

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.contracts.task_contract import new
from tests.idle_hands import idle_hands

import custosd.app
from custosd.acting import Remembered
from custosd.adapters.judges.rules import RulesJudge
from custosd.adapters.memory import MemoryStore
from custosd.adapters.memory_actions import MemoryActions
from custosd.adapters.memory_service_manager import RecordingServiceManager
from custosd.adapters.memory_tasks import MemoryTasks
from custosd.adapters.postgres.embedded import embedded_postgres
from custosd.adapters.scripted_source import ScriptedSource
from custosd.adapters.transcripts.format import Sample
from custosd.adapters.transcripts.registry import format_named
from custosd.app import Outside, first_view, formats_of, run_daemon, supervise_fleet
from custosd.config.reading import Reading
from custosd.config.section import Section
from custosd.config.settings import Config, FormatName
from custosd.core.agents import AgentId, AgentState
from custosd.core.effects import text_of
from custosd.core.errors import StoreUnavailable
from custosd.core.facts import DaemonStarted, DaemonStopped, TaskChanged, VerdictReached
from custosd.core.lives import LifeRecord
from custosd.core.tasks import ClaimRequest, TaskId, TaskState
from custosd.core.transcript import Acted, Asked, Opened, Result, Step, StepKind, TranscriptEvent
from custosd.core.verdicts import Standing
from custosd.flow.clock import wall_clock
from custosd.ports import Restored, TranscriptSource

LOOP = AgentId("scripted:loop")


def failing(n: int) -> Acted:
    text = text_of("ModuleNotFoundError: No module named 'x'")
    step = Step(
        f"s{n}",
        StepKind.RUN,
        "shell",
        "python",
        text_of("python app.py"),
        text,
        Result.ERROR,
        exit_code=1,
    )
    return Acted("", step)


BEGIN: list[TranscriptEvent] = [Opened("", "loop"), Asked("", "Make app.py run.")]


@dataclass
class Life:
    """One start of the daemon; the store and the transcripts outlive it."""

    store: MemoryStore
    now_utc: Callable[[], datetime]
    manager: RecordingServiceManager = field(default_factory=RecordingServiceManager)
    stop: trio.Event = field(default_factory=trio.Event)
    source: ScriptedSource | None = None
    actions: MemoryActions = field(default_factory=MemoryActions)
    tasks: MemoryTasks | None = None

    @asynccontextmanager
    async def open(self, restored: Restored) -> AsyncGenerator[TranscriptSource]:
        self.source = ScriptedSource(self.now_utc, restored.positions)
        yield self.source

    async def start(self, nursery: trio.Nursery) -> ScriptedSource:
        outside = Outside(
            self.store,
            self.open,
            lambda _: nullcontext(RulesJudge()),
            self.manager,
            self.now_utc,
            replace(idle_hands(self.actions), tasks=self.tasks),
            lambda: Reading(Config(), {}),
        )
        await nursery.start(supervise_fleet, Config(), outside, self.stop)
        assert self.source is not None
        return self.source


async def held(store: MemoryStore) -> dict[AgentId, Standing]:
    return {a.ref.agent: a.standing for a in (await store.restore()).agents}


async def test_a_looping_agent_is_held_to_be_stuck_and_everything_is_on_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        life = Life(store, wall_clock())
        source = await life.start(nursery)
        source.grow("/t/loop", *BEGIN, *(failing(n) for n in range(8)))
        await trio.sleep(300)
        life.stop.set()
    assert await held(store) == {LOOP: Standing.STUCK}
    facts = [entry.fact for entry in await store.recent_entries(None, 1000)]
    assert isinstance(facts[0], DaemonStopped)
    assert isinstance(facts[-1], DaemonStarted)
    assert len([f for f in facts if isinstance(f, VerdictReached)]) == 1
    assert [beat.stopped for beat in await store.beats()] == [True]


async def test_the_service_manager_is_told_of_readiness_progress_and_the_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    life = Life(MemoryStore(), wall_clock(), RecordingServiceManager(watchdog_s=30.0))
    async with trio.open_nursery() as nursery:
        await life.start(nursery)
        told = life.manager.messages
        assert any("READY" in message for message in told)
        before = sum("WATCHDOG" in message for message in told)
        await trio.sleep(605)
        assert sum("WATCHDOG" in message for message in told) - before == 60
        life.stop.set()
    assert any("STOPPING" in message for message in told)


async def test_a_database_that_dies_for_an_hour_costs_nothing_that_matters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Supervision goes on, the watchdog is fed, and afterwards everything is stored."""
    store = MemoryStore()
    life = Life(store, wall_clock(), RecordingServiceManager(watchdog_s=30.0))
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            source = await life.start(nursery)
            source.grow("/t/loop", *BEGIN)
            await trio.sleep(120)
            logs.clear()
            store.fail_with(StoreUnavailable("gone"))
            source.grow("/t/loop", *(failing(n) for n in range(8)))
            await trio.sleep(3600)
            reached = [log["standing"] for log in logs if log["event"] == "verdict.reached"]
            assert reached == [Standing.STUCK, Standing.SILENT]
            assert not [log for log in logs if log["event"] == "watchdog.starved"]
            store.fail_with(None)
            await trio.sleep(120)
            life.stop.set()
    restored = (await store.restore()).agents
    assert [(a.standing, a.digest and a.digest.steps) for a in restored] == [(Standing.SILENT, 8)]
    assert not [log for log in logs if log["event"] == "service.failed"]


async def test_a_new_start_takes_up_what_the_last_one_knew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, now_utc = MemoryStore(), wall_clock()
    events = [*BEGIN, *(failing(n) for n in range(8))]
    for _ in range(3):
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                life = Life(store, now_utc)
                source = await life.start(nursery)
                source.grow("/t/loop", *events)
                await trio.sleep(130)
                life.stop.set()
        asked = [log["asked"] for log in logs if log["event"] == "sweep.finished"]
    assert sum(asked) == 0, "what was answered in the first life is not asked in the third"
    assert await held(store) == {LOOP: Standing.STUCK}
    assert [a.digest and a.digest.steps for a in (await store.restore()).agents] == [8]


async def test_a_stop_is_cut_off_when_the_store_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class HangingStore(MemoryStore):
        hangs = False

        async def save_progress(self, batch: object) -> None:
            if self.hangs:
                await trio.sleep_forever()
            await super().save_progress(batch)  # type: ignore[arg-type]

    store = HangingStore()
    async with trio.open_nursery() as nursery:
        life = Life(store, wall_clock())
        source = await life.start(nursery)
        store.hangs = True
        source.grow("/t/loop", *BEGIN)
        await trio.sleep(1)
        life.stop.set()
        stopped_at = trio.current_time()
    assert trio.current_time() - stopped_at <= Config().daemon.drain_s


async def test_a_drain_that_is_cut_says_what_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class HangingStore(MemoryStore):
        hangs = False

        async def record(self, entries: object) -> None:
            if self.hangs:
                await trio.sleep_forever()
            await super().record(entries)  # type: ignore[arg-type]

    store = HangingStore()
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            life = Life(store, wall_clock())
            source = await life.start(nursery)
            await trio.sleep(5)
            store.hangs = True
            source.grow("/t/loop", *BEGIN)
            await trio.sleep(5)
            life.stop.set()
    (cut,) = [log for log in logs if log["event"] == "drain.cut"]
    recorded = len(await MemoryStore.recent_entries(store, None, 1000))
    assert recorded
    # Seen, the end, and what else was told of the agent or of the sweeps meanwhile.
    assert cut["entries"] >= 2
    assert (cut["facts"], cut["transcripts"]) == (0, 0)


async def test_a_drain_that_comes_to_its_end_says_nothing_of_a_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            life = Life(MemoryStore(), wall_clock())
            await life.start(nursery)
            life.stop.set()
    assert "drain.cut" not in {log["event"] for log in logs}


async def test_a_start_waits_for_a_store_that_is_away(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """It says so once in the log, and to the service manager before each pause."""
    life = Life(MemoryStore(), wall_clock())
    life.store.fail_with(StoreUnavailable("no database answers"))
    started = trio.Event()

    async def start() -> None:
        await life.start(nursery)
        started.set()

    with capture_logs() as logs:
        nursery.start_soon(start)
        await trio.sleep(3600)
        assert not started.is_set()
        told = life.manager.messages
        assert [log["event"] for log in logs] == ["store.lost"]
        assert logs[0]["during"] == "start"
        assert "no database answers" in told[-1]["STATUS"]
        extended = [int(m["EXTEND_TIMEOUT_USEC"]) for m in told if "EXTEND_TIMEOUT_USEC" in m]
        assert len(extended) > 100
        assert min(extended) > 30e6
        life.store.fail_with(None)
        await trio.sleep(31)
    assert started.is_set()
    assert [log["event"] for log in logs][:2] == ["store.lost", "store.returned"]
    life.stop.set()


async def test_tasks_are_kept_their_leases_end_and_what_ended_long_ago_goes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The tasks' own clock is three months late here, so that what ends in it is old."""
    now_utc = wall_clock()
    tasks = MemoryTasks(now_utc=lambda: now_utc() - timedelta(days=91))
    await tasks.add([new("held"), new("ended")], "eve")
    await tasks.cancel([TaskId("ended")])
    await tasks.claim(ClaimRequest(AgentId("ada"), lease_s=7.0))
    store = MemoryStore()
    async with trio.open_nursery() as nursery:
        life = Life(store, now_utc, tasks=tasks)
        await life.start(nursery)
        await trio.sleep(10)
        life.stop.set()
    left = await tasks.tasks([TaskId("held"), TaskId("ended")])
    assert {id_: task.state for id_, task in left.items()} == {"held": TaskState.READY}
    facts = [entry.fact for entry in await store.recent_entries(None, 100)]
    assert [fact.task for fact in facts if isinstance(fact, TaskChanged)] == ["held"]


async def test_a_stop_ends_a_start_that_waits(autojump_clock: trio.testing.MockClock) -> None:
    life = Life(MemoryStore(), wall_clock())
    life.store.fail_with(StoreUnavailable("away"))
    outside = Outside(
        life.store,
        life.open,
        lambda _: nullcontext(RulesJudge()),
        life.manager,
        life.now_utc,
        idle_hands(life.actions),
        lambda: Reading(Config(), {}),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise_fleet, Config(), outside, life.stop)
        await trio.sleep(600)
        life.stop.set()
        asked_at = trio.current_time()
    assert trio.current_time() == asked_at
    assert not any("READY" in message for message in life.manager.messages)


async def test_a_store_that_goes_away_during_the_start_does_not_hold_up_a_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class NoDays(MemoryStore):
        async def prepare_days(self, today_utc: datetime, ahead: int = 2) -> int:
            del today_utc, ahead
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("away")

    life = Life(NoDays(), wall_clock())
    outside = Outside(
        life.store,
        life.open,
        lambda _: nullcontext(RulesJudge()),
        life.manager,
        life.now_utc,
        idle_hands(life.actions),
        lambda: Reading(Config(), {}),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise_fleet, Config(), outside, life.stop)
        await trio.sleep(600)
        life.stop.set()
        asked_at = trio.current_time()
    assert trio.current_time() == asked_at
    assert any("STOPPING" in message for message in life.manager.messages)


@pytest.mark.postgres
async def test_the_daemon_waits_for_a_server_that_is_started_later(tmp_path: Path) -> None:
    """A real server on a real port, which nobody listens at when the daemon starts."""
    environ = {"HOME": str(tmp_path), "STATE_DIRECTORY": str(tmp_path / "state")}
    manager, stop = Listening(), trio.Event()
    door = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = door[0].socket.getsockname()[1]
    for listener in door:
        await listener.aclose()
    config = Config.model_validate(
        {
            "store": {"dsn": f"postgresql://custosd@127.0.0.1:{port}/postgres"},
            "transcripts": {"discover": False},
        }
    )
    with capture_logs() as logs, trio.fail_after(60):
        async with embedded_postgres(tmp_path / "pg") as server, trio.open_nursery() as nursery:
            async with trio.open_nursery() as daemon:
                daemon.start_soon(
                    run_daemon, Reading(config, {}), environ, manager, stop, wall_clock()
                )
                await manager.until("waiting for the database")
                await nursery.start(passing_on, port, server.dsn)
                await manager.until("READY")
                stop.set()
            nursery.cancel_scope.cancel()
    told = [log["event"] for log in logs if log.get("during") == "start"]
    assert told == ["store.lost", "store.returned"]


class Listening(RecordingServiceManager):
    """A service manager that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._told = trio.Event()

    def _keep(self, assignments: dict[str, str], *, owe: bool = False) -> bool:
        self._told.set()
        return super()._keep(assignments, owe=owe)

    async def until(self, word: str) -> None:
        """Wait for a message with this word."""
        while not any(word in str(message) for message in self.messages):
            self._told = trio.Event()
            await self._told.wait()


async def passing_on(
    port: int, dsn: str, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
) -> None:
    """Listen at a TCP port, and pass everything on to the server's own socket."""
    folder = dict(parse_qsl(urlsplit(dsn).query))

    async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await target.send_all(data)
            await target.send_eof()

    async def serve(client: trio.SocketStream) -> None:
        server = await trio.open_unix_socket(f"{folder['host']}/.s.PGSQL.{folder['port']}")
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, server)
            nursery.start_soon(pump, server, client)

    await trio.serve_tcp(serve, port, host="127.0.0.1", task_status=task_status)


def test_a_root_that_is_reached_by_a_link_keeps_its_format(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "a.jsonl").write_text('{"custosd": 1, "session": "s"}\n')
    root = {"path": str(tmp_path / "link"), "format": "codex"}
    settings = Config.model_validate({"transcripts": {"discover": False, "root": [root]}})
    chosen = formats_of(settings.transcripts)
    sample = Sample(str(tmp_path / "real" / "a.jsonl"), b'{"custosd": 1}')
    found = chosen.recognise(sample)
    assert found is not None
    assert found.name == format_named("codex").name  # type: ignore[union-attr]


def fields_of(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section], str]]:
    for name, info in section.model_fields.items():
        kinds = [info.annotation, *get_args(info.annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
        for kind in inner:
            yield from fields_of(kind, f"{path}{name}.")
        if not inner:
            yield f"{path}{name}", section, name


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_setting_is_read_by_somebody() -> None:
    """By its name where settings are known, or by a method of its section that is called there."""
    package = Path(custosd.app.__file__).parent
    files = [p for p in package.rglob("*.py") if p.relative_to(package).parts[0] != "config"]
    # Who has no settings may have fields of the same names.
    knowing = [text for p in files if "custosd.config" in (text := p.read_text())]
    read = set().union(*(attributes(ast.parse(text)) for text in knowing))
    for path, section, name in fields_of(Config):
        methods = [
            node
            for node in ast.walk(ast.parse(dedent(inspect.getsource(section))))
            if isinstance(node, ast.FunctionDef) and node.name in read
        ]
        known = read.union(*map(attributes, methods))
        assert name in known or "model_dump" in known - read, f"nobody reads {path}"


@pytest.mark.parametrize("name", [n for n in get_args(FormatName) if n != "auto"])
def test_every_format_that_can_be_configured_exists(name: str) -> None:
    assert format_named(name) is not None


@pytest.mark.parametrize(("strangers", "shown"), [(False, ["known"]), (True, ["gone", "known"])])
def test_who_is_configured_no_more_is_not_shown_after_a_restart(
    *, strangers: bool, shown: list[str]
):
    since_utc = datetime(2026, 1, 1, tzinfo=UTC)
    lives = [
        LifeRecord(AgentId(name), 3, 7, AgentState.RUNNING, since_utc) for name in ("known", "gone")
    ]
    config = Config.model_validate({"agent": [{"id": "known"}], "doors": {"strangers": strangers}})
    view = first_view(config, Restored(), Remembered(tuple(lives)))
    assert sorted(view.hands.lives) == shown
