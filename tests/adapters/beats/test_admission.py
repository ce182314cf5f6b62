"""Who may beat for whom: the forged, the replayed and the outdated do not get in."""

import json
import os
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from custosd.adapters.beats.admission import OVERFLOW_UID, Admission
from custosd.core.agents import AgentId
from custosd.core.beats import Refusal
from custosd.core.tokens import Token, hash_of, presented
from custosd.services.beats import BeatRegister

ADA, BOB = AgentId("ada"), AgentId("bob")
ADAS_UID = 40_001


def token(name: str, agent: str) -> Token:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Token(name, hash_of(f"secret-{name}"), when, "test", agent)


TOKENS = {one.id: one for one in (token("a", "ada"), token("all", "*"), token("acts", ""))}


def holder_of(name: str) -> str:
    return presented(name, f"secret-{name}")


class Stage:
    def __init__(self, *, most: int = 100) -> None:
        self.register = BeatRegister(lambda agent: agent in {ADA, BOB}, most)
        self.admission = Admission(self.register, lambda: TOKENS, {ADA: ADAS_UID}.get)
        self._sequence = 0

    def why(self, uid: int | None = None, bearer: str = "", **fields: Any) -> Refusal | None:
        self._sequence += 1
        form = {"agent": "ada", "epoch": 0, "seq": self._sequence} | fields
        admitted = self.admission.admit(json.dumps(form).encode(), "test", uid=uid, bearer=bearer)
        assert admitted.accepted == (admitted.refusal is None)
        return admitted.refusal


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_root_the_daemon_and_the_agents_user_need_no_token(stage: Stage) -> None:
    for uid in (0, os.geteuid(), ADAS_UID):
        assert stage.why(uid) is None


async def test_others_do_and_so_does_the_user_whom_the_kernel_cannot_name(stage: Stage) -> None:
    stage.admission = Admission(stage.register, lambda: TOKENS, lambda _agent: OVERFLOW_UID)
    for uid in (None, 1, ADAS_UID + 1, OVERFLOW_UID):
        assert stage.why(uid) is Refusal.FORGED


async def test_an_agents_user_speaks_for_no_other_agent(stage: Stage) -> None:
    assert stage.why(ADAS_UID, agent="bob") is Refusal.FORGED


async def test_a_token_lets_in_whom_it_speaks_for(stage: Stage) -> None:
    assert stage.why(token=holder_of("a")) is None
    assert stage.why(bearer=holder_of("a")) is None
    assert stage.why(bearer=holder_of("all"), agent="bob") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (holder_of("a"), "does not speak for this agent"),
        (holder_of("acts"), "does not speak for this agent"),
        (presented("a", "wrong"), "not known"),
        (presented("b", "secret-a"), "not known"),
        ("secret-a", "not known"),
        ("cust_", "not known"),
        ("", "no token"),
    ],
)
async def test_a_token_that_does_not_is_told_so(stage: Stage, text: str, words: str) -> None:
    form = json.dumps({"agent": "bob", "epoch": 0, "seq": 1, "token": text}).encode()
    [refused] = stage.admission.admit(form, "test").refused
    assert refused.refusal is Refusal.FORGED
    assert words in refused.detail


async def test_a_stranger_is_not_told_whether_there_is_an_agent_of_that_name(stage: Stage) -> None:
    known = stage.admission.admit(b'{"agent":"ada","epoch":0,"seq":1}', "test").form(9)
    unknown = stage.admission.admit(b'{"agent":"eve","epoch":0,"seq":1}', "test").form(9)
    assert json.dumps(unknown) == json.dumps(known).replace("ada", "eve")


async def test_replays_and_other_incarnations_are_refused_in_words(stage: Stage) -> None:
    assert stage.why(0, epoch=3, seq=10) is None
    for fields, refusal in (
        ({"epoch": 3, "seq": 10}, Refusal.REPLAYED),
        ({"epoch": 3, "seq": 9}, Refusal.REPLAYED),
        ({"epoch": 2, "seq": 11}, Refusal.OLD_EPOCH),
        ({"epoch": 4, "seq": 11}, Refusal.FUTURE_EPOCH),
        ({"agent": "eve"}, Refusal.UNKNOWN_AGENT),
    ):
        form = json.dumps({"agent": "ada", "epoch": 0, "seq": 1} | fields).encode()
        [refused] = stage.admission.admit(form, "test", uid=0).refused
        assert refused.refusal is refusal
        assert refused.detail


async def test_a_full_register_says_so() -> None:
    stage = Stage(most=1)
    assert stage.why(0) is None
    assert stage.why(0, agent="bob") is Refusal.FULL


async def test_everything_refused_is_counted_once(stage: Stage) -> None:
    stage.why(1)
    stage.why(0, agent="eve")
    stage.admission.admit(b"{", "test", uid=0)
    stage.admission.turned_away(Refusal.OVERSIZE)
    counts = stage.register.take_counts().refused
    assert counts == {
        (Refusal.FORGED, ADA): 1,
        (Refusal.UNKNOWN_AGENT, "eve"): 1,
        (Refusal.MALFORMED, None): 1,
        (Refusal.OVERSIZE, None): 1,
    }


async def test_an_array_may_speak_for_several_agents_each_with_its_own_right(stage: Stage) -> None:
    items = [
        {"agent": "ada", "epoch": 0, "seq": 1},
        {"agent": "bob", "epoch": 0, "seq": 1},
        {"agent": "bob", "epoch": 0, "seq": 1, "token": holder_of("all")},
    ]
    admitted = stage.admission.admit(json.dumps(items).encode(), "test", uid=ADAS_UID)
    assert admitted.accepted == 2
    assert admitted.identified
    assert admitted.form(0) == {"accepted": 2, "refused": [], "untold": 1}


_claims = st.tuples(
    st.sampled_from(["ada", "bob", "eve"]),
    st.integers(0, 4),
    st.integers(0, 20),
    st.sampled_from(["", holder_of("a"), holder_of("all"), presented("all", "guess")]),
    st.sampled_from([None, 1, ADAS_UID, OVERFLOW_UID]),
)


@given(st.lists(_claims, max_size=60))
def test_whatever_is_tried_only_rightful_and_new_beats_get_in(
    claims: list[tuple[str, int, int, str, int | None]],
) -> None:
    """Of each agent what is let in grows, and nobody without a right to it is among it."""

    async def story() -> None:
        stage = Stage()
        last: dict[str, tuple[int, int]] = {}
        outcomes: Counter[bool] = Counter()
        for agent, epoch, seq, text, uid in claims:
            why = stage.why(uid, agent=agent, epoch=epoch, seq=seq, token=text)
            rightful = text == holder_of("all") or (
                agent == "ada" and (text == holder_of("a") or uid == ADAS_UID)
            )
            outcomes[why is None] += 1
            if why is None:
                assert rightful
                assert agent in {"ada", "bob"}
                before = last.setdefault(agent, (epoch, -1))
                assert epoch == before[0]
                assert seq > before[1]
                last[agent] = (epoch, seq)
        assert stage.register.accepted == outcomes[True]
        assert sum(stage.register.take_counts().refused.values()) == outcomes[False]

    trio.run(story)
