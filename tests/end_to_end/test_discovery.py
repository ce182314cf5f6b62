"""Without a configuration, custosd finds the agents that work on this machine."""

import shutil
import signal
from pathlib import Path

from tests.end_to_end.daemons import custosd

from custosd.cli.exit_codes import OK

SAMPLES = Path(__file__).resolve().parents[1] / "adapters" / "samples"

USUAL = {
    "claude-code.jsonl": ".claude/projects/-home-ada-app/5b2f.jsonl",
    "codex.jsonl": ".codex/sessions/2026/01/02/rollout-2026-01-02T03-04-05-77aa.jsonl",
    "gemini-cli.json": ".gemini/tmp/3f9d/chats/session-2026-01-02T03-04-ab12.json",
    "pi.jsonl": ".pi/agent/sessions/--home-ada-app--/2026-01-02_c0ffee.jsonl",
}


async def test_the_usual_agents_are_found_without_any_configuration(home: Path) -> None:
    for sample, place in USUAL.items():
        path = home / place
        path.parent.mkdir(parents=True)
        shutil.copyfile(SAMPLES / sample, path)
    async with custosd("run", home=home) as first:
        await first.ready()
        for place in USUAL.values():
            await first.out.event("agent.seen", path=str(home / place))
        assert await first.end(signal.SIGTERM) == OK
    seen = {line["agent"] for line in first.out.found("agent.seen")}
    assert {agent.split(":")[0] for agent in seen} == {"claude-code", "codex", "gemini-cli", "pi"}
    assert (home / ".local/state/custosd/postgres/PG_VERSION").is_file()

    # The next start knows them, and its first look is at all that were not judged before.
    judged = {line["agent"] for line in first.out.found("verdict.reached")}
    async with custosd("run", home=home) as second:
        assert (await second.ready())["agents"] == len(seen)
        for agent in seen - judged:
            assert (await second.out.event("verdict.reached", agent=agent))["steps"] >= 1
        assert await second.end(signal.SIGTERM) == OK
    assert second.out.found("agent.seen") == []
    assert first.err.plain == second.err.plain == ""
