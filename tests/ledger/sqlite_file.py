"""An SQLite ledger for tests, and the file behind it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from beam_agents.ledger import SqliteLedger
from beam_agents.testing.ledger_store import FakeClock, Store


@contextmanager
def sqlite_store(path: Path) -> Iterator[Store]:
    """An open ledger with a clock that stands still."""
    clock = FakeClock()
    ledger = SqliteLedger(path, clock=clock)
    ledger.open()
    yield Store(ledger, clock)
    ledger.close()


def bare(path: Path) -> closing[sqlite3.Connection]:
    """A connection past the ledger."""
    return closing(sqlite3.connect(path, isolation_level=None))


def connection_of(store: Store) -> sqlite3.Connection:
    """The ledger's own connection."""
    assert isinstance(store.ledger, SqliteLedger)
    assert store.ledger._connection is not None
    return store.ledger._connection
