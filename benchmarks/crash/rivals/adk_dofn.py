"""The whole loop in one DoFn, as Beam's `ADKAgentModelHandler` runs it: nothing of it is durable.

The agent is one of the Agent Development Kit, run by the `Runner` that the handler makes. A runner of Beam repeats the
bundle of a worker that died, which is to call `process` again in a new process; it is done here without a pipeline,
whose start takes a second. The turns of a conversation are made in one `process`, in one session: the handler cannot
go on with a session that exists, since it asks for it with the wrong arguments, and then makes it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.agent_development_kit import ADKAgentModelHandler
from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.tools.base_tool import BaseTool
from google.adk.tools.tool_context import ToolContext
from google.genai import types

from benchmarks.crash.rivals.crashing import Calls, Faults
from benchmarks.crash.rivals.yardstick import Call, Scenario

USER = "user"


class ScriptedLlm(BaseLlm):  # type: ignore[misc]
    """The scripted model; the conversation says which answer is next."""

    calls: Any

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        position = sum(content.role == "model" for content in llm_request.contents)
        reply = await asyncio.to_thread(self.calls.ask, position)
        parts = [
            types.Part(function_call=types.FunctionCall(id=call.position, name=call.tool, args=call.arguments))
            for call in reply.calls
        ]
        yield LlmResponse(content=types.Content(role="model", parts=parts or [types.Part(text=reply.text)]))


class ScenarioTool(BaseTool):  # type: ignore[misc]
    """A tool of the scenario."""

    def __init__(self, calls: Calls, name: str) -> None:
        super().__init__(name=name, description=name)
        self._calls = calls

    def _get_declaration(self) -> types.FunctionDeclaration:
        return types.FunctionDeclaration(name=self.name, description=self.description)

    async def run_async(self, *, args: dict[str, Any], tool_context: ToolContext) -> dict[str, str]:
        call = Call(tool_context.function_call_id or "", self.name, args)
        return {"result": await asyncio.to_thread(self._calls.make, call)}


class Converse(beam.DoFn):  # type: ignore[misc]
    """Takes a scenario to its end. The process is the only thing that remembers how far it is."""

    def __init__(self, scenario: Scenario, faults: Faults) -> None:
        self._scenario = scenario
        self._faults = faults

    def process(self, element: str) -> Iterator[str]:
        yield asyncio.run(self._converse())

    async def _converse(self) -> str:
        text = ""
        calls = Calls(self._scenario, self._faults, records_each=False)
        agent = LlmAgent(
            name="assistant",
            model=ScriptedLlm(model="scripted", calls=calls),
            tools=[ScenarioTool(calls, tool["name"]) for tool in self._scenario.tools],
        )
        runner: Runner = ADKAgentModelHandler(agent).load_model()
        session = await runner.session_service.create_session(app_name=runner.app_name, user_id=USER)
        for user in self._scenario.users:
            message = types.Content(role="user", parts=[types.Part(text=user)])
            async for event in runner.run_async(user_id=USER, session_id=session.id, new_message=message):
                calls.all_recorded()
                if event.is_final_response() and event.content and event.content.parts:
                    text = event.content.parts[0].text or ""
        self._faults.reach("after_close", self._scenario.name)
        return text


def run(scenario: Scenario, faults: Faults, folder: Path) -> None:
    for _ in Converse(scenario, faults).process(scenario.name):
        pass
