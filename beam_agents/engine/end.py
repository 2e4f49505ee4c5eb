"""The end of a run as its record keeps it, and as drivers turn it into outputs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import JsonValue

from beam_agents.budget import Usage
from beam_agents.events import FailureReason, TraceRecord
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


def conflict(run_id: str) -> Refused:
    """The refusal of an event whose id belongs to another one."""
    message = f"event id {run_id!r} was used before for an event with another content"
    return Refused(FailureReason.ID_CONFLICT, message)


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
