"""The code goes on with an outcome while its record is on the way; nothing that it asks for may go ahead of that."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Event, Gates
from cluster import Hosted

from beam_agents import Budget, FailureReason, RunContext, tool, workflow
from beam_agents.engine.ahead import MOST_TAKEN
from beam_agents.engine.attempts import Attempts
from beam_agents.engine.journal import Journal
from beam_agents.engine.live import LiveRun, Parked
from beam_agents.engine.worker import Worker
from beam_agents.errors import LedgerError
from beam_agents.ledger import MemoryLedger
from beam_agents.ledger.commands import Answer, Close, Command, Intend, Load, Loaded, Record

pytestmark = pytest.mark.usefixtures("replay_mode")


class NotedLedger(MemoryLedger):
    """Notes what it is asked, and does what a test wants in between."""

    def __init__(self) -> None:
        super().__init__("noted")
        self.asked: list[Command] = []
        self.before: Callable[[Command], None] = lambda command: None

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        for command in commands:
            self.asked.append(command)
            self.before(command)
        return super().apply(commands)

    def told(self) -> list[Any]:
        """What was asked of runs, in short: an intent as its path, an outcome as that and its value."""
        short: list[Any] = []
        for command in self.asked:
            if isinstance(command, Record):
                short.append((command.path, command.value))
            elif isinstance(command, Intend | Close):
                outcomes = tuple((told.path, told.value) for told in command.outcomes)
                short.append((command.effect.path if isinstance(command, Intend) else "close", outcomes))
        return short


@pytest.fixture
def worker() -> Any:
    made = Worker()
    yield made
    made.close()


def start(worker: Worker, agent: Any, ledger: MemoryLedger, key: str = "k", number: str = "1") -> Any:
    return Hosted(worker, worker.join(agent, "agent", ledger, "scope")).start(Event(id=number), key)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@tool(effect="pure")
async def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@workflow(name="agent", event_type=Event)
async def doubles(ctx: RunContext[Event, None, None], event: Event) -> int:
    number = 1
    for _ in range(3):
        number = await ctx.call(double, number=number)
    return number


def test_a_step_asks_the_ledger_once(worker: Worker) -> None:
    ledger = NotedLedger()
    assert start(worker, doubles, ledger).done.result(30).end.output == 8
    assert ledger.told() == [("0", ()), ("1", (("0", "2"),)), ("2", (("1", "4"),)), ("close", (("2", "8"),))]


def test_an_outcome_is_recorded_at_once_when_what_follows_waits_for_its_turn(worker: Worker) -> None:
    gates, ledger = Gates(), NotedLedger()
    gates.shut("alone")

    @tool(effect="pure", in_flight=1)
    def alone(number: int) -> int:
        gates.passing("alone")
        return number

    @workflow(name="agent", event_type=Event)
    async def waits(ctx: RunContext[Event, None, None], event: Event) -> int:
        return await ctx.call(alone, number=await ctx.call(double, number=4))

    first = start(worker, waits, ledger, "a", "1")
    gates.wait_for("alone")
    second = start(worker, waits, ledger, "b", "2")
    until(lambda: ("0", "8") in ledger.told())
    assert gates.calls["alone"] == 1
    gates.open("alone")
    assert [run.done.result(30).end.output for run in (first, second)] == [8, 8]


def test_an_outcome_that_nothing_follows_yet_is_recorded_at_once(worker: Worker) -> None:
    gates, ledger = Gates(), NotedLedger()
    gates.shut("slow")

    @tool(effect="once")
    def slow() -> int:
        gates.passing("slow")
        return 1

    @workflow(name="agent", event_type=Event)
    async def both(ctx: RunContext[Event, None, None], event: Event) -> list[int]:
        return await ctx.gather(ctx.call(double, number=4), ctx.call(slow))

    handle = start(worker, both, ledger)
    gates.wait_for("slow")
    until(lambda: ("0.0.0", "8") in ledger.told())
    gates.open("slow")
    assert handle.done.result(30).end.output == [8, 1]
    assert ledger.told()[-1] == ("close", (("0.1.0", "1"),))


@pytest.mark.parametrize("what_follows", ["intent", "close", "nothing yet"])
def test_code_that_went_on_with_what_stands_otherwise_follows_the_ledger(worker: Worker, what_follows: str) -> None:
    """The worker stood still, and a person has resolved its call meanwhile."""
    gates, ledger = Gates(), NotedLedger()
    gates.shut("slow")
    seen = []

    @tool(effect="once")
    async def change() -> str:
        return "by the worker"

    @tool(effect="pure")
    def slow() -> None:
        gates.passing("slow")

    @tool(effect="once")
    async def tell(what: str) -> None:
        seen.append(what)

    @workflow(name="agent", event_type=Event)
    async def code(ctx: RunContext[Event, None, None], event: Event) -> str:
        if what_follows == "nothing yet":
            return str((await ctx.gather(ctx.call(change), ctx.call(slow)))[0])
        said = await ctx.call(change)
        if what_follows == "intent":
            await ctx.call(tell, what=said)
        return said

    path = "0.0.0" if what_follows == "nothing yet" else "0"

    def resolved(command: Command) -> None:
        outcomes = (command,) if isinstance(command, Record) else getattr(command, "outcomes", ())
        if any(told.path == path for told in outcomes):
            ledger.before = lambda command: None
            MemoryLedger.apply(ledger, [Record(outcomes[0].run, path, 1, "ok", '"by a person"')])

    ledger.before = resolved
    handle = start(worker, code, ledger)
    if what_follows == "nothing yet":
        gates.wait_for("slow")
        gates.open("slow")
    assert handle.done.result(30).end.output == "by a person"
    assert seen == (["by a person"] if what_follows == "intent" else [])


@pytest.mark.parametrize("at", ["1", "close"])
def test_an_outcome_is_recorded_though_the_ledger_refuses_what_follows(worker: Worker, at: str) -> None:
    ledger = NotedLedger()

    @workflow(name="agent", event_type=Event)
    async def code(ctx: RunContext[Event, None, None], event: Event) -> int:
        number = await ctx.call(double, number=1)
        return await ctx.call(double, number=number) if at == "1" else number

    def refuse(command: Command) -> None:
        if at == (command.effect.path if isinstance(command, Intend) else isinstance(command, Close) and "close"):
            raise LedgerError("too long")

    ledger.before = refuse
    handle = start(worker, code, ledger)
    with pytest.raises(LedgerError, match="too long"):
        handle.done.result(30)
    (loaded,) = MemoryLedger.apply(ledger, [Load(handle.run)])
    assert isinstance(loaded, Loaded)
    assert [(effect.status, effect.value) for effect in loaded.effects] == [("ok", "2")]


def test_many_branches_do_not_take_along_the_outcomes_of_all_others(worker: Worker) -> None:
    """They go on together, and each would carry what all have seen."""
    ledger, branches = NotedLedger(), 200

    @workflow(name="agent", event_type=Event, budget=Budget(tool_calls=10_000))
    async def code(ctx: RunContext[Event, None, None], event: Event) -> int:
        async def branch(number: int) -> int:
            for _ in range(3):
                number = await ctx.call(double, number=number)
            return number

        return sum(await ctx.gather(*(branch(number) for number in range(branches))))

    assert start(worker, code, ledger).done.result(30).end.output == 8 * sum(range(branches))
    intents = [command for command in ledger.asked if isinstance(command, Intend)]
    assert len(intents) == 3 * branches
    assert max(len(command.outcomes) for command in intents) <= MOST_TAKEN
    told = [(path, attempt) for command in intents for path, attempt in command.effect.delivered]
    assert len(told) == len(set(told))
    assert sum(isinstance(command, Record) for command in ledger.asked) <= 3 * branches


def test_outcomes_that_wait_for_the_ledger_are_sent_once(worker: Worker) -> None:
    ledger, gate, branches = NotedLedger(), threading.Event(), 50

    @tool(effect="pure")
    async def wait(number: int) -> int:
        await asyncio.sleep(0.004 * number)
        return number

    @workflow(name="agent", event_type=Event, budget=Budget(tool_calls=10_000))
    async def code(ctx: RunContext[Event, None, None], event: Event) -> int:
        return sum(await ctx.gather(*(ctx.call(wait, number=number) for number in range(branches))))

    def hang(command: Command) -> None:
        if isinstance(command, Record):  # the first one; all others queue up meanwhile
            ledger.before = lambda command: None
            assert gate.wait(20)

    ledger.before = hang
    handle = start(worker, code, ledger)
    until(lambda: any(isinstance(command, Record) for command in ledger.asked))
    time.sleep(0.3)
    gate.set()
    assert handle.done.result(30).end.output == sum(range(branches))
    assert sum(isinstance(command, Record) for command in ledger.asked) <= branches


def test_an_outcome_on_its_way_is_recorded_though_the_run_is_parked_and_the_ledger_refuses(worker: Worker) -> None:
    there, ledger = threading.Event(), NotedLedger()

    @tool(effect="once")
    async def pay() -> int:
        return 1

    @workflow(name="agent", event_type=Event)
    async def code(ctx: RunContext[Event, None, None], event: Event) -> int:
        paid = await ctx.call(pay)
        await ctx.sleep(timedelta(seconds=30))
        return paid

    def refuse(command: Command) -> None:
        if isinstance(command, Intend) and command.effect.kind == "sleep":
            there.set()
            time.sleep(0.3)
            raise LedgerError("refused")

    ledger.before = refuse
    handle = start(worker, code, ledger)
    assert there.wait(20)
    worker.let_go(5)
    with pytest.raises((Parked, LedgerError)):
        handle.done.result(20)
    (loaded,) = MemoryLedger.apply(ledger, [Load(handle.run)])
    assert isinstance(loaded, Loaded)
    assert [(effect.name, effect.status) for effect in loaded.effects] == [("pay", "ok")]


def test_tools_see_the_context_variables_that_the_code_has_set(worker: Worker) -> None:
    step: contextvars.ContextVar[str] = contextvars.ContextVar("step", default="unset")

    @tool(effect="pure")
    async def look() -> str:
        return step.get()

    @workflow(name="agent", event_type=Event)
    async def code(ctx: RunContext[Event, None, None], event: Event) -> list[str]:
        seen = []
        for number in range(3):
            step.set(f"step {number}")
            seen.append(await ctx.call(look))
        return seen

    assert start(worker, code, NotedLedger()).done.result(30).end.output == ["step 0", "step 1", "step 2"]


def test_code_that_is_dropped_is_closed_in_its_own_context(worker: Worker) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    cleaned = []

    @workflow(name="agent", event_type=Event, budget=Budget(wall_clock=timedelta(seconds=0.5)))
    async def code(ctx: RunContext[Event, None, None], event: Event) -> None:
        token = variable.set("mine")
        try:
            await ctx.call(never)
        finally:
            variable.reset(token)
            cleaned.append("up")

    @tool(effect="pure")
    async def never() -> None:
        await asyncio.sleep(20)

    assert start(worker, code, NotedLedger()).done.result(30).end.reason is FailureReason.DEADLINE
    assert "up" in cleaned


def test_code_keeps_its_context_variables(worker: Worker) -> None:
    trail: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("trail", default=())

    @workflow(name="agent", event_type=Event)
    async def code(ctx: RunContext[Event, None, None], event: Event) -> list[str]:
        async def branch(name: str) -> None:
            await ctx.call(double, number=1)
            trail.set((*trail.get(), name))
            await ctx.call(double, number=2)

        trail.set(("begun",))
        await ctx.call(double, number=1)
        await ctx.gather(branch("one"), branch("two"))
        return sorted(trail.get())

    assert start(worker, code, NotedLedger()).done.result(30).end.output == ["begun", "one", "two"]


def test_a_run_that_has_ended_leaves_nothing_to_the_collector(worker: Worker) -> None:
    """Thousands of transcripts would stay until the collector comes round, which is seldom."""

    @tool(effect="pure")
    async def fail(number: int) -> int:
        raise RuntimeError("not now")

    @workflow(name="agent", event_type=Event)
    async def code(ctx: RunContext[Event, None, None], event: Event) -> int:
        if event.id == "a tool fails":
            return await ctx.call(fail, number=1)
        one, two = await ctx.gather(ctx.call(double, number=1), ctx.call(double, number=2))
        if event.id == "the code fails":
            raise ValueError("no")
        return one + two

    def left() -> int:
        return sum(isinstance(each, LiveRun | Attempts | Journal) for each in gc.get_objects())

    hosted = Hosted(worker, worker.join(code, "agent", NotedLedger(), "scope"))
    names = ("answers", "a tool fails", "the code fails")
    for name in names:
        hosted.run(Event(id=f"warm {name}"))
    gc.collect()
    gc.disable()
    try:
        before = left()
        for name in names:
            hosted.run(Event(id=name))
        until(lambda: left() <= before)
    finally:
        gc.enable()
