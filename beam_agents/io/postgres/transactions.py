"""What a stream of messages comes to: changes, each with its id and the place behind it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from beam_agents.io.changes import Operation
from beam_agents.io.postgres.pgoutput import Begin, Commit, MessageDecoder, Relation, Row, RowChange, Truncate
from beam_agents.io.postgres.place import Place, Seen, lsn_text


class TableChange(NamedTuple):
    """A change as the server tells it: values are texts."""

    id: str
    operation: Operation
    relation: Relation
    before: Row | None = None
    after: Row | None = None
    whole: bool = False
    """Whether `before` is the whole row and not its key alone."""
    position: str | None = None
    transaction: str | None = None
    committed: datetime | None = None


class Item(NamedTuple):
    """A change with the place behind it, or a place alone."""

    place: Place
    change: TableChange | None = None
    size: int = 0
    """About how many bytes it takes."""


class Transactions:
    """Follows a stream from a place on, and leaves out what was done before.

    Args:
        place: Where the stream begins.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._decode = MessageDecoder()
        self._begin: Begin | None = None
        self._number = 0
        self._skips = False
        self._seen = Seen(place.seen) if place.seen else None

    @property
    def between(self) -> bool:
        """Whether no transaction is open."""
        return self._begin is None

    def reach(self, lsn: int) -> Item | None:
        """The server has told all up to here; the new place, if it is one."""
        if not self.between or lsn <= self.place.lsn:
            return None
        if lsn <= self.place.commit:  # that transaction comes again, and what was done of it is left out
            return self._move(self.place._replace(lsn=lsn))
        return self._move(self.place._replace(lsn=lsn, commit=0, done=0))

    def follow(self, data: bytes) -> Iterator[Item]:
        """What a message comes to.

        Raises:
            ValueError: It is none of pgoutput's.
        """
        message = self._decode(data)
        match message:
            case Begin():
                self._begin, self._number = message, 0
                done_before = message.lsn < self.place.lsn
                in_snapshot = self._seen is not None and message.lsn < self.place.until and message.xid in self._seen
                self._skips = done_before or in_snapshot
            case Commit():
                self._begin = None
                if message.end > self.place.lsn:
                    yield self._move(self.place._replace(lsn=message.end, commit=0, done=0))
            case RowChange():
                yield from self._number_it(
                    message.operation, message.relation, message.before, message.after, message.whole, len(data)
                )
            case Truncate():
                for relation in message.relations:
                    yield from self._number_it("truncate", relation, None, None, False, len(data))

    def _number_it(
        self, operation: Operation, relation: Relation, before: Row | None, after: Row | None, whole: bool, size: int
    ) -> Iterator[Item]:
        assert self._begin is not None
        begin, number = self._begin, self._number
        self._number += 1
        if self._skips or (self.place.commit == begin.lsn and number < self.place.done):
            return
        position = lsn_text(begin.lsn)
        change = TableChange(
            id=f"{position}-{number}",
            operation=operation,
            relation=relation,
            before=before,
            after=after,
            whole=whole,
            position=position,
            transaction=str(begin.xid),
            committed=begin.committed,
        )
        self.place = self.place._replace(commit=begin.lsn, done=number + 1)
        yield Item(self.place, change, size + 500)

    def _move(self, place: Place) -> Item:
        if self._seen is not None and place.lsn >= place.until:
            self._seen = None
            place = place._replace(seen="", until=0)
        self.place = place
        return Item(place)
