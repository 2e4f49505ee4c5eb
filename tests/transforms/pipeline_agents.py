"""Agents of the driver tests, in a module that workers can import."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from beam_agents import Agent, Budget, RunContext, tool, workflow
from beam_agents.messages import AssistantMessage, ModelRequest, ToolMessage
from beam_agents.models import FunctionModel, calls, say


class Order(BaseModel):
    id: str
    amount: float


class Total(BaseModel):
    orders: int = 0
    amount: float = 0.0


class Decision(BaseModel):
    accepted: bool
    why: str


def add(state: Total, event: Order) -> Total:
    return Total(orders=state.orders + 1, amount=state.amount + event.amount)


@tool(effect="pure")
def limit(ctx: RunContext[Order, Total, None], customer: str) -> float:
    """The customer's limit."""
    return 100.0


@tool(effect="pure")
async def rating(customer: str) -> str:
    """The customer's rating."""
    return "good" if customer != "carl" else "bad"


@tool(effect="idempotent")
def reserve(ctx: RunContext[Order, Total, None], amount: float) -> str:
    """Reserves goods."""
    return f"reserved {amount:g} for {ctx.key}"


def clerk_rules(request: ModelRequest) -> AssistantMessage:
    """First both look-ups, then the reservation when they allow it, then the decision."""
    results: dict[str, str] = {}
    for message in reversed(request.messages):
        if isinstance(message, ToolMessage):
            results[message.name] = message.text
        elif message.role == "user":
            break
    instructions = request.messages[0]
    assert instructions.role == "system"
    customer, spent = instructions.text.split()
    if not results:
        return calls(("limit", {"customer": customer}), ("rating", {"customer": customer}))
    accepted = float(spent) <= float(results["limit"]) and results["rating"] == "good"
    if accepted and "reserve" not in results:
        return calls(("reserve", {"amount": float(spent)}))
    return say(Decision(accepted=accepted, why=results.get("reserve", f"spent {spent}, rated {results['rating']}")))


def instructions(state: Total, event: Order) -> str:
    return f"{event.id.split('-')[0]} {state.amount:g}"


clerk = Agent(
    "clerk",
    model=FunctionModel(clerk_rules, name="rules"),
    instructions=instructions,
    tools=[limit, rating, reserve],
    event_type=Order,
    output_type=Decision,
    state_type=Total,
    on_event=add,
    skip=lambda state, event: Decision(accepted=True, why="small") if event.amount < 1 else None,
    budget=Budget(wall_clock=timedelta(minutes=10)),
)


@workflow(output_type=str, state_type=Total, on_event=add, tools=[limit, rating])
async def triage(ctx: RunContext[Order, Total, None], event: Order) -> str:
    allowed, rated = await ctx.gather(ctx.call(limit, customer=ctx.key), ctx.call(rating, customer=ctx.key))
    await ctx.emit({"order": event.id, "count": ctx.state.orders})
    return f"{event.id}: {allowed:g} {rated} #{ctx.state.orders}"
