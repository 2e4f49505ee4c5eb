"""The ReAct loop: the model chooses tools until it answers.

Written with the methods of the context alone, as a user could. After Yao et al., "ReAct: Synergizing Reasoning and
Acting in Language Models" (2022), with the tool calls of today's chat protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from beam_agents.codec import canonical_json, explain
from beam_agents.context import RunContext
from beam_agents.errors import ModelRetry, ToolError, ToolFailed
from beam_agents.messages import SystemMessage, ToolCall, ToolMessage, UserMessage
from beam_agents.output import Output
from beam_agents.tools import Tool


async def react(
    ctx: RunContext[Any, Any, Any],
    *,
    instructions: str,
    prompt: str,
    tools: Sequence[Tool[Any]],
    output: Output,
    output_retries: int,
) -> Any:
    """Asks, calls what the model wants called, and asks again, until the answer fits `output`.

    Raises:
        InvalidOutput: The answer did not fit, also after the retries.
        ToolError: A tool raised, or the model went on giving wrong arguments.
    """
    by_name = {tool.name: tool for tool in tools}
    specs = tuple(tool.spec for tool in tools)
    head = [SystemMessage(text=instructions)] if instructions else []
    retries: Counter[str] = Counter()
    wrong_answers = 0
    ctx.say(UserMessage(text=prompt))
    while True:
        response = await ctx.request([*head, *ctx.history, *ctx.transcript], tools=specs, output=output.spec)
        ctx.say(response.message)
        if response.message.tool_calls:
            results: dict[int, ToolMessage] = {}

            async def answer(index: int, call: ToolCall, results: dict[int, ToolMessage] = results) -> None:
                results[index] = await _call(ctx, by_name, call, retries)

            try:
                await ctx.gather(*(answer(index, call) for index, call in enumerate(response.message.tool_calls)))
            finally:  # also when a call ends the run: what the others came to is known, and must not be called again
                ctx.say(*(results[index] for index in sorted(results)))
            continue
        try:
            return output.read(response.message.text)
        except ValueError as error:
            wrong_answers += 1
            if wrong_answers > output_retries:
                raise output.invalid(error) from error
            ctx.say(output.correction(error))


async def _call(
    ctx: RunContext[Any, Any, Any], tools: dict[str, Tool[Any]], call: ToolCall, retries: Counter[str]
) -> ToolMessage:
    tool = tools.get(call.name)
    if tool is None:
        text = f"There is no tool {call.name!r}; there is: {', '.join(tools) or 'none'}."
        return ToolMessage(call_id=call.id, name=call.name, text=text, outcome="retry")
    try:
        arguments = tool.arguments_from(call.arguments)
    except ValidationError as error:
        return _retry(call, tool, f"Wrong arguments: {explain(error, 'arguments')}.", retries)
    try:
        result = await ctx.call(tool, **arguments)
    except ModelRetry as error:
        return _retry(call, tool, str(error), retries)
    except ToolFailed as error:
        return ToolMessage(call_id=call.id, name=call.name, text=str(error), outcome="failed")
    return ToolMessage(
        call_id=call.id, name=call.name, text=result if isinstance(result, str) else canonical_json(result)
    )


def _retry(call: ToolCall, tool: Tool[Any], text: str, retries: Counter[str]) -> ToolMessage:
    retries[tool.name] += 1
    if retries[tool.name] > tool.model_retries:
        raise ToolError(
            f"the model was told {tool.model_retries} times what is wrong with its calls of {tool.name!r}: {text}"
        )
    return ToolMessage(call_id=call.id, name=call.name, text=text, outcome="retry")
