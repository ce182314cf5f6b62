"""What can go wrong with a transcript file, told once and without a word of an agent's.

Laws:

1. An `Incident` holds no agent text: numbers, digests, error names, and the path as
   `quoted` makes it fit for a log line and a database.
2. One file tells a kind at most `most_told(kind)` times (`Told`); what is told no more is still
   counted there.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from custosd.ports import Incident

QUOTED_CHARS = 4_096
"""The longest path in an incident: room for every path that is followed, all escaped."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


class IncidentKind(StrEnum):
    """The closed list of troubles; in brackets what `detail` holds."""

    SKIPPED = "skipped"
    """A large file met for the first time: its middle was left out (`bytes`)."""
    LINE_TOO_LONG = "line_too_long"
    """A line above the limit was passed over (`offset`)."""
    RECORD_GARBLED = "record_garbled"
    """A record that its format cannot read (`offset`, `length`, `digest`)."""
    RECORD_UNKNOWN = "record_unknown"
    """A well-formed record of a sort that the format does not know (`what`)."""
    RECORD_FAILED = "record_failed"
    """The format's reader failed on a record; that is a defect of ours (`error`)."""
    INVALID_UTF8 = "invalid_utf8"
    """Bytes that are not UTF-8 were replaced by U+FFFD (first seen at `offset`)."""
    NUL_BYTES = "nul_bytes"
    """NUL bytes, as a crashed file system leaves them, were taken out."""
    TRUNCATED = "truncated"
    """The file is shorter than what was read of it (`lost`): it is read anew."""
    REPLACED = "replaced"
    """Another file stands at this path, or it was rewritten in place: it is read anew."""
    STATE_OUTDATED = "state_outdated"
    """The stored position is of another version of custosd: the file is read anew."""
    VANISHED = "vanished"
    """The file is gone; its position is kept."""
    MOVED = "moved"
    """The transcript goes on in another file, a longer copy of this one (`to`)."""
    DUPLICATE = "duplicate"
    """The file is a copy of another one (`of`) and is not counted twice."""
    FORMAT_UNKNOWN = "format_unknown"
    """No format knows this file."""
    DOCUMENT_TOO_LARGE = "document_too_large"
    """A document above the limit (`bytes`, `limit`) is not read."""
    NOT_A_FILE = "not_a_file"
    """A pipe, socket, device or directory stands where a transcript should."""
    LINK_REFUSED = "link_refused"
    """A symbolic link, or a way that leaves its root: add the target as a root of its own."""
    UNREADABLE = "unreadable"
    """The system refuses it (`error`): give the daemon's user the right to read."""
    PATH_TOO_LONG = "path_too_long"
    """A path above the limit is not followed."""
    TOO_DEEP = "too_deep"
    """A folder lies deeper in its root than is looked."""
    TOO_MANY_FILES = "too_many_files"
    """More transcripts than `limit`: the newest are followed, the others are not."""
    WATCH_UNAVAILABLE = "watch_unavailable"
    """The kernel gives no (more) watches (`error`): changes are found by rescans only."""
    READ_FAILED = "read_failed"
    """Reading a file failed in a way that nobody foresaw (`error`)."""


_REPEATING = {
    IncidentKind.LINE_TOO_LONG: 5,
    IncidentKind.RECORD_GARBLED: 5,
    IncidentKind.RECORD_FAILED: 5,
    IncidentKind.RECORD_UNKNOWN: 32,
    IncidentKind.TRUNCATED: 5,
    IncidentKind.REPLACED: 5,
    IncidentKind.MOVED: 5,
}


def most_told(kind: str) -> int:
    """How often one file may tell of a kind: once, or a few times where places differ."""
    return _REPEATING.get(IncidentKind(kind), 1)


@dataclass(slots=True)
class Told:
    """What one file has told of so far; collects incidents during one reading."""

    path: str
    counts: dict[str, int]
    fresh: list[Incident] = field(default_factory=list)

    def tell(self, kind: IncidentKind, line: int = 0, /, **detail: int | str) -> None:
        """Add an incident, unless this file has told of its kind often enough."""
        count = self.counts.get(kind, 0) + 1
        self.counts[kind] = count
        if count <= most_told(kind):
            self.fresh.append(Incident(kind, self.path, max(line, 0), detail))

    def again(self) -> "Told":
        """A copy to try with; the trial that succeeds replaces the original."""
        return Told(self.path, dict(self.counts), list(self.fresh))

    def forget(self, *kinds: IncidentKind) -> None:
        """These troubles are over: if they come back, they are told again."""
        for kind in kinds:
            self.counts.pop(kind, None)


def quoted(path: str) -> str:
    r"""Make a path printable, one line and valid UTF-8; different paths stay different.

    Unprintable characters and undecodable bytes become `\x..` or `\u....`, a backslash
    is doubled. Above QUOTED_CHARS (no path that is followed) the middle is cut out.
    """
    plain = path.isprintable() and "\\" not in path
    text = path if plain else "".join(map(_escaped, path))
    if len(text) <= QUOTED_CHARS:
        return text
    half = QUOTED_CHARS // 2
    return f"{text[:half]}...[{len(text) - 2 * half}]...{text[-half:]}"


def plain_name(name: str, digest: str) -> str:
    """`name` where it is a short plain identifier, else `digest`: names may come from agents."""
    return name if _PLAIN_NAME.fullmatch(name) else digest


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":  # an undecodable byte, as os.fsdecode carries it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
