"""The topics: what they are called, and what stands in `decisions`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import AwareDatetime

from beam_agents import RunResult
from examples.fraud.events import Txn, Verdict

PAYMENTS = "payments"
DECISIONS = "decisions"
FAILURES = "failures"
TRACE = "trace"

LARGEST = 8_000_000
"""Bytes of a failure: it has what could not be read, as JSON, and that may be several times a payment's megabyte."""

TOPICS: Mapping[str, Mapping[str, str]] = {
    PAYMENTS: {},
    DECISIONS: {},
    FAILURES: {"max.message.bytes": str(LARGEST)},
    TRACE: {},
}
"""All of them, with their settings."""


class Decision(Verdict):
    """What stands in `decisions`: the verdict, and what it is about."""

    payment: str
    card: str
    time: AwareDatetime
    amount: float


def decision(result: RunResult[Txn, Verdict]) -> Decision:
    """What is told of a result."""
    event = result.event
    about = {"payment": event.txn_id, "card": event.card, "time": event.time, "amount": event.amount}
    return Decision(**result.output.model_dump(), **about)
