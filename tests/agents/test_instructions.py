"""Instructions and prompts: text, template, function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from agent_kit import ECHO, Chat, Count, Mail, Txn, count, failure_of
from pydantic import Field

from beam_agents import Agent, ConfigurationError, Template
from beam_agents.testing import ScriptedModel

pytestmark = pytest.mark.usefixtures("replay_mode")


@pytest.mark.parametrize(
    "instructions",
    [
        "Payment a of 12.50, number 1, for k",
        Template("Payment {event.txn_id} of {event.amount:.2f}, number {state.count}, for {key}"),
        lambda state, event: f"Payment {event.txn_id} of {event.amount:.2f}, number {state.count}, for k",
    ],
    ids=["text", "template", "function"],
)
def test_instructions_and_prompt_are_told(instructions: Any) -> None:
    script = ScriptedModel(["Done."])
    agent = Agent(
        "a",
        model=script,
        instructions=instructions,
        prompt=instructions,
        event_type=Txn,
        state_type=Count,
        on_event=count,
    )

    agent.run_sync(Txn(txn_id="a", amount=12.5), key="k")

    (request,) = script.requests
    assert [(message.role, message.text) for message in request.messages] == [
        ("system", "Payment a of 12.50, number 1, for k"),
        ("user", "Payment a of 12.50, number 1, for k"),
    ]


def test_without_instructions_there_is_no_system_message() -> None:
    script = ScriptedModel(["Done."])
    Agent("a", model=script).run_sync({"x": 1})

    assert [message.role for message in script.requests[0].messages] == ["user"]


def fails(state: Any, event: Any) -> str:
    raise KeyError("k")


@pytest.mark.parametrize("where", ["instructions", "prompt"])
@pytest.mark.parametrize(
    "text", [fails, Template("{event.missing}"), Template("{event[missing]}")], ids=["function", "attribute", "item"]
)
def test_a_text_that_cannot_be_made_is_a_code_error(where: str, text: Any) -> None:
    failure = failure_of(Agent("a", model=ECHO, **{where: text}), {"x": 1})

    assert failure.reason == "code_error"


def test_braces_of_an_event_are_no_fields() -> None:
    agent = Agent("a", model=ECHO, prompt=Template("{event[text]} {{and}}"))

    assert agent.run_sync({"text": "{state.secret}"}).output == "{state.secret} {and}"


def refusal(text: str, **agent: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Agent("a", model=ECHO, instructions=Template(text), **agent)
    return str(caught.value)


def test_an_unknown_field_of_the_event_is_refused() -> None:
    said = refusal("{event.merchant}", event_type=Txn)

    assert "Txn has no 'merchant', it has: txn_id, card, amount" in said


def test_an_unknown_field_of_the_state_is_refused() -> None:
    assert "Count has no 'total', it has: count, seen" in refusal("{state.total}", state_type=Count)


def test_a_field_of_a_state_that_there_is_not_is_refused() -> None:
    assert "state_type" in refusal("{state.count}", event_type=Txn)


@pytest.mark.parametrize("event_type", [Chat | Mail, Annotated[Chat | Mail, Field(discriminator="kind")]])
def test_a_field_that_one_kind_of_event_does_not_have_is_refused(event_type: Any) -> None:
    assert "Mail has no 'text'" in refusal("{event.text}", event_type=event_type)
    Agent("a", model=ECHO, instructions=Template("{event.id} {event.kind}"), event_type=event_type)


@dataclass
class Plain:
    name: str


def test_an_unknown_field_of_a_dataclass_is_refused() -> None:
    assert "Plain has no 'nome'" in refusal("{event.nome}", event_type=Plain)


@pytest.mark.parametrize("text", ["{merchant}", "{}", "{0}", "{events.x}"])
def test_a_field_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must begin with one of event, state, key"):
        Template(text)


def test_a_field_within_a_format_is_checked_as_well() -> None:
    with pytest.raises(ConfigurationError):
        Agent("a", model=ECHO, instructions=Template("{event.amount:{width}}"), event_type=Txn)


@pytest.mark.parametrize("text", ["{event.x", "event.x}", '{"a": 1}'])
def test_single_braces_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Template(text)
