"""A model that answers as it is told: the shipped fake, for tests and drills."""

from collections.abc import Callable, Iterable

import trio

from custosd.adapters.models.model import Model, ModelError, Prompt, Reply
from custosd.core.transcript import Usage

Script = Callable[[Prompt], Reply | ModelError | str | None]


class ScriptedModel(Model):
    """Answers from a function of the prompt, or from a sequence whose last word repeats.

    A text is a reply; a `ModelError` is raised; None hangs until cancelled. `asked` keeps
    every prompt, in order. `delay_s` is waited through before each answer.
    """

    def __init__(
        self,
        script: Script | Iterable[Reply | ModelError | str | None],
        name: str = "scripted",
        delay_s: float = 0.0,
        usage: Usage = Usage(100, 10, 0, 0.001),
    ) -> None:
        self.asked: list[Prompt] = []
        self._script = script if callable(script) else _sequence(script)
        self._name = name
        self._delay_s = delay_s
        self._usage = usage

    @property
    def name(self) -> str:
        """What it was called when it was made."""
        return self._name

    async def ask(self, prompt: Prompt) -> Reply:
        """The script's next reply; raises its `ModelError`s."""
        self.asked.append(prompt)
        reply = self._script(prompt)
        await trio.sleep(self._delay_s)
        match reply:
            case None:
                await trio.sleep_forever()
                raise AssertionError
            case ModelError():
                raise reply
            case str():
                return Reply(reply, self._name, self._usage)
            case _:
                return reply


def _sequence(replies: Iterable[Reply | ModelError | str | None]) -> Script:
    left = list(replies)

    def next_reply(_prompt: Prompt) -> Reply | ModelError | str | None:
        return left.pop(0) if len(left) > 1 else left[0]

    return next_reply
