"""The messages of pgoutput, the decoding plug-in that each PostgreSQL server has.

Their forms, version 1 of the protocol, are in PostgreSQL's documentation, "Logical Replication Message Formats":
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

Row = dict[str, str | None]
"""A row's values as texts by their columns' names; columns whose values the server did not send are left out."""

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_OPERATIONS: dict[bytes, Literal["insert", "update", "delete"]] = {b"I": "insert", b"U": "update", b"D": "delete"}


@dataclass(frozen=True)
class Relation:
    """A table as it was when what follows was written."""

    name: str
    """With its schema."""
    columns: tuple[str, ...]
    types: tuple[int, ...]
    """The OID of each column's type."""
    keys: tuple[str, ...]
    """The columns that tell its rows apart (REPLICA IDENTITY)."""


@dataclass(frozen=True)
class Begin:
    """A committed transaction follows."""

    lsn: int
    """Of its commit."""
    committed: datetime
    xid: int


@dataclass(frozen=True)
class Commit:
    """The transaction has ended."""

    end: int
    """The LSN behind its commit."""


@dataclass(frozen=True)
class RowChange:
    """A row was changed."""

    operation: Literal["insert", "update", "delete"]
    relation: Relation
    before: Row | None
    after: Row | None
    whole: bool
    """Whether `before` is the whole row and not its key alone."""


@dataclass(frozen=True)
class Truncate:
    """Tables were emptied."""

    relations: tuple[Relation, ...]


Message = Begin | Commit | RowChange | Truncate


class MessageDecoder:
    """Makes messages of bytes. Tables are described once in a stream, so there is one decoder for each stream."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def __call__(self, data: bytes) -> Message | None:
        """A message, or `None` for one that tells of no change.

        Raises:
            ValueError: It is not in the form of version 1.
        """
        kind, at = data[:1], _Cursor(data)
        match kind:
            case b"B":
                lsn, committed, xid = at.take(">QqI")
                return Begin(lsn, _EPOCH + timedelta(microseconds=committed), xid)
            case b"C":
                _, _, end, _ = at.take(">BQQq")
                return Commit(end)
            case b"R":
                self._describe(at)
                return None
            case b"I" | b"U" | b"D":
                return self._change(kind, at)
            case b"T":
                count, _ = at.take(">IB")
                return Truncate(tuple(self._relations[at.take(">I")[0]] for _ in range(count)))
            case b"O" | b"Y" | b"M":  # where it came from, a type's name, a message of some program
                return None
        raise ValueError(f"pgoutput sent a message of the unknown kind {kind!r}")

    def _describe(self, at: _Cursor) -> None:
        (oid,) = at.take(">I")
        schema, table = at.text() or "pg_catalog", at.text()
        _, count = at.take(">BH")
        columns: list[str] = []
        types: list[int] = []
        keys: list[str] = []
        for _ in range(count):
            (is_key,) = at.take(">B")
            columns.append(at.text())
            types.append(at.take(">Ii")[0])
            if is_key:
                keys.append(columns[-1])
        self._relations[oid] = Relation(f"{schema}.{table}", tuple(columns), tuple(types), tuple(keys))

    def _change(self, kind: bytes, at: _Cursor) -> RowChange:
        relation = self._relations[at.take(">I")[0]]
        rows: dict[bytes, Row] = {}
        while at.more():
            (part,) = at.take(">c")
            rows[part] = at.row(relation)
        before, after = rows.get(b"O", rows.get(b"K")), rows.get(b"N")
        if before is not None and b"K" in rows:
            before = {name: value for name, value in before.items() if name in relation.keys}
        if before is not None and after is not None:
            # A value that is stored apart (TOAST) is not sent again when it was not changed.
            after |= {name: value for name, value in before.items() if name not in after}
        return RowChange(_OPERATIONS[kind], relation, before, after, b"O" in rows)


class _Cursor:
    """Takes a message apart, behind its first byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 1

    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, form: str) -> tuple[Any, ...]:
        try:
            found = struct.unpack_from(form, self._data, self._at)
        except struct.error as error:
            raise ValueError(f"pgoutput sent a message that is too short: {self._data[:40]!r}") from error
        self._at += struct.calcsize(form)
        return found

    def text(self) -> str:
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def row(self, relation: Relation) -> Row:
        row: Row = {}
        (count,) = self.take(">H")
        for name in relation.columns[:count]:
            (kind,) = self.take(">B")
            if kind == ord("n"):
                row[name] = None
            elif kind == ord("t"):
                (size,) = self.take(">I")
                row[name] = self._data[self._at : self._at + size].decode()
                self._at += size
            elif kind != ord("u"):
                raise ValueError(f"pgoutput sent a value of the unknown kind {chr(kind)!r} in {relation.name}")
        return row
