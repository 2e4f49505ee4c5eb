"""Tables in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict

from beam_agents.errors import ConfigurationError
from beam_agents.io.sinks.table_columns import Column, Kind
from beam_agents.io.sinks.table_store import Row, Store, Verdict
from beam_agents.ledger.postgres_connection import Connection


def check_url(url: str) -> None:
    """Raises `ConfigurationError`, which does not show it, for a URL that cannot be read."""
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # which quotes what it cannot read
        raise ConfigurationError(
            "WriteTable(url=...) cannot be read as PostgreSQL's; write signs such as % in its password as %25"
        ) from None


class PostgresStore(Store):
    """A database on a PostgreSQL server."""

    # A constraint that is checked at the commit would not say which row it does not allow.
    begin: ClassVar[str] = "BEGIN; SET CONSTRAINTS ALL IMMEDIATE"

    types: ClassVar[dict[Kind, str]] = {
        "bool": "BOOLEAN",
        "int": "BIGINT",
        "float": "DOUBLE PRECISION",
        "decimal": "NUMERIC",
        "text": "TEXT",
        "datetime": "TIMESTAMPTZ",
        "date": "DATE",
        "bytes": "BYTEA",
        "json": "JSONB",
    }

    def __init__(self, url: str, table: str, key_columns: Sequence[str], columns: Sequence[Column]) -> None:
        super().__init__(table, key_columns, columns)
        self.place = "PostgreSQL"
        self._url = url
        self._connection: Connection | None = None

    def connect(self) -> None:
        self._connection = Connection.connect(
            self._url, autocommit=True, connect_timeout=10, options="-c timezone=UTC", application_name="beam-agents"
        )
        self.place = f"{self._connection.info.host}:{self._connection.info.port}/{self._connection.info.dbname}"

    def execute(self, statement: str, row: Row = ()) -> None:
        assert self._connection is not None
        self._connection.execute(cast(Any, statement), row or None)

    def execute_all(self, statement: str, rows: Sequence[Row]) -> None:
        assert self._connection is not None
        with self._connection.cursor() as cursor:
            cursor.executemany(cast(Any, statement), rows)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def judge(self, error: Exception) -> Verdict | None:
        # A key that is too long for its index exceeds a limit; half of a surrogate pair cannot be sent at all.
        if isinstance(
            error,
            (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded, UnicodeEncodeError),
        ):
            return "row"
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            return "again"
        return "statement" if isinstance(error, psycopg.Error) else None

    def mark(self, kind: Kind | None) -> str:
        return "%s::jsonb" if kind == "json" else "%s"
