"""A `once` tool is called once; what became of a call that did not answer is asked of `reconcile`, never guessed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from agent_kit import failure_of

from beam_agents import (
    Agent,
    Budget,
    CannotHappen,
    FailRun,
    Happened,
    ModelRetry,
    RunContext,
    ToolFailed,
    Unknown,
    tool,
    workflow,
)
from beam_agents.messages import ToolMessage
from beam_agents.testing import ScriptedModel, calls

pytestmark = pytest.mark.usefixtures("replay_mode")

SHORT = timedelta(milliseconds=50)


class Bank:
    """Counts what it is asked, and breaks as told."""

    def __init__(self, hold: Callable[[], Any], reconcile: Callable[[], Any] | None = None, **declared: Any) -> None:
        self.holds: list[str] = []
        self.asked: list[str] = []

        def hold_card(ctx: RunContext[Any, Any, Any], why: str) -> Any:
            self.holds.append(ctx.idempotency_key)
            return hold()

        def hold_status(ctx: RunContext[Any, Any, Any], why: str) -> Any:
            assert why == "theft"
            self.asked.append(ctx.idempotency_key)
            assert reconcile is not None
            return reconcile()

        self.tool = tool(effect="once", reconcile=hold_status if reconcile else None, **declared)(hold_card)
        self.model = ScriptedModel([calls(("hold_card", {"why": "theft"})), "Held."])

    def agent(self, **more: Any) -> Agent[Any, Any, Any, Any]:
        return Agent("a", model=self.model, tools=[self.tool], **more)


def raiser(error: BaseException) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it


lost = raiser(ConnectionError("lost"))


@pytest.fixture
def held() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_call_that_answers_is_made_once() -> None:
    bank = Bank(lambda: "h1", lambda: Unknown())

    assert bank.agent().run_sync({}).output == "Held."
    assert (len(bank.holds), len(bank.asked)) == (1, 0)


def test_happened_is_the_result() -> None:
    bank = Bank(lost, lambda: Happened({"hold": "h1"}))

    assert bank.agent().run_sync({}).output == "Held."
    assert bank.model.requests[-1].messages[-1].text == '{"hold":"h1"}'
    assert len(bank.holds) == 1
    assert bank.asked == bank.holds


def test_cannot_happen_is_an_error_of_the_tool_and_not_called_again() -> None:
    bank = Bank(lost, lambda: CannotHappen())

    failure = failure_of(bank.agent())

    assert failure.reason == "tool_error"
    assert "ConnectionError: lost; reconcile says that it had no effect" in failure.message
    assert len(bank.holds) == 1


@pytest.mark.parametrize(
    ("reconcile", "says"),
    [
        (None, "it has no reconcile function"),
        (lambda: Unknown(), "reconcile cannot say"),
        (lambda: Unknown("the bank is closed"), "reconcile cannot say: the bank is closed"),
        (raiser(KeyError("k")), "reconcile raised KeyError"),
        (raiser(ModelRetry("again")), "reconcile raised ModelRetry"),
        (raiser(asyncio.CancelledError()), "reconcile"),
        (lambda: True, "reconcile returned True instead of Happened"),
        (lambda: None, "reconcile returned None instead of Happened"),
        (lambda: Happened, "instead of Happened"),
    ],
    ids=["none", "unknown", "unknown why", "raises", "raises control", "cancelled", "true", "nothing", "the class"],
)
def test_what_nobody_knows_is_in_doubt(reconcile: Any, says: str) -> None:
    bank = Bank(lost, reconcile)

    failure = failure_of(bank.agent(budget=Budget(wall_clock=timedelta(seconds=3))))

    assert failure.reason == "in_doubt"
    assert 'hold_card({"why":"theft"}) may or may not have happened' in failure.message
    assert "ConnectionError: lost" in failure.message
    assert says in failure.message
    assert len(bank.holds) == 1
    assert [m.outcome for m in failure.transcript if isinstance(m, ToolMessage)] == ["interrupted"]


def test_a_reconcile_that_hangs_is_in_doubt(held: threading.Event) -> None:
    bank = Bank(lost, held.wait, timeout=SHORT)

    assert failure_of(bank.agent()).reason == "in_doubt"


@pytest.mark.parametrize(("answer", "reason"), [(Happened("h1"), None), (Unknown(), "in_doubt")])
def test_a_call_that_hangs_is_asked_about(held: threading.Event, answer: Any, reason: str | None) -> None:
    bank = Bank(held.wait, lambda: answer, timeout=timedelta(milliseconds=300))

    if reason is None:
        assert bank.agent().run_sync({}).output == "Held."
    else:
        failure = failure_of(bank.agent())
        assert failure.reason == reason
        assert "did not answer in 0.3 s" in failure.message
    assert len(bank.holds) == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError(), TimeoutError("bank")])
def test_whatever_a_call_raises_it_is_in_doubt(error: BaseException) -> None:
    bank = Bank(raiser(error))

    failure = failure_of(bank.agent(budget=Budget(wall_clock=timedelta(seconds=3))))

    assert failure.reason == "in_doubt"
    assert len(bank.holds) == 1


def test_asynchronous_tools_and_reconcile_functions_work_as_well() -> None:
    made: list[str] = []

    async def status(ctx: RunContext[Any, Any, Any]) -> Happened[str]:
        await asyncio.sleep(0)
        return Happened("h1")

    @tool(effect="once", reconcile=status)
    async def hold(ctx: RunContext[Any, Any, Any]) -> str:
        made.append(ctx.idempotency_key)
        raise ConnectionError("lost")

    model = ScriptedModel([calls(("hold", {})), "Held."])

    assert Agent("a", model=model, tools=[hold]).run_sync({}).output == "Held."
    assert model.requests[-1].messages[-1].text == "h1"
    assert len(made) == 1


@pytest.mark.parametrize(
    ("error", "reason"), [(ToolFailed("no such card"), None), (FailRun("not ours"), "rejected")], ids=["failed", "run"]
)
def test_what_it_says_on_purpose_is_no_doubt(error: Exception, reason: str | None) -> None:
    bank = Bank(raiser(error), lambda: Unknown())

    if reason is None:
        assert bank.agent().run_sync({}).output == "Held."
    else:
        assert failure_of(bank.agent()).reason == reason
    assert (len(bank.holds), bank.asked) == (1, [])


def test_model_retry_says_that_nothing_happened_so_the_model_may_call_again() -> None:
    answers = iter([ModelRetry("say why"), None])

    def hold() -> str:
        error = next(answers)
        if error:
            raise error
        return "h1"

    bank = Bank(hold, lambda: Unknown())
    bank.model = ScriptedModel([calls(("hold_card", {"why": "theft"})), calls(("hold_card", {"why": "theft"})), "Held"])

    assert bank.agent().run_sync({}).output == "Held"
    assert len(set(bank.holds)) == 2
    assert bank.asked == []


def test_doubt_is_stronger_than_the_end_of_another_branch() -> None:
    """One call breaks the run while the other is under way: what became of that one is still found out."""
    under_way, broken = threading.Event(), threading.Event()

    def hold() -> Any:
        under_way.set()
        broken.wait(20)
        raise ConnectionError("lost")

    bank = Bank(hold)

    @tool(effect="pure")
    def end_it() -> str:
        under_way.wait(20)
        broken.set()
        raise FailRun("not ours")

    @workflow(tools=[bank.tool, end_it])
    async def both(ctx: RunContext[Any, Any, Any], event: dict[str, Any]) -> str:
        await ctx.gather(ctx.call(bank.tool, why="theft"), ctx.call(end_it))
        return ""

    failure = failure_of(both)

    assert failure.reason == "in_doubt"
    assert "hold_card" in failure.message


def test_a_call_in_flight_at_the_deadline_is_waited_for_and_its_doubt_has_the_cause(held: threading.Event) -> None:
    bank = Bank(held.wait, lambda: Unknown("the bank sleeps"), timeout=timedelta(seconds=1))

    failure = failure_of(bank.agent(budget=Budget(wall_clock=timedelta(milliseconds=300))))

    assert failure.reason == "in_doubt"
    assert "the bank sleeps" in failure.message
    assert "the run ended as deadline" in failure.message
    assert len(bank.holds) == 1


def test_a_call_in_flight_at_the_deadline_that_ends_well_leaves_the_deadline(held: threading.Event) -> None:
    bank = Bank(held.wait, lambda: Happened("h1"), timeout=timedelta(seconds=1))

    failure = failure_of(bank.agent(budget=Budget(wall_clock=timedelta(milliseconds=300))))

    assert failure.reason == "deadline"
    assert len(bank.holds) == len(bank.asked) == 1
