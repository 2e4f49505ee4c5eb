"""A run that lasts an hour, on many workers, is the same as one that lasts a moment."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from agents_under_test import Count, Event, Gates, count

from beam_agents import Budget, FailureReason, Happened, RunContext, tool, workflow

STEPS = 60


def make_agent(gates: Gates, done: dict[str, int], wall_clock: timedelta) -> Any:
    """Looks, and changes something, in turn, sixty times."""

    @tool(effect="pure")
    def look(step: int) -> int:
        gates.passing(f"look {step}")
        return 10 * step

    def became(ctx: RunContext[Event, Count, None], step: int) -> Happened[int]:
        return Happened(done[ctx.idempotency_key])

    @tool(effect="once", reconcile=became)
    def change(ctx: RunContext[Event, Count, None], step: int) -> int:
        assert done.setdefault(ctx.idempotency_key, step) == step
        gates.passing(f"change {step}")
        return step

    budget = Budget(tool_calls=3 * STEPS, wall_clock=wall_clock)

    @workflow(name="agent", event_type=Event, state_type=Count, on_event=count, budget=budget)
    async def steps(ctx: RunContext[Event, Count, None], event: Event) -> list[int]:
        seen = []
        for step in range(STEPS):
            seen += [await ctx.call(look, step=step), await ctx.call(change, step=step)]
            ctx.state.events.append(f"step {step}")
        return seen

    return steps


def minutes(cluster: Any, gates: Gates, agent: Any) -> Any:
    """The run, on a worker that dies after each minute: every second one in a call that changes something."""
    for step in range(STEPS):
        at = f"{'change' if step % 2 else 'look'} {step}"
        gates.shut(at)
        worker = cluster.worker(agent)
        handle = worker.start(Event(id="1"))
        if not reached(gates, at, handle):
            break
        cluster.kill(worker)
        cluster.clock.advance(50)
        gates.open(at)
    return cluster.worker(agent).run(Event(id="1"))


def reached(gates: Gates, name: str, handle: Any) -> bool:
    """Whether a call of that name begins before the run ends."""
    deadline = time.monotonic() + 20
    while gates.calls[name] == 0 and not handle.done.done():
        assert time.monotonic() < deadline, f"{name} was never called; calls: {gates.calls}"
        time.sleep(0.002)
    return gates.calls[name] > 0


@pytest.fixture
def gates() -> Gates:
    return Gates()


def test_a_run_of_an_hour_is_the_same_as_a_short_one(cluster: Any, gates: Gates) -> None:
    done: dict[str, int] = {}
    agent = make_agent(gates, done, timedelta(hours=2))

    long = minutes(cluster, gates, agent)
    short = cluster.worker(agent).run(Event(id="1"), key="another")

    assert long.end.output == short.end.output == [n for step in range(STEPS) for n in (10 * step, step)]
    assert long.session == short.session
    changes = {name: calls for name, calls in gates.calls.items() if name.startswith("change")}
    assert changes == {f"change {step}": 2 for step in range(STEPS)}, "once in each run"
    looks = {name: calls for name, calls in gates.calls.items() if name.startswith("look")}
    assert looks == {f"look {step}": 2 if step % 2 else 3 for step in range(STEPS)}, "again where its worker died"
    assert len(done) == 2 * STEPS


def test_a_budget_of_half_an_hour_ends_it_in_its_middle(cluster: Any, gates: Gates) -> None:
    done: dict[str, int] = {}

    ended = minutes(cluster, gates, make_agent(gates, done, timedelta(minutes=30)))

    assert ended.end.reason is FailureReason.DEADLINE
    assert max(done.values()) in (29, 30)
