"""The code goes on with an outcome while its record is on the way; nothing that it asks for may go ahead of that."""

from __future__ import annotations

import contextvars
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from agents_under_test import Event, Gates
from cluster import Hosted

from beam_agents import RunContext, tool, workflow
from beam_agents.engine.attempts import Attempts
from beam_agents.engine.journal import Journal
from beam_agents.engine.live import LiveRun
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
