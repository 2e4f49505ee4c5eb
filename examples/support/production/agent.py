"""The support agent of a ticket: answers, or hands over to a person with all that the person needs to know.

The key is the ticket. So its conversation is what is remembered (`ctx.history`), its messages are handled one after the
other, and tickets do not wait for each other.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeAlias

from pydantic import BaseModel

from beam_agents import Budget, History, InvalidOutput, Model, ModelError, RunContext, workflow
from beam_agents.codec import canonical_json
from beam_agents.messages import AssistantMessage, UserMessage
from beam_agents.workflow import Workflow
from examples.support.intents import INSTRUCTIONS, INTENTS, NEEDS_PERSON, article
from examples.support.production.crm import enqueue, find_account
from examples.support.production.events import Chat, Email, Message, Reply, Status, text_of

ASKED_TOO_OFTEN = 3


class Ticket(BaseModel):
    """What is kept of a ticket from message to message, besides the conversation."""

    with_person: bool = False
    """A person has taken over, so the agent keeps out of it."""
    intent: str | None = None
    times: int = 0
    """How often in a row the customer has asked for `intent`."""

    def asked(self, intent: str | None) -> Ticket:
        """The ticket when one more message wants `intent`."""
        return self.model_copy(update={"intent": intent, "times": self.times + 1 if intent == self.intent else 1})


Context: TypeAlias = RunContext[Message, Ticket, Any]


def note(ticket: Ticket, message: Chat | Email | Status) -> Ticket:
    """What a message changes of itself: a ticket that the customer closed starts afresh if it is opened again."""
    return Ticket() if isinstance(message, Status) and message.status == "closed" else ticket


def no_answer_needed(ticket: Ticket, message: Chat | Email | Status) -> Reply | None:
    """Handles what is no message of a customer, without a model."""
    return Reply(action="noted", text=f"The ticket is {message.status}.") if isinstance(message, Status) else None


async def support(ctx: Context, message: Chat | Email | Status) -> Reply:
    """Finds out who asks and what for, and answers or hands over."""
    assert not isinstance(message, Status)  # `no_answer_needed` has handled it
    text = text_of(message)
    account, intent = await ctx.gather(
        ctx.call(find_account, customer_id=message.customer_id), _intent(ctx, text, asked=not ctx.state.with_person)
    )
    ctx.state = ctx.state.asked(intent)
    if ctx.state.with_person:
        reason = "a person has this ticket"
    elif account is None:
        reason = "nobody knows this customer"
    elif intent is None:
        reason = "the model did not understand it"
    elif intent in NEEDS_PERSON:
        reason = "a person decides this"
    elif ctx.state.times >= ASKED_TOO_OFTEN:
        reason = f"asked {ctx.state.times} times"
    else:
        answer = await ctx.model(
            text,
            instructions=f"You answer customers of a bank in at most two sentences, with nothing but what the help "
            f"article says. This one is called {account.name}.\nHelp article: {article(intent)}",
            remember=True,
        )
        return Reply(action="answered", text=answer, intent=intent)
    ctx.say(UserMessage(text=text))
    await ctx.call(
        enqueue,
        ticket=message.ticket,
        customer_id=message.customer_id,
        reason=reason,
        urgent=intent in NEEDS_PERSON or (account is not None and account.plan == "premium"),
        transcript=_transcript(ctx, text),
        account=canonical_json(account.model_dump(mode="json")) if account is not None else None,
    )
    ctx.say(AssistantMessage(text="A colleague will answer you soon."))
    ctx.state = ctx.state.model_copy(update={"with_person": True})
    return Reply(action="handed_over", text="A colleague will answer you soon.", intent=intent)


async def _intent(ctx: Context, text: str, *, asked: bool) -> str | None:
    """What the customer wants; `None` if no model can tell, which is no reason to leave the customer alone."""
    if not asked:
        return None
    try:
        intent: str = await ctx.classify(text, list(INTENTS), instructions=INSTRUCTIONS)
    except (ModelError, InvalidOutput):
        return None
    return intent


def _transcript(ctx: Context, text: str) -> str:
    """The ticket's conversation up to this message, as JSON."""
    said = [
        {"who": "customer" if isinstance(message, UserMessage) else "agent", "text": message.text}
        for message in ctx.history
        if isinstance(message, (UserMessage, AssistantMessage))
    ]
    return canonical_json([*said, {"who": "customer", "text": text}])


def support_agent(model: Model | str) -> Workflow[Message, Reply, Ticket, Any]:
    """The agent.

    Args:
        model: A model, or the name of one, such as `"openai:gpt-5-mini"`.
    """
    return workflow(
        event_type=Message,
        output_type=Reply,
        model=model,
        state_type=Ticket,
        on_event=note,
        skip=no_answer_needed,
        tools=[find_account, enqueue],
        history=History(max_messages=60),
        budget=Budget(steps=8, tool_calls=5, tokens=50_000, wall_clock=timedelta(minutes=2)),
    )(support)
