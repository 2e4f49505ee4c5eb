"""Tool call ids: one conversation never holds the same id twice."""

from __future__ import annotations

from beam_agents.codec import digest
from beam_agents.messages import AssistantMessage, ModelRequest, ToolCall


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
            new_id = f"call_{digest(call.id, str(position))[:24]}"
            call = ToolCall(id=new_id, name=call.name, arguments=call.arguments)
        taken.add(call.id)
        calls.append(call)
    # A new message, not a changed copy: that would keep the digest of the old one.
    return (
        message if tuple(calls) == message.tool_calls else AssistantMessage(text=message.text, tool_calls=tuple(calls))
    )
