"""What a model is told and what it answers: messages, requests, responses.

The shape follows the chat protocol that OpenAI-compatible servers share, in types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from beam_agents.codec import canonical_json, digest


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which makes its own digest and size."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        copied.__dict__.pop("size", None)
        return copied

    @cached_property
    def digest(self) -> str:
        """Digest of the message; kept, so that the digest of a long transcript stays cheap at every step."""
        text = self.model_dump_json()
        self.__dict__["size"] = len(text)
        return digest(text)

    @cached_property
    def size(self) -> int:
        """Characters of the message as JSON; kept, too."""
        return len(self.model_dump_json())


class SystemMessage(_Frozen):
    """Standing instructions."""

    role: Literal["system"] = "system"
    text: str


class UserMessage(_Frozen):
    """What the outside says: the event, or a correction of the model's last answer."""

    role: Literal["user"] = "user"
    text: str


class ToolCall(_Frozen):
    """The model's wish to call a tool; `arguments` is the JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str


class AssistantMessage(_Frozen):
    """A model's turn: text, tool calls, or both."""

    role: Literal["assistant"] = "assistant"
    text: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class ToolMessage(_Frozen):
    """What a tool call came to; each tool call has exactly one."""

    role: Literal["tool"] = "tool"
    call_id: str
    name: str
    text: str
    outcome: Literal["ok", "retry", "failed", "interrupted"] = "ok"


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
"""Any message of a transcript."""

MESSAGES: TypeAdapter[tuple[Message, ...]] = TypeAdapter(tuple[Message, ...])
"""Reads and writes a transcript as JSON."""


@dataclass(frozen=True, kw_only=True)
class ToolSpec:
    """A tool as the model sees it."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments, an object."""

    @cached_property
    def digest(self) -> str:
        return digest(self.name, self.description, canonical_json(self.parameters))


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """The form that the answer must have; a request without one wants text."""

    name: str
    json_schema: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        return digest(self.name, canonical_json(self.json_schema))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Settings of a request that every chat server knows; `None` leaves the server's default."""

    temperature: float | None = None
    max_tokens: int | None = None
    """Most tokens of one answer."""
    seed: int | None = None
    parallel_tool_calls: bool | None = None
    timeout: float = 60.0
    """Seconds for one attempt of a request. One minute is longer than nearly all answers take."""
    retries: int | None = None
    """Further attempts after a 429, a 5xx, a time-out or a lost connection, with growing pauses; `None` for as many as
    the run's budget of time allows (three, if the server answers with something that is no answer)."""
    extra_body: dict[str, Any] | None = None
    """Further fields of the request's body, for one server's own options."""

    @cached_property
    def digest(self) -> str:
        """Digest of what changes the answer: time-outs and retries do not."""
        shape = (self.temperature, self.max_tokens, self.seed, self.parallel_tool_calls, self.extra_body)
        return digest(canonical_json(shape))


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """One request to a model. A model's answer may depend on nothing else."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    output: OutputSpec | None = None
    settings: ModelSettings = ModelSettings()

    def digest(self) -> str:
        """Digest of the whole request; two requests with one digest ask the same."""
        return digest(
            *(message.digest for message in self.messages),
            "tools",
            *(tool.digest for tool in self.tools),
            "output",
            self.output.digest if self.output else "",
            self.settings.digest,
        )


class TokenCount(_Frozen):
    """Tokens of one answer, as the server counted them; `None` where it did not say."""

    input: int | None = None
    output: int | None = None


class ModelResponse(_Frozen):
    """A model's answer to one request."""

    message: AssistantMessage
    model: str
    """The model that answered, as it names itself."""
    tokens: TokenCount = TokenCount()
    cost_usd: float | None = None
    """US dollars; `None` when no price is known."""
    finish_reason: str | None = None


def repair(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The transcript with each tool call followed by its result.

    A provider rejects a conversation with a hole for ever, so a call that has no result gets an `interrupted`
    one, and a result without a call is left out.
    """
    repaired: list[Message] = []
    open_calls: dict[str, ToolCall] = {}

    def close_open_calls() -> None:
        for call in open_calls.values():
            text = "The call was interrupted; whether it took effect is not known."
            repaired.append(ToolMessage(call_id=call.id, name=call.name, text=text, outcome="interrupted"))
        open_calls.clear()

    for message in messages:
        if isinstance(message, ToolMessage):
            if open_calls.pop(message.call_id, None) is not None:
                repaired.append(message)
            continue
        close_open_calls()
        repaired.append(message)
        if isinstance(message, AssistantMessage):
            open_calls = {call.id: call for call in message.tool_calls}
    close_open_calls()
    return tuple(repaired)
