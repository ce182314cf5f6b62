"""The models that may judge: one `[[model]]` table for each, and ensembles of them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from custosd.config.kinds import (
    AbsolutePath,
    Amount,
    Choice,
    Count,
    CredentialName,
    Duration,
    HttpUrl,
    Name,
    Size,
    Switch,
    Text,
    Words,
)
from custosd.config.secret import Secret
from custosd.config.section import Conflict, KeyPath, Section, Side, default, in_order, required

ModelKind = Literal["anthropic", "openai"]
Structure = Literal["schema", "object", "none"]

RULES = "rules"
"""The judge that needs no model; no model may be called so."""

_DOLLARS = "US dollars a million tokens"


class ModelSettings(Section):
    """A model that may be asked to judge: one such table for each."""

    name: Annotated[str, Name("name of the model here")] = required(
        "What the model is called here: in guardian.judge, in ensembles, in verdicts.",
        example="sonnet",
    )
    kind: Annotated[ModelKind, Choice(get_args(ModelKind))] = required(
        "The protocol: anthropic (Messages), or openai (chat completions), which most others and"
        " local servers speak.",
        example="anthropic",
    )
    model: Annotated[str, Text(longest=200)] = required(
        "The model's name at its provider.", example="claude-sonnet-4-5"
    )
    base_url: Annotated[str, HttpUrl()] = default(
        "",
        "Where it is asked, up to /v1/messages or /chat/completions. Empty: the provider itself.",
    )
    proxy: Annotated[str, HttpUrl()] = default(
        "",
        "The HTTP proxy on the way there; empty: none, whatever the environment says.",
    )
    key_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "A file that holds the key and that others can not read."
    )
    key_credential: Annotated[str, CredentialName()] = default(
        "", "The systemd credential (LoadCredential=) that holds the key."
    )
    timeout_s: Annotated[float, Duration("100ms", "1h")] = default(
        "30s", "How long one attempt may take, from the request to the end of the answer."
    )
    attempts: Annotated[int, Count(1, 10, "attempts")] = default(
        3, "How often one question is asked at most, where the failure may pass by itself."
    )
    max_tokens: Annotated[int, Count(64, 1_000_000, "tokens")] = default(
        1_024, "How long an answer may be."
    )
    context: Annotated[int, Count(2_000, 10_000_000, "tokens")] = default(
        12_000, "How long a question may be; the oldest of the transcript is left out beyond."
    )
    stream: Annotated[bool, Switch()] = default(
        value=False, description="Whether the answer is asked for piece by piece."
    )
    structure: Annotated[Structure, Choice(get_args(Structure))] = default(
        "schema",
        "With openai: how the form of the answer is asked for; schema where the server knows it.",
    )
    temperature: Annotated[float, Amount(-1, 2, "of the sampling; below 0: the provider's")] = (
        default(-1, "How much chance is in an answer; several models take no such word.")
    )
    requests: Annotated[int, Count(1, 1_000_000, "requests a minute")] = default(
        60, "How many requests a minute the account allows."
    )
    tokens: Annotated[int, Count(1_000, 1_000_000_000, "tokens a minute")] = default(
        1_000_000, "How many tokens a minute the account allows."
    )
    concurrency: Annotated[int, Count(1, 1_000, "requests")] = default(
        20, "How many requests are under way at once, at most; fewer when there is no room."
    )
    input_usd: Annotated[float, Amount(0, 10_000, _DOLLARS)] = default(
        0, "What is asked costs so much."
    )
    output_usd: Annotated[float, Amount(0, 10_000, _DOLLARS)] = default(
        0, "What is answered costs so much."
    )
    cached_usd: Annotated[float, Amount(-1, 10_000, _DOLLARS)] = default(
        -1, "What is asked and was cached costs so much; below 0: as what is asked."
    )
    cache_write_usd: Annotated[float, Amount(-1, 10_000, _DOLLARS)] = default(
        -1, "What is put into the cache costs so much; below 0: as what is asked."
    )
    window_5h_usd: Annotated[float, Amount(0, 1_000_000, "US dollars")] = default(
        0, "What it may cost within any 5 hours; 0 is no limit."
    )
    window_week_usd: Annotated[float, Amount(0, 1_000_000, "US dollars")] = default(
        0, "What it may cost within any 7 days; 0 is no limit."
    )
    largest_answer_bytes: Annotated[int, Size("16KiB", "1GiB")] = default(
        "4MiB", "The largest answer that is read."
    )
    canaries: Annotated[float, Amount(0, 1, "share of the questions")] = default(
        0.02, "The share with a line planted that asks to be obeyed, to see whether it is."
    )

    @property
    def costs(self) -> bool:
        """Whether it has a price."""
        return max(self.input_usd, self.output_usd, self.cached_usd, self.cache_write_usd) > 0

    def key(self, env: Mapping[str, str]) -> Secret | None:
        """Where the key is; nothing is read yet. None: the server asks for none."""
        if self.key_file is not None:
            return Secret("model.key_file", self.key_file)
        if self.key_credential:
            return Secret.credential("model.key_credential", self.key_credential, env)
        return None

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        if self.key_file is not None and self.key_credential:
            yield Conflict(
                tuple(
                    Side((name,), "one source of the key, not two")
                    for name in ("key_file", "key_credential")
                ),
                "take one of key_file and key_credential away",
            )
        yield from in_order(
            self, "max_tokens", "tokens", why="else no question could ever be asked"
        )
        for name in ("window_5h_usd", "window_week_usd"):
            if getattr(self, name) > 0 and not self.costs:
                yield Conflict(
                    (Side((name,), "no limit in dollars for a model without a price"),),
                    "give its input_usd and output_usd, or take the limit away",
                )


class EnsembleSettings(Section):
    """Several models that judge together: one such table for each ensemble."""

    name: Annotated[str, Name("name of the ensemble")] = required(
        "What the ensemble is called, in guardian.judge and in verdicts.", example="three"
    )
    members: Annotated[tuple[str, ...], Words("names of models", '["sonnet", "local"]')] = required(
        "Who is asked, all at once: names of models, or rules.", example=["sonnet", "rules"]
    )
    enough: Annotated[int, Count(0, 100, "answers")] = default(
        0, "After so many answers the others are not waited for any longer; 0: all are."
    )
    straggler_s: Annotated[float, Duration("0s", "10m")] = default(
        "5s", "How long the others have after that."
    )


def judges_in(
    models: Sequence[ModelSettings],
    ensembles: Sequence[EnsembleSettings],
    judge: str,
    fallback: Sequence[str],
    smaller: str = "",
) -> Iterator[Conflict]:
    """What is wrong with who is called what, and who is called upon."""
    names: dict[str, KeyPath] = {RULES: ("guardian", "judge")}
    called_so: list[tuple[str, KeyPath]] = [
        *((model.name, ("model", index, "name")) for index, model in enumerate(models)),
        *((group.name, ("ensemble", index, "name")) for index, group in enumerate(ensembles)),
    ]
    for name, path in called_so:
        if name in names:
            yield Conflict(
                (Side(path, "a name that no other judge has"), Side(names[name], "")),
                "rules, models and ensembles have one name each",
            )
        names.setdefault(name, path)
    known = frozenset({RULES, *(model.name for model in models)})
    for index, ensemble in enumerate(ensembles):
        wrong = [member for member in ensemble.members if member not in known]
        twice = len(set(ensemble.members)) < len(ensemble.members)
        if wrong or twice or not ensemble.members or ensemble.enough > len(ensemble.members):
            yield Conflict(
                (Side(("ensemble", index, "members"), "names of models, each once"),),
                "each member has a [[model]] table, or is rules; there are at least enough",
            )
    for key, wanted in (
        ("judge", [judge]),
        ("fallback", fallback),
        ("smaller_judge", [smaller] if smaller else []),
    ):
        yield from _called_upon("guardian", key, wanted, names)
    if len({judge, *fallback}) <= len(fallback):
        yield Conflict(
            (Side(("guardian", "fallback"), "other judges than guardian.judge, each once"),),
            "whoever could not be had a moment ago can not be had now",
        )
    yield from _not_itself("guardian", judge, smaller)


def pair_judges_in(
    models: Sequence[ModelSettings],
    ensembles: Sequence[EnsembleSettings],
    judge: str,
    smaller: str = "",
) -> Iterator[Conflict]:
    """What is wrong with whom the conductor calls upon."""
    names = {RULES, *(model.name for model in models), *(group.name for group in ensembles)}
    yield from _called_upon("conductor", "judge", [judge], names)
    yield from _called_upon("conductor", "smaller_judge", [smaller] if smaller else [], names)
    yield from _not_itself("conductor", judge, smaller)


def _called_upon(
    section: str, key: str, wanted: Sequence[str], names: Collection[str]
) -> Iterator[Conflict]:
    if any(name not in names for name in wanted):
        yield Conflict(
            (Side((section, key), "rules, or the name of a [[model]] or [[ensemble]]"),),
            f"there are: {', '.join(sorted(names))}",
        )


def _not_itself(section: str, judge: str, smaller: str) -> Iterator[Conflict]:
    if smaller and smaller == judge:
        yield Conflict(
            (
                Side((section, "smaller_judge"), f"another judge than {section}.judge"),
                Side((section, "judge"), ""),
            ),
            "it is who is asked when the money for the judge runs short; name a cheaper one",
        )
