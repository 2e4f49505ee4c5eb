"""Agents that do nothing but wait: each kind of event ends by a timer of its own."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from beam_agents import Budget, RunContext, ToolError, tool, workflow
from beam_agents.workflow import Workflow

Kind: TypeAlias = Literal["sleep", "step", "deadline"]
"""What ends the wait: `ctx.sleep`, a tool's own timeout, or the run's budget of time."""

LIMIT = 1.0
"""Seconds: the timeout of the tool that a `step` event waits for."""

_HANGS = 60.0


class Event(BaseModel):
    """Something to wait for."""

    model_config = ConfigDict(frozen=True)

    id: str
    key: str
    kind: Kind
    seconds: float = LIMIT
    """How long a `sleep` is."""


class Session(BaseModel):
    """What a key keeps."""

    events: int = 0
    newest: str = ""
    """Names the newest event in words that nothing but the session has, so that it can be looked for in a savepoint."""


class Waited(BaseModel):
    """What a wait came to."""

    seconds: float
    """Between the calls of a clock before and after it."""
    nth: int
    """The event's number in its key's session."""


def trace_of(event: str) -> str:
    """What a session says of its newest event."""
    return f"newest-is-{event}"


def _count(session: Session, event: Event) -> Session:
    return Session(events=session.events + 1, newest=trace_of(event.id))


@tool(effect="pure")
def clock() -> float:
    """Seconds since 1970."""
    return time.time()


@tool(effect="pure", timeout=timedelta(seconds=LIMIT))
async def hang_briefly() -> None:
    """Takes longer than it may."""
    await asyncio.sleep(_HANGS)


@tool(effect="pure", timeout=timedelta(seconds=2 * _HANGS))
async def hang() -> None:
    """Takes longer than the run may."""
    await asyncio.sleep(_HANGS)


@workflow(
    name="wait",
    state_type=Session,
    on_event=_count,
    tools=[clock, hang_briefly],
    budget=Budget(wall_clock=timedelta(hours=1)),
)
async def wait(ctx: RunContext[Event, Session, None], event: Event) -> Waited:
    """Waits as long as a `sleep` says, or until the tool of a `step` is out of time."""
    began = await ctx.call(clock)
    if event.kind == "sleep":
        await ctx.sleep(timedelta(seconds=event.seconds))
    else:
        try:
            await ctx.call(hang_briefly)
        except ToolError:
            pass
        else:
            raise AssertionError("a tool with a timeout has answered after it")
    return Waited(seconds=await ctx.call(clock) - began, nth=ctx.state.events)


async def hang_on(ctx: RunContext[Event, None, None], event: Event) -> None:
    """Waits for what never comes in time."""
    await ctx.call(hang)


def deadline_agent(seconds: float) -> Workflow[Any, Any, Any, Any]:
    """An agent whose runs end by their budget of time.

    Args:
        seconds: The budget.
    """
    budget = Budget(wall_clock=timedelta(seconds=seconds))
    return workflow(name="deadline", event_type=Event, output_type=type(None), tools=[hang], budget=budget)(hang_on)
