"""The commands about the configuration: check it, show it, explain it."""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import click

from custosd.cli.exit_codes import BAD_CONFIG, FAILURE, USAGE
from custosd.config.kinds import as_toml
from custosd.config.manual import (
    default_text,
    explained,
    look_up,
    nearest,
    schema,
    shown_text,
    values,
)
from custosd.config.problems import InvalidConfig, Problem, ProblemKind
from custosd.config.reading import Reading, read
from custosd.config.section import dotted
from custosd.config.sources import Source, locate_config

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("check-config")
@click.argument("files", nargs=-1, metavar="[FILE...|-]")
@_as_json
@click.pass_context
def check_config(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check configuration files, together and in this order; - is standard input.

    Without a FILE those are checked that `custosd run` would read. Exits with 0 if all is
    well, 1 if something is wrong, 2 if a file could not be read.
    """
    sources = locate_config(files, os.environ) if files else _sources(ctx)
    reading: Reading | None = None
    problems: Sequence[Problem] = ()
    try:
        reading = read(sources)
    except InvalidConfig as error:
        problems = error.problems
    if as_json:
        _print_json(_check_as_json(sources, reading, problems))
    else:
        click.echo("\n".join(_check_as_text(sources, reading, problems)))
    if any(problem.kind is ProblemKind.UNREADABLE for problem in problems):
        sys.exit(USAGE)
    if problems:
        sys.exit(FAILURE)


@click.group("config")
def config_group() -> None:
    """Show and explain the configuration."""


@config_group.command("show")
@_as_json
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Print the values in force, and where each comes from."""
    try:
        reading = read(_sources(ctx))
    except InvalidConfig as error:
        _end_invalid(error)
    if not as_json:
        click.echo(shown_text(reading), nl=False)
        return
    _print_json(
        {
            dotted(value.path): {
                "value": value.plain,
                "origin": None if value.origin is None else asdict(value.origin),
            }
            for value in values(reading)
        }
    )


@config_group.command("default")
def default() -> None:
    """Print the commented configuration file with every key and its default."""
    click.echo(default_text(), nl=False)


@config_group.command("schema")
def json_schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    _print_json(schema())


@config_group.command("explain")
@click.argument("name", metavar="KEY")
@_as_json
@click.pass_context
def explain(ctx: click.Context, name: str, as_json: bool) -> None:
    """Tell what a KEY (or a section) means: form, range, default, present value."""
    entry = look_up(name)
    if entry is None:
        meant = nearest(name)
        hint = (
            f"did you mean {' or '.join(meant)}?" if meant else "all keys: custosd config default"
        )
        click.echo(f"there is no key {as_toml(name)}; {hint}", err=True)
        sys.exit(USAGE)
    reading: Reading | None = None
    try:
        reading = read(_sources(ctx))
    except InvalidConfig:
        click.echo("the present value is not known: see custosd check-config", err=True)
    told = explained(entry, reading)
    if as_json:
        _print_json(told)
    else:
        click.echo("\n".join(_explanation(told)))


config_commands: list[click.Command] = [check_config, config_group]
"""What the main command takes in. They find `--config` in `ctx.obj["config"]`."""


def _sources(ctx: click.Context) -> list[Source]:
    found = ctx.find_object(dict)
    return locate_config(found.get("config", ()) if found else (), os.environ)


def _end_invalid(error: InvalidConfig) -> NoReturn:
    click.echo(str(error), err=True)
    sys.exit(BAD_CONFIG)


def _check_as_text(
    sources: Sequence[Source], reading: Reading | None, problems: Sequence[Problem]
) -> list[str]:
    if not sources:
        return ["no configuration file: the defaults hold"]
    counts = Counter(problem.file for problem in problems)
    keys = _keys(reading)
    lines: list[str] = []
    for source in sources:
        if count := counts[source.shown]:
            lines.append(f"{source.shown}: {count} problem{'s' if count > 1 else ''}")
            lines += [f"  {problem}" for problem in problems if problem.file == source.shown]
        elif reading is None:
            lines.append(f"{source.shown}: nothing wrong in this file")
        else:
            number = keys[source.shown]
            lines.append(f"{source.shown}: valid, sets {number} key{'' if number == 1 else 's'}")
    return lines


def _check_as_json(
    sources: Sequence[Source], reading: Reading | None, problems: Sequence[Problem]
) -> dict[str, Any]:
    return {
        "valid": not problems,
        "files": [
            {
                "file": source.shown,
                "keys": _keys(reading)[source.shown] if reading else None,
                "problems": [asdict(p) for p in problems if p.file == source.shown],
            }
            for source in sources
        ],
    }


def _keys(reading: Reading | None) -> Counter[str]:
    """How many values in force each file is the origin of."""
    if reading is None:
        return Counter()
    return Counter(value.origin.file for value in values(reading) if value.origin)


def _explanation(told: dict[str, Any]) -> list[str]:
    lines = [told["key"], f"  {told['meaning']}"]
    if "keys" in told:
        return [*lines, "  keys:", *(f"    {name}" for name in told["keys"])]
    lines.append(f"  takes    {told['expected']}")
    lines.append(
        "  default  none, it must be given"
        if told.get("required")
        else f"  default  {as_toml(told['default'])}"
    )
    for present in told.get("present", ()):
        name = f"{present['key']} = " if present["key"] != told["key"] else ""
        lines.append(f"  present  {name}{as_toml(present['value'])} ({present['origin']})")
    return lines


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
