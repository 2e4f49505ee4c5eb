"""The fraud agent: who it is, what it knows of a card, what it may do, and how far it may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from beam_agents import Agent, Budget, History, Model, Template, Tool
from examples.fraud.bank import Bank
from examples.fraud.events import Txn, Verdict
from examples.fraud.state import CardState, add_txn
from examples.fraud.tools import blocklist, hold_card, merchant

INSTRUCTIONS = """\
You watch the card payments of a bank. For each payment, look its merchant up in `blocklist` and in `merchant`, both
at once. Then decide:
- hold: the merchant is on the blocklist; or there were 5 payments or more in the last hour; or the card travelled
  faster than 1000 km/h; or the amount is at least 8 times the usual one and the merchant is unknown or high risk.
  Call `hold_card` first, unless this conversation shows that the card is on hold already.
- review: the amount is at least 8 times the usual one, and nothing else speaks against the payment.
- approve: nothing speaks against it.
Give your reasons in short sentences, and your name in `decided_by`."""

PAYMENT = """\
payment: {event.txn_id}
time: {event.time}
amount: {event.amount} USD
merchant: {event.merchant}
city: {event.city}
payments in the last hour: {state.signals.payments_last_hour}
spent in the last hour: {state.signals.spent_last_hour} USD
speed since the last payment: {state.signals.speed_kmh} km/h
new city for this card: {state.signals.new_city}
times the usual amount: {state.signals.times_usual}"""

SMALL_AMOUNT = 30.0
"""US dollars. Below it, and with nothing unusual about the card, a model costs more than the risk."""


def approve_small(state: CardState, txn: Txn) -> Verdict | None:
    """Decides a small and ordinary payment without a model."""
    signals = state.signals
    if txn.amount >= SMALL_AMOUNT or signals.payments_last_hour >= 5 or signals.speed_kmh > 1000:
        return None
    return Verdict(decision="approve", decided_by="rule:small")


def fraud_agent(
    model: Model | str,
    open_bank: Callable[[], Bank] | None,
    tools: Sequence[Tool[Any]] = (blocklist, merchant, hold_card),
) -> Agent[Txn, Verdict, CardState, Bank]:
    """The agent, with the model that thinks for it and the bank that it works for.

    Args:
        model: A model, or the name of one, such as `"openai:gpt-5-mini"`.
        open_bank: Connects to the bank; called once in each worker process. `None` for tools that connect by
            themselves.
        tools: What does `blocklist`, `merchant` and `hold_card`.
    """
    return Agent(
        "fraud",
        model=model,
        instructions=INSTRUCTIONS,
        prompt=Template(PAYMENT),
        tools=tools,
        deps=open_bank,
        event_type=Txn,
        output_type=Verdict,
        state_type=CardState,
        on_event=add_txn,
        skip=approve_small,
        history=History(max_messages=20),
        budget=Budget(steps=6, tool_calls=6, tokens=50_000, cost_usd=0.05, wall_clock=timedelta(minutes=2)),
    )
