"""The agent whose bytes the corpus has. Its types may grow as a user's would, never in a way that breaks old bytes."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from beam_agents import Budget, RunContext, tool, workflow


class Payment(BaseModel):
    id: str
    amount: float


class Card(BaseModel):
    payments: int = 0
    total: float = 0.0


class Verdict(BaseModel):
    ok: bool
    why: str


def add(state: Card, event: Payment) -> Card:
    return Card(payments=state.payments + 1, total=state.total + event.amount)


@tool(effect="once", reconcile=lambda context, amount: None)
def hold(ctx: RunContext[Payment, Card, None], amount: float) -> str:
    """Holds the card."""
    raise AssertionError("the corpus has the outcome of this call")


@tool(effect="pure")
def limit(ctx: RunContext[Payment, Card, None]) -> float:
    """The card's limit."""
    return 100.0


@workflow(
    output_type=Verdict,
    state_type=Card,
    on_event=add,
    tools=[hold, limit],
    budget=Budget(wall_clock=timedelta(days=3650)),
)
async def watch(ctx: RunContext[Payment, Card, None], event: Payment) -> Verdict:
    held = await ctx.call(hold, amount=event.amount)
    allowed = await ctx.call(limit)
    return Verdict(ok=ctx.state.total <= allowed, why=held)
