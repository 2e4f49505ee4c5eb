"""The ledger in a PostgreSQL database: for workers on many hosts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import NoReturn
from urllib.parse import quote, unquote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.commands import Answer, Command
from beam_agents.ledger.postgres_connection import Connection
from beam_agents.ledger.postgres_rows import Statements
from beam_agents.ledger.postgres_schema import SCHEMA_VERSION, prepare
from beam_agents.ledger.postgres_transaction import PostgresTransaction
from beam_agents.ledger.rules import carry_out

DEFAULT_SCHEMA = "beam_agents"

_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
_EXAMPLE = "postgresql://user@host:5432/database?schema=beam_agents"

_IDLE_SECONDS = 4.0
"""How long this process may take to carry out a group with its keys locked: a frozen worker loses its locks before
those who wait for them give up. It is doubled for a process that has needed more."""
_LONGEST_IDLE_SECONDS = 64.0
_SETTINGS = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "search_path": "pg_catalog",
    # All are look-ups by an index, whatever the planner makes of tables that grow faster than they are analyzed.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "client_encoding": "UTF8",
}
_CONNECTION = {
    "connect_timeout": "10",
    "application_name": "beam-agents",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}

# What passes: lost connections, full disks, too many clients, conflicts and time limits, servers that stop or start,
# or that are read-only until they have been promoted.
_PASSING = ("08", "40", "53", "57", "58", "25006", "25P03", "25P04", "55P03", "55006")
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|database \".*\" does not exist|"
    r"role \".*\" does not exist|is not permitted to log in|permission denied for database|"
    r"server does not support SSL|certificate"
)
"""What a server says to connections that it will never let in. There is no code for it in what libpq tells."""


class PostgresLedger(Ledger):
    """Keeps runs in a schema of a PostgreSQL database, which the workers of all hosts share.

    The schema is made when it is not there. Each group of commands is one transaction of two round trips, which is
    on the server's disk (and on its synchronous standbys', if it has any) before it is answered; what an asynchronous
    standby did not get before it took over is lost. All workers go by the server's clock. Each worker process has one
    connection; a pooler between them must pool by session.

    Args:
        url: As libpq takes it, with the name of the database, and with `schema` as one parameter more. Without a
            password in it, PGPASSWORD or the password file of the worker's machine is used.
        clock: Gives seconds since 1970 instead of the server; for tests.

    Raises:
        ConfigurationError: The URL does not name a database and a schema.
    """

    schema_version = SCHEMA_VERSION

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self._secret_url = url
        self._schema, self._parameters = _parse(url)
        self._url = _public_url(self._parameters, self._schema)
        self._statements = Statements(self._schema)
        self._clock = clock
        self._identity = ""
        self._idle_seconds = _IDLE_SECONDS
        self._opened = False
        self._make = True
        self._connection: Connection | None = None

    def __reduce__(self) -> tuple[type[PostgresLedger], tuple[str]]:
        return PostgresLedger, (self._secret_url,)

    def __repr__(self) -> str:
        return f"PostgresLedger({self._url!r})"

    @property
    def url(self) -> str:
        """Without its password."""
        return self._url

    @property
    def identity(self) -> str:
        if not self._identity:
            raise RuntimeError(f"{self!r} has no identity before open()")
        return self._identity

    def open(self, *, make: bool = True) -> None:
        self._make = make
        if self._connection is None:
            self._connect()
        self._opened = True

    def close(self) -> None:
        self._opened = False
        self._drop()

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        if not self._opened:
            raise RuntimeError(f"{self!r} is not open: call open() first")
        if not commands:
            return []
        connection = self._connection or self._connect()
        try:
            transaction = PostgresTransaction(connection, self._statements, self._identity, self._clock)
            transaction.begin(commands)
            answers = [carry_out(transaction, command) for command in commands]
            transaction.commit()
        except psycopg.Error as error:
            self._drop()
            if isinstance(error, psycopg.errors.IdleInTransactionSessionTimeout):
                self._idle_seconds = min(2 * self._idle_seconds, _LONGEST_IDLE_SECONDS)
            self._raise(error)
        except UnicodeEncodeError as error:
            self._drop()
            raise LedgerError(f"{self!r}: PostgreSQL cannot keep half of a surrogate pair: {error}") from error
        except BaseException:
            self._roll_back()
            raise
        return answers

    def _connect(self) -> Connection:
        try:
            connection = Connection.connect(make_conninfo(**{**_CONNECTION, **self._parameters}), autocommit=True)
        except psycopg.Error as error:
            self._raise(error)
        try:
            self._set_up(connection)
            identity = prepare(connection, self._schema, repr(self), self._clock, make=self._make)
        except psycopg.Error as error:
            _close(connection)
            self._raise(error)
        except BaseException:
            _close(connection)
            raise
        if self._identity and identity != self._identity:
            _close(connection)
            raise LedgerError(f"{self!r}: another store was put in the place of this one while it was in use")
        self._identity = identity
        self._connection = connection
        return connection

    def _set_up(self, connection: Connection) -> None:
        idle = {"idle_in_transaction_session_timeout": f"{self._idle_seconds * 1000:.0f}ms"}
        for name, value in {**_SETTINGS, **idle}.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        asked = "SELECT current_setting('transaction_read_only'), current_setting('synchronous_commit')"
        ((read_only, durable),) = connection.execute(asked).fetchall()
        if read_only == "on":
            raise LedgerUnavailable(f"{self!r}: it takes no writes: the database is a standby, or set to read-only")
        if durable == "off":
            connection.execute("SET synchronous_commit = on")

    def _drop(self) -> None:
        if self._connection is not None:
            _close(self._connection)
            self._connection = None

    def _roll_back(self) -> None:
        try:
            if self._connection is not None:
                self._connection.execute("ROLLBACK")
        except psycopg.Error:
            self._drop()

    def _raise(self, error: psycopg.Error) -> NoReturn:
        reason = f"{self!r}: {' '.join(str(error).split())}"
        password = self._parameters.get("password")
        if password:
            reason = reason.replace(password, "***")
        code = error.sqlstate
        if code is None:
            if not isinstance(error, psycopg.OperationalError):
                raise LedgerError(reason) from error
            if _REFUSED.search(reason):
                raise LedgerError(f"{reason}; correct the URL, or let this user in") from None
            raise LedgerUnavailable(reason) from None
        reason = f"{reason} (SQLSTATE {code})"
        if code.startswith(_PASSING):
            raise LedgerUnavailable(reason) from None
        raise LedgerError(f"{reason}{self._advice(code)}") from None

    def _advice(self, code: str) -> str:
        if code == "42501":
            user = self._parameters.get("user", "the user of the workers")
            return (
                f"; let somebody who may do CREATE SCHEMA {self._schema} AUTHORIZATION {user}, "
                "or grant this user the rights to its tables"
            )
        if code in ("42P01", "3F000"):
            return f"; the schema {self._schema!r} was dropped or renamed while it was in use"
        return ""


def _close(connection: Connection) -> None:
    with contextlib.suppress(psycopg.Error):
        connection.close()


def _parse(url: str) -> tuple[str, dict[str, str]]:
    """The schema, and libpq's parameters. Nothing of a URL that cannot be read is told: it may be the password."""
    address, _, query = url.partition("?")
    pairs = [pair for pair in query.split("&") if pair]
    schemas = [unquote(pair.partition("=")[2]) for pair in pairs if pair.partition("=")[0] == "schema"]
    left = "&".join(pair for pair in pairs if pair.partition("=")[0] != "schema")
    why = ""
    try:
        found = conninfo_to_dict(f"{address}?{left}" if left else address)
    except psycopg.Error as error:
        found = {}
        why = f": {str(error).strip()}" if str(error).startswith("invalid URI query parameter") else ""
    # After '/' or '@' in a password, libpq takes the rest of it for the name of the host or the database.
    authority, _, database = address.partition("://")[2].partition("/")
    if not found or authority.count("@") > 1 or "@" in database:
        raise ConfigurationError(
            f"the ledger's PostgreSQL URL cannot be read{why}; its form is {_EXAMPLE!r}, "
            "and special characters in a password or a name are written as %XX"
        )
    parameters = {name: str(value) for name, value in found.items() if value is not None}
    schema = schemas[-1] if schemas else DEFAULT_SCHEMA
    if not parameters.get("port", "").replace(",", "").isdecimal() and parameters.get("port"):
        raise ConfigurationError(
            f"the ledger's PostgreSQL URL cannot be read: its port is no number; its form is {_EXAMPLE!r}"
        )
    if not _SCHEMA_NAME.fullmatch(schema):
        raise ConfigurationError(
            f"ledger {_public_url(parameters, schema)!r}: schema={schema!r} is no name for it; "
            "give lower-case letters, digits and '_', at most 63, that do not begin with 'pg_'"
        )
    if not parameters.get("dbname"):
        raise ConfigurationError(
            f"ledger {_public_url(parameters, schema)!r} names no database; its form is {_EXAMPLE!r}"
        )
    return schema, parameters


def _public_url(parameters: dict[str, str], schema: str) -> str:
    user = f"{quote(parameters['user'], safe='')}@" if "user" in parameters else ""
    hosts, ports = parameters.get("host", "").split(","), parameters.get("port", "").split(",")
    query = {"schema": schema}
    if any(host.startswith("/") for host in hosts):
        query = {"host": ",".join(hosts), "port": ",".join(ports), **query}
        place = ""
    else:
        ports = ports * len(hosts) if len(ports) == 1 else ports
        named = [f"[{host}]" if ":" in host else host for host in hosts]
        place = ",".join(f"{host}:{port}" if port else host for host, port in zip(named, ports, strict=False))
    database = quote(parameters.get("dbname", ""), safe="")
    return f"postgresql://{user}{place}/{database}?{urlencode({k: v for k, v in query.items() if v}, safe='/,')}"
