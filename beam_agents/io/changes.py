"""A change of a row, as change data capture tells it, whatever the database and the connector."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

from pydantic import Discriminator, Tag

from beam_agents.events import Record

RowT = TypeVar("RowT")

Operation = Literal["snapshot", "insert", "update", "delete", "truncate"]


class Change(Record, Generic[RowT]):
    """What became of one row: the event that an agent gets from a database.

    `truncate` is about a whole table and has no row.
    """

    operation: Operation
    """`snapshot` is a row that was there when capture began."""
    table: str
    """With its schema or database, as `public.readings`."""
    before: RowT | None = None
    """The row as it was, if the database tells it."""
    after: RowT | None = None
    """The row as it is now; none after a delete."""
    position: str | None = None
    """Where in the database's log, in its own words: a PostgreSQL LSN, a MySQL file and place, a sequence number."""
    transaction: str | None = None
    """The database's transaction, if it tells it."""
    committed: datetime | None = None
    """When the database says that it happened, in UTC."""

    @property
    def row(self) -> RowT | None:
        """The row as it is, or as it was before it was deleted."""
        return self.before if self.after is None else self.after


def change_type(tables: Mapping[str, Any]) -> Any:
    """The type of the changes of some tables, each with its type of rows."""
    rows = list(dict.fromkeys(tables.values()))
    if len(rows) == 1:
        return Change[rows[0]]  # type: ignore[valid-type]
    # JSON does not tell two kinds of rows apart.
    tagged = tuple(Annotated[Change[row], Tag(table)] for table, row in tables.items())  # type: ignore[valid-type]
    return Annotated[Union[tagged], Discriminator(_table_of)]  # noqa: UP007


def _table_of(change: Any) -> Any:
    return change.get("table") if isinstance(change, dict) else getattr(change, "table", None)
