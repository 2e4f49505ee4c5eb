"""The bank: a SQLite file with a blocklist, merchants and holds. It is not the agent's and outlives it.

Like many real systems it does what it is asked each time it is asked: two requests for a hold are two holds, also
with the same idempotency key. It keeps the key, so that it can be asked later what became of a request, and so that
everybody can count:

    sqlite3 demo-out/fraud/bank.db 'select idempotency_key, count(*) from holds group by 1 having count(*) > 1'
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.fraud.events import Hold, Listing, Merchant

_TABLES = """
CREATE TABLE IF NOT EXISTS merchants (merchant TEXT PRIMARY KEY, name TEXT, category TEXT, high_risk INTEGER);
CREATE TABLE IF NOT EXISTS blocklist (merchant TEXT PRIMARY KEY, reason TEXT);
CREATE TABLE IF NOT EXISTS holds (
    hold_id INTEGER PRIMARY KEY, card TEXT NOT NULL, reason TEXT NOT NULL,
    idempotency_key TEXT NOT NULL, attempt INTEGER NOT NULL, created REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS holds_by_key ON holds (idempotency_key);
-- The bank's own log of requests: answered stays empty where the asker was gone before the answer.
CREATE TABLE IF NOT EXISTS requests (
    request_id INTEGER PRIMARY KEY, card TEXT NOT NULL, idempotency_key TEXT NOT NULL, attempt INTEGER NOT NULL,
    arrived REAL NOT NULL, answered REAL
);
-- Attempts that the asker has given up; the bank turns them away however late they arrive.
CREATE TABLE IF NOT EXISTS cancelled (idempotency_key TEXT, attempt INTEGER, PRIMARY KEY (idempotency_key, attempt));
"""


class Cancelled(Exception):
    """The bank turned a request away, because its asker had cancelled it."""


class Bank:
    """A connection to the bank, fit for several threads.

    Args:
        path: The SQLite file; made if it is not there.
        delay: Seconds that a hold takes, once before it stands and once more before the bank answers.
    """

    def __init__(self, path: str | Path, delay: float = 0.0) -> None:
        self.delay = delay
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(_TABLES)

    def close(self) -> None:
        """Disconnects."""
        self._database.close()

    def set_up(self, merchants: Iterable[tuple[str, Merchant]], blocklist: Iterable[tuple[str, str]]) -> None:
        """Enters merchants and a blocklist (merchant, reason); what is there already stays as it is."""
        rows = [(merchant, known.name, known.category, known.high_risk) for merchant, known in merchants]
        with self._transaction() as database:
            database.executemany("INSERT OR IGNORE INTO merchants VALUES (?, ?, ?, ?)", rows)
            database.executemany("INSERT OR IGNORE INTO blocklist VALUES (?, ?)", blocklist)

    def listing(self, merchant: str) -> Listing:
        """What the blocklist says about a merchant."""
        row = self._row("SELECT reason FROM blocklist WHERE merchant = ?", merchant)
        return Listing(listed=True, reason=row[0]) if row else Listing(listed=False)

    def merchant(self, merchant: str) -> Merchant | None:
        """What is known of a merchant."""
        row = self._row("SELECT name, category, high_risk FROM merchants WHERE merchant = ?", merchant)
        return Merchant(name=row[0], category=row[1], high_risk=bool(row[2])) if row else None

    def hold(self, card: str, reason: str, *, key: str, attempt: int) -> Hold:
        """Puts a card on hold, each time it is asked.

        Raises:
            Cancelled: This attempt was cancelled before it arrived.
        """
        with self._transaction() as database:
            arrived = "INSERT INTO requests (card, idempotency_key, attempt, arrived) VALUES (?, ?, ?, ?)"
            request = database.execute(arrived, (card, key, attempt, time.time())).lastrowid
        time.sleep(self.delay)
        with self._transaction() as database:
            gone = "SELECT 1 FROM cancelled WHERE idempotency_key = ? AND attempt = ?"
            if database.execute(gone, (key, attempt)).fetchone():
                raise Cancelled(f"hold of {card!r}: attempt {attempt} of {key!r} was cancelled")
            made = "INSERT INTO holds (card, reason, idempotency_key, attempt, created) VALUES (?, ?, ?, ?, ?)"
            hold_id = database.execute(made, (card, reason, key, attempt, time.time())).lastrowid
        time.sleep(self.delay)
        with self._transaction() as database:
            database.execute("UPDATE requests SET answered = ? WHERE request_id = ?", (time.time(), request))
        assert hold_id is not None
        return Hold(hold_id=hold_id, card=card, reason=reason)

    def count_holds(self) -> tuple[int, int]:
        """All holds, and how many of them are a second one for the same idempotency key."""
        row = self._row("SELECT count(*), count(*) - count(DISTINCT idempotency_key) FROM holds")
        assert row is not None
        return row[0], row[1]

    def find_or_cancel(self, *, key: str, attempt: int) -> Hold | None:
        """The hold that a request led to; if there is none, there never will be: the attempt is cancelled."""
        with self._transaction() as database:
            found = "SELECT hold_id, card, reason FROM holds WHERE idempotency_key = ? ORDER BY hold_id"
            row = database.execute(found, (key,)).fetchone()
            if row:
                return Hold(hold_id=row[0], card=row[1], reason=row[2])
            database.execute("INSERT OR IGNORE INTO cancelled VALUES (?, ?)", (key, attempt))
            return None

    def _row(self, query: str, *values: str) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
            return row

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
