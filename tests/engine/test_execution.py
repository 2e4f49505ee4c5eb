"""The driver of coroutines, without clock, loop or ledger."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from beam_agents.engine.execution import Execution, Gather, Request, Stop


def ask(name: str) -> Request:
    return Request("tool", name, name, "pure", None, None)


async def one(name: str) -> Any:
    return await ask(name)


def paths(requests: list[Request]) -> list[str]:
    return [request.path for request in requests]


def test_effects_are_numbered_where_the_code_asks() -> None:
    async def code() -> Any:
        first = await ask("a")
        both = await Gather([one("b"), one("c")])
        return first, both, await ask("d")

    execution = Execution(code())
    assert paths(execution.start()) == ["0"]
    assert paths(execution.deliver("0", "A")) == ["1.0.0", "1.1.0"]
    assert execution.deliver("1.1.0", "C") == []
    assert paths(execution.deliver("1.0.0", "B")) == ["2"]
    assert execution.deliver("2", "D") == []
    assert execution.ended
    assert execution.result == ("A", ["B", "C"], "D")


def test_a_gather_waits_for_all_and_raises_the_first_error_in_order() -> None:
    async def code() -> Any:
        try:
            await Gather([one("a"), one("b"), one("c")])
        except ValueError as error:
            return str(error)

    execution = Execution(code())
    execution.start()
    execution.deliver("0.2.0", error=ValueError("third"))
    execution.deliver("0.1.0", error=ValueError("second"))
    assert not execution.ended
    execution.deliver("0.0.0", "fine")
    assert execution.result == "second"


def test_an_empty_gather_is_over_at_once() -> None:
    async def code() -> Any:
        return await Gather([])

    execution = Execution(code())
    assert execution.start() == []
    assert execution.result == []


def test_something_else_than_a_call_in_a_gather_is_an_error_in_the_code() -> None:
    async def code() -> Any:
        return await Gather([one("a"), "no coroutine"])

    execution = Execution(code())
    execution.start()
    assert isinstance(execution.error, TypeError)


@pytest.mark.parametrize("foreign", [lambda: asyncio.sleep(0), lambda: asyncio.Event().wait()])
def test_awaiting_anything_but_the_context_is_refused(foreign: Any) -> None:
    async def code() -> Any:
        await foreign()

    async def inside_a_loop() -> Execution:
        execution = Execution(code())
        execution.start()
        return execution

    execution = asyncio.run(inside_a_loop())
    assert "await only methods of ctx" in str(execution.error)


def test_user_code_cannot_hold_back_the_end_of_its_run() -> None:
    async def code() -> Any:
        try:
            raise Stop
        except Exception:
            await ask("never")

    execution = Execution(code())
    assert execution.start() == []
    assert isinstance(execution.error, Stop)


def test_closing_runs_the_code_s_clean_up_and_leaves_nothing_waiting() -> None:
    cleaned = []

    async def code() -> Any:
        try:
            await Gather([one("a"), one("b")])
        finally:
            cleaned.append(True)

    execution = Execution(code())
    execution.start()
    execution.close()
    assert cleaned == [True]
    assert not execution.waiting
