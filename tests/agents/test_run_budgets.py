"""Each budget ends a run with its own reason, its usage and its transcript."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from agent_kit import failure_of
from driving import BATCH, STREAM, run

from beam_agents import Agent, Budget, ConfigurationError, Price, RunContext, tool, workflow
from beam_agents.messages import ModelRequest
from beam_agents.models import FunctionModel
from beam_agents.testing import ScriptedModel, calls, say

pytestmark = pytest.mark.usefixtures("replay_mode")

PRICE = Price(input=1_000_000.0, output=1_000_000.0)  # one dollar a token


@tool(effect="pure")
def add(a: int) -> int:
    """Adds one."""
    return a + 1


def looping(**more: Any) -> Agent[Any, Any, Any, Any]:
    """Calls a tool for ever."""
    return Agent("a", model=ScriptedModel([calls(("add", {"a": n})) for n in range(20)]), tools=[add], **more)


def test_steps() -> None:
    failure = failure_of(looping(budget=Budget(steps=3)))

    assert (failure.reason, failure.message) == ("budget_steps", "the budget of 3 steps is used up")
    assert (failure.usage.steps, failure.usage.tool_calls) == (3, 3)
    assert len(failure.transcript) == 1 + 3 * 2


def test_a_run_may_use_its_last_step() -> None:
    one = Agent("a", model=ScriptedModel([calls(("add", {"a": 1})), "2"]), tools=[add], budget=Budget(steps=2))

    assert one.run_sync({}).output == "2"


def test_tool_calls() -> None:
    failure = failure_of(looping(budget=Budget(tool_calls=2)))

    assert (failure.reason, failure.message) == ("budget_tool_calls", "the budget of 2 tool calls is used up")
    assert failure.usage.tool_calls == 2


def test_tool_calls_side_by_side_do_not_pass_the_budget() -> None:
    made: list[int] = []

    @tool(effect="once")
    def book(seat: int) -> str:
        made.append(seat)
        return ""

    one = Agent(
        "a",
        model=ScriptedModel([calls(*(("book", {"seat": seat}) for seat in range(5))), "Done."]),
        tools=[book],
        budget=Budget(tool_calls=2),
    )

    assert failure_of(one).reason == "budget_tool_calls"
    assert len(made) <= 2


def test_no_tool_calls_at_all_is_a_budget() -> None:
    assert failure_of(looping(budget=Budget(tool_calls=0))).reason == "budget_tool_calls"


def test_tokens() -> None:
    failure = failure_of(looping(budget=Budget(tokens=30)))

    assert failure.reason == "budget_tokens"
    assert failure.usage.tokens >= 30
    assert failure.usage.steps < 10
    assert f"{failure.usage.tokens} of 30 tokens are used" in failure.message


def test_cost_of_a_known_price() -> None:
    model = ScriptedModel([calls(("add", {"a": n})) for n in range(20)], price=PRICE)
    failure = failure_of(Agent("a", model=model, tools=[add], budget=Budget(cost_usd=30.0)))

    assert failure.reason == "budget_cost"
    assert failure.usage.cost_usd == failure.usage.tokens
    assert failure.usage.cost_usd >= 30
    assert failure.usage.steps < 10


def test_the_budget_does_not_forget_what_was_spent_when_a_price_is_not_known() -> None:
    """Part of the cost is known, and it alone is over the budget."""
    dear = FunctionModel(lambda request: say("x" * 400), name="dear", price=PRICE)
    unpriced = FunctionModel(lambda request: say("x"), name="unpriced")

    @workflow(model=dear, budget=Budget(cost_usd=50.0))
    async def both(ctx: RunContext[Any, Any, Any], event: dict[str, Any]) -> str:
        await ctx.model("a", model=unpriced)
        await ctx.model("b")
        return await ctx.model("c")

    assert failure_of(both).reason == "budget_cost"


def test_an_unknown_price_is_warned_of() -> None:
    model = FunctionModel(lambda request: say(""), name="cheap")
    with pytest.warns(UserWarning, match=r"cost_usd=0.05\) cannot be kept.*'cheap' is not known.*price=Price"):
        Agent("a", model=model, budget=Budget(cost_usd=0.05))


def test_a_known_price_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Agent("a", model=ScriptedModel(["x"], price=PRICE), budget=Budget(cost_usd=0.05))
        Agent("a", model=FunctionModel(lambda request: say("")))


# ---- time ----


async def hang(request: ModelRequest) -> Any:
    await asyncio.Event().wait()


HANGING = FunctionModel(hang, name="hanging")
SHORT = Budget(wall_clock=timedelta(milliseconds=300))


def test_a_hanging_model_ends_at_the_deadline_with_the_transcript() -> None:
    failure = failure_of(Agent("a", model=HANGING, prompt="Hello.", budget=SHORT))

    assert (failure.reason, failure.message) == ("deadline", "the budget of 0:00:00.300000 is used up")
    assert [message.text for message in failure.transcript] == ["Hello."]
    assert failure.usage.steps == 1


@pytest.fixture
def held() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_hanging_tool_ends_at_the_deadline(held: threading.Event) -> None:
    @tool(effect="pure")
    def wait() -> str:
        held.wait()
        return ""

    failure = failure_of(Agent("a", model=ScriptedModel([calls(("wait", {}))]), tools=[wait], budget=SHORT))

    assert failure.reason == "deadline"
    assert [message.role for message in failure.transcript] == ["user", "assistant", "tool"]


def test_an_asynchronous_tool_that_will_not_be_cancelled_ends_at_the_deadline(held: threading.Event) -> None:
    @tool(effect="once", timeout=timedelta(milliseconds=100))
    async def stubborn() -> str:
        while not held.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return ""

    one = Agent("a", model=ScriptedModel([calls(("stubborn", {}))]), tools=[stubborn], budget=SHORT)

    assert failure_of(one).reason == "in_doubt"


@pytest.mark.parametrize("driver", [BATCH, STREAM])
def test_the_drivers_keep_the_time(driver: str) -> None:
    one = Agent("a", model=HANGING, prompt="Hello.", budget=SHORT)

    out = run(one, [("k1", {"id": "1"}), ("k1", {"id": "2"}), ("k2", {"id": "3"})], driver, event_id="id")

    assert out.reasons == {"1": "deadline", "2": "deadline", "3": "deadline"}
    assert all(failure.value.transcript for failure in out.failures)
    assert [(placed.value.kind, placed.value.outcome) for placed in out.trace] == [("model", "open")] * 3


# ---- refusals ----


@pytest.mark.parametrize("name", ["steps", "tokens", "cost_usd"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_budget_of_zero_is_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=f"give {name} a value above zero"):
        Budget(**{name: value})


def test_negative_tool_calls_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tool_calls=-1"):
        Budget(tool_calls=-1)


@pytest.mark.parametrize("wall_clock", [timedelta(0), timedelta(seconds=-1)])
def test_no_time_at_all_is_refused(wall_clock: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="give it a time above zero"):
        Budget(wall_clock=wall_clock)
