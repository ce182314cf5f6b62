"""What a server's own note says of it."""

from pathlib import Path

import pytest

from custosd.adapters.postgres.served import is_served, served_dsn
from custosd.core.errors import StoreUnavailable

NOTE = "{pid}\n{folder}\n1761000000\n5433\n{folder}/run\n\n  1048577\n{status}\n"


def noted(folder: Path, status: str) -> Path:
    (folder / "postmaster.pid").write_text(NOTE.format(pid=7, folder=folder, status=status))
    return folder


@pytest.mark.parametrize(
    ("status", "served"), [("ready   ", True), ("starting", True), ("stopping", False)]
)
def test_a_server_that_is_stopping_is_nobodys(tmp_path: Path, status: str, *, served: bool) -> None:
    assert is_served(noted(tmp_path, status)) is served


def test_where_no_note_is_no_server_is(tmp_path: Path) -> None:
    assert not is_served(tmp_path)
    with pytest.raises(StoreUnavailable, match="is custosd running"):
        served_dsn(tmp_path)


def test_one_that_is_not_ready_is_to_be_asked_later(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="is stopping: try again"):
        served_dsn(noted(tmp_path, "stopping"))
    assert served_dsn(noted(tmp_path, "ready   ")).endswith("&port=5433")
