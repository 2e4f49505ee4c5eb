"""Types, agents and small helpers that the tests of agents share. Importable, so that pipelines find them by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from beam_agents import Agent, RunFailed, RunFailure, Tool, tool
from beam_agents.messages import AssistantMessage, Message, ModelRequest, ToolMessage, UserMessage
from beam_agents.models import FunctionModel, say
from beam_agents.testing import ScriptedModel


class Txn(BaseModel):
    """A payment."""

    txn_id: str
    card: str = "c1"
    amount: float = 1.0


class Verdict(BaseModel):
    """What is said about a payment."""

    ok: bool
    why: str = ""


class Count(BaseModel):
    """How many events a key has had, and which."""

    count: int = 0
    seen: list[str] = []


class Chat(BaseModel):
    """A message in a chat."""

    kind: Literal["chat"] = "chat"
    id: str
    text: str


class Mail(BaseModel):
    """A letter."""

    kind: Literal["mail"] = "mail"
    id: str
    subject: str


def count(state: Count, event: Txn) -> Count:
    """Takes a payment into the state."""
    return Count(count=state.count + 1, seen=[*state.seen, event.txn_id])


@tool(effect="pure")
def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


def last_user_text(request: ModelRequest) -> str:
    """The newest thing that the outside said."""
    return next(message.text for message in reversed(request.messages) if isinstance(message, UserMessage))


def echo(request: ModelRequest) -> AssistantMessage:
    """Says what it was told last."""
    return say(last_user_text(request))


ECHO = FunctionModel(echo, name="echo")


def judge(request: ModelRequest) -> AssistantMessage:
    """Allows payments below 100."""
    amount = Txn.model_validate_json(last_user_text(request)).amount
    return say(Verdict(ok=amount < 100, why=f"{amount:g}"))


JUDGE = FunctionModel(judge, name="judge")


def failure_of(agent: Any, event: Any = None, **more: Any) -> RunFailure[Any]:
    """The failure in which a run of the agent ends."""
    with pytest.raises(RunFailed) as caught:
        agent.run_sync({} if event is None else event, **more)
    check_transcript(caught.value.failure.transcript)
    return caught.value.failure


def scripted(*tools: Tool[Any], script: Any, **more: Any) -> Agent[Any, Any, Any, Any]:
    """An agent whose model says what the script says."""
    return Agent("a", model=ScriptedModel(script), tools=tools, **more)


def asked(one: Agent[Any, Any, Any, Any], number: int = -1) -> ModelRequest:
    """What the model was asked; each request has to be one that a chat server takes."""
    assert isinstance(one.model, ScriptedModel)
    request = one.model.requests[number]
    check_transcript(request.messages)
    return request


def told(one: Agent[Any, Any, Any, Any]) -> ToolMessage:
    """The tool's answer that the model saw last."""
    message = asked(one).messages[-1]
    assert isinstance(message, ToolMessage)
    return message


def check_transcript(messages: Sequence[Message]) -> None:
    """Checks that each tool call has exactly one result, before anything else is said."""
    waiting: list[str] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            assert message.call_id in waiting, f"a result without its call: {message!r}"
            waiting.remove(message.call_id)
            continue
        assert not waiting, f"no result for {waiting} before {message!r}"
        if isinstance(message, AssistantMessage):
            waiting = [call.id for call in message.tool_calls]
    assert not waiting, f"no result for {waiting}"


def texts(messages: Sequence[Message]) -> list[str]:
    """Who said what: `"user: hello"`."""
    return [f"{message.role}: {message.text}" for message in messages]


COUNTING = Agent(
    "counting",
    model=ECHO,
    prompt=lambda state, event: f"{event.txn_id} is number {state.count}",
    event_type=Txn,
    state_type=Count,
    on_event=count,
)

JUDGING = Agent("judging", model=JUDGE, event_type=Txn, output_type=Verdict)
