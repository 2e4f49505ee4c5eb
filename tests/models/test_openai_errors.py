"""What `OpenAIModel` makes of servers that fail."""

from __future__ import annotations

import asyncio
import socket
import traceback

import pytest
from aiohttp import web

from beam_agents.errors import ModelError
from beam_agents.messages import ModelRequest, ModelSettings
from beam_agents.models import OpenAIModel
from beam_agents.models.openai_client import retry_after
from beam_agents.testing.chat_server import Fault, MockChatServer

NOON = 1_767_268_800.0  # Thu, 01 Jan 2026 12:00:00 GMT


def failure(base_url: str, request: ModelRequest) -> ModelError:
    async def asked() -> None:
        model = OpenAIModel("m1", base_url=base_url)
        await model.connect()
        try:
            await model.request(request)
        finally:
            await model.close()

    with pytest.raises(ModelError) as caught:
        asyncio.run(asked())
    return caught.value


def failure_with(request: ModelRequest, *faults: Fault) -> ModelError:
    with MockChatServer(faults=faults) as server:
        error = failure(server.base_url, request)
        assert server.stats["calls"] == 1  # a single attempt, whatever happens
    return error


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_passing_failures_are_retryable(question: ModelRequest, status: int) -> None:
    error = failure_with(question, Fault("status", status))

    assert error.retryable
    assert error.status == status
    assert error.retry_after is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_wrong_requests_are_not(question: ModelRequest, status: int) -> None:
    error = failure_with(question, Fault("status", status))

    assert not error.retryable
    assert error.status == status
    assert str(error) == f"model 'openai:m1': status {status}: mock fault with status {status}"


def test_the_time_a_server_asks_for_is_passed_on(question: ModelRequest) -> None:
    assert failure_with(question, Fault("status", 429, retry_after=2.5)).retry_after == 2.5


def test_an_empty_purse_is_not_retryable(question: ModelRequest) -> None:
    body = {"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}

    with MockChatServer(lambda _: web.json_response(body, status=429)) as server:
        error = failure(server.base_url, question)

    assert (error.retryable, error.status) == (False, 429)
    assert "You exceeded your quota." in str(error)


def test_a_connection_cut_within_the_body_is_retryable(question: ModelRequest) -> None:
    error = failure_with(question, Fault("cut"))

    assert error.retryable
    assert error.status is None


def test_rubbish_is_retryable(question: ModelRequest) -> None:
    error = failure_with(question, Fault("rubbish"))

    assert error.retryable
    assert "not a chat completion" in str(error)


def test_an_answer_without_choices_is_retryable(question: ModelRequest) -> None:
    error = failure_with(question, Fault("empty"))

    assert error.retryable
    assert "without choices" in str(error)


def test_an_error_in_an_answer_with_status_200_is_told(question: ModelRequest) -> None:
    with MockChatServer(lambda _: {"error": {"message": "the upstream is down", "code": 502}}) as server:
        error = failure(server.base_url, question)

    assert error.retryable
    assert "the upstream is down" in str(error)


def test_an_html_page_is_not_an_answer(question: ModelRequest) -> None:
    with MockChatServer(lambda _: web.Response(text="<h1>Welcome</h1>", content_type="text/html")) as server:
        error = failure(server.base_url, question)

    assert error.retryable
    assert "not a chat completion" in str(error)


def test_nobody_listens(question: ModelRequest) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = failure(f"http://127.0.0.1:{free.getsockname()[1]}/v1", question)

    assert error.retryable
    assert "openai:m1" in str(error)


def test_an_answer_that_does_not_come_is_retryable(question: ModelRequest) -> None:
    request = ModelRequest(messages=question.messages, settings=ModelSettings(timeout=0.2))

    with MockChatServer(latency=30) as server:
        error = failure(server.base_url, request)

    assert error.retryable


def test_a_key_that_a_server_echoes_is_in_no_text(question: ModelRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine")
    body = {"error": {"message": "Incorrect API key provided: key-of-mine"}}

    with MockChatServer(lambda _: web.json_response(body, status=401)) as server:
        error = failure(server.base_url, question)

    assert "Incorrect API key provided: ***" in str(error)
    assert "key-of-mine" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:10 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after-ms": "what", "retry-after": "3"}, 3.0),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOON) == seconds
