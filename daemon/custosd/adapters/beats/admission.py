"""Who may beat for whom: what each door for beats does with what came in.

    bytes ──► read_beats ──► [ Admission ] ──► BeatDoor.offer
                                  └── Admitted ──► who sent it

Laws:

1. A beat is let in where the kernel names the sender's user as root, the daemon's or the
   agent's own, or where a token came with it that speaks for the agent. Else it is forged.
2. Whoever may not speak for an agent is not told whether there is one of that name.
3. Whatever is refused is counted at the register, once.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from custosd.adapters.beats.reading import PresentedBeat, RefusedBeat, read_beats
from custosd.core.agents import AgentId
from custosd.core.beats import Refusal
from custosd.core.tokens import Token, recognised
from custosd.ports import BeatDoor

UidOf = Callable[[AgentId], int | None]
"""The user whose processes may beat for an agent without a token; None: no user may."""

OVERFLOW_UID = 65_534
"""What the kernel names a user who has no number here ("nobody"): it may be anybody."""

WORDS: Mapping[Refusal, str] = {
    Refusal.UNKNOWN_AGENT: "no agent of this name may beat; the configuration has no table for it",
    Refusal.OLD_EPOCH: "this incarnation has been replaced by a newer one",
    Refusal.FUTURE_EPOCH: "no such incarnation has been started yet",
    Refusal.REPLAYED: "a beat with this sequence number, or a higher one, has come already",
    Refusal.FULL: "beats of so many agents are kept already; try again later",
    Refusal.OVERSIZE: "it is too large",
}
"""What the sender is told of a refusal that needs no further detail."""

_NO_TOKEN = "no token came with it, and its user is not the agent's"  # noqa: S105 - words
_BAD_TOKEN = "its token is not known, or was revoked"  # noqa: S105 - words
_WRONG_TOKEN = "its token does not speak for this agent"  # noqa: S105 - words


@dataclass(frozen=True, slots=True)
class Admitted:
    """What became of one message. `identified`: a token came with it that is one of ours."""

    accepted: int
    refused: tuple[RefusedBeat, ...] = ()
    identified: bool = False

    @property
    def refusal(self) -> Refusal | None:
        """Why the first one that was refused was; None where all were let in."""
        return self.refused[0].refusal if self.refused else None

    def form(self, most: int) -> dict[str, Any]:
        """What the sender is told: `accepted`, `refused` (at most `most`), `untold` if more were.

        Of each refusal: `index` in the array, `agent`, `why` (a `Refusal`), `detail` in words.
        """
        told = [
            {"index": one.index, "agent": one.agent, "why": one.refusal, "detail": one.detail}
            for one in self.refused[:most]
        ]
        untold = len(self.refused) - len(told)
        more = {"untold": untold} if untold else {}
        return {"accepted": self.accepted, "refused": told} | more


class Admission:
    """Lets beats in by the register's leave, and their senders' right.

    `tokens` are the tokens as they stand now, by id.
    """

    def __init__(
        self,
        door: BeatDoor,
        tokens: Callable[[], Mapping[str, Token]],
        uid_of: UidOf = lambda _agent: None,
    ) -> None:
        self._door = door
        self._tokens = tokens
        self._uid_of = uid_of
        self._trusted = frozenset({0, os.geteuid()})

    def admit(
        self,
        data: bytes | bytearray | memoryview,
        door: str,
        *,
        uid: int | None = None,
        bearer: str = "",
    ) -> Admitted:
        """Let in what may come in. `uid`: the sender's user, if the kernel named it.

        `bearer` is a token for all beats that have none of their own. Never raises.
        """
        sender = _Sender(self._tokens(), uid, bearer)
        accepted = 0
        refused: list[RefusedBeat] = []
        for read in read_beats(data):
            told = self._refusal(read, door, sender)
            if told is None:
                accepted += 1
            else:
                refused.append(told)
        return Admitted(accepted, tuple(refused), sender.identified)

    def turned_away(self, refusal: Refusal, detail: str = "") -> Admitted:
        """Count what was not even read, and say so."""
        self._door.refuse(refusal)
        return Admitted(0, (RefusedBeat(None, "", refusal, detail or WORDS[refusal]),))

    def _refusal(
        self, read: PresentedBeat | RefusedBeat, door: str, sender: "_Sender"
    ) -> RefusedBeat | None:
        if isinstance(read, RefusedBeat):
            # Its agent is only a claim so far: not what it is counted for.
            self._door.refuse(read.refusal)
            return read
        agent = read.beat.agent
        if not self._owns(agent, sender.uid) and (why := sender.why_not(agent, read.token)):
            self._door.refuse(Refusal.FORGED, agent)
            return RefusedBeat(read.index, agent, Refusal.FORGED, why)
        refusal = self._door.offer(read.beat, door)
        if refusal is None:
            return None
        return RefusedBeat(read.index, agent, refusal, WORDS.get(refusal, ""))

    def _owns(self, agent: AgentId, uid: int | None) -> bool:
        if uid is None or uid == OVERFLOW_UID:
            return False
        return uid in self._trusted or uid == self._uid_of(agent)


class _Sender:
    """Who sent one message; each token in it is looked at once."""

    def __init__(self, tokens: Mapping[str, Token], uid: int | None, bearer: str) -> None:
        self.uid = uid
        self.identified = False
        self._tokens = tokens
        self._bearer = bearer
        self._seen: dict[str, Token | None] = {}

    def why_not(self, agent: AgentId, own_token: str) -> str:
        """Why no token lets this beat in; "" where one does."""
        presented = own_token or self._bearer
        if not presented:
            return _NO_TOKEN
        if presented not in self._seen:
            self._seen[presented] = recognised(presented, self._tokens)
        token = self._seen[presented]
        if token is None:
            return _BAD_TOKEN
        self.identified = True
        return "" if token.may_beat_for(agent) else _WRONG_TOKEN
