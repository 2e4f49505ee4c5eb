"""The bank's database in PostgreSQL: a blocklist, merchants and holds, and a role for the agent that may do little.

The table of holds has the idempotency key as its primary key, so a request that comes again finds the hold that it led
to before. `asked` counts how often it came:

    select card, reason, asked from holds order by hold_id
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import psycopg
from psycopg import sql

from beam_agents.secrets import EnvSecret
from examples.fraud.events import Hold, Merchant

BANK = EnvSecret("FRAUD_BANK_URL")
"""The bank's database, for the agent: each worker looks the URL up, and no pickle has it."""

ROLE = "fraud"
"""The agent's name in PostgreSQL."""

_TABLES = """
CREATE TABLE merchants (
    merchant TEXT PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, high_risk BOOLEAN NOT NULL
);
CREATE TABLE blocklist (merchant TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE holds (
    idempotency_key TEXT PRIMARY KEY, hold_id BIGINT GENERATED ALWAYS AS IDENTITY, card TEXT NOT NULL,
    reason TEXT NOT NULL, asked INTEGER NOT NULL DEFAULT 1, created TIMESTAMPTZ NOT NULL DEFAULT now()
);
GRANT SELECT ON merchants, blocklist, holds TO fraud;
GRANT INSERT, UPDATE (asked) ON holds TO fraud;
"""
_HOLD = """
INSERT INTO holds (idempotency_key, card, reason) VALUES (%s, %s, %s)
ON CONFLICT (idempotency_key) DO UPDATE SET asked = holds.asked + 1
RETURNING hold_id, card, reason
"""


class HoldRow(NamedTuple):
    """A hold, and how it came to be."""

    hold_id: int
    card: str
    reason: str
    key: str
    asked: int


def make_databases(url: str, password: str) -> None:
    """Makes the agent's role, its ledger's database `ledger`, and the bank's, `bank`, without tables.

    Args:
        url: Of the server, for its administrator.
        password: The role's.
    """
    with psycopg.connect(url, autocommit=True) as server:
        role = sql.Identifier(ROLE)
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        server.execute(sql.SQL("CREATE DATABASE ledger OWNER {}").format(role))
        server.execute("CREATE DATABASE bank")


def make_tables(url: str, merchants: Iterable[tuple[str, Merchant]], blocklist: Iterable[tuple[str, str]]) -> None:
    """Makes the bank's tables, and enters merchants and the blocklist (merchant, reason).

    Args:
        url: Of the database `bank`, for its administrator.
        merchants: By their ids.
        blocklist: Why, by the merchants' ids.
    """
    rows = [(merchant, known.name, known.category, known.high_risk) for merchant, known in merchants]
    with psycopg.connect(url) as bank, bank.cursor() as cursor:
        cursor.execute(_TABLES)
        cursor.executemany("INSERT INTO merchants VALUES (%s, %s, %s, %s)", rows)
        cursor.executemany("INSERT INTO blocklist VALUES (%s, %s)", blocklist)


def hold(url: str, card: str, reason: str, *, key: str) -> Hold:
    """Puts a card on hold; asked with the same key again, it finds the hold that there is."""
    with psycopg.connect(url, connect_timeout=5) as bank:  # holds are rare, so none keeps a connection
        row = bank.execute(_HOLD, (key, card, reason)).fetchone()
    assert row is not None
    return Hold(hold_id=row[0], card=row[1], reason=row[2])


def holds(url: str) -> list[HoldRow]:
    """All holds, the oldest first."""
    with psycopg.connect(url, connect_timeout=5) as bank:
        rows = bank.execute("SELECT hold_id, card, reason, idempotency_key, asked FROM holds ORDER BY hold_id")
        return [HoldRow(*row) for row in rows]
