"""Who asks, over HTTP: the token in `Authorization: Bearer`."""

from collections.abc import Callable, Mapping

from starlette.requests import Request

from custosd.core.tokens import Token, recognised

Tokens = Callable[[], Mapping[str, Token]]
"""The tokens as they stand now, by id."""

LONGEST_TOKEN = 200


def bearer_in(request: Request) -> str:
    """The token that was presented; "" where none was, or what was is too long to be one."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip()
    return text if scheme.lower() == "bearer" and len(text) <= LONGEST_TOKEN else ""


def known_bearer(request: Request, tokens: Tokens) -> Token | None:
    """The token that was presented, if it is one of these."""
    text = bearer_in(request)
    return recognised(text, tokens()) if text else None
