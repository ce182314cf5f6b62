"""What a person means by a name: an id, or as much of one as only one thing has.

Law: a name that fits several things fits none; whoever asked is told which there are.
"""

from collections.abc import Collection, Iterable

from custosd.core.errors import CustosdError

NAMES_SHOWN = 10


class UnknownSubject(CustosdError):
    """Nothing, or more than one thing, is meant; `candidates` are some of what could be."""

    def __init__(self, message: str, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


def one_with_part(part: str, ids: Collection[str], noun: str) -> str:
    """The id that is `part`, else the only one that has it anywhere; raises `UnknownSubject`."""
    if part in ids:
        return part
    found = [known for known in ids if part and part in known]
    return _only(found, ids, noun, f"have {part!r} in the id" if part else "")


def one_with_prefix(part: str, ids: Collection[str], noun: str) -> str:
    """The id that is `part`, else the only one that begins so; raises `UnknownSubject`.

    The kind in front of a concern's id ("life:builder-1") may be left out.
    """
    if part in ids:
        return part
    found = [known for known in ids if part and _begins(known, part)]
    return _only(found, ids, noun, f"have an id that begins with {part!r}" if part else "")


def _begins(known: str, part: str) -> bool:
    return known.startswith(part) or known.partition(":")[2].startswith(part)


def _only(found: list[str], ids: Iterable[str], noun: str, traits: str) -> str:
    if len(found) == 1:
        return found[0]
    names = sorted(found or ids)
    shown = tuple(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = (", ".join(shown) or "none") + more
    count = str(len(found)) if found else "no"
    problem = f"{count} {noun}s {traits}" if traits else f"which {noun} is not said"
    raise UnknownSubject(f"{problem}; there is: {listed}", shown)
