"""The end of a run as its record keeps it, and as drivers turn it into outputs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

from pydantic import JsonValue

from beam_agents.budget import Usage
from beam_agents.events import FailureReason, TraceRecord
from beam_agents.ledger.base import BEGINNING
from beam_agents.ledger.records import Effect, Run
from beam_agents.messages import Message, ModelResponse
from beam_agents.stored import Stored


class End(Stored):
    """What a run came to."""

    kind: Literal["answer", "skipped", "failure"]
    output: JsonValue = None
    reason: FailureReason | None = None
    message: str = ""
    usage: Usage = Usage()
    transcript: tuple[Message, ...] = ()
    """Of failures only: a dead letter shows what was said."""
    emitted: tuple[JsonValue, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A run that has ended, with all that a driver emits for it."""

    run: Run
    end: End
    effects: tuple[Effect, ...]
    replayed: bool
    """The ledger had the end already; nothing was done now."""
    session_version: int
    session: str | None
    """The key's newest session, as JSON."""
    ledger: str
    """Identity of the ledger."""
    model_calls: int = 0
    """Requests that were made now, not replayed."""
    tool_calls: int = 0


@dataclass(frozen=True)
class Refused:
    """An event whose run was not opened."""

    reason: FailureReason
    message: str


@dataclass(frozen=True)
class Pruned(Refused):
    """An event whose run ended so long ago that what it came to is gone: for a driver, the same event again."""


def conflict(run_id: str) -> Refused:
    """The refusal of an event whose id belongs to another one."""
    message = f"event id {run_id!r} was used before for an event with another content"
    return Refused(FailureReason.ID_CONFLICT, message)


def overloaded(waiting: int) -> Refused:
    """The refusal of an event of a key with too many that wait."""
    message = f"{waiting} events of the key wait already, which is RunAgent(max_waiting=...); nothing was done for it"
    return Refused(FailureReason.OVERLOADED, message)


def pruned(run: Run) -> Pruned:
    """The refusal of an event whose run has left nothing but its tombstone."""
    message = f"the run of event id {run.key.run_id!r} ended {when(run.closed_at or 0.0)}, and its record was pruned"
    return Pruned(FailureReason.TOO_OLD, message)


def too_old(run_id: str, event_time: int | None, forgotten_to: int) -> Refused:
    """The refusal of an event that may have had a run, of which nothing is left.

    Args:
        run_id: The event's id.
        event_time: The event's, microseconds since 1970.
        forgotten_to: Event time of the newest event of its key that was forgotten, microseconds since 1970.
    """
    to = "one without a time" if forgotten_to == BEGINNING else f"one of {when(forgotten_to / 1e6)}"
    if event_time is None:
        own, advice = "has no time", "give events their time (beam.window.TimestampedValue) if they can come late"
    else:
        own, advice = f"is of {when(event_time / 1e6)}", "keep tombstones for longer than events can be late"
    message = (
        f"event id {run_id!r} {own}, and the ledger has forgotten its key's runs up to {to}: whether it was handled "
        f"before is not known. If it was not, send it again under another id; {advice}"
    )
    return Refused(FailureReason.TOO_OLD, message)


def when(seconds: float) -> str:
    """Seconds since 1970 as a date and time in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # Beam's time goes further than the calendar
        return f"{seconds:.0f} s after 1970"


def trace_of(run_id: str, effects: tuple[Effect, ...]) -> list[TraceRecord]:
    """A run's journal as trace records."""
    return [_trace(run_id, effect) for effect in effects]


def _trace(run_id: str, effect: Effect) -> TraceRecord:
    tokens = None
    if effect.kind == "model" and effect.status == "ok" and effect.value is not None:
        with contextlib.suppress(ValueError):  # a trace is not worth a bundle
            tokens = ModelResponse.model_validate_json(effect.value).tokens
    return TraceRecord(
        run_id=run_id,
        path=effect.path,
        kind=cast(Literal["model", "tool", "sleep"], effect.kind),
        name=effect.name,
        attempt=effect.attempt,
        outcome=effect.status or "open",
        arguments=None if effect.arguments is None else json.loads(effect.arguments),
        started=effect.intent_at,
        ended=effect.outcome_at,
        input_tokens=tokens.input if tokens else None,
        output_tokens=tokens.output if tokens else None,
    )
