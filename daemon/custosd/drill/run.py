"""Runs a drill beside a running daemon: lets canaries loose, watches the record, cleans up.

    canaries ──► beats, deaths, transcripts ──► daemon ──► record ──► [ links ] ──► results
       ▲────────────── hook ◄──────────────────────┘

Laws: whatever happens, at the end no canary lives, none is enrolled, and no file is left; and
where this cannot be done because we were killed, canaries die with us, and their enrolment
ends by itself.
"""

import itertools
import json
import secrets
import shutil
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import trio

from custosd.core.acts import Act, ActAnswer, ActOutcome, ActRequest
from custosd.core.errors import CustosdError, StoreError
from custosd.core.facts import ConcernResolved, Entry, Escalated
from custosd.drill.canaries import BEAT_S, CANARIES, Canary
from custosd.drill.hook import Cage, serve_hook
from custosd.drill.links import Link, Trial, broken, decided, is_about, links
from custosd.drill.stories import (
    LOOP_STEPS,
    Story,
    begin_loop,
    come_out,
    give_orders,
    go_round,
)

LOOK_S = 0.5
"""How often the record is read."""

SETTLE_S = 3.0
"""How long it is watched, after all that must happen has happened, for what must not."""

LOOP_S = 0.5
RECOVER_S = 180.0
"""How long the loop has to be found well again; the guardian may look seldom."""

CLEAN_S = 20.0
TTL_MARGIN_S = 120.0
MOST_ENTRIES = 1_000
"""Newest entries of the record that are read at a time: far more than come between two looks."""


class DrillError(CustosdError):
    """The drill could not be held."""


@dataclass(frozen=True, slots=True)
class DrillPorts:
    """What a drill is held with.

    `ask` asks the running daemon; `record` gives the newest so many entries of its record;
    `beats` is its socket for beats, `folder` one that it follows for transcripts. `ways` are
    those by which it tells people. `say` shows a person how the drill goes on.
    """

    ask: Callable[[ActRequest], Awaitable[ActAnswer]]
    record: Callable[[int], Awaitable[Sequence[Entry]]]
    beats: Path
    folder: Path
    now_utc: Callable[[], datetime]
    ways: frozenset[str] = frozenset({"log"})
    say: Callable[[str], None] = lambda _words: None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one canary."""

    canary: Canary
    agent: str
    links: tuple[Link, ...]

    @property
    def broken(self) -> tuple[Link, ...]:
        """The links that did not hold."""
        return broken(self.links)


@dataclass(slots=True)
class Drill:
    """One drill under way."""

    ports: DrillPorts
    names: Sequence[str]
    timeout_s: float
    keep_going: bool
    tag: str = field(default_factory=lambda: secrets.token_hex(3))
    _cages: dict[str, Cage] = field(default_factory=dict)
    _stories: dict[str, Story] = field(default_factory=dict)
    _trials: dict[str, Trial] = field(default_factory=dict)
    _entries: dict[str, Entry] = field(default_factory=dict)
    _answer_s: float | None = None

    @property
    def folder(self) -> Path:
        """Where everything of this drill lies."""
        return self.ports.folder / self.tag

    def agent_of(self, name: str) -> str:
        """How a canary is called in this drill: no two drills share one, nor its budgets."""
        return f"canary-{name}-{self.tag}"

    async def run(self) -> tuple[Result, ...]:
        """Hold it. Raises `DrillError`, and whatever asking the daemon raises."""
        async with trio.open_nursery() as nursery, self._cleaned():
            url = await nursery.start(serve_hook, self._cages)
            await self._let_loose(url, nursery)
            self.ports.say(
                f"{len(self.names)} canaries are loose, for {self.timeout_s:g} s at most"
            )
            found = await self._watch()
            nursery.cancel_scope.cancel("the drill is over")
        return tuple(Result(CANARIES[name], self.agent_of(name), found[name]) for name in found)

    # --- letting them loose ----------------------------------------------------------------

    async def _let_loose(self, url: str, nursery: trio.Nursery) -> None:
        try:
            self.folder.mkdir(parents=True)
            # The daemon may be another user's.
            for folder in (self.ports.folder, self.folder):
                folder.chmod(0o755)
        except OSError as error:
            raise DrillError(
                f"the folder {self.folder} cannot be made ({error.strerror}):"
                " hold the drill as the daemon's user, or as root"
            ) from error
        around = frozenset(self.agent_of(name) for name in self.names if name == "healthy")
        for name in self.names:
            canary, agent = CANARIES[name], self.agent_of(name)
            self._trials[name] = Trial(canary, agent, around=around, ways=self.ports.ways)
            if canary.enrolled:
                await self._enrol(canary, agent, url, nursery)
        for name in self.names:
            if name in self._cages_by_name():
                self._cages_by_name()[name].start(0)
            else:
                nursery.start_soon(self._tell_story, name)
        if "flood" in self.names:
            nursery.start_soon(self._ask_during_flood)

    def _cages_by_name(self) -> Mapping[str, Cage]:
        return {cage.canary.name: cage for cage in self._cages.values()}

    async def _enrol(self, canary: Canary, agent: str, url: str, nursery: trio.Nursery) -> None:
        folder = self.folder / canary.name
        folder.mkdir()
        form: dict[str, str | int | float | bool] = {
            "ttl_s": min(self.timeout_s + TTL_MARGIN_S, 3600.0),
            "control_url": f"{url}/{agent}",
            "letter_url": f"{url}/{agent}/letters",
            "workspace": str(folder),
            "beat_interval_s": BEAT_S,
        }
        if canary.hang_after_s is not None:
            form["hang_after_s"] = canary.hang_after_s
        self._cages[agent] = Cage(
            canary, agent, self.ports.beats, folder, nursery, self.ports.now_utc
        )
        answer = await self.ports.ask(ActRequest(Act.ENROL, "", agent, arguments=form))
        if answer.outcome is not ActOutcome.DONE:
            raise DrillError(f"the daemon did not take {agent} in: {answer.message}")

    async def _tell_story(self, name: str) -> None:
        agent = self.agent_of(name)
        path = self.folder / f"{agent}.jsonl"
        harmed_utc = self.ports.now_utc()
        if name == "loop":
            story = begin_loop(path, agent)
        else:
            story = give_orders(path, agent, self.agent_of("healthy"))
        self._stories[name] = story
        self._trials[name] = replace(self._trials[name], harmed_utc=harmed_utc)
        if name == "loop":
            for _ in range(LOOP_STEPS):
                go_round(story)
                await trio.sleep(LOOP_S)

    async def _ask_during_flood(self) -> None:
        """Ask `why` again and again while the flood goes on; keep the slowest answer."""
        cage = self._cages_by_name()["flood"]
        await cage.harmed.wait()
        slowest_s = 0.0
        for _ in range(10):
            begun_at = time.perf_counter()
            await self.ports.ask(ActRequest(Act.WHY, "", cage.agent))
            slowest_s = max(slowest_s, time.perf_counter() - begun_at)
            await trio.sleep(0.2)
        self._answer_s = slowest_s

    # --- watching --------------------------------------------------------------------------

    async def _watch(self) -> dict[str, tuple[Link, ...]]:
        """Look until every link is decided, one is broken, or the time is up."""
        with trio.move_on_after(self.timeout_s):
            while True:
                found = await self._look()
                failed = any(broken(each) for each in found.values())
                if all(decided(each) for each in found.values()) or (
                    failed and not self.keep_going
                ):
                    break
                await trio.sleep(LOOK_S)
            if not failed:
                await trio.sleep(SETTLE_S)
        self.ports.say("the canaries are called back; the daemon has to see that all is well")
        with trio.move_on_after(CLEAN_S):
            await self._look()
        return self._links(over=True)

    async def _look(self) -> dict[str, tuple[Link, ...]]:
        # The store may be away for a moment; what it holds is there at the next look.
        with suppress(StoreError):
            for entry in await self.ports.record(MOST_ENTRIES):
                self._entries[entry.id] = entry
        for name, cage in self._cages_by_name().items():
            trial = self._trials[name]
            self._trials[name] = replace(trial, harmed_utc=cage.harmed_utc)
        if "flood" in self._trials:
            self._trials["flood"] = replace(self._trials["flood"], answer_s=self._answer_s)
        return self._links(over=False)

    def _links(self, *, over: bool) -> dict[str, tuple[Link, ...]]:
        entries = self._entries.values()
        return {name: links(trial, entries, over=over) for name, trial in self._trials.items()}

    # --- cleaning up -----------------------------------------------------------------------

    @asynccontextmanager
    async def _cleaned(self) -> AsyncGenerator[None]:
        cut_short = True
        try:
            yield
            cut_short = False
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(CLEAN_S):
                    await self._dismiss_all()
                if not cut_short:
                    with trio.move_on_after(RECOVER_S):
                        await self._recover()
                await trio.to_thread.run_sync(shutil.rmtree, self.folder, True)  # noqa: FBT003
                with suppress(OSError):
                    self.ports.folder.rmdir()

    async def _dismiss_all(self) -> None:
        """Have them finish, so that nobody is asked about their deaths; then let them go."""
        for cage in self._cages.values():
            self._say_finished(cage)
        await trio.sleep(LOOK_S)
        for cage in self._cages.values():
            cage.kill()
        await trio.sleep(LOOK_S)
        for agent in self._cages:
            # What cannot be asked now ends by itself.
            with suppress(CustosdError):
                await self.ports.ask(ActRequest(Act.DISMISS, "", agent))

    def _say_finished(self, cage: Cage) -> None:
        # Ahead of its own beats for a second: those are refused until it is killed.
        seq = int(time.time() * 1_000_000) + 1_000_000
        form = {"agent": cage.agent, "epoch": cage.epoch, "seq": seq, "status": "finished"}
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.settimeout(LOOK_S)
            door.sendto(json.dumps(form).encode(), str(self.ports.beats))

    async def _recover(self) -> None:
        """Let the loop come to a good end, and wait until nobody is asked about it any more."""
        story = self._stories.get("loop")
        if story is None or not any(
            isinstance(entry.fact, Escalated) and is_about(entry.fact, self.agent_of("loop"))
            for entry in self._entries.values()
        ):
            return
        agent = self.agent_of("loop")
        for number in itertools.count():
            if any(
                isinstance(entry.fact, ConcernResolved) and is_about(entry.fact, agent)
                for entry in self._entries.values()
            ):
                break
            come_out(story, number)
            await trio.sleep(LOOP_S * 2)
            await self._look()
