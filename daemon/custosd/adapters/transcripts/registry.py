"""The table of all transcript formats, and which of them a file is written in.

Law: the first that matches wins, and the table goes from the most particular to the
most general, so that no file is taken by a format that merely looks alike.
"""

from custosd.adapters.transcripts import (
    aider,
    claude_code,
    codex,
    codex_exec,
    gemini_cli,
    mini_swe_agent,
    openhands,
    pi,
    steps,
    swe_agent,
)
from custosd.adapters.transcripts.format import Format, Sample

FORMATS: tuple[Format, ...] = (
    steps.FORMAT,
    codex_exec.FORMAT,
    pi.FORMAT,
    gemini_cli.LINE_FORMAT,
    gemini_cli.FORMAT,
    claude_code.FORMAT,
    codex.FORMAT,
    *openhands.FORMATS,
    mini_swe_agent.FORMAT,
    swe_agent.FORMAT,
    aider.FORMAT,
)

SAMPLE_BYTES = 64 * 1024
"""How much of a file's beginning a sample holds at most."""

_by_name = {fmt.name: fmt for fmt in FORMATS}


def recognise(sample: Sample) -> Format | None:
    """The format that a file is written in; None for one that is no transcript we know."""
    return next((fmt for fmt in FORMATS if fmt.matches(sample)), None)


def format_named(name: str) -> Format | None:
    """The format of this name, as a stored position names it; None if there is none."""
    return _by_name.get(name)
