"""What became of the payments, counted from the topics and the bank's table as anybody could."""

from __future__ import annotations

import json
from collections import Counter

from pydantic import BaseModel, ValidationError

from examples.fraud.events import Txn
from examples.fraud.production.bank import holds
from examples.fraud.production.topics import DECISIONS, FAILURES, PAYMENTS, Decision
from examples.production.folder import Running
from examples.production.topics import records


class Account(BaseModel):
    """The count."""

    payments: int = 0
    """Records of the topic."""
    repeats: int = 0
    """Valid ones that came again as they were: nothing comes of them."""
    decisions: dict[str, int] = {}
    """Records of the topic, by what was decided."""
    decided_twice: int = 0
    """Decisions beyond a payment's first."""
    failures: dict[str, int] = {}
    """Records of the topic, by the reason."""
    holds: int = 0
    """Rows of the table."""
    holds_unnamed: int = 0
    """Those that no decision names: a payment's second one would be, and one whose decision is still to come."""
    asked: int = 0
    """How often the bank was asked for a hold; those beyond `holds` found the one that was there."""

    @property
    def open(self) -> int:
        """Payments of which nothing has come yet."""
        return self.payments - self.repeats - sum(self.decisions.values()) - sum(self.failures.values())


def account(running: Running) -> Account:
    """Reads it all."""
    servers = running.servers
    came, failed, decided = _payments(servers), _failures(servers), _decisions(servers)
    verdicts = Counter(decision.decision for decision in decided)
    rows = holds(running.database("bank"))
    return Account(
        payments=came.total(),
        repeats=sum(number - 1 for what, number in came.items() if isinstance(what, Txn)),
        decisions=dict(sorted(verdicts.items())),
        decided_twice=len(decided) - len({decision.payment for decision in decided}),
        failures=dict(sorted(failed.items())),
        holds=len(rows),
        holds_unnamed=len({row.hold_id for row in rows} - {decision.hold_id for decision in decided}),
        asked=sum(row.asked for row in rows),
    )


def _payments(servers: str) -> Counter[Txn | tuple[int | None, int | None]]:
    """How often each valid payment came; others by their coordinates."""
    came: Counter[Txn | tuple[int | None, int | None]] = Counter()
    for message in records(servers, [PAYMENTS]):
        try:
            came[Txn.model_validate_json(message.value() or b"")] += 1
        except ValidationError:
            came[message.partition(), message.offset()] += 1
    return came


def _decisions(servers: str) -> list[Decision]:
    return [Decision.model_validate_json(message.value() or b"") for message in records(servers, [DECISIONS])]


def _failures(servers: str) -> Counter[str]:
    return Counter(json.loads(message.value() or b"")["reason"] for message in records(servers, [FAILURES]))
