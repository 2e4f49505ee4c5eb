"""Branches, waits, values and state of a workflow, and code that cannot be replayed."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest
from agent_kit import Count, Txn, Verdict, failure_of
from driving import run

from beam_agents import (
    Budget,
    FailRun,
    ModelRetry,
    RunContext,
    ToolFailed,
    tool,
    workflow,
)
from beam_agents.ledger.memory import MemoryLedger

pytestmark = pytest.mark.usefixtures("replay_mode")

Ctx = RunContext[Any, Any, Any]


@tool(effect="pure")
def double(number: int) -> int:
    """Doubles."""
    return 2 * number


@tool(effect="pure")
def fail(how: str) -> str:
    """Fails as told."""
    raise {"retry": ModelRetry, "failed": ToolFailed, "raise": ValueError, "run": FailRun}[how](how)


# ---- gather ----


def test_gather_gives_results_in_order_whatever_ends_first() -> None:
    last_is_done = threading.Event()

    @tool(effect="pure", timeout=timedelta(seconds=20))
    def slow(number: int) -> int:
        if number == 1:
            last_is_done.wait(15)
        if number == 3:
            last_is_done.set()
        return number

    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> list[int]:
        return list(await ctx.gather(*(ctx.call(slow, number=number) for number in (1, 2, 3))))

    assert flow.run_sync({}).output == [1, 2, 3]


def test_gather_of_nothing() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> list[int]:
        empty = await ctx.gather()
        return [len(empty), await ctx.call(double, number=1)]

    assert flow.run_sync({}).output == [0, 2]


def test_gather_waits_for_all_and_raises_the_first_error_in_order() -> None:
    done: list[str] = []

    async def branch(ctx: Ctx, name: str, how: str) -> str:
        try:
            return await ctx.call(fail, how=how) if how else str(await ctx.call(double, number=1))
        finally:
            done.append(name)

    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        done.clear()
        try:
            await ctx.gather(branch(ctx, "a", ""), branch(ctx, "b", "failed"), branch(ctx, "c", "retry"))
        except ToolFailed as error:
            return f"{error} after {''.join(sorted(done))}"
        return ""

    assert flow.run_sync({}).output == "failed after abc"


def test_gather_within_gather() -> None:
    async def pair(ctx: Ctx, number: int) -> int:
        one, two = await ctx.gather(ctx.call(double, number=number), ctx.call(double, number=number + 1))
        return one + two + await ctx.call(double, number=0)

    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> list[int]:
        return [*(await ctx.gather(pair(ctx, 1), pair(ctx, 10))), await ctx.call(double, number=50)]

    out = run(flow, [("k", {"id": "1"})], event_id="id")

    assert out.outputs == {"1": [6, 42, 100]}
    assert sorted(placed.value.path for placed in out.trace) == sorted(
        ["0.0.0.0.0", "0.0.0.1.0", "0.0.1", "0.1.0.0.0", "0.1.0.1.0", "0.1.1", "1"]
    )


@pytest.mark.parametrize("thing", [5, None, double])
def test_gather_takes_calls_only(thing: Any) -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.gather(ctx.call(double, number=1), thing)
        return ""

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "gather takes calls that are not awaited yet" in failure.message


def test_gather_refuses_the_same_call_twice() -> None:
    made: list[int] = []

    @tool(effect="once")
    def book() -> str:
        made.append(1)
        return "seat"

    @workflow(tools=[book])
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        call = ctx.call(book)
        await ctx.gather(call, call)
        return ""

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "gather" in failure.message
    assert made == []


# ---- sleep, emit, state ----


def test_sleep_goes_on_and_is_in_the_trace() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.sleep(timedelta(milliseconds=20))
        await ctx.sleep(timedelta(0))
        return "awake"

    out = run(flow, [("k", {"id": "1"})], event_id="id")

    assert out.outputs == {"1": "awake"}
    assert [(placed.value.kind, placed.value.outcome) for placed in out.trace] == [("sleep", "ok")] * 2


def test_a_sleep_that_outlasts_the_run_is_refused() -> None:
    @workflow(budget=Budget(wall_clock=timedelta(seconds=5)))
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.sleep(timedelta(minutes=1))
        return ""

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "raise Budget(wall_clock=" in failure.message


def test_emit_puts_values_out_once_with_the_end() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.emit({"step": 1})
        await ctx.call(double, number=1)
        await ctx.emit(Verdict(ok=True))
        if event["id"] == "2":
            raise FailRun("no")
        return ""

    out = run(flow, [("k", {"id": "1"}), ("k", {"id": "2"})], event_id="id")

    emitted = [(placed.value.run_id, placed.value.value) for placed in out.emitted]
    assert sorted(emitted, key=str) == sorted(
        [(name, value) for name in "12" for value in ({"step": 1}, {"ok": True, "why": ""})], key=str
    )


def test_emit_refuses_what_json_cannot_hold() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.emit(float("nan") if event["nan"] else object())
        return ""

    for nan in (False, True):
        assert failure_of(flow, {"nan": nan}).reason == "code_error"


@pytest.mark.parametrize("in_place", [False, True])
def test_a_new_state_is_kept(in_place: bool) -> None:
    @workflow(state_type=Count)
    async def flow(ctx: RunContext[Any, Count, None], event: Txn) -> int:
        if in_place:
            ctx.state.count += 10
        else:
            ctx.state = Count(count=ctx.state.count + 10)
        await ctx.call(double, number=1)
        return ctx.state.count

    ledger = MemoryLedger()
    outputs = [flow.run_sync(Txn(txn_id=name), event_id=name, ledger=ledger).output for name in "123"]

    assert outputs == [10, 20, 30]


def test_a_state_that_does_not_fit_is_a_code_error_and_not_kept() -> None:
    @workflow(state_type=Count)
    async def flow(ctx: RunContext[Any, Count, None], event: Txn) -> int:
        before = ctx.state.count
        ctx.state = "rubbish" if event.amount > 1 else Count(count=before + 1)  # type: ignore[assignment]
        return before

    ledger = MemoryLedger()
    flow.run_sync(Txn(txn_id="1"), event_id="1", ledger=ledger)
    failure = failure_of(flow, Txn(txn_id="2", amount=5), event_id="2", ledger=ledger)

    assert failure.reason == "code_error"
    assert "ctx.state does not fit 'flow'" in failure.message
    assert flow.run_sync(Txn(txn_id="3"), event_id="3", ledger=ledger).output == 1


def test_an_output_that_does_not_fit_is_refused() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> Verdict:
        return "yes"  # type: ignore[return-value]

    failure = failure_of(flow)

    assert failure.reason == "invalid_output"
    assert "'flow' may not return this" in failure.message


# ---- code that cannot be replayed ----


@pytest.mark.parametrize("wait", ["sleep", "future", "thread"])
def test_other_awaits_are_refused(wait: str) -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        if wait == "sleep":
            await asyncio.sleep(0.01)
        elif wait == "future":
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.to_thread(int)
        return ""

    failure = failure_of(flow)

    assert failure.reason == "code_error"
    assert "await only methods of ctx" in failure.message


def test_a_bare_yield_to_the_loop_is_refused() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await asyncio.sleep(0)
        return ""

    assert "cannot be replayed" in failure_of(flow).message


def test_an_error_of_the_code_is_told() -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.call(double, number=1)
        raise KeyError("k")

    failure = failure_of(flow)

    assert (failure.reason, failure.message) == ("code_error", "KeyError: 'k'")


def test_except_exception_does_not_hold_a_budget_back() -> None:
    @workflow(budget=Budget(tool_calls=1))
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        for _ in range(3):
            try:
                await ctx.call(double, number=1)
            except Exception:
                continue
        return "went on"

    assert failure_of(flow).reason == "budget_tool_calls"


def test_code_that_is_random_is_found(replay_mode: str) -> None:
    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        await ctx.call(fail_softly, name=uuid.uuid4().hex)
        return "done"

    if replay_mode == "live":
        assert flow.run_sync({}).output == "done"
    else:
        failure = failure_of(flow)
        assert failure.reason == "determinism"
        assert "is not deterministic" in failure.message


@tool(effect="pure")
def fail_softly(name: str) -> str:
    """Gives it back."""
    return name


def test_code_that_asks_for_less_in_a_replay_is_found(replay_mode: str) -> None:
    rounds = itertools.count()

    @workflow()
    async def flow(ctx: Ctx, event: dict[str, Any]) -> str:
        if next(rounds) == 0:
            await ctx.call(double, number=1)
        return "done"

    if replay_mode == "live":
        assert flow.run_sync({}).output == "done"
    else:
        assert failure_of(flow).reason == "determinism"
