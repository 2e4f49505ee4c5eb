"""From the record of an ended run to what is emitted for its event: nothing else may be emitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beam_agents.engine.end import Ended, Refused
from beam_agents.events import FailureReason, RunFailure, RunResult

if TYPE_CHECKING:
    from beam_agents.agent import AgentBase


def outcome_of(agent: AgentBase[Any, Any, Any, Any], ended: Ended) -> RunResult[Any, Any] | RunFailure[Any]:
    """The result or the failure that the record says."""
    end, run_id = ended.end, ended.run.key.run_id
    event = agent.read_event_json(ended.run.event)
    if end.kind == "failure":
        return RunFailure(
            reason=end.reason or FailureReason.CODE_ERROR,
            message=end.message,
            run_id=run_id,
            event=event,
            usage=end.usage,
            transcript=end.transcript,
        )
    try:
        output = agent.read_output(end.output)
    except ValueError as error:
        message = f"the recorded answer does not fit the output type any more; raise `revision` to decide anew: {error}"
        return RunFailure(
            reason=FailureReason.INVALID_OUTPUT, message=message, run_id=run_id, event=event, usage=end.usage
        )
    return RunResult(run_id=run_id, event=event, output=output, usage=end.usage, skipped=end.kind == "skipped")


def failure_of(agent: AgentBase[Any, Any, Any, Any], run_id: str, event: str, refused: Refused) -> RunFailure[Any]:
    """The failure of an event whose run was not opened."""
    return RunFailure(reason=refused.reason, message=refused.message, run_id=run_id, event=agent.read_event_json(event))
