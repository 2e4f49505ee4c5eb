"""The support desk: customers, and the queue of requests that wait for a person, in one SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from typing import Literal

from pydantic import BaseModel

_SCHEMA = """
CREATE TABLE IF NOT EXISTS customers (customer_id TEXT PRIMARY KEY, name TEXT NOT NULL, plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS queue (
    request TEXT PRIMARY KEY,  -- the idempotency key: the same request never waits twice
    ticket TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    intent TEXT NOT NULL,
    urgent INTEGER NOT NULL
);
"""
_NAMES = (
    "Ada",
    "Ben",
    "Chloe",
    "Dev",
    "Elif",
    "Femi",
    "Grace",
    "Hugo",
    "Ines",
    "Jan",
    "Kofi",
    "Lena",
    "Mateo",
    "Nora",
    "Omar",
)
SAMPLE_CUSTOMERS = 200


class Customer(BaseModel):
    customer_id: str
    name: str
    plan: Literal["standard", "premium"]


class Desk:
    """The database of the desk; made with its sample customers if it does not exist yet.

    Args:
        path: The SQLite file.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()  # tools run in several threads
        self._database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.executescript(_SCHEMA)
        self._database.executemany(
            "INSERT OR IGNORE INTO customers VALUES (?, ?, ?)", map(sample_row, range(SAMPLE_CUSTOMERS))
        )

    def close(self) -> None:
        self._database.close()

    def customer(self, customer_id: str) -> Customer | None:
        """The customer, or `None` if there is none with this id."""
        found = self._rows("SELECT customer_id, name, plan FROM customers WHERE customer_id = ?", customer_id)
        return Customer(**dict(zip(("customer_id", "name", "plan"), found[0], strict=True))) if found else None

    def enqueue(self, request: str, ticket: str, customer_id: str, intent: str, urgent: bool) -> None:
        """Puts a request into the queue, unless it is there."""
        with self._lock:
            self._database.execute(
                "INSERT INTO queue VALUES (?, ?, ?, ?, ?) ON CONFLICT (request) DO NOTHING",
                (request, ticket, customer_id, intent, urgent),
            )

    def waiting(self) -> int:
        """How many requests wait for a person."""
        return int(self._rows("SELECT count(*) FROM queue")[0][0])

    def _rows(self, query: str, *values: str) -> list[tuple[str, ...]]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


def sample_customer(number: int) -> str:
    """The id of a sample customer; numbers beyond the last begin again."""
    return f"C{number % SAMPLE_CUSTOMERS:03d}"


def sample_row(number: int) -> tuple[str, str, str]:
    """A sample customer: id, name, plan."""
    return sample_customer(number), _NAMES[number % len(_NAMES)], "premium" if number % 7 == 0 else "standard"
