"""Letters typed into a terminal agent's composer, in a tmux pane.

    look ─► prove ─► paste ─► see it arrive ─► prove again ─► submit ─► see a turn start

Laws:

1. Any doubt is an error, and nothing is typed: not into a shell or any other program than
   the expected ones, not over what a person has begun to write, not into a pane in copy mode.
2. What is typed goes through `TmuxServer`'s condition: tmux compares the pane with the one
   that was proved in the step in which it sends.
3. A letter's mark, an option of the pane, is set in the same step as its paste and as its
   submission. So a repetition after a crash knows how far it came, and pastes nothing twice.
4. A receipt says what was seen: "turn_started" when the conversation shows it, "submitted"
   when only the composer was emptied.

What cannot be proved: bytes that tmux has written wait in the terminal until somebody reads
them. An agent that ends between the comparison and its own read leaves the paste to what
comes next, which may be its shell: in a shell with bracketed paste it stands at the prompt
and is not run, because the key that submits is not pressed. A key that a person presses
between the last look and the submission goes along with the letter.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import partial
from pathlib import Path

import trio

from custosd.adapters.channels.foreground import Foreground, foreground_of
from custosd.adapters.channels.letters import checked_id, plain_text
from custosd.adapters.channels.screen import Composer, ScreenReader
from custosd.adapters.channels.tmux_brackets import takes_brackets
from custosd.adapters.channels.tmux_server import KEY, Pane, TmuxServer, checked_target
from custosd.core.errors import ChannelError
from custosd.core.steering import Delivery, Letter, Receipt
from custosd.core.verdicts import SteeringKind
from custosd.flow.threads import Threads
from custosd.ports import SteeringChannel

LONGEST_TEXT = 20_000
"""Characters; an agent's composer is no place for more."""

_COMMANDS = tuple("!/#@&:?$%\\~`|;")
"""At the start of a message these are commands to one agent or another, "!" even a shell's."""
_CLEAR_TIMES = 50
_CLEAR_ROUNDS = 20
"""How often the key that clears a line is pressed: once a line, and once to join it."""
_MARKS = 50
"""How many letters of the past stay marked in a pane."""

TurnStarted = Callable[[], Awaitable[bool]] | None


class Brackets(Enum):
    """How it is known that the program takes a paste as one piece.

    ASK: of tmux, which tells from 3.7 on; PROBE: ask, and show the pane on a terminal of
    our own where tmux does not tell; ASSUME: the operator says so.
    """

    ASK = "ask"
    PROBE = "probe"
    ASSUME = "assume"


@dataclass(frozen=True, slots=True)
class TmuxChannelSettings:
    """Where the agent is, how it is known, and how long each wait may be, seconds.

    `target`: SESSION:WINDOW.PANE, exactly, or %NUMBER. `programs`: names of the agent's
    program, one of which the foreground process must have. `clear_key` takes away what was
    pasted when it could not be submitted. `arrival_s`: from paste to screen; `submit_s`:
    from key to an empty composer; `turn_s`: from there to a turn; `probe_s`: see `Brackets`.
    """

    target: str
    programs: tuple[str, ...]
    socket: Path | None = None
    reader: ScreenReader = ScreenReader()  # noqa: RUF009 - a frozen value
    submit_key: str = "Enter"
    clear_key: str = "C-u"
    brackets: Brackets = Brackets.PROBE
    tmux: str = "tmux"
    arrival_s: float = 5.0
    submit_s: float = 3.0
    turn_s: float = 10.0
    probe_s: float = 1.0
    call_s: float = 5.0
    timeout_s: float = 45.0
    poll_s: float = 0.05


class _Mark(StrEnum):
    """How far a letter came in this pane."""

    NONE = ""
    PASTED = "pasted"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class _Sight:
    """The pane, the program that was proved to be in front, and its composer."""

    pane: Pane
    front: Foreground
    composer: Composer | None


class TmuxChannel(SteeringChannel):
    """The composer of one agent. Letters go one by one.

    `turn_started`, where there is one, tells whether a turn has begun since it was last
    asked (the transcript grew); then it alone is the proof, and not the screen.
    """

    def __init__(self, settings: TmuxChannelSettings, turn_started: TurnStarted = None) -> None:
        checked_target(settings.target)
        if not settings.programs:
            raise ValueError("a tmux channel needs the names of the agent's program")
        for key in (settings.submit_key, settings.clear_key):
            if not KEY.fullmatch(key):
                raise ValueError(f'"{key}" is no name of a key: expected one like Enter or C-m')
        self._settings = settings
        self._server = TmuxServer(settings.tmux, settings.socket, settings.call_s)
        self._turn_started = turn_started
        self._one_by_one = trio.Lock()
        self._marked: deque[tuple[str, str]] = deque()

    @property
    def name(self) -> str:
        """See the port."""
        return "tmux"

    async def deliver(self, letter: Letter) -> Receipt:
        """See the port. Bounded by `timeout_s` as a whole.

        To be retried: target_absent, target_unproved, target_is_shell, target_is_other,
        target_changed, pane_in_mode, composer_busy, composer_missing, agent_busy, tmux_slow;
        not_arrived, where the composer is empty. Not to be retried: tmux_absent, text_unsafe,
        no_bracketed_paste, not_arrived, not_submitted, outcome_unknown.
        """
        delivery = _Delivery(self._settings, self._server, self._turn_started, letter)
        try:
            with trio.fail_after(self._settings.timeout_s):
                async with self._one_by_one:
                    receipt = await delivery.run()
                    await self._forget_old_marks(delivery)
        except trio.TooSlowError as error:
            # What was done is marked in the pane: the next attempt goes on from there.
            raise ChannelError(
                "tmux_slow", f"not done within {self._settings.timeout_s:g} s", retry=True
            ) from error
        return receipt

    async def receipts(
        self,
        ids: Collection[str],  # noqa: ARG002 - the port's
    ) -> Sequence[Receipt]:
        """Nothing: what a pane proves, it proves at delivery."""
        return ()

    async def _forget_old_marks(self, delivery: "_Delivery") -> None:
        self._marked.append((delivery.pane_id, delivery.option))
        while len(self._marked) > _MARKS:
            pane_id, option = self._marked.popleft()
            with suppress(ChannelError):  # the pane may be gone, and the mark with it
                await self._server.unmark(pane_id, option)


class _Delivery:
    """One letter on its way into the composer."""

    def __init__(
        self,
        settings: TmuxChannelSettings,
        server: TmuxServer,
        turn_started: TurnStarted,
        letter: Letter,
    ) -> None:
        self.option = f"@custosd_{checked_id(letter.id)}"
        self.pane_id = ""
        self._settings = settings
        self._reader = settings.reader
        self._server = server
        self._threads = Threads(1)
        self._turn_started = turn_started
        self._letter = letter
        self._text = _prepared(letter.text, settings.reader)

    async def run(self) -> Receipt:
        first = await self._look()
        self.pane_id = first.pane.id
        mark, process = _mark(first.pane.mark)
        match mark:
            case _Mark.SUBMITTED:
                return self._receipt(Delivery.DELIVERED, "has_it_already")
            case _Mark.SUBMITTING if process != first.front.identity:
                raise ChannelError(
                    "outcome_unknown", "the agent that the letter was submitted to has ended"
                )
            case _Mark.SUBMITTING:
                return await self._go_on(first, submitted=True)
            case _Mark.PASTED if process == first.front.identity:
                return await self._go_on(first, submitted=False)
            case _:
                # Not pasted, or into a program that has ended since without a submission.
                return await self._from_the_start(first)

    async def _from_the_start(self, first: _Sight) -> Receipt:
        self._check_composer(first)
        await self._check_brackets(first.pane)
        await trio.sleep(self._settings.poll_s)
        before = await self._look(first.front)
        self._check_composer(before)
        mark = f"{_Mark.PASTED}:{before.front.identity}"
        if not await self._server.paste(before.pane, self._text, self.option, mark):
            raise _changed("before the paste")
        told = self._tells(before)

        def arrived(sight: _Sight) -> bool:
            # With no prompt in sight, the text may be one that was told before.
            return self._holds(sight) and (sight.composer is not None or self._tells(sight) > told)

        pasted = await self._until(self._settings.arrival_s, arrived, before.front)
        if pasted is None:
            raise await self._not_arrived(before.front)
        restless = self._above(first) != self._above(before) or self._is_busy(before)
        return await self._submit(pasted, _Before(self._above(before), told, restless))

    async def _go_on(self, found: _Sight, *, submitted: bool) -> Receipt:
        # An earlier attempt was cut off somewhere behind its paste.
        if submitted and self._is_empty(found):
            return self._receipt(Delivery.DELIVERED, "has_it_already")
        pasted = await self._until(
            self._settings.arrival_s,
            lambda sight: sight.composer is not None and self._holds(sight),
            found.front,
        )
        if pasted is not None:
            return await self._submit(pasted, None)
        raise ChannelError(
            "outcome_unknown",
            "an earlier attempt pasted the letter, and the composer does not show it any more: "
            "somebody submitted it, or took it away",
        )

    async def _submit(self, pasted: _Sight, before: "_Before | None") -> Receipt:
        if self._turn_started is not None:
            await self._turn_started()
        for _attempt in ("once", "once more"):
            pressed = await self._server.press(
                pasted.pane,
                self._settings.submit_key,
                self.option,
                f"{_Mark.SUBMITTING}:{pasted.front.identity}",
            )
            if not pressed:
                raise _changed("before the submission")
            emptied = await self._until(self._settings.submit_s, self._is_empty, pasted.front)
            if emptied is not None:
                return await self._proved(emptied, before)
            after = await self._look(pasted.front)
            if not _is_untouched(pasted, after):
                return await self._puzzled()
            pasted = after
        cleared = await self._take_back(pasted.front)
        key = self._settings.submit_key
        raise ChannelError("not_submitted", f"{key}, pressed twice, did nothing; {cleared}")

    async def _puzzled(self) -> Receipt:
        # The composer has changed, but is not empty; some programs have none while they work.
        if self._turn_started is not None and await self._turn_started():
            return self._receipt(Delivery.ACKNOWLEDGED, "turn_started")
        raise ChannelError(
            "outcome_unknown",
            "after the submission the composer shows neither the letter as it was, nor nothing",
        )

    async def _proved(self, emptied: _Sight, before: "_Before | None") -> Receipt:
        """The composer is empty, so the letter is delivered, whatever else fails now."""
        with suppress(ChannelError):  # without this mark, "submitting" says enough
            await self._server.mark(emptied.pane, self.option, _Mark.SUBMITTED)
        with suppress(ChannelError), trio.move_on_after(self._settings.turn_s):
            while True:
                if await self._turn_is_seen(before, emptied.front):
                    return self._receipt(Delivery.ACKNOWLEDGED, "turn_started")
                await trio.sleep(self._settings.poll_s)
        return self._receipt(Delivery.DELIVERED, "submitted")

    async def _turn_is_seen(self, before: "_Before | None", front: Foreground) -> bool:
        if self._turn_started is not None:
            return await self._turn_started()
        if before is None:
            return False
        sight = await self._look(front)
        if sight.composer is None or before.above == self._above(sight):
            return False
        return self._tells(sight) > before.told or (self._is_busy(sight) and not before.restless)

    async def _not_arrived(self, front: Foreground) -> ChannelError:
        what = "the composer does not show what was pasted"
        if self._is_empty(await self._look(front)):
            # It may be on its way still: the next attempt looks for it, and pastes nothing.
            return ChannelError("not_arrived", f"{what}, nor anything else", retry=True)
        return ChannelError("not_arrived", f"{what}; {await self._take_back(front)}")

    async def _take_back(self, front: Foreground) -> str:
        """Clear the composer of what we pasted; says in words how that went."""
        for _round in range(_CLEAR_ROUNDS):
            sight = await self._look(front)
            if self._is_empty(sight):
                await self._server.mark(sight.pane, self.option, _Mark.CLEARED)
                return "the composer is empty again"
            if sight.composer is None or not await self._server.press(
                sight.pane, self._settings.clear_key, times=_CLEAR_TIMES
            ):
                break
            await trio.sleep(self._settings.poll_s)
        return "what was pasted may be standing there still, not submitted"

    async def _until(
        self, limit_s: float, condition: Callable[[_Sight], bool], front: Foreground
    ) -> _Sight | None:
        with trio.move_on_after(limit_s):
            while True:
                sight = await self._look(front)
                if condition(sight):
                    return sight
                await trio.sleep(self._settings.poll_s)
        return None

    async def _look(self, front: Foreground | None = None) -> _Sight:
        """The pane, proved to show the agent; the same process as `front`, if that is given."""
        pane = await self._server.look(self._settings.target, self.option)
        _check_pane(pane)
        found = await self._threads.run(partial(foreground_of, pane.pid))
        self._check_front(found)
        if front is not None and found.identity != front.identity:
            raise _changed("since it was looked at first")
        return _Sight(pane, found, self._reader.composer(pane.screen))

    def _check_front(self, front: Foreground) -> None:
        names = ", ".join(sorted(front.names))
        if front.is_shell:
            raise ChannelError(
                "target_is_shell", f"the pane shows a shell ({names}), not the agent", retry=True
            )
        if not front.names.intersection(self._settings.programs):
            raise ChannelError(
                "target_is_other",
                f"the pane shows {names}; expected one of {', '.join(self._settings.programs)}",
                retry=True,
            )
        if front.agent not in ("", self._letter.agent):
            raise ChannelError("target_is_other", "the pane shows another agent", retry=True)

    def _check_composer(self, sight: _Sight) -> None:
        if sight.composer is None:
            raise ChannelError(
                "composer_missing",
                "no composer in the pane: a dialog is open, or its prompt is not configured",
                retry=True,
            )
        if not self._reader.is_empty(sight.composer):
            raise ChannelError("composer_busy", "somebody has begun to type there", retry=True)
        urgent = self._letter.kind is SteeringKind.EMERGENCY
        if not urgent and self._is_busy(sight):
            raise ChannelError("agent_busy", "a turn is running", retry=True)

    async def _check_brackets(self, pane: Pane) -> None:
        """A text of several lines must not be submitted line by line."""
        settings = self._settings
        if "\n" not in self._text or pane.brackets:
            return
        if pane.brackets is None:
            if settings.brackets is Brackets.ASSUME:
                return
            if settings.brackets is Brackets.PROBE and await takes_brackets(
                self._server.argv, pane, settings.probe_s
            ):
                return
        raise ChannelError(
            "no_bracketed_paste",
            "it is not known that the agent takes several lines as one paste; tmux tells from "
            "3.7 on, or set the channel to assume it",
        )

    def _holds(self, sight: _Sight) -> bool:
        return self._reader.holds(sight.pane.screen, sight.composer, self._text)

    def _is_empty(self, sight: _Sight) -> bool:
        return sight.composer is not None and self._reader.is_empty(sight.composer)

    def _is_busy(self, sight: _Sight) -> bool:
        return sight.composer is not None and self._reader.is_busy(
            sight.pane.screen, sight.composer
        )

    def _tells(self, sight: _Sight) -> int:
        return self._reader.tells(sight.pane.screen, sight.composer, self._text)

    def _above(self, sight: _Sight) -> tuple[str, ...]:
        return self._reader.above(sight.pane.screen, sight.composer)

    def _receipt(self, delivery: Delivery, proof: str) -> Receipt:
        return Receipt(self._letter.id, delivery, proof)


@dataclass(frozen=True, slots=True)
class _Before:
    """The conversation before the paste. `restless`: it was changing by itself, or busy."""

    above: tuple[str, ...]
    told: int
    restless: bool


def _prepared(text: str, reader: ScreenReader) -> str:
    """The text as it is pasted; raises `ChannelError` where it cannot be, safely."""
    if len(text) > LONGEST_TEXT:
        raise ChannelError("text_too_long", f"a composer gets at most {LONGEST_TEXT} characters")
    # A tab completes, and a backslash at the end makes the submission a new line.
    plain = plain_text(text).replace("\t", "    ").strip().rstrip("\\")
    if plain.startswith(_COMMANDS):
        raise ChannelError("text_unsafe", "the text begins like a command to the agent's terminal")
    if not reader.tail(plain):
        raise ChannelError("text_unsafe", "the text has no letters by which to see it arrive")
    return reader.tamed(plain)


def _mark(value: str) -> tuple[_Mark, str]:
    """How far a letter came, and the process that it was pasted into."""
    state, _, process = value.partition(":")
    try:
        return _Mark(state), process
    except ValueError:
        return _Mark.NONE, ""


def _check_pane(pane: Pane) -> None:
    problems = (
        (pane.dead, "target_absent", "the pane's program has ended"),
        (pane.in_mode, "pane_in_mode", "somebody reads in the pane (copy mode)"),
        (pane.input_off, "pane_input_off", "the pane's input is switched off"),
        (pane.synchronized, "pane_synchronized", "keys to this pane would go to others, too"),
    )
    for is_so, reason, words in problems:
        if is_so:
            raise ChannelError(reason, words, retry=True)


def _is_untouched(before: _Sight, after: _Sight) -> bool:
    """Whether the composer, and all below it, looks as before."""
    if before.composer is None or after.composer is None:
        return before.pane.screen.lines == after.pane.screen.lines
    return (
        before.pane.screen.lines[before.composer.row :]
        == after.pane.screen.lines[after.composer.row :]
    )


def _changed(when: str) -> ChannelError:
    return ChannelError("target_changed", f"the pane shows another program {when}", retry=True)
