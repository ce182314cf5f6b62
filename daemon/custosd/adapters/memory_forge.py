"""A forge in memory: the shipped fake, which pages, forgets nothing and fails as told."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from custosd.core.forge import (
    Delivery,
    ForgeError,
    ForgeWork,
    HookRefusal,
    HookRefused,
    Quota,
    Repository,
    Trouble,
    WorkKind,
)
from custosd.ports import ForgePage

_STREAMS = {
    "pulls": WorkKind.PULL_REQUEST,
    "issues": WorkKind.ISSUE,
    "commits": WorkKind.COMMIT,
    "checks": WorkKind.CHECK,
}


@dataclass(slots=True)
class MemoryForge:
    """`ports.Forge` without a server.

    `put` and `fail` say what is there; `asked` counts the pages of each repository; `delay_s`
    is how long a page takes. Works are paged newest first, `per_page` at a time.
    """

    name: str = "memory"
    secret: bytes = b"secret"
    per_page: int = 2
    delay_s: float = 0.0
    quota: Quota | None = None
    asked: dict[str, int] = field(default_factory=dict[str, int])
    most_at_once: int = 0
    _at_once: int = 0
    _works: dict[str, dict[tuple[str, str, str], ForgeWork]] = field(default_factory=dict)
    _failures: dict[str, ForgeError | None] = field(default_factory=dict)

    def add(self, repository: str) -> None:
        """There is such a repository from now on."""
        self._works.setdefault(repository, {})

    def put(self, *works: ForgeWork) -> None:
        """These are there from now on, as they stand."""
        for work in works:
            self._works.setdefault(work.repository, {})[work.id] = work

    def fail(self, repository: str, failure: ForgeError | None) -> None:
        """Answer so from now on; None: as it should be."""
        self._failures[repository] = failure

    def streams(self, repository: Repository, open_works: Sequence[ForgeWork]) -> tuple[str, ...]:
        """See the port."""
        del repository, open_works
        return tuple(_STREAMS)

    async def page(self, repository: Repository, stream: str, cursor: str) -> ForgePage:
        """See the port."""
        self.asked[repository.id] = self.asked.get(repository.id, 0) + 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await trio.sleep(self.delay_s)
        finally:
            self._at_once -= 1
        if failure := self._failures.get(repository.id):
            raise failure
        if repository.id not in self._works:
            raise ForgeError(Trouble.GONE, f"{repository.name}: there is none")
        kind = _STREAMS[stream]
        works = [work for work in self._works[repository.id].values() if work.kind is kind]
        works.sort(key=lambda work: (work.updated_utc, work.key), reverse=True)
        state = _digest(works)
        seen, _, place = cursor.partition("/")
        start = int(place) if place.isdecimal() else 0
        if seen == state and not start:
            return ForgePage(cursor, unchanged=True, quota=self.quota)
        if start >= len(works) > 0:
            start = 0
        shown = works[start : start + self.per_page]
        more = start + self.per_page < len(works)
        onward = f"{'' if more else state}/{start + self.per_page if more else ''}"
        return ForgePage(onward, tuple(shown), more, quota=self.quota)

    def signed(self, delivery_id: str, *works: ForgeWork) -> tuple[dict[str, str], bytes]:
        """Headers and body of a hook that tells of these works of one repository."""
        body = json.dumps(
            {"repository": works[0].repository, "works": msgspec.to_builtins(works)}
        ).encode()
        signature = hmac.new(self.secret, body, hashlib.sha256).hexdigest()
        return {"x-delivery": delivery_id, "x-signature": signature}, body

    async def delivery(
        self,
        headers: Mapping[str, str],
        body: bytes,
        find: Callable[[str, str], Repository | None],
    ) -> Delivery:
        """See the port."""
        await trio.lowlevel.checkpoint()
        signed = hmac.new(self.secret, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signed, headers.get("x-signature", "")):
            raise HookRefused(HookRefusal.UNSIGNED, "it is not signed with our secret")
        try:
            form = json.loads(body)
            works = msgspec.convert(form["works"], tuple[ForgeWork, ...], strict=False)
            name = str(form["repository"]).partition(":")[2]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HookRefused(HookRefusal.MALFORMED, "it tells of no works") from error
        if not headers.get("x-delivery"):
            raise HookRefused(HookRefusal.MALFORMED, "it has no name")
        repository = find(name, "")
        if repository is None:
            raise HookRefused(HookRefusal.UNKNOWN, "it is of a repository that is not followed")
        digest = hashlib.sha256(body).hexdigest()
        return Delivery(headers["x-delivery"], digest, "works", repository.id, works)


def _digest(works: Sequence[ForgeWork]) -> str:
    return hashlib.sha256(repr(works).encode(errors="backslashreplace")).hexdigest()[:16]
