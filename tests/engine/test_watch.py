"""What a worker does by itself for runs that another one has left: rings for them, and ends them in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from agents_under_test import Count, Event, Gates
from cluster import Hosted
from test_schedules import make_agent

from beam_agents import Budget, RunContext, workflow
from beam_agents.codec import key_of
from beam_agents.engine import host as host_module
from beam_agents.engine.end import End
from beam_agents.engine.task import Task
from beam_agents.ledger import MemoryLedger
from beam_agents.ledger.commands import Load, Loaded
from beam_agents.ledger.records import Run


def watch(hosted: Hosted) -> None:
    def task_of(run: Run) -> Task:
        return Task(run.key, key_of(run.key.key), run.event, run.digest, event_time=run.event_time)

    hosted.host.watch(key_of, task_of)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_a_run_that_was_closed_before_its_worker_died_is_rung_for_at_once(cluster: Any) -> None:
    first = cluster.worker(make_agent(Gates()))
    first.run(Event(id="1"), key="card")
    cluster.kill(first)
    second = cluster.worker(make_agent(Gates()))
    watch(second)
    assert until(lambda: second.host.drain()) == ["card"]
    assert second.host.drain() == []


def test_what_was_closed_longer_ago_than_the_budget_is_left_to_its_timer(cluster: Any) -> None:
    agent = make_agent(Gates(), budget=Budget(wall_clock=timedelta(seconds=5)))
    first = cluster.worker(agent)
    first.run(Event(id="1"), key="old")
    cluster.clock.advance(20)
    first.run(Event(id="2"), key="new")
    cluster.kill(first)
    cluster.clock.advance(-10)
    second = cluster.worker(agent)
    watch(second)
    assert until(lambda: second.host.drain()) == ["new"]


def test_an_orphan_is_rung_for_with_growing_pauses(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_ORPHANS_EVERY", 0.02)
    gates = Gates()
    gates.shut("work")
    first = cluster.worker(make_agent(gates))
    first.start(Event(id="1"), key="card")
    gates.wait_for("work")
    cluster.kill(first)
    second = cluster.worker(make_agent(gates))
    watch(second)
    rang: list[float] = []
    while len(rang) < 4:
        rang += [time.monotonic() for _ in until(lambda: second.host.drain())]
    pauses = [after - before for before, after in pairwise(rang)]
    assert pauses[-1] > pauses[0]
    gates.open("work")


def test_an_open_run_that_nothing_brings_back_is_ended_from_its_record(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "_ORPHANS_EVERY", 0.05)
    monkeypatch.setattr(host_module, "_GRACE", 0.3)
    gates = Gates()
    gates.shut("work")
    agent = make_agent(gates, budget=Budget(wall_clock=timedelta(seconds=0.5)))
    first = cluster.worker(agent)
    handle = first.start(Event(id="1"), key="card")
    gates.wait_for("work")
    cluster.kill(first)
    gates.open("work")
    second = cluster.worker(agent)
    watch(second)

    def ended() -> str | None:
        loaded = second.host.ledger.ask_blocking(Load(handle.run), timeout=20)
        assert isinstance(loaded, Loaded)
        assert loaded.run is not None
        return loaded.run.end

    assert End.model_validate_json(until(ended)).reason == "deadline"
    until(second.host.idle)
    assert second.run(Event(id="1"), key="card").replayed


def test_one_ticker_of_a_process_is_answered_until_it_falls_silent(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = cluster.worker(make_agent(Gates())).host
    assert host.drain(3) == []
    assert host.drain(4) is None
    assert host.drain(3) == []
    monkeypatch.setattr(host_module, "_TICKER_SILENT_AFTER", 0.0)
    assert host.drain(4) == []
    monkeypatch.undo()
    assert host.drain(3) is None


def test_dependencies_that_open_slowly_keep_no_other_agent_waiting(cluster: Any) -> None:
    opening, may_open = threading.Event(), threading.Event()

    def slow() -> str:
        opening.set()
        assert may_open.wait(30)
        return "open"

    hosted = cluster.worker(make_agent(Gates()))
    joined = []
    agent = make_agent(Gates(), deps=slow)
    joining = [
        threading.Thread(target=lambda: joined.append(hosted.worker.join(agent, "slow", MemoryLedger("slow"), "s")))
        for _ in range(3)
    ]
    for thread in joining:
        thread.start()
    assert opening.wait(20)
    assert hosted.run(Event(id="1")).end.output == "done it"
    assert joined == []
    may_open.set()
    for thread in joining:
        thread.join(20)
    assert len(joined) == 3
    assert len(set(map(id, joined))) == 1
    assert joined[0].users == 3


def test_dependencies_may_run_an_agent_while_they_open() -> None:
    inner = make_agent(Gates())

    def opened() -> str:
        return str(inner.run_sync(Event(id="of the outer one"), key="k").output)

    @workflow(state_type=Count, deps=opened)
    async def outer(ctx: RunContext[Event, Count, str], event: Event) -> str:
        return f"{event.id}: {ctx.deps}"

    assert outer.run_sync(Event(id="1"), key="k").output == "1: done it"
