"""The ledger in one SQLite file: for all processes of one host, the default."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.commands import (
    Answer,
    Command,
    CountOld,
    FindClosed,
    FindOrphans,
    FindRuns,
    Load,
    ReadHead,
    ReadHorizon,
    Summarize,
)
from beam_agents.ledger.rules import carry_out
from beam_agents.ledger.sqlite_schema import SCHEMA_VERSION, prepare
from beam_agents.ledger.sqlite_text import decode_text
from beam_agents.ledger.sqlite_transaction import SqliteTransaction

_BUSY_SECONDS = 2.0
_CACHED_STATEMENTS = 256
_OLDEST_SQLITE = (3, 35)
_KNOWN_BYTES = 16_000_000
"""What is kept in memory from one transaction to the next, about."""
_PASSING = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
    )
)


_READING = (CountOld, FindClosed, FindOrphans, FindRuns, Load, ReadHead, ReadHorizon, Summarize)


class SqliteLedger(Ledger):
    """Keeps runs in an SQLite file on a local disk, which all worker processes of one host share.

    Each group of commands is one transaction that is on the disk before it is answered. Workers on several hosts
    need another ledger: SQLite's locks do not hold over a network file system.

    Args:
        path: The file; it is made when it is not there, its folder is not.
        clock: Gives seconds since 1970; for tests.

    Raises:
        ConfigurationError: The path does not name a file.
    """

    schema_version = SCHEMA_VERSION

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        name = os.fspath(path)
        if name == ":memory:":
            raise ConfigurationError(
                f"SqliteLedger({name!r}): nothing would outlive the process; use 'memory:' for that"
            )
        if not name:
            raise ConfigurationError(f"SqliteLedger({name!r}): give the path of a file")
        self._path = os.path.abspath(name)
        self._clock = clock
        self._identity = ""
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._last: SqliteTransaction | None = None
        self._version = 0

    def __reduce__(self) -> tuple[type[SqliteLedger], tuple[str]]:
        return SqliteLedger, (self._path,)

    def __repr__(self) -> str:
        return f"SqliteLedger({self._path!r})"

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    @property
    def identity(self) -> str:
        if not self._identity:
            raise RuntimeError(f"{self!r} has no identity before open()")
        return self._identity

    def open(self, *, make: bool = True) -> None:
        if self._connection is not None:
            return
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise LedgerError(f"{self!r}: SQLite {sqlite3.sqlite_version} is too old; use a Python with 3.35 or newer")
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connect(make)
            except sqlite3.Error as error:
                # The busy timeout does not hold for the change to a write-ahead log, when several processes do it.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    self._raise(error)
            else:
                return
            time.sleep(0.01)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._last = None

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        connection = self._connection
        if connection is None:
            raise RuntimeError(f"{self!r} is not open: call open() first")
        if self._find_file() != self._file:
            raise LedgerError(
                f"{self!r}: the file was moved, deleted or replaced while it was in use; put it back and start again"
            )
        try:
            # What looks at many runs must not keep the workers from writing meanwhile.
            reading = commands and all(isinstance(command, _READING) for command in commands)
            connection.execute("BEGIN" if reading else "BEGIN IMMEDIATE")
            transaction = SqliteTransaction(connection, self._clock) if reading else self._transaction(connection)
            transaction.read_ahead(commands)
            answers = [carry_out(transaction, command) for command in commands]
            transaction.flush()
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            self._raise(error)
        except BaseException:
            self._roll_back(connection)
            raise
        return answers

    def _transaction(self, connection: sqlite3.Connection) -> SqliteTransaction:
        """The last transaction goes on with what it has read, if no other connection has written since."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if self._last is None or version != self._version or self._last.known > _KNOWN_BYTES:
            self._last, self._version = SqliteTransaction(connection, self._clock), version
        return self._last

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        self._last = None
        if connection.in_transaction:
            connection.execute("ROLLBACK")

    def _connect(self, make: bool) -> None:
        if not make and not os.path.exists(self._path):
            raise LedgerError(
                f"there is no ledger {self._path!r}: correct the path; sqlite:///NAME is below the folder of this "
                "process, sqlite:////PATH is absolute"
            )
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, cached_statements=_CACHED_STATEMENTS
        )
        try:
            connection.text_factory = decode_text
            self._identity = prepare(connection, repr(self), make=make)
            self._file = self._find_file()
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _find_file(self) -> tuple[int, int] | None:
        """What the path names now: device and inode."""
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LedgerUnavailable(f"{self!r}: {error}") from error
        return found.st_dev, found.st_ino

    def _raise(self, error: sqlite3.Error) -> NoReturn:
        code: int | None = getattr(error, "sqlite_errorcode", None)
        if code is None:
            raise error
        reason = f"{self!r}: {error} ({error.sqlite_errorname})"
        primary = code & 0xFF
        if primary == sqlite3.SQLITE_NOTADB:
            raise LedgerError(f"{self!r} is not an SQLite database; give the ledger a file of its own") from error
        if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            advice = self._what_forbids_writing()
            if advice:
                raise LedgerError(f"{reason}: {advice}") from error
        if primary in _PASSING:
            raise LedgerUnavailable(reason) from error
        raise LedgerError(reason) from error

    def _what_forbids_writing(self) -> str | None:
        """What somebody has to change before the file can be written; `None` when waiting may help."""
        folder = os.path.dirname(self._path)
        if not os.path.isdir(folder):
            return f"the folder {folder!r} is not there; make it first"
        if os.path.isdir(self._path):
            return "this is a folder; give the path of a file"
        if os.statvfs(folder).f_flag & os.ST_RDONLY:  # what Linux makes of a failing disk, until it is repaired
            return None
        for path in (folder, self._path, f"{self._path}-wal", f"{self._path}-shm"):
            if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
                return f"no permission to read and write {path!r}; give it to the user the workers run as"
        return None
