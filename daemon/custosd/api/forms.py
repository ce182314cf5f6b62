"""The JSON forms that commands and the HTTP side tell things in.

Law: a form is a promise. Fields may be added, none is renamed or taken away, whatever the
classes behind them are called; `tests/cli` holds each form to its fields.

trajectory  goal focus phase activity waiting_on end steps errors edits tests_run
            tests_passed_at last_edit_at last_step_utc written usage
usage       input_tokens output_tokens cached_tokens cost_usd
verdict     standing phase alignment confidence needs_steering steering_kind
            steering_reason message summary unknown_reason evidence signals
signal      kind severity steps measure limit about peers

Steps are counted from 0; times are RFC 3339 in UTC; what is not known is null or "".
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from custosd.core.facts import Entry, kind_of
from custosd.core.lives import LifeRecord
from custosd.core.signals import Signal
from custosd.core.trajectory import TrajectoryDigest
from custosd.core.transcript import Step
from custosd.core.verdicts import Judgement, Verdict
from custosd.core.view import AgentView
from custosd.ports import DaemonBeat, Incident

Form = dict[str, Any]


def _plain(**fields: object) -> Form:
    """Fields as JSON has them: enums as text, times as RFC 3339, tuples as lists."""
    plain: Form = msgspec.to_builtins(fields)
    return plain


def trajectory_form(digest: TrajectoryDigest) -> Form:
    """A trajectory, as far as it is shown."""
    return _plain(
        goal=digest.goal,
        focus=digest.focus,
        phase=digest.phase,
        activity=digest.activity,
        waiting_on=digest.waiting_on,
        end=digest.end,
        steps=digest.steps,
        errors=digest.errors,
        edits=digest.edits,
        tests_run=digest.tests_run,
        tests_passed_at=digest.tests_passed_at,
        last_edit_at=digest.last_edit_at,
        last_step_utc=digest.last_step_utc,
        written=digest.written,
        usage={
            "input_tokens": digest.usage.input_tokens,
            "output_tokens": digest.usage.output_tokens,
            "cached_tokens": digest.usage.cached_tokens,
            "cost_usd": digest.usage.cost_usd,
        },
    )


def judgement_form(judgement: Judgement, signals: Sequence[Signal]) -> Form:
    """A judgement and the signals that it rests on: the form "verdict"."""
    return _plain(
        standing=judgement.standing,
        phase=judgement.phase,
        alignment=judgement.alignment,
        confidence=judgement.confidence,
        needs_steering=judgement.needs_steering,
        steering_kind=judgement.steering_kind,
        steering_reason=judgement.steering_reason,
        message=judgement.message,
        summary=judgement.summary,
        unknown_reason=judgement.unknown_reason,
        evidence=judgement.evidence,
        signals=[_signal_form(signal) for signal in signals],
    )


def _signal_form(signal: Signal) -> Form:
    return _plain(
        kind=signal.kind,
        severity=signal.severity,
        steps=signal.steps,
        measure=signal.measure,
        limit=signal.limit,
        about=signal.about,
        peers=signal.peers,
    )


def verdict_form(verdict: Verdict) -> Form:
    """A stored verdict: the form "verdict" and its circumstances."""
    about = _plain(
        id=verdict.id,
        run=verdict.ref.run,
        at_utc=verdict.at_utc,
        steps=verdict.steps,
        judge=verdict.by.judge,
        model=verdict.by.model,
        prompt_version=verdict.by.prompt_version,
        latency_s=verdict.by.latency_s,
        absent=verdict.absent,
    )
    return about | judgement_form(verdict.judgement, verdict.signals)


def agent_form(view: AgentView, life: LifeRecord | None = None) -> Form:
    """One agent as it stands, with its life where that is watched."""
    about = _plain(
        agent=view.ref.agent,
        run=view.ref.run,
        format=view.format,
        path=view.path,
        parent=view.parent,
        state=view.state,
        standing=view.standing,
        seen_utc=view.seen_utc,
        grown_utc=view.grown_utc,
    )
    return about | {
        "trajectory": trajectory_form(view.digest) if view.digest else None,
        "verdict": verdict_form(view.verdict) if view.verdict else None,
        "life": None
        if life is None
        else _plain(
            state=life.state,
            epoch=life.epoch,
            since_utc=life.since_utc,
            heard_utc=life.heard_utc,
        ),
    }


def entry_form(entry: Entry) -> Form:
    """One fact of the record; `fact` holds its own fields."""
    return _plain(id=entry.id, at_utc=entry.at_utc, kind=kind_of(entry.fact), fact=entry.fact)


def daemon_form(beat: DaemonBeat) -> Form:
    """One daemon's last sign of life."""
    return _plain(
        name=beat.name,
        pid=beat.pid,
        version=beat.version,
        started_utc=beat.started_utc,
        beat_utc=beat.beat_utc,
        agents=beat.agents,
        sweeps=beat.sweeps,
        stopped=beat.stopped,
    )


def incident_form(incident: Incident) -> Form:
    """One trouble with a transcript."""
    return _plain(kind=incident.kind, line=incident.line, detail=dict(incident.detail))


def step_form(step: Step) -> Form:
    """One step, without its texts."""
    return _plain(
        kind=step.kind,
        tool=step.tool,
        verb=step.verb,
        result=step.result,
        error=step.error,
        exit_code=step.exit_code,
        files=step.files,
        started_utc=step.started_utc,
        ended_utc=step.ended_utc,
    )
