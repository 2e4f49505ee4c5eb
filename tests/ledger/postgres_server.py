"""A real PostgreSQL server for tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.testing.ledger_store import FakeClock, Store
from runners.postgres import PostgresServer, PostgresUnavailable


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """A server, installed first if needed; without one the tests are skipped, or fail where CI=true."""
    try:
        server = PostgresServer(fsync="off")
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    try:
        server.start()
        yield server
    finally:
        server.remove()


class Place:
    """A schema of its own on the server."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.schema = f"test_{uuid.uuid4().hex[:16]}"

    @property
    def url(self) -> str:
        """Of a ledger there."""
        return f"{self.server.url()}?schema={self.schema}"

    def through(self, port: int) -> str:
        """`url` by another port."""
        return self.url.replace(f":{self.server.port}/", f":{port}/")

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The superuser's answer; `{s}` is the schema."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            done = connection.execute(statement.replace("{s}", self.schema), parameters or None)
            return done.fetchall() if done.description else []

    @contextmanager
    def store(self, url: str | None = None) -> Iterator[Store]:
        """A ledger there, open."""
        clock = FakeClock()
        ledger = PostgresLedger(url or self.url, clock=clock)
        ledger.open()
        try:
            yield Store(ledger, clock)
        finally:
            ledger.close()


def connection_of(store: Store) -> psycopg.Connection[Any]:
    """The connection of an open ledger."""
    assert isinstance(store.ledger, PostgresLedger)
    assert store.ledger._connection is not None
    return store.ledger._connection
