"""How the fleet stands, what was found, what is claimed: as the daemon stored it."""

import json

from tests.cli.conftest import Run, Watched

from custosd.cli.exit_codes import OK


def test_the_conductors_reading_is_told(run: Run, watched: Watched) -> None:
    result = run("conductor", config=watched.config)
    assert result.exit_code == OK
    assert result.stdout.startswith("the fleet is ")
    told = json.loads(run("conductor", "--json", config=watched.config).stdout)
    assert list(told) == ["at_utc", "coherence", "findings"]
    assert list(told["coherence"]) == [
        *("status", "score", "components", "agents", "covered", "judged", "trend"),
        *("recommendations", "coverage"),
    ]


def test_findings_are_listed(run: Run, watched: Watched) -> None:
    result = run("findings", "--past", 1, config=watched.config)
    assert result.exit_code == OK
    told = json.loads(run("findings", "--json", config=watched.config).stdout)
    for each in told:
        assert list(each)[:4] == ["id", "concern", "kind", "agents"]
        assert list(each)[-3:] == ["acked_utc", "acked_until_utc", "acked_note"]


def test_without_claims_that_is_said(run: Run, watched: Watched) -> None:
    result = run("claims", config=watched.config)
    assert (result.exit_code, result.stdout) == (OK, "no agent has claimed anything\n")
    assert json.loads(run("claims", "--json", config=watched.config).stdout) == []
