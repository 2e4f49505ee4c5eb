"""Databases as SQL tools use them: one statement, one transaction, in a thread."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from beam_agents.codec import canonical_json
from beam_agents.errors import BeamAgentsError, ConfigurationError, ModelRetry, NotCalled, ToolFailed
from beam_agents.secrets import Secret, conceal, reveal

if TYPE_CHECKING:
    from beam_agents.ledger.postgres_connection import Connection

_IDLE_CONNECTIONS = 4
_CONNECT_SECONDS = 10
_LATE_SECONDS = 3.0
"""How much later than its time limit a server may say that it has stopped a statement."""


class SqlError(BeamAgentsError):
    """A statement failed, or nobody knows what became of it."""


@dataclass(frozen=True)
class Rows:
    """What a statement gave."""

    columns: tuple[str, ...]
    """Empty if it gives no rows."""
    rows: list[tuple[Any, ...]]
    changed: int
    """How many rows it changed."""


@dataclass(frozen=True)
class Query:
    """A statement that is to be carried out."""

    text: str
    values: dict[str, Any]
    """JSON data."""
    rows: int
    """The most rows it may give."""
    seconds: float
    """How long it may take."""
    writes: bool


class Database(ABC):
    """A database of a worker. It raises what tools raise; after anything but `SqlError` nothing was changed."""

    @abstractmethod
    def run(self, query: Query) -> Rows:
        """Carries a statement out, in a transaction of its own.

        Raises:
            ToolFailed: It gives too many rows, takes too long, or a constraint forbids it.
            NotCalled: There is no connection, or the database refuses the statement itself.
            SqlError: It failed otherwise; the transaction may have been committed.
        """

    def close(self) -> None:
        """Closes what is open."""


def too_many(query: Query) -> ToolFailed:
    """What is raised for more rows than are allowed."""
    return ToolFailed(f"there are more than {query.rows} rows; ask for less")


def too_slow(query: Query) -> ToolFailed:
    """What is raised for a statement that took longer than it may."""
    return ToolFailed(f"it took longer than {query.seconds:g} s and was stopped; ask for less")


class Sqlite(Database):
    """A SQLite file. Each statement has a connection of its own, read-only unless it writes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self, query: Query) -> Rows:
        until = time.monotonic() + query.seconds
        values = {name: _sqlite_value(value) for name, value in query.values.items()}
        with self._connected(query, until) as connection:
            done = False
            try:
                connection.execute("begin immediate" if query.writes else "begin")
                cursor = connection.execute(query.text, values)
                columns = tuple(column[0] for column in cursor.description or ())
                rows = cursor.fetchmany(query.rows + 1) if columns else []
                if len(rows) > query.rows:
                    raise too_many(query)
                changed = max(0, cursor.rowcount)
                if time.monotonic() >= until:
                    raise too_slow(query)
                connection.set_progress_handler(None, 0)
                done = True
                connection.execute("commit")
                return Rows(columns, rows, changed)
            except (OverflowError, UnicodeEncodeError) as error:
                raise ModelRetry(f"an argument does not fit: {error}") from None
            except sqlite3.Error as error:
                if done and query.writes and error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise SqlError(f"the commit failed: {error}") from error
                if time.monotonic() >= until:
                    raise too_slow(query) from None
                if isinstance(error, sqlite3.IntegrityError):
                    raise ToolFailed(f"the database does not allow it: {error}") from error
                raise NotCalled(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def _connected(self, query: Query, until: float) -> Iterator[sqlite3.Connection]:
        path, mode = quote(str(Path(self._path).absolute())), "rw" if query.writes else "ro"
        try:
            connection = sqlite3.connect(
                f"file:{path}?mode={mode}", uri=True, timeout=query.seconds, isolation_level=None
            )
        except sqlite3.Error as error:
            raise NotCalled(f"SQLite file {self._path!r} cannot be opened: {error}") from error
        with contextlib.closing(connection):
            if not query.writes:
                connection.execute("pragma query_only = on")
            connection.set_progress_handler(lambda: int(time.monotonic() >= until), 1000)
            yield connection


class Postgres(Database):
    """A PostgreSQL database. Some connections stay open between statements."""

    def __init__(self, url: str | Secret) -> None:
        self._url = url
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(self, query: Query) -> Rows:
        import psycopg

        until = time.monotonic() + query.seconds + _LATE_SECONDS
        url, committing = self._revealed(), False
        connection = self._begun(query, url)
        try:
            if time.monotonic() > until:  # the call may have been given up
                raise too_slow(query)
            with connection.patiently(query.seconds + _LATE_SECONDS):
                cursor = connection.execute(query.text.encode(), query.values)
                columns = tuple(column.name for column in cursor.description or ())
                rows = cursor.fetchmany(query.rows + 1) if columns else []
                if len(rows) > query.rows:
                    raise too_many(query)
                if time.monotonic() > until:  # the call may have been given up
                    raise too_slow(query)
                committing = True
                connection.execute("commit")
            return Rows(columns, rows, max(0, cursor.rowcount))
        except psycopg.Error as error:
            told = conceal(str(error), self._hidden(url))
            # Constraints that are checked late and conflicts are found by the commit, which then did nothing.
            if committing and query.writes and (error.sqlstate or "")[:2] not in ("23", "40"):
                raise SqlError(f"the commit failed: {told}") from None
            raise _judged(error, told, query) from None
        finally:
            self._give_back(connection)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _begun(self, query: Query, url: str) -> Connection:
        """A connection in a transaction; one that was kept may have died meanwhile."""
        import psycopg

        begin = (
            f"begin {'read write' if query.writes else 'read only'}; "
            f"set local statement_timeout = {max(1, round(query.seconds * 1000))}"
        )
        while True:
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            connection = kept
            try:
                if connection is None:
                    connection = self._connect(url)
                with connection.patiently(_CONNECT_SECONDS):
                    connection.execute(begin.encode())
            except psycopg.Error as error:
                if connection is not None:
                    connection.close()
                if kept is None:
                    told = conceal(str(error), self._hidden(url))
                    raise NotCalled(f"PostgreSQL cannot be reached: {told}") from None
                continue
            return connection

    def _connect(self, url: str) -> Connection:
        from beam_agents.ledger.postgres_connection import Connection

        connection = Connection.connect(
            url, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="beam-agents"
        )
        connection.prepare_threshold = None  # poolers between here and there may not keep prepared statements
        return connection

    def _give_back(self, connection: Connection) -> None:
        import psycopg

        try:
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("rollback")
        except psycopg.Error:
            connection.close()
        with self._lock:
            if not connection.closed and not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _revealed(self) -> str:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            url = reveal(self._url)
            conninfo_to_dict(url)
        except ConfigurationError as error:
            raise NotCalled(str(error)) from error
        except ProgrammingError:  # which quotes what it cannot read
            raise NotCalled("the database's URL cannot be read; write signs such as % in its password as %25") from None
        return url

    def _hidden(self, url: str) -> list[str]:
        from psycopg.conninfo import conninfo_to_dict

        return [url, str(conninfo_to_dict(url).get("password") or "")]


def _judged(error: Any, told: str, query: Query) -> Exception:
    """What an error of psycopg before the commit means: nothing was changed."""
    import psycopg

    if isinstance(error, psycopg.errors.QueryCanceled):
        return too_slow(query)
    if isinstance(error, psycopg.IntegrityError):
        return ToolFailed(f"the database does not allow it: {told}")
    if isinstance(error, psycopg.DataError):
        return ModelRetry(f"an argument does not fit: {told}")
    return NotCalled(f"{type(error).__name__}: {told}")


def check_psycopg() -> None:
    """Raises `ConfigurationError` where the client for PostgreSQL is not installed."""
    try:
        import beam_agents.ledger.postgres_connection  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"sql_tool needs psycopg for PostgreSQL, which cannot be imported ({error}): "
            "pip install 'beam-agents[postgres]'"
        ) from error


def _sqlite_value(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, (dict, list)) else value
