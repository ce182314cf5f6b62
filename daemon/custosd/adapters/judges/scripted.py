"""A judge that answers as it is told: the shipped fake, for tests and drills."""

from collections.abc import Callable, Iterable

import trio

from custosd.core.errors import JudgeError
from custosd.core.verdicts import Judgement, Standing
from custosd.ports import Answer, Judge, Question

Reply = Answer | Judgement | JudgeError
Script = Callable[[Question], Reply | None]


class ScriptedJudge(Judge):
    """Answers from a script: a sequence of replies, or a function of the question.

    A `JudgeError` in the script is raised; `None` hangs until cancelled, as a model that
    never answers does. A sequence that has run out repeats its last reply; an empty one
    says "unknown". `asked` keeps every question, in order. `delay_s` is waited through
    before each answer.
    """

    def __init__(
        self,
        script: Script | Iterable[Reply | None] = (),
        delay_s: float = 0.0,
        wants: Iterable[str] = (),
    ) -> None:
        self._wants = frozenset(wants)
        self.asked: list[Question] = []
        self._script: Script = script if callable(script) else _sequence(script)
        self._delay_s = delay_s

    @property
    def wants(self) -> frozenset[str]:
        """The parts of the context that it was made to want."""
        return self._wants

    async def judge(self, question: Question) -> Answer:
        """The script's next reply; raises the `JudgeError`s that it holds."""
        self.asked.append(question)
        reply = self._script(question)
        await trio.sleep(self._delay_s)
        if reply is None:
            await trio.sleep_forever()
        if isinstance(reply, JudgeError):
            raise reply
        return reply if isinstance(reply, Answer) else Answer(reply, judge="scripted")


def _sequence(replies: Iterable[Reply | None]) -> Script:
    left = list(replies)
    empty = Judgement(Standing.UNKNOWN, unknown_reason="no_script")

    def next_reply(_question: Question) -> Reply | None:
        if not left:
            return empty
        return left.pop(0) if len(left) > 1 else left[0]

    return next_reply
