"""Statements that go to a PostgreSQL server together.

It is not a pipeline of the driver, whose last word switches off the server's limit for idle transactions: a frozen
worker would keep its locks.
"""

from __future__ import annotations

from typing import Any

import psycopg


class Message:
    """Statements that are sent at once; one round trip."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._cursor = psycopg.ClientCursor(connection)
        self._statements: list[str] = []
        self._answers: list[list[tuple[Any, ...]]] = []

    def add(self, statement: str, **parameters: Any) -> int:
        """The number of the statement."""
        self._statements.append(self._cursor.mogrify(statement, parameters) if parameters else statement)
        return len(self._statements) - 1

    def send(self) -> str | None:
        """What the server says of the last statement; without one it is not asked.

        Raises:
            psycopg.Error: What it says of one that it refuses; none after that one is carried out.
        """
        if not self._statements:
            return None
        self._cursor.execute("; ".join(self._statements).encode())
        while True:
            self._answers.append(self._cursor.fetchall() if self._cursor.description else [])
            if not self._cursor.nextset():
                return self._cursor.statusmessage

    def rows(self, number: int | None) -> list[tuple[Any, ...]]:
        """The answer to a statement."""
        return [] if number is None else self._answers[number]
