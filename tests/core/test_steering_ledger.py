"""The ledger keeps what matters still, and what that costs does not grow with what it keeps."""

from dataclasses import replace
from datetime import date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.store_values import NOON

from custosd.core.agents import AgentId
from custosd.core.steering import GUARDIAN, Intervention, InterventionState, moved
from custosd.core.steering_ledger import SteeringLedger
from custosd.core.verdicts import SteeringKind

S = InterventionState
HISTORY_S = 86_400.0


class Counted(datetime):
    """A time that counts how often such times are compared."""

    compared = 0

    def __lt__(self, other: date) -> bool:
        Counted.compared += 1
        assert isinstance(other, datetime)
        return super().__lt__(other)


def message(name: str, at_utc: datetime = NOON, agent: str = "ada") -> Intervention:
    return Intervention(
        id=name,
        agent=AgentId(agent),
        key=name,
        kind=SteeringKind.GUIDANCE,
        message="hello",
        proposed_by=f"{GUARDIAN}rules",
        proposed_utc=at_utc,
        expires_utc=at_utc + timedelta(seconds=600),
    )


def ended(item: Intervention) -> Intervention:
    return moved(item, S.EXPIRED, item.expires_utc)


def delivered(item: Intervention) -> Intervention:
    return moved(moved(item, S.QUEUED, NOON, by="policy"), S.DELIVERED, NOON)


def test_to_look_for_what_is_old_costs_nothing_where_nothing_is() -> None:
    ledger = SteeringLedger()
    start = Counted(2026, 3, 14, 12, tzinfo=NOON.tzinfo)
    for n in range(2_000):
        ledger.put(ended(message(f"m{n}", start + timedelta(seconds=n))))
    Counted.compared = 0
    for _ in range(10):
        assert ledger.prune(start + timedelta(seconds=2_000), HISTORY_S, 10_000) == 0
    assert Counted.compared <= 20
    assert len(ledger) == 2_000


def test_what_is_open_or_to_be_measured_stays_however_old() -> None:
    ledger = SteeringLedger()
    out = delivered(message("m2"))
    ledger.put(message("m1"))
    ledger.put(out)
    ledger.put(ended(message("m3")))
    late = NOON + timedelta(days=9)
    assert ledger.prune(late, HISTORY_S, 1) == 1
    assert {item.id for item in ledger.all()} == {"m1", "m2"}
    unread = moved(out, S.FAILED, NOON, failure="unread")
    ledger.put(unread)
    assert ledger.prune(late, HISTORY_S, 1) == 0
    ledger.put(replace(unread, measured_utc=late))
    ledger.put(ended(message("m1")))
    assert ledger.prune(late, HISTORY_S, 1) == 2
    assert len(ledger) == 0
    assert ledger.of(AgentId("ada")) == ()


LIVES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(-3, 3), st.sampled_from(["open", "out", "ended"])),
    max_size=40,
)


@given(LIVES, st.integers(0, 8), st.integers(-3, 3))
def test_what_goes_is_what_ended_the_oldest_first(
    puts: list[tuple[int, int, str]], most: int, since_days: int
) -> None:
    """As if all were looked through each time, in whatever order they came."""
    ledger, known = SteeringLedger(), dict[str, Intervention]()
    for number, day, life in puts:
        name = f"m{number}"
        new = known.get(name) or message(name, NOON + timedelta(days=day, minutes=number))
        match life:
            case "open":
                new = message(name, new.proposed_utc)
            case "out":
                new = delivered(message(name, new.proposed_utc))
            case _:
                new = ended(message(name, new.proposed_utc))
        known[name] = new
        ledger.put(new)
    over = sorted(
        (item for item in known.values() if item.state is S.EXPIRED),
        key=lambda item: item.proposed_utc,
    )
    since_utc = NOON + timedelta(days=since_days)
    surplus = max(0, len(known) - most)
    gone = {i.id for n, i in enumerate(over) if n < surplus or i.proposed_utc < since_utc}
    assert ledger.prune(since_utc + timedelta(seconds=HISTORY_S), HISTORY_S, most) == len(gone)
    assert {item.id for item in ledger.all()} == known.keys() - gone
