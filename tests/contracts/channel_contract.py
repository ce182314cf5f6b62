"""What every `ports.SteeringChannel` promises; collected for each by a subclass with `scene`."""

import re
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pytest
import trio

from custosd.core.agents import AgentId
from custosd.core.steering import Delivery, Letter
from custosd.core.verdicts import SteeringKind
from custosd.ports import SteeringChannel

ADA = AgentId("ada")
WORDS = "[custosd] You have edited src/parser.py four times without running its tests."


class Scene(Protocol):
    """A channel, and the agent at its other end."""

    @property
    def channel(self) -> SteeringChannel: ...

    async def arrived(self) -> list[str]:
        """The texts that the agent has got, in order; each waits for no more."""
        ...


def letter(
    name: str = "i-1", text: str = WORDS, kind: SteeringKind = SteeringKind.GUIDANCE
) -> Letter:
    return Letter(name, ADA, 3, kind, text, datetime.now(UTC) + timedelta(minutes=30))


class ChannelContract:
    """The tests. Nothing has been delivered in `scene` yet, and the agent can be told things."""

    async def test_it_has_a_name_for_facts(self, scene: Scene) -> None:
        assert re.fullmatch(r"[a-z_]+", scene.channel.name)

    async def test_a_letter_arrives_and_its_receipt_names_it(self, scene: Scene) -> None:
        receipt = await scene.channel.deliver(letter())
        assert receipt.id == "i-1"
        assert receipt.delivery in Delivery
        assert re.fullmatch(r"[a-z0-9_]+", receipt.proof)
        assert await scene.arrived() == [WORDS]

    async def test_a_letter_that_is_delivered_again_arrives_once(self, scene: Scene) -> None:
        for _ in range(3):
            assert (await scene.channel.deliver(letter())).id == "i-1"
        assert await scene.arrived() == [WORDS]

    async def test_letters_arrive_in_their_order(self, scene: Scene) -> None:
        texts = [f"{WORDS} ({number})" for number in range(3)]
        for number, text in enumerate(texts):
            await scene.channel.deliver(letter(f"i-{number}", text))
        assert await scene.arrived() == texts

    @pytest.mark.parametrize(
        "text",
        [
            f"{WORDS}\n\nRun them now:\n    pytest tests/test_parser.py\n> quoted\n",
            f"{WORDS} Größe, 漢字 und \N{ROCKET} - e\u0301.",
            "\n".join(f"[custosd] line {number:03} of a long letter" for number in range(200)),
        ],
        ids=["lines", "unicode", "long"],
    )
    async def test_a_text_arrives_whole(self, scene: Scene, text: str) -> None:
        await scene.channel.deliver(letter(text=text))
        # How lines are set off belongs to the channel; a word of it never gets lost.
        assert [_words(got) for got in await scene.arrived()] == [_words(text)]

    async def test_nothing_is_proved_of_letters_that_were_not_sent(self, scene: Scene) -> None:
        assert list(await scene.channel.receipts(["i-9"])) == []
        assert list(await scene.channel.receipts([])) == []

    async def test_receipts_are_of_the_letters_asked_for(self, scene: Scene) -> None:
        for name in ("i-1", "i-2"):
            await scene.channel.deliver(letter(name))
        assert {receipt.id for receipt in await scene.channel.receipts(["i-2"])} <= {"i-2"}

    async def test_a_cancelled_delivery_leaves_the_channel_usable(self, scene: Scene) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await scene.channel.deliver(letter("i-1"))
        await scene.channel.deliver(letter("i-2", f"{WORDS} (2)"))
        assert (await scene.arrived())[-1] == f"{WORDS} (2)"


def _words(text: str) -> list[str]:
    return [word for word in text.split() if any(c.isalnum() for c in word)]
