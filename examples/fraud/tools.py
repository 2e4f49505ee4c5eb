"""What the model may do. Each tool declares what it means to call it again, which is what a crash asks."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from beam_agents import CannotHappen, Happened, RunContext, tool
from examples.fraud.bank import Bank
from examples.fraud.events import Hold, Listing, Merchant, Txn
from examples.fraud.state import CardState

Context: TypeAlias = RunContext[Txn, CardState, Bank]


@tool(effect="pure")
def blocklist(ctx: Context, merchant_id: str) -> Listing:
    """Looks a merchant up in the bank's blocklist.

    Args:
        merchant_id: The merchant as the payment names it.
    """
    return ctx.deps.listing(merchant_id)


@tool(effect="pure")
def merchant(ctx: Context, merchant_id: str) -> Merchant | None:
    """Looks up what a merchant sells and whether that is a risk; null for a merchant that nobody knows.

    Args:
        merchant_id: The merchant as the payment names it.
    """
    return ctx.deps.merchant(merchant_id)


def hold_status(ctx: Context, reason: str) -> Happened[Hold] | CannotHappen:
    """After a crash in the middle of `hold_card`: did the bank make the hold?

    If it did not, the bank is told in the same moment to turn the request away should it still arrive. Only then is
    it true that the hold cannot happen any more, and safe to ask for it again.
    """
    hold = ctx.deps.find_or_cancel(key=ctx.idempotency_key, attempt=ctx.attempt)
    return Happened(hold) if hold else CannotHappen()


@tool(effect="once", reconcile=hold_status, timeout=timedelta(seconds=20))
def hold_card(ctx: Context, reason: str) -> Hold:
    """Puts the card of this payment on hold. The customer cannot pay until a person lifts it.

    Args:
        reason: One sentence for the person who will look at it.
    """
    return ctx.deps.hold(ctx.key, reason, key=ctx.idempotency_key, attempt=ctx.attempt)
