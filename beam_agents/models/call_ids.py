"""Tool call ids: one conversation never holds the same id twice."""

from __future__ import annotations

from beam_agents.codec import digest
from beam_agents.messages import AssistantMessage, ModelRequest


def with_unique_call_ids(message: AssistantMessage, request: ModelRequest) -> AssistantMessage:
    """The answer with the ids of its tool calls, and new ones in place of those that are empty or taken.

    Some servers leave ids empty or number the calls of each answer from zero, and then a result could not be told
    from an earlier call's. A new id depends on the conversation alone, so it is the same in every replay.
    """
    if not message.tool_calls:
        return message
    earlier = [call.id for said in request.messages if isinstance(said, AssistantMessage) for call in said.tool_calls]
    taken = set(earlier)
    calls = []
    for position, call in enumerate(message.tool_calls, start=len(earlier)):
        if not call.id or call.id in taken:
            call = call.model_copy(update={"id": f"call_{digest(call.id, str(position))[:24]}"})
        taken.add(call.id)
        calls.append(call)
    return message if tuple(calls) == message.tool_calls else message.model_copy(update={"tool_calls": tuple(calls)})
