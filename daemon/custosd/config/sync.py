"""The settings of external sync: how forges are asked, and which repositories are followed."""

from collections.abc import Iterator, Mapping
from itertools import combinations
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
    Shaped,
    Words,
)
from custosd.config.secret import Secret
from custosd.config.section import Conflict, Section, Side, default, required, tables
from custosd.core.forge import REPOSITORY, Repository, is_repository

ForgeName = Literal["github"]


class RepositorySettings(Section):
    """A repository that is followed: one such table for each."""

    name: Annotated[str, Shaped("owner and name of a repository", REPOSITORY, "ada/engine")] = (
        required("Its owner and name.", example="ada/engine")
    )
    forge: Annotated[ForgeName, Choice(get_args(ForgeName))] = default("github", "Where it lies.")
    branches: Annotated[tuple[str, ...], Words("names of branches", '["main", "release"]')] = (
        default([], "What is on one of these has landed. Empty: the forge's default branch.")
    )

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        if not is_repository(self.name):
            side = Side(("name",), "an owner and a name, such as ada/engine")
            yield Conflict((side,), "as in the repository's address, without .git")

    def followed(self) -> Repository:
        """The repository as the core takes it."""
        return Repository(self.name, self.branches, self.forge)


class SyncSettings(Section):
    """How commits, pull requests, issues and checks are followed on forges, and close tasks."""

    interval_s: Annotated[float, Duration("5s", "1d")] = default(
        "2m", "How often each repository is asked for news; what did not change costs nothing."
    )
    concurrency: Annotated[int, Count(1, 100, "repositories")] = default(
        3, "How many repositories are asked at the same time."
    )
    pages: Annotated[int, Count(1, 1_000, "pages")] = default(
        10, "How many pages of one list are read in one turn; the next turn goes on there."
    )
    page_timeout_s: Annotated[float, Duration("100ms", "10m")] = default(
        "30s", "How long one page may take."
    )
    history_s: Annotated[float, Duration("1h", "3650d")] = default(
        "30d", "How far back is read of a repository that is new."
    )
    reserve: Annotated[float, Amount(0, 0.9, "share of the requests")] = default(
        0.1, "The share of the account's requests that is left to others."
    )
    base_url: Annotated[str, HttpUrl()] = default(
        "", "Where GitHub's API is, for a server of one's own. Empty: https://api.github.com."
    )
    token_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "A file that holds the token to read with, and that others can not read."
    )
    token_credential: Annotated[str, CredentialName()] = default(
        "", "The systemd credential (LoadCredential=) that holds the token."
    )
    webhook_secret_file: Annotated[Path | None, AbsolutePath("file", optional=True)] = default(
        "", "A file that holds the secret of the webhooks; without one none is let in."
    )
    webhook_secret_credential: Annotated[str, CredentialName()] = default(
        "", "The systemd credential (LoadCredential=) that holds the secret of the webhooks."
    )
    repositories: tuple[RepositorySettings, ...] = tables(
        "repository", "The repositories that are followed; none: nothing is asked."
    )

    def token(self, env: Mapping[str, str]) -> Secret | None:
        """Where the token is; nothing is read yet. None: what everybody may see is read."""
        return _secret("sync.token", self.token_file, self.token_credential, env)

    def webhook_secret(self, env: Mapping[str, str]) -> Secret | None:
        """Where the webhooks' secret is; nothing is read yet. None: there is none."""
        given = self.webhook_secret_file, self.webhook_secret_credential
        return _secret("sync.webhook_secret", *given, env)

    def conflicts(self) -> Iterator[Conflict]:
        """See `Section.conflicts`."""
        yield from super().conflicts()
        for name in ("token", "webhook_secret"):
            keys = f"{name}_file", f"{name}_credential"
            if all(getattr(self, key) for key in keys):
                yield Conflict(
                    tuple(Side((key,), "one source of the secret, not two") for key in keys),
                    f"take one of sync.{keys[0]} and sync.{keys[1]} away",
                )
        for (first, one), (second, other) in combinations(enumerate(self.repositories), 2):
            if (one.forge, one.name.lower()) == (other.forge, other.name.lower()):
                yield Conflict(
                    (
                        Side(("repository", second, "name"), "a repository not listed already"),
                        Side(("repository", first, "name"), ""),
                    ),
                    "each repository is followed once",
                )


def _secret(key: str, file: Path | None, credential: str, env: Mapping[str, str]) -> Secret | None:
    if file is not None:
        return Secret(f"{key}_file", file)
    return Secret.credential(f"{key}_credential", credential, env) if credential else None
