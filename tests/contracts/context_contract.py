"""What every `ports.ContextSource` promises; collected by a subclass with its fixtures.

`context` can tell of the agent `known`, and has nothing of the agent `unknown`.
"""

import pytest
import trio

from custosd.core.view import AgentView
from custosd.ports import ContextSource

PARTS = ("transcript_tail", "changed_files")


class ContextContract:
    """The tests."""

    @pytest.mark.parametrize("name", PARTS)
    async def test_a_part_that_can_be_had_comes_with_its_text(
        self, context: ContextSource, known: AgentView, name: str
    ) -> None:
        part = await context.part(name, known)
        assert (part.name, part.why_absent) == (name, "")
        assert part.text

    async def test_a_part_that_does_not_exist_is_absent_with_the_reason(
        self, context: ContextSource, known: AgentView
    ) -> None:
        part = await context.part("horoscope", known)
        assert (part.name, part.text) == ("horoscope", None)
        assert part.why_absent

    async def test_a_cancelled_question_leaves_the_source_usable(
        self, context: ContextSource, known: AgentView
    ) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await context.part("transcript_tail", known)
        assert scope.cancelled_caught
        assert (await context.part("transcript_tail", known)).text
