"""Tools that say no, break, hang, or are tried again, in the loop of the model."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from agent_kit import Count, add, asked, failure_of, scripted, told
from pydantic import BaseModel, Field

from beam_agents import Budget, FailRun, ModelRetry, RunContext, ToolFailed, tool
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.messages import ToolMessage
from beam_agents.testing import calls

pytestmark = pytest.mark.usefixtures("replay_mode")


@tool(effect="pure")
def broken() -> str:
    """Raises."""
    raise ValueError("the disk is full")


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What a blocking tool waits for; the test's end lets it go."""
    event = threading.Event()
    yield event
    event.set()


# ---- tools that say no ----


def test_model_retry_is_told_and_the_model_tries_again() -> None:
    tried: list[int] = []

    @tool(effect="pure")
    def pick(number: int) -> str:
        tried.append(number)
        if number < 5:
            raise ModelRetry("too small")
        return "good"

    one = scripted(pick, script=[calls(("pick", {"number": 1})), calls(("pick", {"number": 7})), "Done."])

    assert one.run_sync({}).output == "Done."
    assert tried == [1, 7]
    retried = asked(one, 1).messages[-1]
    assert isinstance(retried, ToolMessage)
    assert (retried.outcome, retried.text) == ("retry", "too small")


def test_too_many_model_retries_end_the_run() -> None:
    @tool(effect="pure", model_retries=1)
    def pick(number: int) -> str:
        raise ModelRetry(f"{number} is too small")

    script = [calls(("pick", {"number": number})) for number in range(9)]
    failure = failure_of(scripted(pick, script=script))

    assert failure.reason == "tool_error"
    assert "told 1 times what is wrong with its calls of 'pick': 1 is too small" in failure.message


def test_model_retries_are_counted_for_each_tool() -> None:
    @tool(effect="pure", model_retries=1)
    def pick() -> str:
        raise ModelRetry("no")

    @tool(effect="pure", model_retries=1)
    def choose() -> str:
        raise ModelRetry("no")

    one = scripted(pick, choose, script=[calls(("pick", {}), ("choose", {})), "I give up."])

    assert one.run_sync({}).output == "I give up."


def test_tool_failed_is_told_and_the_model_goes_on() -> None:
    @tool(effect="pure")
    def look() -> str:
        raise ToolFailed("no such card")

    one = scripted(look, script=[calls(("look", {})), "Unknown card."])

    assert one.run_sync({}).output == "Unknown card."
    assert (told(one).outcome, told(one).text) == ("failed", "no such card")


def test_fail_run_ends_the_run_as_rejected() -> None:
    @tool(effect="pure")
    def look() -> str:
        raise FailRun("this card is not ours")

    failure = failure_of(scripted(look, script=[calls(("look", {})), "Done."]))

    assert (failure.reason, failure.message) == ("rejected", "this card is not ours")


# ---- tools that break ----


def test_a_tool_that_raises_ends_the_run_with_the_transcript() -> None:
    failure = failure_of(scripted(broken, script=[calls(("broken", {})), "Done."], prompt="Try."))

    assert failure.reason == "tool_error"
    assert failure.message == "tool 'broken' raised ValueError: the disk is full"
    assert [message.role for message in failure.transcript] == ["user", "assistant", "tool"]
    assert (failure.usage.steps, failure.usage.tool_calls) == (1, 1)


def test_an_asynchronous_tool_that_raises_ends_the_run() -> None:
    @tool(effect="pure")
    async def look() -> str:
        raise KeyError("k")

    failure = failure_of(scripted(look, script=[calls(("look", {})), "Done."]))

    assert (failure.reason, failure.message) == ("tool_error", "tool 'look' raised KeyError: 'k'")


def test_the_dead_letter_has_the_results_of_the_calls_that_went_well() -> None:
    failure = failure_of(scripted(add, broken, script=[calls(("add", {"a": 1}), ("broken", {})), "Done."]))

    results = {message.name: message for message in failure.transcript if isinstance(message, ToolMessage)}
    assert failure.reason == "tool_error"
    assert (results["add"].text, results["add"].outcome) == ("2", "ok")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_that_hangs_times_out(held: threading.Event, is_async: bool) -> None:
    if is_async:

        @tool(effect="pure", timeout=timedelta(milliseconds=50))
        async def hang() -> str:
            await asyncio.Event().wait()
            return ""

    else:

        @tool(effect="pure", timeout=timedelta(milliseconds=50))
        def hang() -> str:
            held.wait()
            return ""

    failure = failure_of(scripted(hang, script=[calls(("hang", {})), "Done."]))

    assert (failure.reason, failure.message) == ("tool_error", "tool 'hang' did not answer in 0.05 s")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_s_own_time_out_is_told_as_it_is(is_async: bool) -> None:
    """The caller's clients raise TimeoutError, too: it is not the tool's time limit that ran out then."""

    def refuse() -> str:
        raise TimeoutError("no connection to the bank")

    async def refuse_async() -> str:
        raise TimeoutError("no connection to the bank")

    one = tool(effect="pure", name="ask")(refuse_async if is_async else refuse)
    failure = failure_of(scripted(one, script=[calls(("ask", {})), "Done."]))

    assert failure.reason == "tool_error"
    assert "no connection to the bank" in failure.message


@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_that_is_cancelled_from_within_has_failed(is_async: bool) -> None:
    def cancelled() -> str:
        raise asyncio.CancelledError

    async def cancelled_async() -> str:
        raise asyncio.CancelledError

    one = tool(effect="pure", name="ask")(cancelled_async if is_async else cancelled)
    budget = Budget(wall_clock=timedelta(seconds=3))
    failure = failure_of(scripted(one, script=[calls(("ask", {})), "Done."], budget=budget))

    assert failure.reason == "tool_error"
    assert "CancelledError" in failure.message


class Unholdable:
    pass


@pytest.mark.parametrize("result", [Unholdable(), {"x": {Unholdable()}}, math.nan, math.inf, {"x": math.nan}])
def test_a_result_that_json_cannot_hold_is_a_tool_error(result: Any) -> None:
    @tool(effect="pure")
    def look() -> Any:
        return result

    failure = failure_of(scripted(look, script=[calls(("look", {})), "Done."]))

    assert failure.reason == "tool_error"
    assert "'look'" in failure.message


def test_a_result_that_is_not_what_the_tool_declares_is_a_tool_error() -> None:
    @tool(effect="pure")
    def look() -> int:
        return "many"  # type: ignore[return-value]

    failure = failure_of(scripted(look, script=[calls(("look", {})), "Done."]))

    assert failure.reason == "tool_error"
    assert "'look'" in failure.message


class Hold(BaseModel):
    hold_id: str = Field(serialization_alias="holdId")


class Camel(BaseModel):
    hold_id: str = Field(alias="holdId")


@tool(effect="pure")
def hold_with_alias() -> Hold:
    """Gives a model whose JSON has another name than it reads."""
    return Hold(hold_id="h1")


@tool(effect="pure")
def take_camel(camel: Camel) -> str:
    """Takes a model with an alias."""
    return camel.hold_id


def test_models_with_aliases_go_in_and_out() -> None:
    script = [calls(("hold_with_alias", {}), ("take_camel", {"camel": {"holdId": "h2"}})), "Done."]
    one = scripted(hold_with_alias, take_camel, script=script)

    assert one.run_sync({}).output == "Done."
    assert "h1" in (asked(one).messages[-2].text or "")
    assert asked(one).messages[-1].text == "h2"


def test_a_tool_cannot_change_the_state() -> None:
    """It would be lost in every replay: the recorded outcome comes back without the call."""

    @tool(effect="pure")
    def meddle(ctx: RunContext[Any, Count, None]) -> str:
        ctx.state.count = 99
        return ""

    ledger = MemoryLedger()
    one = scripted(meddle, script=[calls(("meddle", {})), "Done."], state_type=Count)
    one.run_sync({}, ledger=ledger, event_id="e1")

    states = [head.session for head in ledger._heads.values()]
    assert len(states) == 1
    assert '"count":99' not in (states[0] or "")


# ---- attempts ----


def test_an_idempotent_tool_is_tried_again_with_the_same_key() -> None:
    seen: list[tuple[int, str]] = []

    @tool(effect="idempotent", retries=2)
    def book(ctx: RunContext[Any, Any, Any], seat: int) -> str:
        seen.append((ctx.attempt, ctx.idempotency_key))
        if ctx.attempt < 3:
            raise ConnectionError("lost")
        return "booked"

    one = scripted(book, script=[calls(("book", {"seat": 1})), "Done."])
    result = one.run_sync({})

    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert len({key for _, key in seen}) == 1
    assert (told(one).text, result.usage.tool_calls) == ("booked", 1)


def test_attempts_end() -> None:
    tried: list[int] = []

    @tool(effect="idempotent", retries=1)
    def book(ctx: RunContext[Any, Any, Any]) -> str:
        tried.append(ctx.attempt)
        raise ConnectionError("lost")

    failure = failure_of(scripted(book, script=[calls(("book", {})), "Done."]))

    assert tried == [1, 2]
    assert (failure.reason, failure.message) == ("tool_error", "tool 'book' raised ConnectionError: lost")


def test_a_time_out_is_an_attempt_as_well(held: threading.Event) -> None:
    tried: list[int] = []

    @tool(effect="pure", retries=1, timeout=timedelta(milliseconds=50))
    def look(ctx: RunContext[Any, Any, Any]) -> str:
        tried.append(ctx.attempt)
        if ctx.attempt == 1:
            held.wait()
        return "found"

    one = scripted(look, script=[calls(("look", {})), "Done."])
    one.run_sync({})

    assert (tried, told(one).text) == ([1, 2], "found")


@pytest.mark.parametrize("control", [ModelRetry("no"), ToolFailed("no")])
def test_what_a_tool_says_on_purpose_is_not_tried_again(control: Exception) -> None:
    tried: list[int] = []

    @tool(effect="idempotent", retries=5)
    def book(ctx: RunContext[Any, Any, Any]) -> str:
        tried.append(ctx.attempt)
        raise control

    scripted(book, script=[calls(("book", {})), "Done."]).run_sync({})

    assert tried == [1]


def test_each_call_has_a_key_of_its_own_that_stays_the_same_for_its_event() -> None:
    keys: list[str] = []

    @tool(effect="idempotent")
    def book(ctx: RunContext[Any, Any, Any]) -> str:
        keys.append(ctx.idempotency_key)
        return ""

    one = scripted(book, script=[calls(("book", {}), ("book", {})), calls(("book", {})), "Done."])
    for event_id in ("e1", "e1", "e2"):
        one.run_sync({}, event_id=event_id)

    assert len(keys) == 9
    assert set(keys[:3]) == set(keys[3:6])
    assert len(set(keys)) == 6
