"""Runs that wait: for a ledger that is down, asleep, within budgets that outlive a crash."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from agents_under_test import Count, Event, Gates, count
from cluster import Hosted
from test_schedules import make_agent

from beam_agents import Budget, FailureReason, RunContext, workflow
from beam_agents.engine.live import Parked
from beam_agents.engine.worker import Worker
from beam_agents.ledger import LedgerUnavailable, MemoryLedger
from beam_agents.ledger.commands import Answer, Command, Intend

pytestmark = pytest.mark.usefixtures("replay_mode")


class LedgerThatFails(MemoryLedger):
    """Takes nothing while it is down."""

    down = False
    down_after: type[Command] | None = None  # type: ignore[valid-type]

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        if self.down:
            raise LedgerUnavailable("down for the test")
        answers = super().apply(commands)
        if self.down_after and any(isinstance(command, self.down_after) for command in commands):
            self.down = True
            raise LedgerUnavailable("the connection broke after the commit")
        return answers


@pytest.fixture
def worker() -> Any:
    made = Worker()
    yield made
    made.close()


def start(worker: Worker, agent: Any, ledger: MemoryLedger) -> Any:
    hosted = Hosted(worker, worker.join(agent, "agent", ledger, "scope"))
    return hosted, hosted.start(Event(id="1"))


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_no_call_is_made_while_its_intent_cannot_be_recorded(worker: Worker) -> None:
    gates, ledger = Gates(), LedgerThatFails()
    gates.shut("plan")
    hosted, handle = start(worker, make_agent(gates, effect="idempotent"), ledger)
    gates.wait_for("plan")
    ledger.down = True
    gates.open("plan")
    until(lambda: hosted.host.ledger.down_since is not None)
    assert gates.calls["work"] == 0
    ledger.down = False
    assert handle.done.result(30).end.output == "done it"
    assert gates.calls == {"plan": 1, "work": 1, "answer": 1}


def test_an_outcome_that_was_committed_as_the_connection_broke_is_not_lost(worker: Worker) -> None:
    gates, ledger = Gates(), LedgerThatFails()
    gates.shut("work")
    hosted, handle = start(worker, make_agent(gates, effect="once"), ledger)
    gates.wait_for("work")
    ledger.down_after = Intend  # that of the answer, with what `work` came to
    gates.open("work")
    until(lambda: hosted.host.ledger.down_since is not None)
    ledger.down_after, ledger.down = None, False
    assert handle.done.result(30).end.output == "done it"
    assert gates.calls == {"plan": 1, "work": 1, "answer": 1}


def test_a_sleep_goes_on_as_it_was_after_a_crash(cluster: Any) -> None:
    @workflow(name="agent", event_type=Event, state_type=Count, on_event=count)
    async def sleeper(ctx: RunContext[Event, Count, None], event: Event) -> str:
        await ctx.sleep(timedelta(seconds=1))
        return "awake"

    first = cluster.worker(sleeper)
    first.start(Event(id="1"))

    def sleeps() -> list[Any]:
        connection = sqlite3.connect(cluster.path)
        try:
            return connection.execute("SELECT attempt, due FROM effects WHERE kind = 'sleep'").fetchall()
        except sqlite3.OperationalError:  # the ledger is not made yet
            return []
        finally:
            connection.close()

    until(sleeps)
    before = sleeps()
    cluster.kill(first)
    assert cluster.worker(sleeper).run(Event(id="1")).end.output == "awake"
    assert sleeps() == before


def test_a_sleep_that_is_longer_than_the_run_may_last_is_refused(cluster: Any) -> None:
    @workflow(name="agent", event_type=Event, budget=Budget(wall_clock=timedelta(seconds=10)))
    async def sleeper(ctx: RunContext[Event, None, None], event: Event) -> None:
        await ctx.sleep(timedelta(seconds=11))

    ended = cluster.worker(sleeper).run(Event(id="1"))
    assert ended.end.reason is FailureReason.CODE_ERROR
    assert "raise Budget(wall_clock" in ended.end.message


def test_a_crash_does_not_reset_a_budget(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, budget=Budget(steps=1, wall_clock=timedelta(hours=1)))
    first = cluster.worker(agent)
    first.start(Event(id="1"))
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    ended = cluster.worker(agent).run(Event(id="1"))
    assert ended.end.reason is FailureReason.BUDGET_STEPS
    assert ended.end.usage.steps == 1
    assert gates.calls == {"plan": 1, "work": 2}


def test_a_worker_that_ends_as_planned_records_what_is_in_flight_first(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, effect="once")
    first = cluster.worker(agent)
    handle = first.start(Event(id="1"))
    gates.wait_for("work")
    letting_go = Thread(target=first.worker.let_go, args=(30.0,))
    letting_go.start()
    until(lambda: first.worker.letting_go)
    late = first.start(Event(id="2"))
    gates.open("work")
    letting_go.join(30)
    assert [type(left.done.exception(30)) for left in (handle, late)] == [Parked, Parked]
    ended = cluster.worker(agent).run(Event(id="1"))
    assert ended.end.output == "done it"
    assert gates.calls == {"plan": 1, "work": 1, "answer": 1}


def test_a_worker_that_ends_as_planned_keeps_no_run_beyond_its_budget(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=2)))
    first = cluster.worker(agent)
    handle = first.start(Event(id="1"))
    gates.wait_for("work")
    first.worker.let_go(30.0)
    assert isinstance(handle.done.exception(30), Parked)
    ended = cluster.worker(agent).run(Event(id="1"))
    gates.open("work")
    assert ended.end.reason is FailureReason.DEADLINE


def test_a_planned_end_waits_no_longer_than_it_may(cluster: Any) -> None:
    gates = Gates()
    gates.shut("work")
    first = cluster.worker(make_agent(gates))
    handle = first.start(Event(id="1"))
    gates.wait_for("work")
    first.worker.let_go(0.05)
    assert not handle.done.done()
    gates.open("work")
    assert isinstance(handle.done.exception(30), Parked)


class LedgerThatIsSlowToTakeIntents(MemoryLedger):
    """Takes the intent of a `once` call only after a second."""

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        answers = super().apply(commands)
        if any(isinstance(command, Intend) and command.effect.effect == "once" for command in commands):
            time.sleep(1.0)
        return answers


def test_no_intent_of_a_once_call_stays_open_when_the_run_ends_meanwhile(worker: Worker) -> None:
    gates, ledger = Gates(), LedgerThatIsSlowToTakeIntents()
    agent = make_agent(gates, effect="once", budget=Budget(wall_clock=timedelta(seconds=0.5)))
    _, handle = start(worker, agent, ledger)
    assert handle.done.result(30).end.reason is FailureReason.DEADLINE
    assert [(effect.name, effect.status) for effect in ledger.effects(handle.run) if effect.effect == "once"] == [
        ("work", "not_happened")
    ]
    assert gates.calls["work"] == 0
