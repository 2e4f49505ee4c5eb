"""The databases that `WriteTable` writes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from beam_agents.errors import ConfigurationError
from beam_agents.io.sinks.table_columns import Column, Kind

Row = tuple[Any, ...]

Verdict = Literal["again", "row", "statement"]
"""What an error says: the same may succeed on a new connection, the row cannot be written, or no row can."""


class Store(ABC):
    """A connection to a database, and the statements for one table.

    Args:
        table: Its name, perhaps with a schema's before it.
        key_columns: The columns that identify a row.
        columns: The others.

    Attributes:
        place: Where it is, without secrets.
        begin: The statement that begins a transaction.
        types: What the database calls the kinds of columns.
    """

    place: str
    begin: ClassVar[str] = "BEGIN"
    types: ClassVar[dict[Kind, str]]

    def __init__(self, table: str, key_columns: Sequence[str], columns: Sequence[Column]) -> None:
        self.table = table
        self._quoted = ".".join(map(_quote, table.split(".")))
        self._keys = list(map(_quote, key_columns))
        self._columns = list(columns)

    @abstractmethod
    def connect(self) -> None:
        """Opens the connection.

        Raises:
            ConfigurationError: It cannot work.
        """

    @abstractmethod
    def execute(self, statement: str, row: Row = ()) -> None:
        """Executes one statement."""

    @abstractmethod
    def execute_all(self, statement: str, rows: Sequence[Row]) -> None:
        """Executes one statement for each row."""

    @abstractmethod
    def close(self) -> None:
        """Closes the connection, if it is open."""

    @abstractmethod
    def judge(self, error: Exception) -> Verdict | None:
        """What an error says; `None` when it is none of the database."""

    def prepare(self, create: bool) -> None:
        """Makes the table if it is missing and may be made, and checks that it has the columns.

        Raises:
            ConfigurationError: It does not.
        """
        if create:
            self.execute(self._create())
        names = ", ".join([*self._keys, *(_quote(column.name) for column in self._columns)])
        try:
            self.execute(f"SELECT {names} FROM {self._quoted} WHERE 1 = 0")
        except Exception as error:
            if self.judge(error) != "statement":
                raise
            raise ConfigurationError(
                f"WriteTable: table {self.table!r} is not there or lacks one of the columns {names} ({error}); make it "
                f"with: {self._create()}"
            ) from error

    def upsert(self) -> str:
        """The statement that writes a row, the newer instead of the older."""
        names = [*self._keys, *(_quote(column.name) for column in self._columns)]
        marks = [self.mark(None)] * len(self._keys) + [self.mark(column.kind) for column in self._columns]
        changes = ", ".join(f"{_quote(column.name)} = excluded.{_quote(column.name)}" for column in self._columns)
        return (
            f"INSERT INTO {self._quoted} ({', '.join(names)}) VALUES ({', '.join(marks)}) "
            f"ON CONFLICT ({', '.join(self._keys)}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING")
        )

    @abstractmethod
    def mark(self, kind: Kind | None) -> str:
        """Where a value stands in a statement."""

    def _create(self) -> str:
        keys = [f"{key} TEXT NOT NULL" for key in self._keys]
        others = [
            f"{_quote(column.name)} {self.types[column.kind]}{'' if column.nullable else ' NOT NULL'}"
            for column in self._columns
        ]
        parts = ", ".join([*keys, *others, f"PRIMARY KEY ({', '.join(self._keys)})"])
        return f"CREATE TABLE IF NOT EXISTS {self._quoted} ({parts})"


def _quote(name: str) -> str:
    return f'"{name}"'
