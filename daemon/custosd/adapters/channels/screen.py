"""Reads what a terminal agent shows: its composer, what is typed there, and what has changed.

    ┌ above: the conversation ──────────┐
    │ ● I have read the file.           │
    └───────────────────────────────────┘
    > half a sentence of a person           ← the composer: the last line with a prompt
      and its second line                   ← goes on until an empty line or a rule

Laws:

1. Pure: a screen comes in as text with its colours, an answer goes out.
2. Faint text in a composer is a hint of the program and not typed; everything else was
   typed by somebody, and is somebody's.
3. Text is compared by its letters and digits alone: frames, wrapping and indentation are
   the program's business.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

PROMPTS = ("[\\s\u2502\u2503|]*(?:>>>|[>\u276f\u203a])(?:\\s|$)",)
"""How a composer's line begins, in the terminal agents that are known."""

COLLAPSED = (r"\[Pasted (?:text|content)",)
"""What programs show in place of a long paste."""

BUSY = (r"\besc to (?:interrupt|cancel)\b", r"\bctrl\+c to interrupt\b")
"""What programs show beside the composer while a turn runs."""

_SEQUENCE = re.compile(
    r"\x1b\[(?P<sgr>[\d;:]*)m|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b\[[^@-~]*[@-~]|\x1b.|[\x0e\x0f]"
)
_RULE = re.compile(r"[\s─━═╌╍┄┅┈┉╭╮╰╯┌┐└┘├┤│┃_=-]+")
_FRAME = " \t│┃|\u00a0"
_TAIL = 32
"""Letters and digits of a text's end that prove that it arrived to its end."""
_BESIDE = 6
"""Lines above the composer where programs say that they are busy."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: all that is shown, and the same without what is faint."""

    shown: str
    typed: str


@dataclass(frozen=True, slots=True)
class Screen:
    """What a pane shows. `cursor_row` counts from 0; None when the cursor is hidden."""

    lines: tuple[Line, ...]
    cursor_row: int | None = None


@dataclass(frozen=True, slots=True)
class Composer:
    """Where text is entered: the prompt's row, and what is typed there, line by line."""

    row: int
    typed: tuple[str, ...]
    cursor_below: bool


def parse_screen(captured: str, cursor_row: int | None = None) -> Screen:
    """A screen from `capture-pane -e`: lines with SGR sequences, which reach over lines."""
    style = _Style()
    return Screen(tuple(style.line(line) for line in captured.split("\n")), cursor_row)


@dataclass(slots=True)
class _Style:
    """The attributes in force: faint, and reverse, as of a cursor that a program draws."""

    faint: bool = False
    reverse: bool = False

    def line(self, text: str) -> Line:
        cells: list[tuple[str, bool, bool]] = []
        at = 0
        for match in _SEQUENCE.finditer(text):
            cells += [(c, self.faint, self.reverse) for c in text[at : match.start()]]
            if match["sgr"] is not None:
                self._set(match["sgr"])
            at = match.end()
        cells += [(c, self.faint, self.reverse) for c in text[at:]]
        return Line("".join(c for c, _, _ in cells).rstrip(), _typed(cells).rstrip())

    def _set(self, parameters: str) -> None:
        numbers = iter(part.partition(":")[0] for part in parameters.split(";"))
        for number in numbers:
            match number.lstrip("0"):
                case "":
                    self.faint = self.reverse = False
                case "2":
                    self.faint = True
                case "22":
                    self.faint = False
                case "7":
                    self.reverse = True
                case "27":
                    self.reverse = False
                case "38" | "48" | "58":
                    # A colour follows; a "2" in it is no attribute.
                    for _ in range({"5": 1, "2": 3}.get(next(numbers, ""), 0)):
                        next(numbers, "")


def _typed(cells: Sequence[tuple[str, bool, bool]]) -> str:
    text: list[str] = []
    for place, (character, faint, reverse) in enumerate(cells):
        after_is_faint = place + 1 < len(cells) and cells[place + 1][1]
        # A drawn cursor stands on the first letter of a hint, and takes its faintness.
        text.append(" " if faint or (reverse and after_is_faint) else character)
    return "".join(text)


def fingerprint(text: str) -> str:
    """The letters and digits of a text, without accents: what survives any display."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isalnum())


@dataclass(frozen=True)
class ScreenReader:
    """What to look for, as regular expressions; `prompts` match at a line's begin.

    `hints` match what stands in an empty composer, or under it, without being faint.
    """

    prompts: Sequence[str] = PROMPTS
    hints: Sequence[str] = ()
    collapsed: Sequence[str] = COLLAPSED
    busy: Sequence[str] = BUSY

    def composer(self, screen: Screen) -> Composer | None:
        """The last line that begins with a prompt, and what belongs to it; None: there is none."""
        for row in range(len(screen.lines) - 1, -1, -1):
            found = self._prompts.match(screen.lines[row].shown)
            if found:
                typed = (screen.lines[row].typed[found.end() :], *self._below(screen, row))
                cursor = screen.cursor_row
                return Composer(row, typed, cursor is not None and cursor > row)
        return None

    def is_empty(self, composer: Composer) -> bool:
        """Whether nobody has typed anything; a cursor on a later line has come there somehow."""
        return not composer.cursor_below and all(map(self._is_hint, composer.typed))

    def is_busy(self, screen: Screen, composer: Composer) -> bool:
        """Whether the program says, beside its composer, that a turn runs."""
        near = screen.lines[max(0, composer.row - _BESIDE) :]
        return any(self._busy.search(line.shown) for line in near)

    def holds(self, screen: Screen, composer: Composer | None, text: str) -> bool:
        """Whether the composer shows the end of this text, or that it took a long paste.

        Without a prompt (a composer that has grown over the screen) all of it is looked at.
        """
        lines = screen.lines[composer.row if composer else 0 :]
        shown = [line.shown for line in lines]
        return self.tail(text) in fingerprint("".join(shown)) or any(
            self._collapsed.search(line) for line in shown
        )

    def tells(self, screen: Screen, composer: Composer | None, text: str) -> int:
        """How often the conversation above the composer shows the end of this text."""
        above = "".join(self.above(screen, composer))
        return fingerprint(above).count(self.tail(text)) + len(self._collapsed.findall(above))

    def above(self, screen: Screen, composer: Composer | None) -> tuple[str, ...]:
        """The conversation: what is shown above the composer; all, where there is none."""
        end = composer.row if composer else len(screen.lines)
        return tuple(line.shown for line in screen.lines[:end])

    def tail(self, text: str) -> str:
        """What proves that a text arrived to its end; empty where nothing of it can."""
        return fingerprint(text)[-_TAIL:]

    def tamed(self, text: str) -> str:
        """The text with no line that looks like a composer of its own."""
        return "\n".join(
            f"· {line}" if self._prompts.match(line) else line for line in text.split("\n")
        )

    def _below(self, screen: Screen, row: int) -> Iterable[str]:
        for line in screen.lines[row + 1 :]:
            if not line.shown.strip(_FRAME) or _RULE.fullmatch(line.shown):
                return
            yield line.typed

    def _is_hint(self, typed: str) -> bool:
        bare = typed.strip(_FRAME)
        return not bare or self._hints.fullmatch(bare) is not None

    @cached_property
    def _prompts(self) -> re.Pattern[str]:
        return _any(self.prompts)

    @cached_property
    def _hints(self) -> re.Pattern[str]:
        return _any(self.hints)

    @cached_property
    def _collapsed(self) -> re.Pattern[str]:
        return _any(self.collapsed)

    @cached_property
    def _busy(self) -> re.Pattern[str]:
        return _any(self.busy)


def _any(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{part})" for part in patterns) or r"(?!)", re.IGNORECASE)
