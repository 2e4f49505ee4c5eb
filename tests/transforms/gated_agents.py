"""An agent whose tool waits at a gate, in a module that pickles by name."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta

from pydantic import BaseModel

from beam_agents import Agent, Budget, RunContext, tool, workflow


class Ticket(BaseModel):
    id: str


class Seen(BaseModel):
    tickets: list[str] = []


CALLS: Counter[str] = Counter()
GATE = threading.Event()
"""A call of the tool ends when it is set."""


@tool(effect="idempotent")
def book(ctx: RunContext[Ticket, Seen, None]) -> str:
    """Books the ticket."""
    CALLS[ctx.run_id] += 1
    assert GATE.wait(30)
    return f"booked {ctx.run_id}"


def add(state: Seen, event: Ticket) -> Seen:
    return Seen(tickets=[*state.tickets, event.id])


async def _body(ctx: RunContext[Ticket, Seen, None], event: Ticket) -> str:
    return f"{await ctx.call(book)} after {len(ctx.state.tickets) - 1}"


def booking(revision: int = 1) -> Agent:
    return workflow(
        name="booking",
        revision=revision,
        event_type=Ticket,
        output_type=str,
        state_type=Seen,
        on_event=add,
        tools=[book],
        budget=Budget(wall_clock=timedelta(seconds=20)),
    )(_body)
