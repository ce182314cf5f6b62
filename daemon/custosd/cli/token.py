"""The commands that give and take the right to speak for an agent, or to ask for acts."""

import json
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from custosd.adapters.control_socket import user_names
from custosd.adapters.postgres.actions import PostgresActions
from custosd.adapters.postgres.opening import open_postgres
from custosd.cli.settings import log_for_a_command, run_to_the_end, settings
from custosd.cli.showing import Look, age, printable
from custosd.config.settings import Config
from custosd.core.acts import Act
from custosd.core.errors import CustosdError
from custosd.core.tokens import Token, hash_of, presented

SCOPES = (*(act.value for act in Act), "read", "*")

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_SECRET_BYTES = 32


class TokenRefused(CustosdError):
    """There is no such token, or one of that name is there already."""


@click.group("token")
def token() -> None:
    """Who may beat for an agent, and ask for acts, from elsewhere."""


@token.command("issue")
@click.argument("name", required=False)
@click.option("--agent", default="", help="Whom it may beat for; '*' is everybody.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    metavar="ACT",
    help="What it may ask for: an act such as pause, 'read' (why, forecast) or '*'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: id, token, agent, scopes.")
@click.pass_context
def issue(
    ctx: click.Context, name: str | None, agent: str, scopes: tuple[str, ...], *, as_json: bool
) -> None:
    """Make a token, called NAME where one is given, and print it: this once and never again.

    Only its hash is stored. The daemon knows it within some seconds.
    """
    if not agent and not scopes:
        raise click.UsageError("a token without --agent and --scope may do nothing")
    if name is not None and not _ID.fullmatch(name):
        raise click.UsageError("a name has letters, digits, and . - between them, at most 64")
    config = settings(ctx)
    log_for_a_command(ctx)
    token_id, secret = name or secrets.token_hex(6), secrets.token_urlsafe(_SECRET_BYTES)
    run_to_the_end(_issue, config, token_id, secret, agent, frozenset(scopes))
    text = presented(token_id, secret)
    if as_json:
        form = {"id": token_id, "token": text, "agent": agent, "scopes": sorted(scopes)}
        click.echo(json.dumps(form, indent=2))
    else:
        click.echo(text)


async def _issue(
    config: Config, token_id: str, secret: str, agent: str, scopes: frozenset[str]
) -> None:
    uid = os.getuid()
    name = await user_names()(uid)
    by = f"uid:{uid} ({name})" if name else f"uid:{uid}"
    async with open_postgres(config, os.environ, serve=False) as database:
        actions = PostgresActions(database)
        if any(known.id == token_id for known in await actions.tokens()):
            raise TokenRefused(f"there is a token called {token_id}; revoke it, or choose another")
        issued = Token(token_id, hash_of(secret), datetime.now(UTC), by, agent, scopes)
        await actions.save_token(issued)


@token.command("list")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON: id, agent, scopes, created_utc, created_by.",
)
@click.pass_context
def list_tokens(ctx: click.Context, *, as_json: bool) -> None:
    """List the tokens that are in force; their secrets are known to nobody but their holders."""
    config = settings(ctx)
    log_for_a_command(ctx)
    found = run_to_the_end(_tokens, config)
    if as_json:
        click.echo(json.dumps([_form(one) for one in found], indent=2))
    elif not found:
        click.echo("no tokens; make one with `custosd token issue`")
    else:
        _show(found)


async def _tokens(config: Config) -> tuple[Token, ...]:
    async with open_postgres(config, os.environ, serve=False) as database:
        return await PostgresActions(database).tokens()


def _form(one: Token) -> dict[str, object]:
    return {
        "id": one.id,
        "agent": one.agent,
        "scopes": sorted(one.scopes),
        "created_utc": one.created_utc.isoformat(),
        "created_by": one.created_by,
    }


def _show(found: Sequence[Token]) -> None:
    look, now = Look(), datetime.now(UTC)
    for one in found:
        beats = f"beats for {one.agent}" if one.agent else "no beats"
        acts = ", ".join(sorted(one.scopes)) or "no acts"
        words = f"{beats}; {acts}; {age(one.created_utc, now)} old, by {one.created_by}"
        look.line(printable(f"{one.id:16} "), printable(words))


@token.command("revoke")
@click.argument("name")
@click.pass_context
def revoke(ctx: click.Context, name: str) -> None:
    """Take the token called NAME away for good; the daemon knows it within some seconds."""
    config = settings(ctx)
    log_for_a_command(ctx)
    run_to_the_end(_revoke, config, name)
    click.echo(f"{printable(name).plain} is revoked")


async def _revoke(config: Config, name: str) -> None:
    async with open_postgres(config, os.environ, serve=False) as database:
        if not await PostgresActions(database).revoke_token(name):
            raise TokenRefused(f"there is no token called {name!r}; see `custosd token list`")
