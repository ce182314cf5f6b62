"""How much of a transcript is read at once, and at most."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Sizes in bytes.

    `read_chunk_bytes` bounds one call, so that a huge file does not starve the others.
    Of a file met for the first time that is larger than `backfill_bytes`, only its
    first `head_bytes` (session and goal) and its last `backfill_bytes` are read; a
    document above `backfill_bytes` is not read at all.
    """

    read_chunk_bytes: int = 256 * KIB
    max_line_bytes: int = 16 * MIB
    backfill_bytes: int = 64 * MIB
    head_bytes: int = 1 * MIB
