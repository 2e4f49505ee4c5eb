"""The help desk's database in PostgreSQL: customers, accounts, and the queue of tickets that wait for a person.

What a person sees:

    select ticket, reason, urgent, account, transcript from queue order by urgent desc, number
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from pydantic import BaseModel

from beam_agents.secrets import EnvSecret
from beam_agents.toolkit import sql_tool
from examples.support.desk import SAMPLE_CUSTOMERS, sample_row

CRM = EnvSecret("SUPPORT_CRM_URL")
"""The database, for the agent: each worker looks the URL up, and no pickle has it."""

ROLE = "support"
"""The agent's name in PostgreSQL."""

_TABLES = """
CREATE TABLE customers (customer_id TEXT PRIMARY KEY, name TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TABLE accounts (
    customer_id TEXT PRIMARY KEY REFERENCES customers, balance NUMERIC(12, 2) NOT NULL, card TEXT NOT NULL
);
CREATE TABLE queue (
    idempotency_key TEXT PRIMARY KEY, number BIGINT GENERATED ALWAYS AS IDENTITY, ticket TEXT NOT NULL,
    customer_id TEXT NOT NULL, reason TEXT NOT NULL, urgent BOOLEAN NOT NULL, transcript JSONB NOT NULL, account JSONB,
    asked INTEGER NOT NULL DEFAULT 1, since TIMESTAMPTZ NOT NULL DEFAULT now()
);
GRANT SELECT ON customers, accounts, queue TO support;
GRANT INSERT, UPDATE (asked) ON queue TO support;
"""


class Account(BaseModel):
    """What is known of a customer."""

    name: str
    plan: str
    balance: Decimal
    card: str


@sql_tool(
    CRM,
    "select name, plan, balance, card from customers join accounts using (customer_id) "
    "where customer_id = :customer_id",
    effect="pure",
)
def find_account(customer_id: str) -> Account | None:
    """Looks up who a customer is and how the account stands; null for somebody whom nobody knows."""


@sql_tool(
    CRM,
    "insert into queue (idempotency_key, ticket, customer_id, reason, urgent, transcript, account) values "
    "(:idempotency_key, :ticket, :customer_id, :reason, :urgent, cast(:transcript as jsonb), cast(:account as jsonb)) "
    "on conflict (idempotency_key) do update set asked = queue.asked + 1",
    effect="idempotent",
    retries=2,
)
def enqueue(ticket: str, customer_id: str, reason: str, urgent: bool, transcript: str, account: str | None) -> None:
    """Hands a ticket to a person; asked again with the same key it finds the place in the queue that there is."""


class Waiting(NamedTuple):
    """A place in the queue."""

    number: int
    ticket: str
    customer_id: str
    reason: str
    urgent: bool
    transcript: list[dict[str, str]]
    account: dict[str, Any] | None
    asked: int


def make_databases(url: str, password: str) -> None:
    """Makes the agent's role, its ledger's database `ledger`, and the desk's, `crm`, without tables.

    Args:
        url: Of the server, for its administrator.
        password: The role's.
    """
    with psycopg.connect(url, autocommit=True) as server:
        role = sql.Identifier(ROLE)
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        server.execute(sql.SQL("CREATE DATABASE ledger OWNER {}").format(role))
        server.execute("CREATE DATABASE crm")


def make_tables(url: str) -> None:
    """Makes the desk's tables, and enters customers and accounts.

    Args:
        url: Of the database `crm`, for its administrator.
    """
    customers = [sample_row(number) for number in range(SAMPLE_CUSTOMERS)]
    cards = ("active", "active", "active", "ordered", "frozen")
    accounts = [
        (customer, 17 * number % 4_000, cards[number % len(cards)]) for number, (customer, *_) in enumerate(customers)
    ]
    with psycopg.connect(url) as crm, crm.cursor() as cursor:
        cursor.execute(_TABLES)
        cursor.executemany("INSERT INTO customers VALUES (%s, %s, %s)", customers)
        cursor.executemany("INSERT INTO accounts VALUES (%s, %s, %s)", accounts)


def queue(url: str) -> list[Waiting]:
    """What waits for a person, the urgent first."""
    with psycopg.connect(url, connect_timeout=5) as crm:
        rows = crm.execute(
            "SELECT number, ticket, customer_id, reason, urgent, transcript, account, asked FROM queue "
            "ORDER BY urgent DESC, number"
        )
        return [Waiting(*row) for row in rows]
