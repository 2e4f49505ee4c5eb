"""Runs whose store has troubles: an agent that counts its calls, and what has to hold whatever the store does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from agents_under_test import Event, Gates
from cluster import Hosted

from beam_agents import Budget, RunContext, tool, workflow
from beam_agents.engine.host import Handle
from beam_agents.engine.worker import Worker
from beam_agents.ledger import Ledger

FIRST_PAUSE = 0.05
"""The shortest pause of the ledger writer between two attempts, seconds."""

LARGE = "x" * 200_000


def agent(gates: Gates, *, wall_clock: float = 3600.0) -> Any:
    """Plans, then makes a hold whose arguments and result are large: neither fits into what a store has left over."""

    @tool(effect="pure")
    def plan() -> str:
        gates.passing("plan")
        return "planned"

    @tool(effect="once")
    def hold(reason: str) -> str:
        gates.passing("hold")
        return reason

    @workflow(name="agent", event_type=Event, budget=Budget(wall_clock=timedelta(seconds=wall_clock)))
    async def code(ctx: RunContext[Event, None, None], event: Event) -> int:
        await ctx.call(plan)
        return len(await ctx.call(hold, reason=LARGE))

    return code


def start(worker: Worker, gates: Gates, ledger: Ledger, **options: Any) -> tuple[Hosted, Handle]:
    """A run that waits at the gate of its plan."""
    gates.shut("plan")
    hosted = Hosted(worker, worker.join(agent(gates, **options), "agent", ledger, "scope"))
    handle = hosted.start(Event(id="1"))
    gates.wait_for("plan")
    return hosted, handle


def until(condition: Callable[[], Any]) -> None:
    """Waits for it."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Attempts:
    """Counts the groups that a ledger was given, and knows how many there may be."""

    def __init__(self) -> None:
        self.count = 0
        self._since = time.monotonic()

    def begin(self) -> None:
        """From now on they count."""
        self.count, self._since = 0, time.monotonic()

    def check(self, other: int = 3) -> None:
        """One for each pause at most, and `other` that were not in vain."""
        assert self.count <= (time.monotonic() - self._since) / FIRST_PAUSE + other
