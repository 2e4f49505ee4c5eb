from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from beam_agents.errors import ModelError
from beam_agents.messages import AssistantMessage, ModelRequest, ModelResponse, ModelSettings, UserMessage
from beam_agents.models import FunctionModel, Model, OpenAIModel, say
from beam_agents.models.retry import request_with_retries
from beam_agents.testing import Fault, MockChatServer


def asking(retries: int = 3, timeout: float = 20) -> ModelRequest:
    return ModelRequest(messages=(UserMessage(text="Hi"),), settings=ModelSettings(retries=retries, timeout=timeout))


def retried(
    model: Model, request: ModelRequest, random: Callable[[], float] = lambda: 1.0
) -> tuple[ModelResponse | ModelError, list[float]]:
    """What came of it, and the pauses that were made."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def asked() -> ModelResponse:
        await model.connect()
        try:
            return await request_with_retries(model, request, sleep=sleep, random=random)
        finally:
            await model.close()

    try:
        return asyncio.run(asked()), pauses
    except ModelError as error:
        return error, pauses


def failing(error: ModelError) -> FunctionModel:
    def fail(request: ModelRequest) -> AssistantMessage:
        raise error

    return FunctionModel(fail)


def test_an_answer_needs_no_pause() -> None:
    outcome, pauses = retried(FunctionModel(lambda request: say("Hi")), asking())

    assert isinstance(outcome, ModelResponse)
    assert pauses == []


def test_the_bound_of_the_pauses_doubles_up_to_half_a_minute() -> None:
    outcome, pauses = retried(failing(ModelError("down", retryable=True)), asking(retries=8))

    assert str(outcome) == "down"
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_the_pauses_are_spread_from_zero() -> None:
    numbers = iter([0.0, 0.25, 0.5])

    _, pauses = retried(failing(ModelError("down", retryable=True)), asking(), lambda: next(numbers))

    assert pauses == [0, 0.25, 1]


def test_the_time_that_a_server_asks_for_is_the_least() -> None:
    error = ModelError("slow down", retryable=True, retry_after=7)

    assert retried(failing(error), asking(retries=2), lambda: 0.0)[1] == [7, 7]
    assert retried(failing(error), asking(retries=2), lambda: 1.0)[1] == [7.5, 8]


def test_a_failure_for_good_is_raised_at_once() -> None:
    outcome, pauses = retried(failing(ModelError("wrong")), asking())

    assert str(outcome) == "wrong"
    assert pauses == []


def test_no_retries() -> None:
    outcome, pauses = retried(failing(ModelError("down", retryable=True)), asking(retries=0))

    assert str(outcome) == "down"
    assert pauses == []


def test_other_exceptions_pass_through() -> None:
    def broken(request: ModelRequest) -> AssistantMessage:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        retried(FunctionModel(broken), asking())


def test_an_attempt_has_a_time_limit_and_is_made_again() -> None:
    async def never(request: ModelRequest) -> AssistantMessage:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    outcome, pauses = retried(FunctionModel(never), asking(retries=2, timeout=0.01))

    assert isinstance(outcome, ModelError)
    assert outcome.retryable
    assert "0.01 s (ModelSettings.timeout)" in str(outcome)
    assert len(pauses) == 2


def test_the_caller_can_cancel_it() -> None:
    async def never(request: ModelRequest) -> AssistantMessage:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def cancelled() -> None:
        async with asyncio.timeout(0.01):
            await request_with_retries(FunctionModel(never), asking())

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())


def test_a_server_that_recovers() -> None:
    faults = [Fault("status", 429, retry_after=2), Fault("status", 503), Fault("cut"), Fault("rubbish"), Fault("empty")]
    with MockChatServer(lambda body: "Here I am.", faults=faults) as server:
        outcome, pauses = retried(OpenAIModel("m1", base_url=server.base_url), asking(retries=5), lambda: 0.0)
        calls = server.stats["calls"]

    assert isinstance(outcome, ModelResponse)
    assert outcome.message.text == "Here I am."
    assert pauses == [2, 0, 0, 0, 0]
    assert calls == 6
