"""Text in SQLite: Python's may hold lone surrogates, SQLite's parameters may not."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any


def execute(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
    """Executes a statement, whose only question marks are those of its parameters."""
    try:
        return connection.execute(sql, parameters)
    except UnicodeEncodeError:
        encoded = [_encoded(value) for value in parameters]
        casts = ["CAST(? AS TEXT)" if isinstance(value, bytes) else "?" for value in encoded]
        pieces = zip(sql.split("?"), [*casts, ""], strict=True)
        return connection.execute("".join(chain.from_iterable(pieces)), encoded)


def decode_text(data: bytes) -> str:
    """Text as `execute` writes it."""
    return data.decode("utf-8", "surrogatepass")


def _encoded(value: Any) -> Any:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
