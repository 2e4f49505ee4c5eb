"""A Python function in the place of a model, and short ways to write what it answers."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from beam_agents.codec import canonical_json, digest
from beam_agents.errors import ConfigurationError
from beam_agents.limits import ModelLimits
from beam_agents.messages import AssistantMessage, Message, ModelRequest, ModelResponse, TokenCount, ToolCall
from beam_agents.models.base import Model, Price
from beam_agents.models.call_ids import with_unique_call_ids

_CHARACTERS_PER_TOKEN = 4

Answer: TypeAlias = AssistantMessage | ModelResponse
"""What stands for a model's answer."""


def say(answer: Any) -> AssistantMessage:
    """A turn that says something.

    Args:
        answer: A string is said as it is; anything else (a pydantic model, a dict, a number) as JSON.
    """
    return AssistantMessage(text=answer if isinstance(answer, str) else canonical_json(answer))


def calls(*tools: tuple[str, dict[str, Any]], text: str | None = None) -> AssistantMessage:
    """A turn that calls tools side by side, with ids that are the same every time.

    Args:
        tools: For each call the tool's name and its arguments.
        text: What the model says beside the calls.
    """
    made = []
    for position, (name, arguments) in enumerate(tools):
        written = canonical_json(arguments)
        made.append(ToolCall(id=f"call_{digest(name, written, str(position))[:24]}", name=name, arguments=written))
    return AssistantMessage(text=text, tool_calls=tuple(made))


class FunctionModel(Model):
    """A model that is a function: for offline programs and for tests.

    Args:
        function: Gets the request and returns an `AssistantMessage`, whose tokens are then estimated at four
            characters each, or a whole `ModelResponse`. It may be async; one that is not must not block. Like every
            model's, its answer may depend on the request alone. It travels to the workers by pickle.
        name: The name under which its answers are journaled.
        price: What its tokens cost, to try out cost budgets.
        limits: How much of it a worker process may use, to try out limits. They are its own, whatever its name.
    """

    network = False

    def __init__(
        self,
        function: Callable[[ModelRequest], Answer | Awaitable[Answer]],
        *,
        name: str = "function",
        price: Price | None = None,
        limits: ModelLimits | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"FunctionModel({function!r}): give it a function that takes a ModelRequest")
        self.function = function
        self._name = name
        self._price = price
        self.limits = limits or ModelLimits()

    @property
    def name(self) -> str:
        return self._name

    @property
    def price(self) -> Price | None:
        return self._price

    async def request(self, request: ModelRequest) -> ModelResponse:
        """Asks the function.

        Raises:
            TypeError: It returned neither an `AssistantMessage` nor a `ModelResponse`.
        """
        made = self.function(request)
        return offline_response(await made if inspect.isawaitable(made) else made, request, self)

    def __repr__(self) -> str:
        return f"FunctionModel({self.function!r}, name={self._name!r})"


def offline_response(answer: Answer, request: ModelRequest, model: Model) -> ModelResponse:
    """What a model that is not a real one answers, with estimated tokens.

    Raises:
        TypeError: `answer` is neither an `AssistantMessage` nor a `ModelResponse`.
    """
    if isinstance(answer, ModelResponse):
        return ModelResponse(
            message=with_unique_call_ids(answer.message, request),
            model=answer.model,
            tokens=answer.tokens,
            cost_usd=answer.cost_usd,
            finish_reason=answer.finish_reason,
        )
    if not isinstance(answer, AssistantMessage):
        raise TypeError(
            f"model {model.name!r} answered {answer!r}; return an AssistantMessage (say(...), calls(...)) "
            "or a ModelResponse"
        )
    message = with_unique_call_ids(answer, request)
    tokens = TokenCount(input=sum(map(_tokens, request.messages)), output=_tokens(message))
    return ModelResponse(
        message=message,
        model=model.name,
        tokens=tokens,
        cost_usd=model.price.of(tokens.input or 0, tokens.output or 0) if model.price else None,
        finish_reason="tool_calls" if message.tool_calls else "stop",
    )


def _tokens(message: Message) -> int:
    characters = len(message.text or "")
    if isinstance(message, AssistantMessage):
        characters += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return -(-characters // _CHARACTERS_PER_TOKEN)
