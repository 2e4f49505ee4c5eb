"""PostgreSQL servers that tell their changes, and databases on them for single tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from runners.postgres import PostgresServer, PostgresUnavailable

PASSWORD_VARIABLE = "PGPASSWORD"


class Reading(BaseModel):
    """A row of `readings`."""

    id: int
    device: str = ""
    value: float | None = None


@contextmanager
def replicating_server(**settings: str) -> Iterator[PostgresServer]:
    """A server with `wal_level=logical`, installed first if needed; without one the tests are skipped, but not in CI.

    Its password is in the environment, where libpq and workers find it.
    """
    try:
        server = PostgresServer(**({"fsync": "off", "wal_level": "logical"} | settings))
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    before = os.environ.get(PASSWORD_VARIABLE)
    os.environ[PASSWORD_VARIABLE] = server.password
    try:
        server.start()
        yield server
    finally:
        if before is None:
            del os.environ[PASSWORD_VARIABLE]
        else:
            os.environ[PASSWORD_VARIABLE] = before
        server.remove()


class Database:
    """A database of its own on the server, with a table `readings`."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.name = f"d_{uuid.uuid4().hex[:12]}"
        self.slot = self.name
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.name}")
        self.sql("CREATE TABLE readings (id int PRIMARY KEY, device text, value float8)")

    @property
    def url(self) -> str:
        """Without a password."""
        return f"postgresql://postgres@127.0.0.1:{self.server.port}/{self.name}"

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Carries out the statements in one transaction; the answer to the last."""
        with psycopg.connect(self.server.url(self.name)) as connection:
            for statement in statements:
                done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def insert(self, *ids: int, device: str = "pump") -> None:
        """Rows, in one transaction."""
        self.sql(*(f"INSERT INTO readings VALUES ({id}, '{device}', {id}.5)" for id in ids))

    def insert_into(self, table: str, values: str) -> None:
        """Rows as they are written in SQL."""
        self.sql(f"INSERT INTO {table} VALUES {values}")

    def confirmed(self) -> int:
        """How far the server was told to forget, as a number."""
        ((lsn,),) = self.sql(
            f"SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = '{self.slot}'"
        )
        return int(lsn)

    def make_slot(self, *tables: str) -> None:
        """The publication and the slot, as an operator makes them."""
        self.sql(f"CREATE PUBLICATION {self.slot} FOR TABLE {', '.join(tables or ('readings',))}")
        self.sql(f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")

    def drop_slot(self) -> None:
        """Drops it if it is there, and ends who reads it."""
        with psycopg.connect(self.server.url(self.name), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots "
                "WHERE slot_name = %s AND active_pid IS NOT NULL",
                (self.slot,),
            )
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (self.slot,),
            )
