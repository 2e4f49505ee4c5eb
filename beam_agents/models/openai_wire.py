"""The chat protocol of OpenAI and the servers that share it: requests to JSON, JSON to responses."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from beam_agents.errors import ModelError
from beam_agents.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ModelResponse,
    TokenCount,
    ToolCall,
    ToolMessage,
    ToolSpec,
)
from beam_agents.models.answer_schema import AnswerSchema, strict_schema
from beam_agents.models.base import Price
from beam_agents.models.call_ids import with_unique_call_ids


def request_body(model_name: str, request: ModelRequest, *, openai_itself: bool) -> dict[str, Any]:
    """A request as the JSON body of `POST /chat/completions`.

    Args:
        model_name: The server's name of the model.
        request: What to ask.
        openai_itself: Whether the server is OpenAI's own, which has another name for `max_tokens`.
    """
    settings = request.settings
    body: dict[str, Any] = {"model": model_name, "messages": [_message(message) for message in request.messages]}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if settings.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = settings.parallel_tool_calls
    if request.output is not None:
        answer = AnswerSchema.of(request.output)
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": request.output.name, "schema": answer.schema, "strict": answer.strict},
        }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        body["max_completion_tokens" if openai_itself else "max_tokens"] = settings.max_tokens
    if settings.seed is not None:
        body["seed"] = settings.seed
    return body | (settings.extra_body or {})


def _tool(tool: ToolSpec) -> dict[str, Any]:
    strict = strict_schema(tool.parameters, may_require=False)
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": strict or tool.parameters,
        "strict": strict is not None,
    }
    return {"type": "function", "function": function}


def _message(message: Message) -> dict[str, Any]:
    if isinstance(message, ToolMessage):
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.text}
    if not isinstance(message, AssistantMessage):
        return {"role": message.role, "content": message.text}
    if not message.tool_calls:
        return {"role": "assistant", "content": message.text or ""}
    return {
        "role": "assistant",
        "content": message.text,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ],
    }


def _arguments(call: ToolCall) -> str:
    """The arguments as a JSON object: many servers parse them, and refuse the conversation for ever if they cannot."""
    if not call.arguments.strip():
        return "{}"
    try:
        if isinstance(json.loads(call.arguments), dict):
            return call.arguments
    except ValueError:
        pass
    return json.dumps({"invalid_arguments": call.arguments})


class _Function(BaseModel):
    name: str
    arguments: str | dict[str, JsonValue] | None = None


class _Call(BaseModel):
    id: str | None = None
    function: _Function


class _Answer(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(BaseModel):
    message: _Answer
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: JsonValue = None


def read_response(body: bytes, request: ModelRequest, *, name: str, price: Price | None) -> ModelResponse:
    """The response in the body of an answer with status 200.

    Args:
        body: The server's answer.
        request: What was asked.
        name: The model's name, for errors.
        price: What its tokens cost, if known.

    Raises:
        ModelError: It holds no answer.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(map(str, wrong["loc"])) or "body"
        raise ModelError(
            f"model {name!r} answered with something that is not a chat completion: {where}: {wrong['msg']}",
            retryable=True,
            status=200,
        ) from None
    if not completion.choices:
        told = f": {json.dumps(completion.error)[:500]}" if completion.error else ""
        raise ModelError(f"model {name!r} answered without choices{told}", retryable=True, status=200)
    choice = completion.choices[0]
    message = with_unique_call_ids(_answer(choice.message, request), request)
    if not message.text and not message.tool_calls:
        raise _empty(name, choice.finish_reason)
    usage = completion.usage or _Usage()
    cost = None
    if price is not None and usage.prompt_tokens is not None and usage.completion_tokens is not None:
        cost = price.of(usage.prompt_tokens, usage.completion_tokens)
    return ModelResponse(
        message=message,
        model=completion.model or name,
        tokens=TokenCount(input=usage.prompt_tokens, output=usage.completion_tokens),
        cost_usd=cost,
        finish_reason=choice.finish_reason,
    )


def _answer(answer: _Answer, request: ModelRequest) -> AssistantMessage:
    text = answer.content or answer.refusal or None
    if answer.content and request.output is not None:
        text = AnswerSchema.of(request.output).read(answer.content)
    made = []
    for call in answer.tool_calls or ():
        arguments = call.function.arguments
        written = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        made.append(ToolCall(id=call.id or "", name=call.function.name, arguments=written))
    return AssistantMessage(text=text, tool_calls=tuple(made))


def _empty(name: str, finish_reason: str | None) -> ModelError:
    why = f"model {name!r} gave an empty answer (finish_reason={finish_reason!r})"
    if finish_reason == "length":
        return ModelError(f"{why}: raise ModelSettings.max_tokens, or leave it out", status=200)
    return ModelError(why, retryable=finish_reason != "content_filter", status=200)
