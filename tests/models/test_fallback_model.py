from __future__ import annotations

import asyncio
import pickle

import pytest

from beam_agents.errors import ConfigurationError, ModelError
from beam_agents.messages import AssistantMessage, ModelRequest, ModelResponse, ModelSettings, UserMessage
from beam_agents.models import FallbackModel, FunctionModel, Model, OpenAIModel, Price, say
from beam_agents.models.attempt import attempt
from beam_agents.models.retry import request_with_retries


def fine(request: ModelRequest) -> AssistantMessage:
    return say("Fine.")


def failing(error: ModelError, name: str) -> FunctionModel:
    def fail(request: ModelRequest) -> AssistantMessage:
        raise error

    return FunctionModel(fail, name=name)


def ask(model: Model, request: ModelRequest) -> ModelResponse:
    return asyncio.run(model.request(request))


@pytest.mark.parametrize(
    "error",
    [
        ModelError("busy", retryable=True, status=429),
        ModelError("no key", status=401),
        ModelError("not paid", status=402),
        ModelError("no such model", status=404),
    ],
)
def test_the_next_model_answers_and_says_so(question: ModelRequest, error: ModelError) -> None:
    model = FallbackModel(failing(error, "first"), FunctionModel(fine, name="second"))

    response = ask(model, question)

    assert response.message.text == "Fine."
    assert response.model == "second"


def test_the_first_model_answers_when_it_can(question: ModelRequest) -> None:
    model = FallbackModel(FunctionModel(fine, name="first"), failing(ModelError("never asked"), "second"))

    assert ask(model, question).model == "first"


def test_a_wrong_request_is_not_asked_again(question: ModelRequest) -> None:
    model = FallbackModel(failing(ModelError("wrong", status=400), "first"), FunctionModel(fine, name="second"))

    with pytest.raises(ModelError, match="wrong"):
        ask(model, question)


def test_on_decides(question: ModelRequest) -> None:
    first = failing(ModelError("wrong", status=400), "first")

    response = ask(FallbackModel(first, FunctionModel(fine, name="second"), on=lambda error: True), question)

    assert response.model == "second"


def test_the_error_that_may_pass_is_raised_when_all_fail(question: ModelRequest) -> None:
    busy, refused = ModelError("busy", retryable=True), ModelError("no key", status=401)

    with pytest.raises(ModelError, match="busy") as caught:
        ask(FallbackModel(failing(busy, "first"), failing(refused, "second")), question)

    assert "no key" in "".join(caught.value.__notes__)


def test_the_last_error_is_raised_when_none_may_pass(question: ModelRequest) -> None:
    model = FallbackModel(failing(ModelError("a", status=401), "first"), failing(ModelError("b", status=404), "second"))

    with pytest.raises(ModelError, match="b"):
        ask(model, question)


def test_each_model_has_the_whole_time_limit_for_itself() -> None:
    async def never(request: ModelRequest) -> AssistantMessage:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    request = ModelRequest(messages=(UserMessage(text="Hi"),), settings=ModelSettings(timeout=0.05, retries=0))
    model = FallbackModel(FunctionModel(never, name="first"), FunctionModel(fine, name="second"))

    assert asyncio.run(request_with_retries(model, request)).model == "second"


def test_it_speaks_for_its_models() -> None:
    cheap = FunctionModel(fine, name="cheap", price=Price(input=1, output=9))
    dear = FunctionModel(fine, name="dear", price=Price(input=2, output=8))
    nested = FallbackModel(FallbackModel(cheap, dear), OpenAIModel("m1", price=Price(input=0, output=0)))

    assert nested.name == "fallback:cheap|dear|openai:m1"
    assert nested.network
    assert nested.price == Price(input=2, output=9)
    assert not FallbackModel(cheap, dear).network
    assert FallbackModel(cheap, FunctionModel(fine)).price is None
    assert FallbackModel("openai:a", "openai:b").name == "fallback:openai:a|openai:b"


def test_its_models_are_connected_and_closed(question: ModelRequest) -> None:
    class Noting(FunctionModel):
        def __init__(self, name: str, log: list[str]) -> None:
            super().__init__(fine, name=name)
            self.log = log

        async def connect(self) -> None:
            self.log.append(f"{self.name} open")

        async def close(self) -> None:
            self.log.append(f"{self.name} closed")
            raise OSError(self.name)

    log: list[str] = []
    model = FallbackModel(Noting("a", log), Noting("b", log))

    asyncio.run(model.connect())
    with pytest.raises(OSError, match="a"):
        asyncio.run(model.close())

    assert sorted(log) == ["a closed", "a open", "b closed", "b open"]


def test_it_is_pickled(question: ModelRequest) -> None:
    model = FallbackModel(OpenAIModel("m1"), FunctionModel(fine, name="second"))

    copy = pickle.loads(pickle.dumps(model))

    assert copy.name == model.name


def test_one_model_is_too_few() -> None:
    with pytest.raises(ConfigurationError, match="two models or more"):
        FallbackModel("openai:a")


def test_the_next_model_is_not_asked_when_the_request_is_wanted_no_more(question: ModelRequest) -> None:
    """While the first did not answer, another worker may have taken the run over and asked."""

    class Fenced(Exception):
        pass

    async def ask(model: Model, request: ModelRequest, /, **waits: object) -> ModelResponse:
        if model.name != "first":
            raise Fenced
        return await attempt(model, request)

    asked: list[ModelRequest] = []

    def answer(request: ModelRequest) -> AssistantMessage:
        asked.append(request)
        return say("Fine.")

    model = FallbackModel(failing(ModelError("busy", retryable=True), "first"), FunctionModel(answer))
    with pytest.raises(Fenced):
        asyncio.run(request_with_retries(model, question, ask=ask))
    assert asked == []
