"""From the record of an ended run to what is emitted for its event: nothing else may be emitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beam_agents.engine.end import Ended, Refused
from beam_agents.events import Duplicate, FailureReason, RunFailure, RunResult

if TYPE_CHECKING:
    from beam_agents.agent_base import AgentBase


def outcome_of(agent: AgentBase[Any, Any, Any, Any], ended: Ended) -> RunResult[Any, Any] | RunFailure[Any]:
    """The result or the failure that the record says; a failure, too, if this release cannot read the record."""
    end, run_id = ended.end, ended.run.key.run_id
    event, raw, unreadable = recorded_event(agent, ended.run.event)
    reason, message = end.reason or FailureReason.CODE_ERROR, end.message
    if end.kind != "failure":
        try:
            output = agent.read_output(end.output)
        except ValueError as error:
            reason = FailureReason.INVALID_OUTPUT
            message = (
                f"the run was decided by another release, and its answer does not fit {agent.name!r}, "
                f"output_type {error}; let output_type read it, or raise `revision` to decide anew"
            )
        else:
            if raw is None:
                skipped = end.kind == "skipped"
                return RunResult(run_id=run_id, event=event, output=output, usage=end.usage, skipped=skipped)
            reason, message = FailureReason.INVALID_EVENT, "the run was decided by another release"
    if raw is not None and unreadable not in message:
        message = f"{message}; {unreadable}"
    return RunFailure(
        reason=reason,
        message=message,
        run_id=run_id,
        event=event,
        raw=raw,
        usage=end.usage,
        transcript=end.transcript,
    )


def failure_of(agent: AgentBase[Any, Any, Any, Any], run_id: str, event: str, refused: Refused) -> RunFailure[Any]:
    """The failure of an event whose run was not opened."""
    read, raw, _ = recorded_event(agent, event)
    return RunFailure(reason=refused.reason, message=refused.message, run_id=run_id, event=read, raw=raw)


def duplicate_of(agent: AgentBase[Any, Any, Any, Any], run_id: str, event: str) -> Duplicate[Any]:
    """An event that came again. One that cannot be read is no failure: it was emitted when it came first."""
    read, raw, _ = recorded_event(agent, event)
    return Duplicate(run_id=run_id, event=read, raw=raw)


def recorded_event(agent: AgentBase[Any, Any, Any, Any], text: str) -> tuple[Any, str | None, str]:
    """The event of a record; or, if this release cannot read it, its text and a message that says why."""
    try:
        return agent.read_event_json(text), None, ""
    except ValueError as error:
        why = (
            f"the recorded event does not fit {agent.name!r}, event_type {error}; let event_type read events "
            "that came before it was changed (defaults for new fields, a validator with mode='before')"
        )
        return None, text, why
