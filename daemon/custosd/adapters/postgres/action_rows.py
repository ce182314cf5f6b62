"""What is written about acts as rows, and rows as values, under the laws of `rows`."""

from collections.abc import Iterable, Sequence
from typing import Any

from custosd.adapters.encoding import decode_json, encode_json, original, storable
from custosd.adapters.postgres.bridge import Record
from custosd.adapters.postgres.rows import Columns, Row, columns
from custosd.core.agents import AgentId, AgentState, shard_of
from custosd.core.beats import WaitKind
from custosd.core.evidence import Evidence, ProcessIdentity
from custosd.core.holds import Hold, HoldKind
from custosd.core.lives import LifeRecord
from custosd.core.restarts import Cause, Restart, RestartState, StepRecord
from custosd.core.steering import Intervention, InterventionState
from custosd.core.tokens import Token
from custosd.core.verdicts import Standing, SteeringKind, SteeringReason

_STEP_COLUMNS = 7


def life_columns(lives: Iterable[LifeRecord], slice_of: int) -> list[Columns]:
    """Lives by key, in slices; of one agent the record that is furthest on, the last of such."""
    last: dict[AgentId, LifeRecord] = {}
    for life in lives:
        known = last.get(life.agent)
        if known is None or (life.epoch, life.sequence) >= (known.epoch, known.sequence):
            last[life.agent] = life
    rows = sorted(map(_life_row, last.values()), key=lambda row: row[:2])
    return [columns(rows[start : start + slice_of]) for start in range(0, len(rows), slice_of)]


def _life_row(life: LifeRecord) -> Row:
    process = life.process
    return (
        shard_of(life.agent),
        storable(life.agent),
        life.epoch,
        life.sequence,
        life.state.value,
        life.since_utc,
        life.heard_utc,
        life.interval_s,
        None if life.wait_kind is None else life.wait_kind.value,
        life.wait_until_utc,
        None if process is None else process.pid,
        None if process is None else process.started_ticks,
        None if process is None else storable(process.boot_id),
        # Arrays of arrays must be rectangular: it travels as a literal.
        "{" + ",".join(map(repr, map(float, life.gaps_s))) + "}",
        life.progress_utc,
    )


def life_of(row: Record) -> LifeRecord | None:
    """One row of `READ_LIVES`; None where a word in it is not known here."""
    try:
        state = AgentState(row["state"])
        wait_kind = None if row["wait_kind"] is None else WaitKind(row["wait_kind"])
    except ValueError:
        return None
    process = None
    if row["pid"] is not None:
        process = ProcessIdentity(row["pid"], row["started_ticks"], original(row["boot_id"]))
    return LifeRecord(
        AgentId(original(row["agent_id"])),
        row["epoch"],
        row["sequence"],
        state,
        row["since_utc"],
        row["heard_utc"],
        row["interval_s"],
        wait_kind,
        row["wait_until_utc"],
        process,
        tuple(row["gaps_s"]),
        row["progress_utc"],
    )


def restart_row(restart: Restart) -> Row:
    """Parameters 1 to 21 of `SAVE_RESTART`."""
    return (
        shard_of(restart.agent),
        storable(restart.id),
        restart.cause.value,
        storable(restart.reason),
        storable(restart.requested_by),
        storable(restart.fingerprint),
        storable(restart.task),
        encode_json(restart.evidence),
        restart.state.value,
        storable(restart.owner),
        restart.fence,
        storable(restart.failure),
        restart.started_utc,
        restart.ended_utc,
        *_step_columns(restart.steps),
    )


def intent_row(restart: Restart) -> Row:
    """All parameters of `INTEND_RESTART`."""
    return (
        *restart_row(restart),
        storable(restart.agent),
        storable(restart.key),
        restart.epoch,
        restart.intended_utc,
    )


def _step_columns(steps: Sequence[StepRecord]) -> Columns:
    # Of one attempt the last word stays, in its place.
    told = {(record.step, record.attempt): (place, record) for place, record in enumerate(steps)}
    return columns(
        (
            record.step.value,
            record.attempt,
            place,
            record.state.value,
            record.started_utc,
            record.ended_utc,
            storable(record.result),
        )
        for place, record in told.values()
    ) or [[] for _ in range(_STEP_COLUMNS)]


def restart_of(row: Record) -> Restart | None:
    """A restart with its steps; None where a word in it is not known here."""
    evidence = decode_json(row["evidence"], tuple[Evidence, ...])
    steps = decode_json(row["steps"] or "[]", tuple[StepRecord, ...])
    if evidence is None or steps is None:
        return None
    try:
        cause, state = Cause(row["cause"]), RestartState(row["state"])
    except ValueError:
        return None
    return Restart(
        original(row["id"]),
        AgentId(original(row["agent_id"])),
        original(row["idempotency_key"]),
        cause,
        original(row["reason"]),
        original(row["requested_by"]),
        row["epoch"],
        row["next_epoch"],
        row["intended_utc"],
        original(row["fingerprint"]),
        original(row["task"]),
        evidence,
        state,
        original(row["owner"]),
        row["fence"],
        original(row["failure"]),
        row["started_utc"],
        row["ended_utc"],
        steps,
    )


def intervention_row(told: Intervention) -> Row:
    """Parameters 1 to 25 of `SAVE_INTERVENTION`."""
    return (
        shard_of(told.agent),
        storable(told.id),
        told.kind.value,
        storable(told.message),
        storable(told.proposed_by),
        told.expires_utc,
        _word(told.reason),
        storable(told.verdict_id),
        told.state.value,
        told.hold_out,
        storable(told.approved_by),
        storable(told.channel),
        storable(told.failure),
        told.attempts,
        told.approved_utc,
        told.queued_utc,
        told.delivered_utc,
        told.acknowledged_utc,
        told.acted_utc,
        told.closed_utc,
        told.alignment_before,
        told.alignment_after,
        _word(told.standing_before),
        _word(told.standing_after),
        told.measured_utc,
    )


def proposal_row(told: Intervention) -> Row:
    """All parameters of `PROPOSE`."""
    return (
        *intervention_row(told),
        storable(told.agent),
        storable(told.key),
        told.proposed_utc,
    )


def intervention_of(row: Record) -> Intervention | None:
    """One row of `READ_INTERVENTIONS`; None where a word in it is not known here."""
    try:
        kind, state = SteeringKind(row["kind"]), InterventionState(row["state"])
        reason = None if row["reason"] is None else SteeringReason(row["reason"])
        before, after = _standing(row["standing_before"]), _standing(row["standing_after"])
    except ValueError:
        return None
    return Intervention(
        id=original(row["id"]),
        agent=AgentId(original(row["agent_id"])),
        key=original(row["idempotency_key"]),
        kind=kind,
        message=original(row["message"]),
        proposed_by=original(row["proposed_by"]),
        proposed_utc=row["proposed_utc"],
        expires_utc=row["expires_utc"],
        reason=reason,
        verdict_id=original(row["verdict_id"]),
        state=state,
        hold_out=row["hold_out"],
        approved_by=original(row["approved_by"]),
        channel=original(row["channel"]),
        failure=original(row["failure"]),
        attempts=row["attempts"],
        approved_utc=row["approved_utc"],
        queued_utc=row["queued_utc"],
        delivered_utc=row["delivered_utc"],
        acknowledged_utc=row["acknowledged_utc"],
        acted_utc=row["acted_utc"],
        closed_utc=row["closed_utc"],
        alignment_before=row["alignment_before"],
        alignment_after=row["alignment_after"],
        standing_before=before,
        standing_after=after,
        measured_utc=row["measured_utc"],
    )


def hold_row(hold: Hold) -> Row:
    """The parameters of `PLACE_HOLD`."""
    return (
        hold.kind.value,
        storable(hold.subject),
        storable(hold.by),
        storable(hold.reason),
        hold.since_utc,
        hold.until_utc,
        list(map(storable, hold.agents)),
    )


def hold_columns(holds: Iterable[Hold]) -> Columns:
    """The parameters of `PLACE_HOLDS`, by key; of one key the last hold."""
    last = {hold.key: hold for hold in holds}
    # Arrays of arrays must be rectangular: the agents travel as JSON.
    return columns(
        (*hold_row(hold)[:-1], encode_json(hold.agents)) for _, hold in sorted(last.items())
    )


def hold_of(row: Record) -> Hold | None:
    """One row of `READ_HOLDS`; None where its kind is not known here."""
    try:
        kind = HoldKind(row["kind"])
    except ValueError:
        return None
    return Hold(
        kind,
        original(row["subject"]),
        original(row["placed_by"]),
        original(row["reason"]),
        row["since_utc"],
        row["until_utc"],
        tuple(map(original, row["agents"])),
    )


def token_row(token: Token) -> Row:
    """The parameters of `SAVE_TOKEN`."""
    return (
        storable(token.id),
        token.secret_hash,
        token.created_utc,
        storable(token.created_by),
        storable(token.agent),
        sorted(map(storable, token.scopes)),
    )


def token_of(row: Record) -> Token:
    """One row of `READ_TOKENS`."""
    return Token(
        original(row["id"]),
        row["secret_hash"],
        row["created_utc"],
        original(row["created_by"]),
        original(row["agent"]),
        frozenset(map(original, row["scopes"])),
    )


def _word(word: Any) -> str | None:
    return None if word is None else str(word.value)


def _standing(word: str | None) -> Standing | None:
    return None if word is None else Standing(word)
