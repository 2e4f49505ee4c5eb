"""Tables in SQLite files."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

from beam_agents.io.sinks.table_columns import Column, Kind
from beam_agents.io.sinks.table_store import Row, Store, Verdict

_WAIT_SECONDS = 10.0
"""How long a statement waits for another writer."""


class SqliteStore(Store):
    """A SQLite file."""

    types: ClassVar[dict[Kind, str]] = {
        "bool": "INTEGER",
        "int": "INTEGER",
        "float": "REAL",
        "decimal": "TEXT",
        "text": "TEXT",
        "datetime": "TEXT",
        "date": "TEXT",
        "bytes": "BLOB",
        "json": "TEXT",
    }

    def __init__(self, path: str, table: str, key_columns: Sequence[str], columns: Sequence[Column]) -> None:
        super().__init__(table, key_columns, columns)
        self.place = path
        self._connection: sqlite3.Connection | None = None

    def connect(self) -> None:
        self._connection = sqlite3.connect(
            self.place, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL").close()

    def execute(self, statement: str, row: Row = ()) -> None:
        assert self._connection is not None
        self._connection.execute(statement, [_plain(value) for value in row]).close()

    def execute_all(self, statement: str, rows: Sequence[Row]) -> None:
        assert self._connection is not None
        self._connection.executemany(statement, ([_plain(value) for value in row] for row in rows)).close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def judge(self, error: Exception) -> Verdict | None:
        if isinstance(error, sqlite3.OperationalError):
            return "statement" if error.sqlite_errorcode == sqlite3.SQLITE_ERROR else "again"
        return "row" if isinstance(error, (sqlite3.Error, OverflowError, UnicodeEncodeError)) else None

    def mark(self, kind: Kind | None) -> str:
        return "?"


def _plain(value: Any) -> Any:
    """A value as SQLite keeps it."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value
