"""How a unit's properties are read, and what is said where systemctl can not answer.

With a real systemd: tests/systemd/inside_agent_unit.py.
"""

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.control_contract import TOLD

from custosd.adapters.control.systemd import PROPERTIES, SystemdControl, seen
from custosd.adapters.process_identity import identify
from custosd.core.errors import ControlError
from custosd.core.evidence import Exit, Observation, Source, Value

HERE = str(os.getpid())


def nothing_in(folder: Path) -> bool:
    return not any(folder.iterdir())


def unit(**told: str) -> dict[str, str]:
    return {"LoadState": "loaded", "ActiveState": "active", "MainPID": HERE} | told


@pytest.mark.parametrize(
    ("told", "value", "detail", "exit_"),
    [
        (unit(), Value.OK, "unit_active", None),
        (unit(ActiveState="activating"), Value.OK, "unit_activating", None),
        (unit(ActiveState="deactivating"), Value.OK, "unit_deactivating", None),
        (unit(FreezerState="frozen"), Value.OK, "unit_frozen", None),
        (unit(MainPID="0"), Value.UNKNOWN, "unit_active_without_process", None),
        (
            unit(ActiveState="activating", SubState="auto-restart", MainPID="0"),
            Value.UNKNOWN,
            "unit_activating_without_process",
            None,
        ),
        (
            unit(ActiveState="failed", Result="exit-code", ExecMainCode="1", ExecMainStatus="3"),
            Value.BAD,
            "unit_failed",
            Exit(code=3),
        ),
        (
            unit(ActiveState="failed", Result="signal", ExecMainCode="2", ExecMainStatus="9"),
            Value.BAD,
            "unit_failed",
            Exit(signal=9),
        ),
        (
            unit(ActiveState="failed", Result="core-dump", ExecMainCode="3", ExecMainStatus="11"),
            Value.BAD,
            "unit_failed",
            Exit(signal=11),
        ),
        (
            unit(ActiveState="failed", Result="oom-kill", ExecMainCode="2", ExecMainStatus="9"),
            Value.BAD,
            "unit_failed",
            Exit(signal=9, out_of_memory=True),
        ),
        (
            unit(ActiveState="failed", Result="oom-kill", ExecMainCode="0"),
            Value.BAD,
            "unit_failed",
            Exit(out_of_memory=True),
        ),
        (unit(ActiveState="failed", Result="resources"), Value.BAD, "unit_failed", None),
        (
            unit(ActiveState="inactive", Result="success", ExecMainCode="1", ExecMainStatus="0"),
            Value.BAD,
            "unit_inactive",
            Exit(code=0),
        ),
        (
            unit(LoadState="not-found", ActiveState="inactive"),
            Value.UNKNOWN,
            "unit_not_loaded",
            None,
        ),
        (unit(ActiveState="maintenance"), Value.UNKNOWN, "unit_maintenance", None),
        ({}, Value.UNKNOWN, "unit_not_loaded", None),
    ],
)
def test_what_a_unit_says_of_its_agent(
    told: dict[str, str], value: Value, detail: str, exit_: Exit | None
) -> None:
    process = identify(os.getpid()) if value is Value.OK else None
    assert seen(told) == Observation(Source.UNIT, value, detail, process=process, exit=exit_)


@given(st.dictionaries(st.sampled_from(PROPERTIES), st.text(max_size=8)))
def test_whatever_a_unit_says_it_is_gone_only_when_it_says_so(told: dict[str, str]) -> None:
    if seen(told).value is Value.BAD:
        assert told["LoadState"] == "loaded"
        assert told["ActiveState"] in {"failed", "inactive"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "systemctl_failed"),
        ("sleep 100", "took_too_long"),
        ("echo ActiveState=inactive", "unit_not_loaded"),
        ("head -c 1000000 /dev/zero", "unit_not_loaded"),
    ],
)
async def test_a_systemctl_that_fails_shows_nothing(
    script: str, reason: str, tmp_path: Path
) -> None:
    control = SystemdControl(
        "ada.service", tmp_path, timeout_s=0.5, systemctl=("sh", "-c", script, "systemctl")
    )
    sight = await control.sight()
    assert (sight.value, sight.detail) == (Value.UNKNOWN, reason)
    with pytest.raises(ControlError) as caught:
        await control.spawn("r-1", TOLD)
    assert caught.value.reason == reason
    assert nothing_in(tmp_path)


async def test_no_systemctl_is_said_so(tmp_path: Path) -> None:
    control = SystemdControl("ada.service", tmp_path, systemctl=("/no/such/systemctl",))
    assert (await control.sight()).detail == "no_systemctl"
    for act in (control.stop, control.kill, control.interrupt):
        with pytest.raises(ControlError) as caught:
            await act()
        assert caught.value.reason == "no_systemctl"


async def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 1000"
    control = SystemdControl("ada.service", tmp_path, systemctl=("sh", "-c", script, "systemctl"))
    with trio.move_on_after(0.5):
        await control.stop()
    assert identify(int((tmp_path / "pid").read_text())) is None
