"""The chat protocol against a real server with a real model: the form of answers, never their content."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pydantic import BaseModel, Field

from beam_agents.errors import ModelError
from beam_agents.messages import (
    AssistantMessage,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from beam_agents.models.openai_chat import OpenAIModel
from beam_agents.output import Output

SETTINGS = ModelSettings(timeout=120, max_tokens=60, temperature=0, seed=1)
WEATHER = ToolSpec(
    name="weather",
    description="The weather of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


class Mood(BaseModel):
    happy: bool
    strength: int = Field(ge=0, le=9)


@pytest.fixture
def ask(llama_url: str) -> Callable[[ModelRequest], ModelResponse]:
    async def asked(request: ModelRequest) -> ModelResponse:
        model = OpenAIModel("smollm2", base_url=llama_url)
        await model.connect()
        try:
            return await model.request(request)
        finally:
            await model.close()

    return lambda request: asyncio.run(asked(request))


def test_text_with_usage(ask: Callable[[ModelRequest], ModelResponse]) -> None:
    messages = (SystemMessage(text="Answer in one word."), UserMessage(text="What colour is the sky?"))

    response = ask(ModelRequest(messages=messages, settings=SETTINGS))

    assert response.message.text
    assert response.tokens.input is not None
    assert response.tokens.input > 10
    assert response.tokens.output is not None
    assert 0 < response.tokens.output <= 60
    assert response.finish_reason in ("stop", "length")


def test_an_answer_in_a_schema_can_be_read(ask: Callable[[ModelRequest], ModelResponse]) -> None:
    output = Output.of(Mood)
    request = ModelRequest(messages=(UserMessage(text="I am so glad!"),), output=output.spec, settings=SETTINGS)

    mood = output.read(ask(request).message.text)

    assert isinstance(mood, Mood)


def test_an_answer_that_is_no_object_comes_back_as_itself(ask: Callable[[ModelRequest], ModelResponse]) -> None:
    output = Output.of(bool)
    request = ModelRequest(messages=(UserMessage(text="Is water wet?"),), output=output.spec, settings=SETTINGS)

    assert output.read(ask(request).message.text) in (True, False)


def test_tools_and_their_results_are_accepted(ask: Callable[[ModelRequest], ModelResponse]) -> None:
    calls = (
        ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo"}'),
        ToolCall(id="call_2", name="weather", arguments="not json"),
    )
    messages = (
        UserMessage(text="What is the weather in Oslo?"),
        AssistantMessage(tool_calls=calls),
        ToolMessage(call_id="call_1", name="weather", text="rain"),
        ToolMessage(call_id="call_2", name="weather", text="The arguments are no JSON.", outcome="retry"),
    )

    response = ask(ModelRequest(messages=messages, tools=(WEATHER,), settings=SETTINGS))

    assert response.message.text or response.message.tool_calls


def test_a_bad_request_is_not_retryable(ask: Callable[[ModelRequest], ModelResponse]) -> None:
    settings = ModelSettings(timeout=60, extra_body={"messages": "not a list"})

    with pytest.raises(ModelError, match="openai:smollm2") as caught:
        ask(ModelRequest(messages=(UserMessage(text="Hello"),), settings=settings))

    assert caught.value.status == 400
    assert not caught.value.retryable
