"""The support agent: a workflow, that is, an `async def` whose every `await` is recorded.

After a crash it runs again from the top and gets the recorded outcomes, so no model answer is paid for twice and no
request stands in the queue twice.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Literal, TypeAlias

from pydantic import BaseModel

from beam_agents import Budget, Model, RunContext, tool, workflow
from beam_agents.workflow import Workflow
from examples.support.desk import Customer, Desk
from examples.support.intents import INSTRUCTIONS, INTENTS, NEEDS_PERSON, article


class Chat(BaseModel):
    kind: Literal["chat"] = "chat"
    message_id: str
    customer_id: str
    text: str


class Email(BaseModel):
    kind: Literal["email"]
    message_id: str
    customer_id: str
    subject: str = ""
    text: str


class Conversation(BaseModel):
    """What is kept for a customer from message to message."""

    intent: str | None = None
    times: int = 0
    """How often in a row the customer has asked for the same."""

    def asked(self, intent: str) -> Conversation:
        return Conversation(intent=intent, times=self.times + 1 if intent == self.intent else 1)


class Reply(BaseModel):
    intent: str
    answered_by: Literal["agent", "person"]
    text: str


Context: TypeAlias = RunContext[Chat | Email, Conversation, Desk]


@tool(effect="pure")
def find_customer(ctx: Context, customer_id: str) -> Customer | None:
    """Looks a customer up."""
    return ctx.deps.customer(customer_id)


@tool(effect="idempotent", retries=2, timeout=timedelta(seconds=10))
def enqueue(ctx: Context, intent: str, urgent: bool) -> str:
    """Hands the message to a person; returns the ticket."""
    ticket = f"T-{ctx.event.message_id}"
    ctx.deps.enqueue(ctx.idempotency_key, ticket, ctx.event.customer_id, intent, urgent)
    return ticket


async def support(ctx: Context, message: Chat | Email) -> Reply:
    """Classifies a message, looks its customer up, and answers or hands over to a person."""
    text = f"{message.subject}\n{message.text}" if isinstance(message, Email) else message.text
    customer, intent = await ctx.gather(
        ctx.call(find_customer, customer_id=message.customer_id),
        ctx.classify(text, list(INTENTS), instructions=INSTRUCTIONS),
    )
    ctx.state = ctx.state.asked(intent)
    if customer is None or intent in NEEDS_PERSON or ctx.state.times >= 3:
        urgent = intent in NEEDS_PERSON or (customer is not None and customer.plan == "premium")
        ticket = await ctx.call(enqueue, intent=intent, urgent=urgent)
        return Reply(intent=intent, answered_by="person", text=f"A colleague will answer you soon ({ticket}).")
    answer = await ctx.model(
        f"{customer.name} writes: {text}\nHelp article: {article(intent)}",
        instructions="Answer the customer of a bank in at most two sentences, with nothing but what the article says.",
        remember=True,
    )
    return Reply(intent=intent, answered_by="agent", text=answer)


def support_agent(
    model: Model | str, open_desk: Callable[[], Desk]
) -> Workflow[Chat | Email, Reply, Conversation, Desk]:
    """The agent, with the model that thinks for it and the desk that it works for.

    Args:
        model: A model, or the name of one, such as `"openai:gpt-5-mini"`.
        open_desk: Connects to the desk; called once in each worker process.
    """
    return workflow(
        output_type=Reply,
        model=model,
        state_type=Conversation,
        tools=[find_customer, enqueue],
        deps=open_desk,
        budget=Budget(steps=8, tool_calls=5, tokens=50_000, wall_clock=timedelta(minutes=2)),
    )(support)
