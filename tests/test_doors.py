"""The doors as they are configured: what is set for them is what they do."""

from pathlib import Path

import httpx
import trio
from structlog.testing import capture_logs
from tests.api.conftest import Side, bearer

from custosd.acting import Doors
from custosd.adapters.memory_coordination import MemoryCoordination
from custosd.config.settings import Config
from custosd.flow.pulse import Pulses
from custosd.local import open_doors


async def test_so_many_claims_as_are_set_are_let_in(tmp_path: Path, nursery: trio.Nursery) -> None:
    side = Side(coordination=MemoryCoordination())
    config = Config.model_validate(
        {
            "daemon": {"state_dir": str(tmp_path)},
            "doors": {
                "listen": "127.0.0.1:0",
                "claims_per_agent": 1,
                "control": False,
                "beats": False,
            },
        }
    )
    doors = Doors(
        side.register,
        side.acts,
        lambda: side.tokens,
        lambda _: None,
        lambda: side.ready,
        Pulses(),
        coordination=side.coordination,
    )
    with capture_logs() as logs:
        await nursery.start(open_doors, config, {}, doors)
    (opened,) = [line for line in logs if line["event"] == "http.opened"]
    url = f"{opened['addresses'][0]}/api/v1/claims"
    async with httpx.AsyncClient(trust_env=False, headers=bearer("ada"), timeout=20) as client:
        status = [
            (await client.post(url, json={"files": [path]})).status_code for path in ("a", "b", "a")
        ]
    assert status == [200, 429, 200]
    nursery.cancel_scope.cancel()
