"""What a key keeps from run to run: its conversation and its state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agent_kit import COUNTING, ECHO, JUDGE, Count, Txn, Verdict, check_transcript, count, failure_of
from driving import BATCH, DRIVERS, STREAM, At, run
from pydantic import BaseModel, ConfigDict, Field

from beam_agents import Agent, ConfigurationError, FailRun, History, RunContext, tool, workflow
from beam_agents.messages import Message, ToolMessage, UserMessage
from beam_agents.testing import ScriptedModel, calls, say

pytestmark = pytest.mark.usefixtures("replay_mode")


@tool(effect="pure")
def add(a: int) -> int:
    """Adds one."""
    return a + 1


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/runs.db"


def told(agent: Any, ledger: str, *events: Any) -> list[tuple[Message, ...]]:
    """What the model of the agent was asked first in each event's run."""
    script = agent.model
    requests = []
    for number, event in enumerate(events):
        before = len(script.requests)
        agent.run_sync(event, key="k", event_id=f"e{number}", ledger=ledger)
        requests.append(script.requests[before].messages)
        check_transcript(requests[-1])
    return requests


def as_it_is(state: Any, event: str) -> str:
    return event


# ---- history ----


def test_the_conversation_of_a_key_goes_on(ledger: str) -> None:
    agent = Agent("a", model=ScriptedModel(["Hello."]), event_type=str, prompt=as_it_is)

    requests = told(agent, ledger, "one", "two", "three")

    assert [[message.text for message in request] for request in requests] == [
        ["one"],
        ["one", "Hello.", "two"],
        ["one", "Hello.", "two", "Hello.", "three"],
    ]


def test_keys_and_scopes_do_not_hear_each_other(ledger: str) -> None:
    agent = Agent("a", model=ScriptedModel(["Hello."]), event_type=str, prompt=as_it_is)
    agent.run_sync("one", key="k", event_id="1", ledger=ledger)
    agent.run_sync("two", key="other", event_id="1", ledger=ledger)
    agent.run_sync("three", key="k", event_id="1", ledger=ledger, scope="other")

    assert isinstance(agent.model, ScriptedModel)
    assert [len(request.messages) for request in agent.model.requests] == [1, 1, 1]


def test_history_is_trimmed_by_messages(ledger: str) -> None:
    agent = Agent(
        "a", model=ScriptedModel(["Hello."]), event_type=str, prompt=as_it_is, history=History(max_messages=3)
    )

    last = told(agent, ledger, *"abcde")[-1]

    assert [message.text for message in last] == ["d", "Hello.", "e"]


def test_history_is_trimmed_by_tokens(ledger: str) -> None:
    agent = Agent(
        "a", model=ScriptedModel(["Hello."]), event_type=str, prompt=as_it_is, history=History(max_tokens=200)
    )

    last = told(agent, ledger, *(letter * 400 for letter in "abcde"))[-1]

    assert [(message.text or "")[0] for message in last] == ["d", "H", "e"]


def test_no_history_at_all(ledger: str) -> None:
    agent = Agent(
        "a", model=ScriptedModel(["Hello."]), event_type=str, prompt=as_it_is, history=History(max_messages=0)
    )

    assert [len(request) for request in told(agent, ledger, *"abc")] == [1, 1, 1]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 11])
def test_a_trimmed_history_begins_with_a_user_message_and_has_no_orphans(ledger: str, most: int) -> None:
    script = ScriptedModel([calls(("add", {"a": 1}), ("add", {"a": 2})), "rubbish", '{"ok": true}'])
    agent = Agent(
        "a",
        model=script,
        tools=[add],
        event_type=str,
        prompt=as_it_is,
        output_type=Verdict,
        history=History(max_messages=most),
    )

    for request in told(agent, ledger, "first", "second", "third"):
        assert isinstance(request[0], UserMessage)
        assert len(request) <= most + 1


def test_negative_bounds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="neither bound may be below zero"):
        History(max_messages=-1)


def test_a_failed_run_s_conversation_is_repaired(ledger: str) -> None:
    @tool(effect="pure")
    def look() -> str:
        raise ValueError("broken")

    script = ScriptedModel({"first": [calls(("look", {}), ("look", {}))], "second": ["Hello."]})
    agent = Agent("a", model=script, tools=[look], event_type=str, prompt=as_it_is)
    assert failure_of(agent, "first", key="k", event_id="1", ledger=ledger).reason == "tool_error"
    agent.run_sync("second", key="k", event_id="2", ledger=ledger)

    messages = script.requests[-1].messages
    check_transcript(messages)
    assert [message.role for message in messages] == ["user", "assistant", "tool", "tool", "user"]


def test_a_result_that_is_known_is_not_told_as_interrupted_later(ledger: str) -> None:
    """A model that is told that a hold may not have happened makes it again."""

    @tool(effect="once")
    def hold() -> str:
        return "held"

    @tool(effect="pure")
    def look() -> str:
        raise ValueError("broken")

    script = ScriptedModel({"first": [calls(("hold", {}), ("look", {}))], "second": ["Hello."]})
    agent = Agent("a", model=script, tools=[hold, look], event_type=str, prompt=as_it_is)
    failure_of(agent, "first", key="k", event_id="1", ledger=ledger)
    agent.run_sync("second", key="k", event_id="2", ledger=ledger)

    results = {message.name: message for message in script.requests[-1].messages if isinstance(message, ToolMessage)}
    assert (results["hold"].outcome, results["hold"].text) == ("ok", "held")


def test_a_workflow_remembers_what_it_is_told_to(ledger: str) -> None:
    script = ScriptedModel(["Hello."])

    @workflow(model=script)
    async def flow(ctx: RunContext[str, None, None], event: str) -> str:
        await ctx.model(f"aside: {event}")
        return await ctx.model(event, remember=True)

    for number, event in enumerate(("one", "two")):
        flow.run_sync(event, key="k", event_id=str(number), ledger=ledger)

    assert [[message.text for message in request.messages] for request in script.requests] == [
        ["aside: one"],
        ["one"],
        ["aside: two"],
        ["one", "Hello.", "two"],
    ]


# ---- state ----


def test_state_counts_every_event_before_its_run(ledger: str) -> None:
    outputs = [COUNTING.run_sync(Txn(txn_id=name), event_id=name, ledger=ledger).output for name in "ab"]

    assert outputs == ["a is number 1", "b is number 2"]


def test_the_same_event_again_is_answered_from_the_record(ledger: str) -> None:
    first = COUNTING.run_sync(Txn(txn_id="a"), event_id="a", ledger=ledger)
    COUNTING.run_sync(Txn(txn_id="b"), event_id="b", ledger=ledger)
    again = COUNTING.run_sync(Txn(txn_id="a"), event_id="a", ledger=ledger, model=ScriptedModel({"never asked": ["x"]}))

    assert again == first
    assert COUNTING.run_sync(Txn(txn_id="c"), event_id="c", ledger=ledger).output == "c is number 3"


def test_another_event_under_the_id_is_a_conflict(ledger: str) -> None:
    COUNTING.run_sync(Txn(txn_id="a"), event_id="a", ledger=ledger)

    failure = failure_of(COUNTING, Txn(txn_id="a", amount=2), event_id="a", ledger=ledger)

    assert failure.reason == "id_conflict"
    assert failure.event == Txn(txn_id="a", amount=2)


def test_a_failed_run_s_event_counts_in_the_state(ledger: str) -> None:
    broken = Agent("counting", model=ScriptedModel([say("")] * 3), event_type=Txn, state_type=Count, on_event=count)
    assert failure_of(broken, Txn(txn_id="a"), event_id="a", ledger=ledger).reason == "invalid_output"

    assert COUNTING.run_sync(Txn(txn_id="b"), event_id="b", ledger=ledger).output == "b is number 2"


class CamelState(BaseModel):
    number: int = Field(0, alias="theNumber")


class AliasedState(BaseModel):
    number: int = Field(0, serialization_alias="theNumber")


class StrictState(BaseModel):
    model_config = ConfigDict(strict=True)
    number: int = 0
    at: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    pair: tuple[int, int] = (0, 0)


class Raw(BaseModel):
    number: int = 0
    data: bytes = b"hello"


@pytest.mark.parametrize("state_type", [CamelState, AliasedState, StrictState, Raw], ids=lambda t: t.__name__)
def test_a_state_comes_back_as_it_was(ledger: str, state_type: Any) -> None:
    seen: list[Any] = []

    def note(state: Any, event: Txn) -> Any:
        seen.append(state)
        return state.model_copy(update={"number": 5})

    agent = Agent("a", model=ECHO, event_type=Txn, state_type=state_type, on_event=note)
    for name in "abc":
        agent.run_sync(Txn(txn_id=name), event_id=name, ledger=ledger)

    assert seen == [state_type(), *(2 * [state_type().model_copy(update={"number": 5})])]


def test_a_state_that_does_not_fit_any_more_is_a_state_error_and_is_kept(ledger: str) -> None:
    class Before(BaseModel):
        count: str = "none"

    def agent(state_type: Any, model: Any = ECHO) -> Agent[Any, Any, Any, Any]:
        return Agent("a", model=model, event_type=Txn, state_type=state_type, prompt=lambda s, e: f"{s}")

    agent(Before).run_sync(Txn(txn_id="a"), event_id="a", ledger=ledger)
    failure = failure_of(agent(Count), Txn(txn_id="b"), event_id="b", ledger=ledger)

    assert failure.reason == "state_error"
    assert "the key's state does not fit 'a'" in failure.message
    assert agent(Before).run_sync(Txn(txn_id="c"), event_id="c", ledger=ledger).output == "count='none'"


def raise_key_error(state: Any, event: Any) -> Any:
    raise KeyError("k")


def reject(state: Any, event: Any) -> Any:
    raise FailRun("not ours")


def build_wrongly(state: Any, event: Any) -> Any:
    return Txn.model_validate({"txn_id": None})


def forget_to_return(state: Any, event: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("function", "reason", "says"),
    [
        (raise_key_error, "code_error", "KeyError: 'k'"),
        (reject, "rejected", "not ours"),
        (build_wrongly, "code_error", "txn_id"),
        (forget_to_return, "code_error", "on_event"),
    ],
    ids=["raises", "rejects", "builds wrongly", "returns nothing"],
)
def test_on_event_that_fails_ends_the_run_and_leaves_the_state(
    ledger: str, function: Callable[..., Any], reason: str, says: str
) -> None:
    COUNTING.run_sync(Txn(txn_id="a"), event_id="a", ledger=ledger)
    broken = Agent("counting", model=ECHO, event_type=Txn, state_type=Count, on_event=function)

    failure = failure_of(broken, Txn(txn_id="b"), event_id="b", ledger=ledger)

    assert failure.reason == reason
    assert says in failure.message
    assert COUNTING.run_sync(Txn(txn_id="c"), event_id="c", ledger=ledger).output == "c is number 2"


# ---- skip ----


def test_skip_decides_without_a_model(ledger: str) -> None:
    agent = Agent(
        "a",
        model=JUDGE,
        event_type=Txn,
        output_type=Verdict,
        state_type=Count,
        on_event=count,
        skip=lambda state, event: Verdict(ok=True, why=str(state.count)) if event.amount < 20 else None,
    )

    small = agent.run_sync(Txn(txn_id="a"), event_id="a", ledger=ledger)
    large = agent.run_sync(Txn(txn_id="b", amount=200), event_id="b", ledger=ledger)

    assert (small.output, small.skipped, small.usage.steps) == (Verdict(ok=True, why="1"), True, 0)
    assert (large.output.ok, large.skipped, large.usage.steps) == (False, False, 1)


@pytest.mark.parametrize("value", [False, 0, ""])
def test_skip_may_say_no(value: Any) -> None:
    agent = Agent("a", model=ECHO, output_type=type(value), skip=lambda state, event: value)

    result = agent.run_sync({})

    assert (result.output, result.skipped) == (value, True)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raise_key_error, "code_error"),
        (reject, "rejected"),
        (build_wrongly, "code_error"),
        (lambda state, event: "rubbish", "invalid_output"),
    ],
    ids=["raises", "rejects", "builds wrongly", "does not fit"],
)
def test_skip_that_fails_ends_the_run(function: Callable[..., Any], reason: str) -> None:
    assert failure_of(Agent("a", model=ECHO, output_type=Verdict, skip=function)).reason == reason


# ---- by driver ----


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_key_s_events_are_taken_one_after_the_other(driver: str, ledger: str) -> None:
    events = [At(number, (key, {"txn_id": f"{key}{number}"})) for number in range(3) for key in "xy"]

    out = run(COUNTING, events, driver, ledger=ledger)

    assert out.outputs == {
        f"{key}{number}": f"{key}{number} is number {number + 1}" for number in range(3) for key in "xy"
    }


@pytest.mark.parametrize("driver", DRIVERS)
def test_sessions_go_on_without_a_ledger(driver: str) -> None:
    out = run(COUNTING, [At(number, ("k", {"txn_id": str(number)})) for number in range(3)], driver)

    assert sorted(out.outputs.values()) == [f"{number} is number {number + 1}" for number in range(3)]


@pytest.mark.parametrize("driver", [BATCH, STREAM])
@pytest.mark.parametrize("start", [0, 100])
def test_a_session_expires_by_event_time(driver: str, start: int, ledger: str) -> None:
    events = [At(start + after, ("k", {"txn_id": str(after)})) for after in (0, 10, 20, 200, 201)]

    out = run(COUNTING, events, driver, ledger=ledger, session_ttl=timedelta(seconds=100))

    assert [out.outputs[str(after)] for after in (0, 10, 20, 200, 201)] == [
        "0 is number 1",
        "10 is number 2",
        "20 is number 3",
        "200 is number 1",
        "201 is number 2",
    ]


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_a_single_event_at_time_zero_expires_as_well(driver: str, ledger: str) -> None:
    events = [At(0, ("k", {"txn_id": "a"})), At(500, ("k", {"txn_id": "b"}))]

    out = run(COUNTING, events, driver, ledger=ledger, session_ttl=timedelta(seconds=100))

    assert out.outputs["b"] == "b is number 1"


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_a_session_may_last_for_ever(driver: str, ledger: str) -> None:
    events = [At(after, ("k", {"txn_id": str(after)})) for after in (1, 10**9)]

    out = run(COUNTING, events, driver, ledger=ledger, session_ttl=None)

    assert out.outputs[str(10**9)].endswith("is number 2")
