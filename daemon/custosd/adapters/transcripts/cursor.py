"""How far one transcript file has been read: all that is needed to go on after a crash.

Laws:

1. A cursor is plain data; `encode_cursor` and `decode_cursor` are each other's inverse.
2. `offset` is the start of the first line not yet parsed. Whoever stores a cursor in one
   transaction with what was folded up to it loses nothing and counts nothing twice.
3. A file is the same as before when the digests of its head and of the bytes before
   `offset` (the anchor) are: only then is `offset` believed. The inode says nothing: it
   changes when a file is copied over itself, and is given again to another file.
"""

import hashlib
import os

import msgspec

HEAD_BYTES = 4_096
"""How much of a file's beginning is held against it."""

ANCHOR_BYTES = 256
"""How much of what was read last is held against it."""


class Cursor(msgspec.Struct, frozen=True, array_like=True, tag="cursor-1", gc=False):
    """The position in one file.

    `key` names the transcript for ever (the first path it was met under); `path` is
    where it lies now. `size` and `mtime_ns` are the file's when it was last read.
    `scanned` bytes after `offset` hold no line end. `skipping`: `offset` is inside a
    line that is passed over. `jump_to` (0: none): where reading goes on after the head
    of a file too large to be read as a whole. `line` counts the lines read, -1 where
    that is unknown. `session`, `thread` and `agent` are the names that the file gave
    first. `state` is the encoded state of the format. `tries` counts writings
    of a document that were garbled. `rewinding`: the next events replace all that was
    told. `told` counts incidents by kind, `unread` records
    by what they are.
    """

    path: bytes
    key: str
    device: int = 0
    inode: int = 0
    size: int = -1
    mtime_ns: int = 0
    offset: int = 0
    scanned: int = 0
    skipping: bool = False
    jump_to: int = 0
    line: int = 0
    head_length: int = 0
    head: bytes = b""
    anchor: bytes = b""
    format: str = ""
    session: str = ""
    thread: str = ""
    agent: str = ""
    state: bytes = b""
    tries: int = 0
    rewinding: bool = False
    told: dict[str, int] = {}
    unread: dict[str, int] = {}


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Cursor)


def encode_cursor(cursor: Cursor) -> bytes:
    """About 200 bytes and the format's state."""
    return _encoder.encode(cursor)


def decode_cursor(data: bytes) -> Cursor | None:
    """None where it is of another version, or not a cursor: the file is read anew then."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def digest_bytes(data: bytes) -> bytes:
    """64 bits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=8).digest()


def head_and_digest(fd: int, limit: int = HEAD_BYTES) -> tuple[int, bytes]:
    """Read a file's first `limit` bytes; return how many there are, and their digest."""
    data = os.pread(fd, limit, 0)
    return len(data), digest_bytes(data)


def anchor_at(fd: int, offset: int) -> bytes:
    """The digest of the bytes before `offset`."""
    start = max(0, offset - ANCHOR_BYTES)
    return digest_bytes(os.pread(fd, offset - start, start))
