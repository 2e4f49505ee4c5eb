from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import pytest
from pydantic import BaseModel

from beam_agents.errors import ConfigurationError
from beam_agents.messages import (
    AssistantMessage,
    ModelRequest,
    ModelResponse,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from beam_agents.models import FunctionModel, Price, calls, say


class Verdict(BaseModel):
    ok: bool


def shout(request: ModelRequest) -> AssistantMessage:
    return say((request.messages[-1].text or "").upper())


def ask(model: FunctionModel, request: ModelRequest) -> ModelResponse:
    return asyncio.run(model.request(request))


def test_a_function_answers_and_its_tokens_are_estimated() -> None:
    request = ModelRequest(messages=(SystemMessage(text="a" * 40), UserMessage(text="b" * 18)))

    response = ask(FunctionModel(shout, price=Price(input=1_000_000, output=2_000_000)), request)

    assert response.message.text == "B" * 18
    assert (response.tokens.input, response.tokens.output) == (15, 5)
    assert response.cost_usd == 25
    assert (response.model, response.finish_reason) == ("function", "stop")


def test_an_async_function_answers(question: ModelRequest) -> None:
    async def answer(request: ModelRequest) -> AssistantMessage:
        await asyncio.sleep(0)
        return say("Hi")

    assert ask(FunctionModel(answer, name="other"), question).model == "other"


def test_a_whole_response_is_passed_on(question: ModelRequest) -> None:
    response = ModelResponse(message=say("Hi"), model="someone", cost_usd=3)

    assert ask(FunctionModel(lambda request: response), question) == response


def test_it_uses_no_network_and_is_pickled(question: ModelRequest) -> None:
    copy = pickle.loads(pickle.dumps(FunctionModel(shout)))

    assert copy.network is False
    assert ask(copy, question).message.text == "HOW ARE YOU?"


def test_another_answer_is_refused(question: ModelRequest) -> None:
    wrong: Any = lambda request: "Hi"  # noqa: E731

    with pytest.raises(TypeError, match="'function' answered 'Hi'"):
        ask(FunctionModel(wrong), question)
    with pytest.raises(ConfigurationError, match="takes a ModelRequest"):
        FunctionModel("no function")  # type: ignore[arg-type]


def test_turns_are_built_the_same_every_time() -> None:
    made = calls(("add", {"b": 1, "a": 2}), ("add", {"a": 2, "b": 1}), text="Well")

    assert made == calls(("add", {"a": 2, "b": 1}), ("add", {"b": 1, "a": 2}), text="Well")
    assert [json.loads(call.arguments) for call in made.tool_calls] == [{"a": 2, "b": 1}] * 2
    assert len({call.id for call in made.tool_calls}) == 2
    assert say("Hi").text == "Hi"
    assert say(Verdict(ok=True)).text == '{"ok":true}'
    assert say([1, None]).text == "[1,null]"


def test_the_same_call_twice_in_a_conversation_gets_an_id_of_its_own() -> None:
    answer = calls(("add", {}))
    assert answer.digest  # kept by the message from now on
    model = FunctionModel(lambda request: answer)
    first = ask(model, ModelRequest(messages=(UserMessage(text="Add."),))).message
    result = ToolMessage(call_id=first.tool_calls[0].id, name="add", text="0")
    longer = ModelRequest(messages=(UserMessage(text="Add."), first, result))

    second, again = ask(model, longer).message, ask(model, longer).message

    assert second == again
    assert second.digest != first.digest
    assert second.digest == AssistantMessage.model_validate_json(second.model_dump_json()).digest
    assert second.tool_calls[0].id != first.tool_calls[0].id
