"""Requests and responses of `OpenAIModel` on the wire, against the mock server."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from beam_agents.errors import ConfigurationError, ModelError
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
from beam_agents.models import Model, OpenAIModel, Price, calls
from beam_agents.output import Output
from beam_agents.testing.chat_server import MockChatServer, Reply, completion

ADD = ToolSpec(
    name="add",
    description="Adds.",
    parameters={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
)


class Verdict(BaseModel):
    ok: bool
    why: str = "no reason"


async def ask(model: Model, request: ModelRequest) -> ModelResponse:
    await model.connect()
    try:
        return await model.request(request)
    finally:
        await model.close()


def exchange(
    request: ModelRequest, answer: Callable[[dict[str, Any]], Reply] | None = None, **options: Any
) -> tuple[dict[str, Any], ModelResponse]:
    """What went over the wire and what came back."""
    with MockChatServer(answer) as server:
        response = asyncio.run(ask(OpenAIModel("m1", base_url=server.base_url, **options), request))
        return server.requests[0], response


def answered(message: dict[str, Any]) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: {"choices": [{"message": message, "finish_reason": "stop"}]}


def test_messages_go_out_as_the_protocol_has_them() -> None:
    messages = (
        SystemMessage(text="Be brief."),
        UserMessage(text="Add."),
        AssistantMessage(text="Well", tool_calls=(ToolCall(id="c1", name="add", arguments='{"n": 1}'),)),
        ToolMessage(call_id="c1", name="add", text="1"),
        AssistantMessage(text="Done"),
        UserMessage(text="Again."),
    )

    body, _ = exchange(ModelRequest(messages=messages))

    function = {"name": "add", "arguments": '{"n": 1}'}
    assert body == {
        "model": "m1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add."},
            {
                "role": "assistant",
                "content": "Well",
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
            {"role": "assistant", "content": "Done"},
            {"role": "user", "content": "Again."},
        ],
    }


@pytest.mark.parametrize(
    ("written", "sent"),
    [("", "{}"), ("{oops", '{"invalid_arguments": "{oops"}'), ("[1]", '{"invalid_arguments": "[1]"}')],
)
def test_arguments_that_are_no_object_are_sent_as_one(written: str, sent: str) -> None:
    call = AssistantMessage(tool_calls=(ToolCall(id="c1", name="add", arguments=written),))
    messages = (UserMessage(text="Add."), call, ToolMessage(call_id="c1", name="add", text="no"))

    body, _ = exchange(ModelRequest(messages=messages))

    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == sent


def test_tools_output_and_settings_go_out() -> None:
    settings = ModelSettings(
        temperature=0.5, max_tokens=7, seed=3, parallel_tool_calls=False, extra_body={"top_k": 2, "seed": 4}
    )
    messages = (UserMessage(text="Add."),)

    body, _ = exchange(ModelRequest(messages=messages, tools=(ADD,), output=Output.of(Verdict).spec, settings=settings))

    function = body["tools"][0]["function"]
    assert (function["name"], function["description"], function["strict"]) == ("add", "Adds.", True)
    assert function["parameters"] == ADD.parameters | {"additionalProperties": False}
    form = body["response_format"]
    assert form["type"] == "json_schema"
    assert (form["json_schema"]["name"], form["json_schema"]["strict"]) == ("Verdict", True)
    assert (body["temperature"], body["max_tokens"], body["parallel_tool_calls"]) == (0.5, 7, False)
    assert (body["top_k"], body["seed"]) == (2, 4)


def test_openai_itself_gets_its_own_name_for_max_tokens(question: ModelRequest) -> None:
    from beam_agents.models.openai_wire import request_body

    request = ModelRequest(messages=question.messages, settings=ModelSettings(max_tokens=7))

    body = request_body("m1", request, openai_itself=True)

    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body


def test_text_usage_price_and_finish_reason_come_back(question: ModelRequest) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return completion("Fine.", body) | {"usage": {"prompt_tokens": 1000, "completion_tokens": 500}, "model": "m1-b"}

    _, response = exchange(question, reply, price=Price(input=2, output=8))

    assert response.message == AssistantMessage(text="Fine.")
    assert (response.tokens.input, response.tokens.output) == (1000, 500)
    assert response.cost_usd == pytest.approx(0.006)
    assert (response.model, response.finish_reason) == ("m1-b", "stop")


def test_a_server_that_does_not_count_leaves_tokens_and_cost_open(question: ModelRequest) -> None:
    _, response = exchange(question, answered({"content": "Hi"}), price=Price(input=2, output=8))

    assert (response.tokens.input, response.tokens.output, response.cost_usd) == (None, None, None)
    assert response.model == "openai:m1"


def test_parallel_tool_calls_come_back_with_their_ids(question: ModelRequest) -> None:
    _, response = exchange(question, lambda body: calls(("add", {"n": 1}), ("add", {"n": 2})))

    first, second = response.message.tool_calls
    assert (first.name, json.loads(first.arguments)) == ("add", {"n": 1})
    assert (second.name, json.loads(second.arguments)) == ("add", {"n": 2})
    assert first.id != second.id
    assert response.finish_reason == "tool_calls"


def test_empty_and_repeated_ids_are_replaced_the_same_way_every_time() -> None:
    before = (ToolCall(id="0", name="add", arguments="{}"), ToolCall(id="1", name="add", arguments="{}"))
    messages = (
        UserMessage(text="Add."),
        AssistantMessage(tool_calls=before),
        ToolMessage(call_id="0", name="add", text="0"),
        ToolMessage(call_id="1", name="add", text="0"),
    )
    new = [
        {"id": id_, "type": "function", "function": {"name": "add", "arguments": {"n": 1}}}
        for id_ in ("0", "", "", "9")
    ]

    def asked() -> list[str]:
        _, response = exchange(ModelRequest(messages=messages), answered({"tool_calls": new}))
        assert response.message.tool_calls[0].arguments == '{"n": 1}'
        return [call.id for call in response.message.tool_calls]

    ids = asked()
    assert ids == asked()
    assert len({*ids, "0", "1", ""}) == 7
    assert ids[3] == "9"
    assert all(len(id_) <= 40 for id_ in ids)


def test_a_refusal_is_text(question: ModelRequest) -> None:
    _, response = exchange(question, answered({"content": None, "refusal": "I will not."}))

    assert response.message.text == "I will not."


def test_an_answer_that_is_no_object_is_wrapped_on_the_wire_only(question: ModelRequest) -> None:
    output = Output.of(list[Verdict])
    request = ModelRequest(messages=question.messages, output=output.spec)

    body, response = exchange(request)

    assert body["response_format"]["json_schema"]["schema"]["type"] == "object"
    assert body["response_format"]["json_schema"]["strict"] is True
    assert output.read(response.message.text) == [Verdict(ok=True, why="example")]


def test_an_answer_that_ignores_the_wrapping_is_left_alone(question: ModelRequest) -> None:
    request = ModelRequest(messages=question.messages, output=Output.of(list[int]).spec)

    _, response = exchange(request, answered({"content": "[1, 2]"}))

    assert response.message.text == "[1, 2]"


@pytest.mark.parametrize(
    ("reason", "retryable"), [("stop", True), (None, True), ("length", False), ("content_filter", False)]
)
def test_an_empty_answer_is_an_error(question: ModelRequest, reason: str | None, retryable: bool) -> None:
    reply = {"choices": [{"message": {"content": ""}, "finish_reason": reason}]}

    with pytest.raises(ModelError, match="empty answer") as caught:
        exchange(question, lambda body: reply)

    assert caught.value.retryable is retryable


def test_many_requests_share_one_client(question: ModelRequest) -> None:
    async def many(model: OpenAIModel) -> list[ModelResponse]:
        await model.connect()
        try:
            return await asyncio.gather(*(model.request(question) for _ in range(150)))
        finally:
            await model.close()

    together = asyncio.Barrier(150)

    async def reply(body: dict[str, Any]) -> Reply:
        await together.wait()
        return "All here."

    with MockChatServer(reply) as server:
        responses = asyncio.run(many(OpenAIModel("m1", base_url=server.base_url)))
        most = server.stats["most_in_flight"]

    assert len(responses) == 150
    assert most == 150  # the HTTP library's own bound is 100


def test_it_can_be_used_again_after_close_on_another_loop(question: ModelRequest) -> None:
    with MockChatServer() as server:
        model = OpenAIModel("m1", base_url=server.base_url)
        asyncio.run(ask(model, question))
        asyncio.run(ask(model, question))

        assert server.stats["calls"] == 2


def test_requests_that_come_before_connect_share_one_client(question: ModelRequest) -> None:
    async def asked(model: OpenAIModel) -> None:
        await asyncio.gather(model.request(question), model.request(question))
        await model.close()

    with MockChatServer() as server:
        asyncio.run(asked(OpenAIModel("m1", base_url=server.base_url)))

        assert server.stats["calls"] == 2


def test_headers_and_the_key_of_the_environment_are_sent(
    question: ModelRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "key-of-mine")
    with MockChatServer() as server:
        model = OpenAIModel("m1", base_url=server.base_url, api_key_env="MY_KEY", headers={"X-Team": "fraud"})
        asyncio.run(ask(model, question))
        headers = server.headers[0]

    assert headers["authorization"] == "Bearer key-of-mine"
    assert headers["x-team"] == "fraud"


def test_the_proxy_of_the_environment_is_used(question: ModelRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with MockChatServer(lambda _: "by proxy") as proxy:
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        far = asyncio.run(ask(OpenAIModel("m1", base_url="http://models.example/v1"), question))
        _, near = exchange(question, lambda _: "directly")
        assert [far.message.text, near.message.text] == ["by proxy", "directly"]
        assert proxy.stats["calls"] == 1


def test_a_server_of_ones_own_needs_no_key(question: ModelRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with MockChatServer() as server:
        response = asyncio.run(ask(OpenAIModel("m1", base_url=server.base_url), question))

    assert response.message.text


def test_openai_without_a_key_names_the_variable(question: ModelRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    with pytest.raises(ModelError, match="'OPENAI_API_KEY'") as caught:
        asyncio.run(ask(OpenAIModel("m1"), question))

    assert caught.value.status == 401
    assert not caught.value.retryable


def test_a_connected_model_is_pickled_without_client_and_key(
    question: ModelRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine")

    async def connected(model: OpenAIModel) -> bytes:
        await model.connect()
        await model.request(question)
        try:
            return pickle.dumps(model)
        finally:
            await model.close()

    with MockChatServer() as server:
        data = asyncio.run(connected(OpenAIModel("m1", base_url=server.base_url)))
        copy = pickle.loads(data)
        response = asyncio.run(ask(copy, question))

    assert b"key-of-mine" not in data
    assert response.message.text


def test_a_copy_answers_in_a_fresh_process() -> None:
    from apache_beam.internal import cloudpickle_pickler

    code = (
        "import asyncio, sys\n"
        "from apache_beam.internal import cloudpickle_pickler\n"
        "from beam_agents.messages import ModelRequest, UserMessage\n"
        "model = cloudpickle_pickler.loads(sys.stdin.buffer.read())\n"
        "async def main():\n"
        "    response = await model.request(ModelRequest(messages=(UserMessage(text='Hi'),)))\n"
        "    await model.close()\n"
        "    print(response.message.text)\n"
        "asyncio.run(main())\n"
    )
    with MockChatServer(lambda body: body["messages"][0]["content"] + " there") as server:
        data = cloudpickle_pickler.dumps(OpenAIModel("m1", base_url=server.base_url))
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=data,
            capture_output=True,
            check=False,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OPENAI_API_KEY": "key-of-mine"},
        )

    assert (done.returncode, done.stdout.decode().strip()) == (0, "Hi there"), done.stderr.decode()


def test_a_server_that_has_moved_gets_the_whole_request() -> None:
    long = ModelRequest(messages=(UserMessage(text="ä" * 1_200_000),))  # aiohttp warns of bodies of more than a MiB
    with MockChatServer(lambda body: f"{len(body['messages'][0]['content'])}") as there:
        moved = {"Location": f"{there.base_url}/chat/completions"}
        with MockChatServer(lambda _: web.Response(status=307, headers=moved)) as here:
            response = asyncio.run(ask(OpenAIModel("m1", base_url=here.base_url), long))

    assert response.message.text == "1200000"
    assert here.requests == there.requests


def test_wrong_arguments_are_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="base_url='localhost:8000'"):
        OpenAIModel("m1", base_url="localhost:8000")
    with pytest.raises(ConfigurationError, match="name of the model"):
        OpenAIModel("")
