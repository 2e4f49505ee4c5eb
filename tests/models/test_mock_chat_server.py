from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from beam_agents.errors import ConfigurationError
from beam_agents.messages import Message, ModelRequest, ModelResponse, ToolMessage, ToolSpec, UserMessage
from beam_agents.models import OpenAIModel
from beam_agents.output import Output
from beam_agents.testing import Fault, MockChatServer
from beam_agents.testing.chat_server import Reply

TOOL = ToolSpec(
    name="add",
    description="Adds.",
    parameters={"type": "object", "properties": {"n": {"type": "integer", "minimum": 5}}, "required": ["n"]},
)


async def two_steps(base_url: str) -> tuple[ModelResponse, ModelResponse]:
    """The workload of a benchmark: a model call, a tool call, a model call."""
    model = OpenAIModel("m1", base_url=base_url)
    output = Output.of(list[int]).spec
    await model.connect()
    try:
        asked: tuple[Message, ...] = (UserMessage(text="Go"),)
        first = await model.request(ModelRequest(messages=asked, tools=(TOOL,), output=output))
        result = ToolMessage(call_id=first.message.tool_calls[0].id, name="add", text="5")
        asked = (*asked, first.message, result)
        return first, await model.request(ModelRequest(messages=asked, tools=(TOOL,), output=output))
    finally:
        await model.close()


def test_by_default_it_calls_a_tool_and_then_answers_by_the_schemas() -> None:
    with MockChatServer() as server:
        first, second = asyncio.run(two_steps(server.base_url))

        assert [(call.name, call.arguments) for call in first.message.tool_calls] == [("add", '{"n":5}')]
        assert Output.of(list[int]).read(second.message.text) == [1]
        assert second.tokens.input is not None
        assert first.tokens.input is not None
        assert second.tokens.input > first.tokens.input > 0
        assert server.stats == {"calls": 2, "in_flight": 0, "most_in_flight": 1}


def test_it_counts_what_is_in_flight(question: ModelRequest) -> None:
    together = asyncio.Barrier(4)

    async def reply(body: dict[str, Any]) -> Reply:
        await together.wait()
        return "Hi"

    async def asked(model: OpenAIModel) -> None:
        await model.connect()
        await asyncio.gather(*(model.request(question) for _ in range(4)))
        await model.close()

    with MockChatServer(reply) as server:
        asyncio.run(asked(OpenAIModel("m1", base_url=server.base_url)))
        with urllib.request.urlopen(server.base_url.replace("/v1", "/stats")) as answer:
            shown = json.load(answer)

    assert shown == {"calls": 4, "in_flight": 0, "most_in_flight": 4}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("500", Fault("status", 500)),
        ("429:1.5", Fault("status", 429, 1.5)),
        ("cut", Fault("cut")),
        ("rubbish", Fault("rubbish")),
        ("empty", Fault("empty")),
    ],
)
def test_faults_of_the_command_line(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


def test_a_fault_that_is_not_known() -> None:
    with pytest.raises(ConfigurationError, match="'explode'"):
        Fault.parse("explode")


def test_as_a_process_it_prints_its_url_and_its_statistics() -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "beam_agents.testing.mock_server"]
    process = subprocess.Popen(
        [*command, "--latency", "0.01", "--spread", "0.5"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        first, _ = asyncio.run(two_steps(base_url))
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()

    assert first.message.tool_calls
    assert json.loads(printed) == {"calls": 2, "in_flight": 0, "most_in_flight": 1}
    assert process.returncode == 0
