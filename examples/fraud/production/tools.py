"""What the model may do, in the bank's PostgreSQL database: two look-ups that are SQL, and a hold."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from beam_agents import RunContext, tool
from beam_agents.toolkit import sql_tool
from examples.fraud.events import Hold, Listing, Merchant, Txn
from examples.fraud.production import bank
from examples.fraud.state import CardState


@sql_tool(
    bank.BANK,
    "select count(*) > 0 as listed, coalesce(min(reason), '') as reason from blocklist where merchant = :merchant_id",
    effect="pure",
)
def blocklist(merchant_id: str) -> Listing:
    """Looks a merchant up in the bank's blocklist.

    Args:
        merchant_id: The merchant as the payment names it.
    """


@sql_tool(bank.BANK, "select name, category, high_risk from merchants where merchant = :merchant_id", effect="pure")
def merchant(merchant_id: str) -> Merchant | None:
    """Looks up what a merchant sells and whether that is a risk; null for a merchant that nobody knows.

    Args:
        merchant_id: The merchant as the payment names it.
    """


# Not a `sql_tool`: whose card it is, the payment says and not the model.
@tool(effect="idempotent", timeout=timedelta(seconds=20), retries=3)
def hold_card(ctx: RunContext[Txn, CardState, Any], reason: str) -> Hold:
    """Puts the card of this payment on hold. The customer cannot pay until a person lifts it.

    Args:
        reason: One sentence for the person who will look at it.
    """
    return bank.hold(bank.BANK.reveal(), ctx.key, reason, key=ctx.idempotency_key)
