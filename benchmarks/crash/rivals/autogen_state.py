"""AutoGen: an `AssistantAgent`, its state saved by `save_state` and loaded by `load_state` after a crash.

AutoGen writes nothing by itself. Favourably: the state is saved, and synced to the disk, each time the conversation has
grown by something that it can go on from, which is after the results of an answer's calls and after the answer that
ends a turn. A state saved between a request for calls and their results would be a conversation that model providers
refuse.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import ToolCallExecutionEvent
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelInfo,
    RequestUsage,
    UserMessage,
)
from autogen_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict, RootModel

from benchmarks.crash.rivals.crashing import Calls, Faults
from benchmarks.crash.rivals.yardstick import Call, Scenario

MOST_ANSWERS = 1_000
"""The default is one round of calls."""

NO_USAGE = RequestUsage(prompt_tokens=0, completion_tokens=0)


class Arguments(BaseModel):
    """Whatever the model gave."""

    model_config = ConfigDict(extra="allow")


class Result(RootModel[str]):
    """What a tool says."""


class ScenarioTool(BaseTool[Arguments, Result]):
    """A tool of the scenario."""

    def __init__(self, calls: Calls, name: str) -> None:
        super().__init__(Arguments, Result, name, name)
        self._calls = calls

    async def run(self, args: Arguments, cancellation_token: CancellationToken) -> Result:
        raise NotImplementedError("The agent gives calls with their ids, by `run_json`.")

    async def run_json(
        self, args: Mapping[str, Any], cancellation_token: CancellationToken, call_id: str | None = None
    ) -> Result:
        return Result(await asyncio.to_thread(self._calls.make, Call(call_id or "", self.name, dict(args))))


class ScriptedClient(ChatCompletionClient):
    """The scripted model; the conversation says which answer is next."""

    component_type = "model"
    component_config_schema = BaseModel

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(self, messages: Sequence[LLMMessage], **kwargs: Any) -> CreateResult:
        position = sum(isinstance(message, AssistantMessage) for message in messages)
        reply = await asyncio.to_thread(self._calls.ask, position)
        calls = [
            FunctionCall(id=call.position, name=call.tool, arguments=json.dumps(call.arguments)) for call in reply.calls
        ]
        reason = "function_calls" if calls else "stop"
        return CreateResult(finish_reason=reason, content=calls or reply.text, usage=NO_USAGE, cached=False)

    def create_stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[str | CreateResult, None]:
        raise NotImplementedError("The agent does not stream.")

    async def close(self) -> None:
        pass

    def actual_usage(self) -> RequestUsage:
        return NO_USAGE

    def total_usage(self) -> RequestUsage:
        return NO_USAGE

    def count_tokens(self, messages: Sequence[LLMMessage], **kwargs: Any) -> int:
        return 0

    def remaining_tokens(self, messages: Sequence[LLMMessage], **kwargs: Any) -> int:
        return 1_000_000

    @property
    def capabilities(self) -> ModelInfo:
        return self.model_info

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(
            vision=False,
            function_calling=True,
            json_output=False,
            family="unknown",
            structured_output=False,
            multiple_system_messages=True,
        )


def save(state: Mapping[str, Any], file: Path) -> None:
    """Replaces the file as a whole, on the disk when it returns."""
    fresh = file.with_suffix(".new")
    with fresh.open("w") as out:
        json.dump(state, out)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)


async def converse(scenario: Scenario, faults: Faults, file: Path, state: dict[str, Any] | None) -> None:
    calls = Calls(scenario, faults, records_each=False)
    agent = AssistantAgent(
        "assistant",
        ScriptedClient(calls),
        tools=[ScenarioTool(calls, tool["name"]) for tool in scenario.tools],
        max_tool_iterations=MOST_ANSWERS,
    )
    if state is not None:
        await agent.load_state(state)
    messages = await agent.model_context.get_messages()
    heard = sum(isinstance(message, UserMessage) for message in messages)
    tasks: list[tuple[int, str | None]] = [(turn, user) for turn, user in enumerate(scenario.users) if turn >= heard]
    if messages and not isinstance(messages[-1], AssistantMessage):
        tasks.insert(0, (heard - 1, None))
    for turn, user in tasks:
        async for event in agent.run_stream(task=user):
            if isinstance(event, ToolCallExecutionEvent | TaskResult):
                save(await agent.save_state(), file)
                calls.all_recorded()
        faults.reach("after_close", str(turn))


def run(scenario: Scenario, faults: Faults, folder: Path) -> None:
    file = folder / "state.json"
    asyncio.run(converse(scenario, faults, file, json.loads(file.read_text()) if file.exists() else None))
