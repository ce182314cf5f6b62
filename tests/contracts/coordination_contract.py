"""What every `ports.CoordinationStore` promises; collected by a subclass with `store`."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import trio
from tests.contracts.store_values import HOSTILE, MINUTE, NOON

from custosd.core.agents import AgentId
from custosd.core.coherence import Advice, Coherence, Component, FleetStatus, Recommendation, Trend
from custosd.core.errors import StoreRefused
from custosd.core.findings import Finding, FindingKind, Resolution, Sighting
from custosd.core.intents import MOST_HELD_TOLD, ClaimAnswer, Intent
from custosd.ports import CoordinationStore

A, B, C = AgentId("ada"), AgentId("bob"), AgentId("cyd")
NAIVE = datetime(2026, 3, 14)  # noqa: DTZ001 - what must be refused


def finding(
    id_: str = "f1", one: AgentId = A, other: AgentId = B, text: str = "src/a.py"
) -> Finding:
    sighting = Sighting(
        FindingKind.CONFLICT, one, other, 0.25, 0.9, (text,), 10, 12, "rules", f"both {text}",
        f"they say {text}", 2,
    )  # fmt: skip
    return Finding(id_, sighting, NOON, NOON)


def over(it: Finding, at_utc: datetime = NOON + MINUTE) -> Finding:
    return replace(it, resolved_utc=at_utc, resolution=Resolution.NOT_SEEN)


def reading(score: float | None = 0.75) -> Coherence:
    return Coherence(
        FleetStatus.NORMAL,
        score,
        (Component("mean_alignment", 0.8, 1.0), Component("misaligned_share", 0.25, -0.2)),
        4,
        3,
        1,
        Trend.STEADY,
        (Recommendation(Advice.COORDINATE, (A, B), "writes_to_the_same_place"),),
    )


def intent(agent: AgentId = A, *files: str, goal: str = "", repository: str = "r") -> Intent:
    return Intent(agent, goal, files, repository)


SAME_PATHS = (
    ("src/a.py", "src//a.py"),
    ("src/a.py", "./src/./a.py"),
    ("src/a.py", "src/b/../a.py"),
    ("src/", "src"),
    ("src/", "src///"),
    ("src/", "src/."),
    ("src/a.py", "src/b/../"),
    ("/srv/a.py", "//srv/a.py"),
    ("/srv/", "/srv/a.py"),
    ("caf\u00e9/", "cafe\u0301/a.py"),
    ("\uac00.py", "\u1100\u1161.py"),
)


class CoordinationContract:
    """Subclass with a fixture `store`: an empty one."""

    async def test_what_was_saved_is_found_as_it_was(self, store: CoordinationStore) -> None:
        it = finding(text=HOSTILE)
        await store.save_sweep(NOON, reading(), [it])
        assert await store.findings(NOON) == (it,)
        assert await store.readings(5) == ((NOON, reading()),)

    async def test_saving_twice_does_no_harm(self, store: CoordinationStore) -> None:
        for _ in range(2):
            await store.save_sweep(NOON, reading(), [finding()])
        assert await store.findings(NOON) == (finding(),)
        assert len(await store.readings(5)) == 1

    async def test_readings_come_newest_first(self, store: CoordinationStore) -> None:
        for minutes in (0, 2, 1):
            await store.save_sweep(NOON + minutes * MINUTE, reading(minutes / 10), [])
        assert [r.score for _, r in await store.readings(2)] == [0.2, 0.1]

    async def test_a_reading_without_a_score_is_kept_as_such(
        self, store: CoordinationStore
    ) -> None:
        await store.save_sweep(NOON, reading(None), [])
        assert (await store.readings(1))[0][1].score is None

    async def test_of_one_kind_and_pair_one_is_open_at_most(self, store: CoordinationStore) -> None:
        await store.save_sweep(NOON, reading(), [finding("f1")])
        with pytest.raises(StoreRefused):
            await store.save_sweep(NOON + MINUTE, reading(), [finding("f2")])
        assert await store.findings(NOON) == (finding("f1"),)
        assert len(await store.readings(5)) == 1

    async def test_one_is_over_and_the_next_is_open_in_one_unit(
        self, store: CoordinationStore
    ) -> None:
        first = finding("f1")
        await store.save_sweep(NOON, reading(), [first])
        second = replace(finding("f2"), first_seen_utc=NOON + MINUTE)
        await store.save_sweep(NOON + MINUTE, reading(), [second, over(first)])
        assert await store.findings(NOON) == (over(first), second)

    async def test_what_was_over_before_is_not_told(self, store: CoordinationStore) -> None:
        await store.save_sweep(NOON, reading(), [over(finding("f1")), finding("f2", A, C)])
        told = await store.findings(NOON + 2 * MINUTE)
        assert [it.id for it in told] == ["f2"]

    async def test_what_cannot_be_is_refused(self, store: CoordinationStore) -> None:
        for bad in (
            replace(finding(), id=""),
            finding(one=B, other=A),
            replace(finding(), resolved_utc=NOON),
            replace(finding(), last_seen_utc=NAIVE),
        ):
            with pytest.raises(StoreRefused):
                await store.save_sweep(NOON, reading(), [bad])

    async def test_a_second_taker_is_told_who_holds_it(self, store: CoordinationStore) -> None:
        first = await store.take_claim(intent(A, "src/", "README.md"), 60.0)
        assert first.claim is not None
        second = await store.take_claim(intent(B, "src/parser.py"), 60.0)
        assert second.claim is None
        assert [claim.intent.agent for claim in second.held] == [A]
        assert second.held == (first.claim,)
        assert (await store.take_claim(intent(B, "docs/a.md"), 60.0)).claim is not None
        other = intent(B, "src/parser.py", repository="another")
        assert (await store.take_claim(other, 60.0)).claim is not None

    async def test_the_same_goal_is_in_the_way(self, store: CoordinationStore) -> None:
        await store.take_claim(intent(A, goal="Fix the parser"), 60.0)
        told = await store.take_claim(intent(B, goal="fix  the parser."), 60.0)
        assert told.claim is None
        assert (await store.take_claim(intent(B, goal="Fix the lexer"), 60.0)).claim is not None

    async def test_taking_again_renews(self, store: CoordinationStore) -> None:
        first = await store.take_claim(intent(A, "a.py"), 60.0)
        again = await store.take_claim(intent(A, "a.py"), 120.0)
        assert first.claim is not None
        assert again.claim is not None
        assert again.claim.id == first.claim.id
        assert again.claim.taken_utc == first.claim.taken_utc
        assert again.claim.expires_utc > first.claim.expires_utc
        assert len(await store.claims(9)) == 1

    async def test_only_its_holder_gives_a_claim_back(self, store: CoordinationStore) -> None:
        taken = await store.take_claim(intent(A, f"{HOSTILE}.py"), 60.0)
        assert taken.claim is not None
        assert await store.claims(9) == (taken.claim,)
        assert not await store.release_claim(B, taken.claim.id)
        assert await store.release_claim(A, taken.claim.id)
        assert not await store.release_claim(A, taken.claim.id)
        assert (await store.take_claim(intent(B, f"{HOSTILE}.py"), 60.0)).claim is not None

    async def test_of_many_takers_at_once_one_has_it(self, store: CoordinationStore) -> None:
        got: list[AgentId] = []

        async def take(agent: AgentId) -> None:
            if (await store.take_claim(intent(agent, "a.py"), 60.0)).claim is not None:
                got.append(agent)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(take, AgentId(f"a{number}"))
        assert len(got) == 1

    async def test_paths_are_what_they_lead_to(self, store: CoordinationStore) -> None:
        """However many slashes and dots they have, and in whichever form of Unicode."""
        for number, (one, other) in enumerate(SAME_PATHS):
            repository = f"r{number}"
            taken = await store.take_claim(intent(A, one, repository=repository), 60.0)
            told = await store.take_claim(intent(B, other, repository=repository), 60.0)
            assert told.held == (taken.claim,), (one, other)

    async def test_a_folder_is_met_from_above_and_from_below(
        self, store: CoordinationStore
    ) -> None:
        await store.take_claim(intent(A, "src/a/b.py"), 60.0)
        for path, free in (
            ("src/", False),
            ("src/a/", False),
            ("src/a/b.py/", False),
            ("src", False),
            ("src/a/b.py/c", False),
            ("src/a/b.pyc", True),
            ("sr/", True),
            ("src/a/b/", True),
        ):
            answer = await store.take_claim(intent(B, path), 60.0)
            assert (answer.claim is not None) is free, path

    async def test_an_agent_has_a_bounded_number_of_claims(self, store: CoordinationStore) -> None:
        """In whatever repositories; renewing is none more, and giving one back makes room."""
        for number in range(3):
            one = intent(A, "a.py", repository=f"r{number}")
            assert (await store.take_claim(one, 60.0, most=3)).claim is not None
        more = intent(A, "a.py", repository="r3")
        assert await store.take_claim(more, 60.0, most=3) == ClaimAnswer(None)
        again = await store.take_claim(intent(A, "a.py", repository="r1"), 90.0, most=3)
        assert again.claim is not None
        assert (await store.take_claim(replace(more, agent=B), 60.0, most=3)).claim is not None
        assert len(await store.claims(9, A)) == 3
        assert await store.release_claim(A, again.claim.id)
        assert (await store.take_claim(replace(more, goal="x"), 60.0, most=3)).claim is None
        free = intent(A, "b.py", repository="r3")
        assert (await store.take_claim(free, 60.0, most=3)).claim is not None

    async def test_so_many_takers_of_one_name_at_once_have_no_more_than_they_may(
        self, store: CoordinationStore
    ) -> None:
        async def take(number: int) -> None:
            await store.take_claim(intent(A, "a.py", repository=f"r{number}"), 60.0, most=3)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(take, number)
        assert len(await store.claims(99)) == 3

    async def test_of_claims_as_many_are_told_as_are_asked_for(
        self, store: CoordinationStore
    ) -> None:
        for number in range(5):
            await store.take_claim(intent(A if number % 2 else B, f"{number}.py"), 60.0)
        told = await store.claims(9)
        assert len(told) == 5
        assert await store.claims(2) == told[:2]
        assert [claim.intent.files for claim in await store.claims(9, A)] == [("1.py",), ("3.py",)]
        assert len(await store.claims(1, B)) == 1

    async def test_of_what_is_in_the_way_the_oldest_are_told(
        self, store: CoordinationStore
    ) -> None:
        for number in range(MOST_HELD_TOLD + 5):
            await store.take_claim(intent(AgentId(f"a{number}"), f"src/{number}.py"), 60.0)
        told = await store.take_claim(intent(B, "src/"), 60.0)
        assert told.held == (await store.claims(99))[:MOST_HELD_TOLD]

    async def test_pruning_takes_what_was_over_before(self, store: CoordinationStore) -> None:
        open_ = finding("f2", A, C)
        await store.save_sweep(NOON, reading(), [over(finding("f1")), open_])
        await store.save_sweep(NOON + 9 * MINUTE, reading(), [])
        await store.take_claim(intent(A, "a.py"), 60.0)
        assert await store.prune(NOON + 5 * MINUTE) == 2
        assert await store.findings(NOON - timedelta(days=1)) == (open_,)
        assert [at for at, _ in await store.readings(5)] == [NOON + 9 * MINUTE]
        assert len(await store.claims(9)) == 1
