"""A shell line, cut into simple commands: words, redirections and here-documents.

Not a shell: variables stay as written and substitutions stay whole within their word.
Total: a line whose quoting does not close is cut at operators and blanks instead.
"""

import re
from dataclasses import dataclass

MAX_CHARS = 64_000
"""Beyond this, the rest of a line is not read (a here-document of a whole file fits)."""

MAX_COMMANDS = 200


@dataclass(frozen=True, slots=True)
class SimpleCommand:
    """One program with its arguments, unquoted, and where its streams go.

    `writes` are (path, appended) pairs; `text` is its here-document or here-string.
    """

    words: tuple[str, ...]
    writes: tuple[tuple[str, bool], ...] = ()
    reads: tuple[str, ...] = ()
    text: str = ""


class _Unclosed(Exception):
    """A quote or substitution does not end."""


_BLANK = re.compile(r"(?:[ \t\r]|\\\n)+")
_OPERATOR = re.compile(r"\|\||&&|;;|\|&|[;|&\n()]")
_HEREDOC = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]+)'|\"([^\"\n]+)\"|\\?([\w.!@%+-]+))")
_REDIRECT = re.compile(r"(?:\d*|&)(>>|>\||>&|<&|<<<|<>|>|<)")
_REDIRECT_START = re.compile(r"\d*[<>]|&>")
_PLAIN = re.compile(r"[^\s\\'\"$`;|&<>()]+")
_INNER_STOP = re.compile(r"[\\'\"()`]|<<")
_DOUBLE_STOP = re.compile(r"[\\\"`]|\$\(")
_DOUBLE_ESCAPE = re.compile(r"\\([\"$`\\\n])")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(?:\[[^\]]*\])?\+?=")
_ROUGH_CUT = re.compile(r"\|\||&&|[;|\n]")


def simple_commands(line: str) -> tuple[SimpleCommand, ...]:
    """Cut a line (or a script of many) into its simple commands, in order, at most 200."""
    line = line[:MAX_CHARS]
    try:
        return tuple(_Lexer(line).commands())
    except (_Unclosed, RecursionError):
        pieces = (_without_assignments(piece.split()) for piece in _ROUGH_CUT.split(line))
        return tuple(SimpleCommand(tuple(words)) for words in pieces if words)[:MAX_COMMANDS]


class _Lexer:
    """One pass over a line; `at` is the next character's index."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.at = 0
        self.done: list[SimpleCommand] = []
        self.pending: list[tuple[str, bool, int]] = []  # here-documents: end mark, dashed, command
        self._clear()

    def _clear(self) -> None:
        self.words: list[str] = []
        self.writes: list[tuple[str, bool]] = []
        self.reads: list[str] = []
        self.text = ""

    def commands(self) -> list[SimpleCommand]:
        line, end = self.line, len(self.line)
        while self.at < end and len(self.done) < MAX_COMMANDS:
            if blank := _BLANK.match(line, self.at):
                self.at = blank.end()
            elif line[self.at] == "#":
                stop = line.find("\n", self.at)
                self.at = end if stop < 0 else stop
            elif _REDIRECT_START.match(line, self.at):
                self._redirection()
            elif operator := _OPERATOR.match(line, self.at):
                self.at = operator.end()
                self._close()
                if operator[0] == "\n" and self.pending:
                    self._here_documents()
            else:
                self.words.append(self._word())
        self._close()
        return self.done

    def _close(self) -> None:
        words = _without_assignments(self.words)
        if words or self.writes or self.text:
            self.done.append(
                SimpleCommand(tuple(words), tuple(self.writes), tuple(self.reads), self.text)
            )
        elif self.pending and self.pending[-1][2] == len(self.done):
            self.done.append(SimpleCommand(()))
        self._clear()

    def _redirection(self) -> None:
        line = self.line
        if not line.startswith("<<<", self.at) and (mark := _HEREDOC.match(line, self.at)):
            self.pending.append((mark[2] or mark[3] or mark[4], bool(mark[1]), len(self.done)))
            self.at = mark.end()
            return
        redirect = _REDIRECT.match(line, self.at)
        if redirect is None:  # digits that only look like a redirection
            self.words.append(self._word())
            return
        self.at = redirect.end()
        if blank := _BLANK.match(line, self.at):
            self.at = blank.end()
        if self.at < len(line) and line[self.at] == "(":  # process substitution
            self.at = _skip_substitution(line, self.at)
            return
        target = self._word() if self.at < len(line) and line[self.at] not in "\n;|&<>)" else ""
        match redirect[1]:
            case "<<<":
                self.text = target
            case "<":
                self.reads.append(target)
            case ">" | ">>" | ">|" | "<>" if target:
                self.writes.append((target, redirect[1] == ">>"))
            case ">&" if line[redirect.start()] == ">" and not target.isdigit() and target != "-":
                self.writes.append((target, False))
            case _:  # a copy of a stream, such as 2>&1
                if line.startswith("&", self.at):
                    self.at += 1
                    self._word()

    def _word(self) -> str:
        line, end, start = self.line, len(self.line), self.at
        pieces: list[str] = []
        while self.at < end:
            if plain := _PLAIN.match(line, self.at):
                self.at = plain.end()
                pieces.append(plain[0])
                continue
            char = line[self.at]
            if char == "'":
                stop = _find(line, "'", self.at + 1)
                pieces.append(line[self.at + 1 : stop])
                self.at = stop + 1
            elif char == '"':
                stop = _skip_double(line, self.at)
                pieces.append(_DOUBLE_ESCAPE.sub(_unescaped, line[self.at + 1 : stop - 1]))
                self.at = stop
            elif char == "\\":
                pieces.append(line[self.at + 1 : self.at + 2].replace("\n", ""))
                self.at += 2
            elif char == "`" or line.startswith("$(", self.at):
                start_at = self.at
                self.at = (
                    _find(line, "`", self.at + 1) + 1
                    if char == "`"
                    else _skip_substitution(line, self.at + 1)
                )
                pieces.append(line[start_at : self.at])
            elif char == "$":
                pieces.append("$")
                self.at += 1
            else:
                break
        if self.at == start:  # nothing that a word may start with: step over it
            self.at += 1
        return "".join(pieces)

    def _here_documents(self) -> None:
        for mark, dashed, index in self.pending:
            body, self.at = _here_document(self.line, self.at, mark, dashed=dashed)
            if index < len(self.done):
                command = self.done[index]
                self.done[index] = SimpleCommand(command.words, command.writes, command.reads, body)
        self.pending.clear()


def _unescaped(match: re.Match[str]) -> str:
    return "" if match[1] == "\n" else match[1]


def _find(line: str, char: str, start: int) -> int:
    stop = line.find(char, start)
    if stop < 0:
        raise _Unclosed
    return stop


def _here_document(line: str, start: int, mark: str, *, dashed: bool) -> tuple[str, int]:
    """The body that starts at `start`, and where the line after its end mark begins."""
    at = start
    while at <= len(line):
        stop = line.find("\n", at)
        row = line[at:] if stop < 0 else line[at:stop]
        if (row.lstrip("\t") if dashed else row).rstrip("\r") == mark:
            return line[start:at], len(line) if stop < 0 else stop
        if stop < 0:
            break
        at = stop + 1
    return line[start:], len(line)  # the mark is missing: all the rest is the document


def _skip_double(line: str, start: int) -> int:
    """Where the double-quoted piece that starts at `start` ends (past its quote)."""
    at = start + 1
    while stop := _DOUBLE_STOP.search(line, at):
        at = stop.end()
        match stop[0]:
            case '"':
                return at
            case "\\":
                at += 1
            case "`":
                at = _find(line, "`", at) + 1
            case _:
                at = _skip_substitution(line, at - 1)
    raise _Unclosed


def _skip_substitution(line: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed (past it)."""
    at, depth = start + 1, 1
    while stop := _INNER_STOP.search(line, at):
        at = stop.end()
        match stop[0]:
            case "(":
                depth += 1
            case ")":
                depth -= 1
                if depth == 0:
                    return at
            case "\\":
                at += 1
            case "'":
                at = _find(line, "'", at) + 1
            case '"':
                at = _skip_double(line, at - 1)
            case "`":
                at = _find(line, "`", at) + 1
            case _:
                if mark := _HEREDOC.match(line, stop.start()):
                    row = _find(line, "\n", mark.end())
                    name = mark[2] or mark[3] or mark[4]
                    _, at = _here_document(line, row + 1, name, dashed=bool(mark[1]))
    raise _Unclosed


def _without_assignments(words: list[str]) -> list[str]:
    first = 0
    while first < len(words) and _ASSIGNMENT.match(words[first]):
        first += 1
    return words[first:]
