"""A judge of pairs that answers as it is told: the shipped fake, for tests and drills."""

from collections.abc import Callable

import trio

from custosd.core.errors import JudgeError
from custosd.core.pairs import PairJudgement
from custosd.ports import PairAnswer, PairJudge, PairQuestion

Reply = PairJudgement | JudgeError
Script = Callable[[PairQuestion], Reply | None]


class ScriptedPairJudge(PairJudge):
    """Answers by a function of the question; `asked` keeps every question, in order.

    A `JudgeError` that it gives is raised; `None` hangs until cancelled.
    """

    def __init__(self, script: Script, delay_s: float = 0.0) -> None:
        self.asked: list[PairQuestion] = []
        self._script = script
        self._delay_s = delay_s

    async def compare(self, question: PairQuestion) -> PairAnswer:
        """The script's reply."""
        self.asked.append(question)
        reply = self._script(question)
        await trio.sleep(self._delay_s)
        if reply is None:
            await trio.sleep_forever()
        if isinstance(reply, JudgeError):
            raise reply
        assert reply is not None  # noqa: S101 - else it slept for ever
        return PairAnswer(reply, judge="scripted")
