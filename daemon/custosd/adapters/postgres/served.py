"""Finding the private server that a running daemon serves."""

from pathlib import Path
from urllib.parse import quote

from custosd.core.errors import StoreError, StoreUnavailable

# Lines of postmaster.pid, counted from 0, as PostgreSQL documents them.
_PORT, _SOCKET_FOLDER, _STATUS = 3, 4, 7


def is_served(data_dir: Path) -> bool:
    """Whether a server runs on `data_dir` and goes on running.

    One that is stopping was a dead daemon's: `embedded_postgres` waits for its end.
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text("utf-8").splitlines()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return "stopping" not in (line.strip() for line in lines[_STATUS:])


def served_dsn(data_dir: Path) -> str:
    """The DSN of the server that runs on `data_dir`.

    Raises `StoreUnavailable` if none does, `StoreError` if this user may not know.
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text("utf-8").splitlines()
        port, folder, status = (lines[n].strip() for n in (_PORT, _SOCKET_FOLDER, _STATUS))
    except PermissionError as error:
        raise StoreError(
            f"{data_dir} is closed to this user: ask as root, or as the daemon's user"
        ) from error
    except (OSError, ValueError, IndexError) as error:
        raise StoreUnavailable(f"no database runs on {data_dir}: is custosd running?") from error
    if status != "ready":
        raise StoreUnavailable(f"the database on {data_dir} is {status}: try again in a moment")
    return f"postgresql://custosd@/postgres?host={quote(folder, safe='/')}&port={port}"
