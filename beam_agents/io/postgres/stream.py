"""The stream of changes from a slot.

The commands and messages are in PostgreSQL's documentation, "Streaming Replication Protocol":
https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Iterator

import psycopg
from psycopg.pq import ExecStatus

from beam_agents.io.postgres.place import Place, lsn_text
from beam_agents.io.postgres.server import Connection
from beam_agents.io.postgres.source import Source, quoted
from beam_agents.io.postgres.transactions import Item, Transactions

_POLL_SECONDS = 0.25
_STATUS_SECONDS = 5.0
"""Between two words to the server, which ends the stream of a client that says nothing for 30 seconds."""
_SILENCE_SECONDS = 30.0
"""After which a server that says nothing, though it is asked, is taken for dead."""
_IDLE_SECONDS = 1.0
"""Between two places at which nothing was changed in the tables."""
_EPOCH = 946_684_800  # 2000-01-01


class Stream:
    """The changes from a place on.

    Args:
        connection: Of the replication kind; it is good for nothing else afterwards.
        source: What is read.
        place: Where it begins.
        flushed: Gives the place up to which the server may forget, as an LSN; 0 while there is none.
    """

    def __init__(self, connection: Connection, source: Source, place: Place, flushed: Callable[[], int]) -> None:
        self._pgconn = connection.pgconn
        self._transactions = Transactions(place)
        self._flushed = flushed
        self._received = place.lsn
        self._idle = 0
        self._idle_told = self._said = self._heard = time.monotonic()
        self._told = 0
        name = quoted(source.publication).replace("'", "''")
        self._command = (
            f"START_REPLICATION SLOT {quoted(source.slot)} LOGICAL {lsn_text(place.lsn)} "
            f"(proto_version '1', publication_names '{name}')"
        )

    def items(self) -> Iterator[Item | None]:
        """What comes, for ever; `None` now and then while nothing does.

        Raises:
            psycopg.Error: The server ended it, or did not begin.
            ValueError: It sends something else than changes.
        """
        result = self._pgconn.exec_(self._command.encode())
        if result.status != ExecStatus.COPY_BOTH:
            raise psycopg.errors.error_from_result(result)
        self._heard = time.monotonic()
        readable = select.poll()  # `select.select` takes no socket above number 1023
        readable.register(self._pgconn.socket, select.POLLIN)
        while True:
            size, data = self._pgconn.get_copy_data(1)
            if size < 0:
                ended = self._pgconn.get_result()
                if ended is not None and ended.status == ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(ended)
                raise psycopg.OperationalError("the server ended the stream")
            if size:
                self._heard = time.monotonic()
                yield from self._follow(bytes(data))
                self.breathe()
                continue
            now = time.monotonic()
            if now - self._heard > _SILENCE_SECONDS:
                raise psycopg.OperationalError(f"the server said nothing for {_SILENCE_SECONDS:.0f} s")
            if self._idle and now - self._idle_told >= _IDLE_SECONDS:
                self._idle_told = now
                yield self._transactions.reach(self._idle)
                self._idle = 0
            yield None
            self.breathe()
            readable.poll(1000 * _POLL_SECONDS)
            self._pgconn.consume_input()

    def wait(self, full: Callable[[float], bool]) -> None:
        """Keeps the stream alive while there is no room for more.

        Args:
            full: Waits for so many seconds; whether it is full still.
        """
        while full(_POLL_SECONDS):
            self.breathe()
        self._heard = time.monotonic()

    def breathe(self) -> None:
        """Tells the server how far it is, when it is time."""
        now, flushed = time.monotonic(), self._flushed()
        if now - self._said >= _STATUS_SECONDS or flushed != self._told:
            self._say(flushed, asks=now - self._said >= _STATUS_SECONDS)

    def _follow(self, data: bytes) -> Iterator[Item]:
        if data[:1] == b"w":
            start, end, _ = struct.unpack_from(">QQq", data, 1)
            self._received = max(self._received, start, end)
            yield from self._transactions.follow(data[25:])
        elif data[:1] == b"k":
            end, _, wants = struct.unpack_from(">QqB", data, 1)
            self._received = max(self._received, end)
            if self._transactions.between:
                self._idle = end
            if wants:
                self._say(self._flushed(), asks=False)
        else:
            raise ValueError(f"the server sent {data[:40]!r} in a stream of changes")

    def _say(self, flushed: int, *, asks: bool) -> None:
        self._said = time.monotonic()
        micros = int((time.time() - _EPOCH) * 1_000_000)
        # Received, flushed and applied. The server forgets what was flushed. While that is none, it may end as soon as
        # all was received: otherwise it waits for a checkpoint, which may wait for a ledger in this very server.
        moved = flushed if flushed > self._told else 0
        self._told = flushed
        self._pgconn.put_copy_data(struct.pack(">cQQQqB", b"r", self._received, moved, moved, micros, asks))
        self._pgconn.flush()
