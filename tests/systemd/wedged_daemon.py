"""`custosd`, but at its first start one service stops making progress: the guardian.

It began as it should, waits for nothing that it tells of, and never comes back.
"""

from pathlib import Path

import trio

import custosd.app

MARK = Path("/var/lib/custosd/was-wedged")

been_here = MARK.exists()
MARK.touch()

guard = custosd.app.guard_trajectories


async def wedged(*args, task_status, **rest):
    if been_here:
        await guard(*args, task_status=task_status, **rest)
        return
    task_status.started()
    await trio.sleep_forever()


custosd.app.guard_trajectories = wedged

from custosd.cli.main import main  # noqa: E402 - what is wedged must be so before it is run

main()
