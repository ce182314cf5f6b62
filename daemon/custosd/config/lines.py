"""On which line each key of a TOML text stands, which the standard parser does not tell.

Laws: the text has been read by `tomllib` before, so it is valid TOML, and what is not
understood here is only skipped; values are never read here, only stepped over.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

from custosd.config.section import KeyPath

_STRING = (
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # up to two quotes may stand before the closing three
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
)
_DEEPEST = 16
_SPACE = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY = re.compile(r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_.\- \t])+""")
_SCALAR = re.compile(rf"(?:{_STRING})|[^,\]}}#\n]+", re.DOTALL)


def lines_of(text: str) -> dict[KeyPath, int]:
    """The 1-based line of every key, table header and list element of valid TOML.

    Of a key that is opened in several places (tables written in parts) the first counts.
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


@dataclass(slots=True)
class _Scanner:
    text: str
    at: int = 0
    counted_to: int = 0
    line: int = 1
    lines: dict[KeyPath, int] = field(default_factory=dict)
    last: dict[KeyPath, int] = field(default_factory=dict)
    """The latest index in each list of tables."""

    def document(self) -> None:
        table: KeyPath = ()
        while self._more():
            if self._took("[["):
                table = self._header(of_list=True)
                self._took("]]")
            elif self._took("["):
                table = self._header(of_list=False)
                self._took("]")
            elif not self._pair(table):
                return

    def _more(self) -> bool:
        self._skip(_SPACE)
        return self.at < len(self.text)

    def _header(self, *, of_list: bool) -> KeyPath:
        line = self._line_here()
        path = self._resolved((), self._key(), line, open_last=not of_list)
        if of_list:
            self.last[path] = index = self.last.get(path, -1) + 1
            path = (*path, index)
        self.lines.setdefault(path, line)
        return path

    def _pair(self, table: KeyPath) -> bool:
        """Step over `key = value`; False where there is none."""
        line = self._line_here()
        names = self._key()
        if not names or not self._took("="):
            return False
        path = self._resolved(table, names, line, open_last=False)
        self.lines.setdefault(path, line)
        self._skip(_SPACE)
        self._value(path)
        return True

    def _resolved(
        self, table: KeyPath, names: tuple[str, ...], line: int, *, open_last: bool
    ) -> KeyPath:
        """The path of a dotted key; a list of tables on the way stands for its last one."""
        path = table
        # Nothing known lies that deep, and thousands of parts would cost their square.
        for number, name in enumerate(names[:_DEEPEST], 1):
            path = (*path, name)
            if path in self.last and (number < len(names) or open_last):
                path = (*path, self.last[path])
            self.lines.setdefault(path, line)
        return path

    def _value(self, path: KeyPath) -> None:
        if self._took("["):
            index = 0
            while self._more() and not self._took("]"):
                begun_at = self.at
                self.lines[*path, index] = self._line_here()
                self._value((*path, index))
                self._skip(_SPACE)
                self._took(",")
                if self.at == begun_at:  # no TOML: a brace that nobody opened
                    return
                index += 1
        elif self._took("{"):
            while self._more() and not self._took("}"):
                if not self._pair(path):
                    return
                self._skip(_SPACE)
                self._took(",")
        else:
            self._skip(_SCALAR)

    def _key(self) -> tuple[str, ...]:
        """The parts of the key that begins here."""
        self._skip(_SPACE)
        start = self.at
        self._skip(_KEY)
        return _parts(self.text[start : self.at])

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self.text, self.at):
            self.at = match.end()

    def _took(self, token: str) -> bool:
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def _line_here(self) -> int:
        self.line += self.text.count("\n", self.counted_to, self.at)
        self.counted_to = self.at
        return self.line


def _parts(raw: str) -> tuple[str, ...]:
    """A dotted key, taken apart by the parser itself."""
    if not raw.strip():
        return ()
    parts: list[str] = []
    here: object = tomllib.loads(f"{raw}=0")
    while isinstance(here, Mapping):
        ((name, here),) = here.items()
        parts.append(name)
    return tuple(parts)
