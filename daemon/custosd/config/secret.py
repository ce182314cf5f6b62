"""Secrets: where one is kept, and reading it at the last moment.

Laws: its text is in no value that is printed, logged or compared; it is read where it is
used, so that a changed password takes effect; a file that others can read is refused.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from custosd.config.problems import InvalidConfig, Problem, ProblemKind

LONGEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that lies in a file; `key` is the setting that names it."""

    key: str
    path: Path

    @classmethod
    def credential(cls, key: str, name: str, env: Mapping[str, str]) -> "Secret":
        """The systemd credential of this name; raises `InvalidConfig` outside of systemd."""
        folder = env.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise InvalidConfig(
                [
                    Problem(
                        "the environment",
                        None,
                        key,
                        f'"{name}"',
                        "$CREDENTIALS_DIRECTORY to be set",
                        f"run under systemd with LoadCredential={name}:/path, or name a file",
                        ProblemKind.SECRET,
                    )
                ]
            )
        return cls(key, Path(folder, name))

    def read(self) -> str:
        """The secret, without the line's end; blocks as a file does.

        Raises `InvalidConfig`, which names the file and the remedy and never its contents.
        """
        try:
            # Not blocking, because a pipe without a writer would hold us for ever.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise self._refused("a file that can be read", _words(error)) from error
        try:
            self._check(os.fstat(fd))
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(LONGEST_BYTES + 1)
        except OSError as error:
            raise self._refused("a file that can be read", _words(error)) from error
        finally:
            os.close(fd)
        if len(data) > LONGEST_BYTES:
            raise self._refused(f"at most {LONGEST_BYTES} bytes", "is this the right file?")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            # Without the cause: it carries the bytes.
            raise self._refused("text in UTF-8", "is this the right file?") from None
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise self._refused("a secret in the file", "it is empty")
        return text

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._refused("a regular file", "a folder, pipe or device holds no secret")
        if status.st_mode & stat.S_IRWXO:
            raise self._refused("a file that others can not read", f"run: chmod 600 {self.path}")

    def _refused(self, expected: str, hint: str) -> InvalidConfig:
        problem = Problem(str(self.path), None, self.key, "", expected, hint, ProblemKind.SECRET)
        return InvalidConfig([problem])


def _words(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
