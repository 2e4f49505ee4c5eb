"""The reader of a slot: one for each process, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import closing

import psycopg

from beam_agents.io.postgres.place import Place
from beam_agents.io.postgres.scan import scan
from beam_agents.io.postgres.server import connect, for_good, prepare
from beam_agents.io.postgres.source import Source
from beam_agents.io.postgres.stream import Stream
from beam_agents.io.postgres.transactions import Item

_LOG = logging.getLogger(__name__)

_FULL_BYTES = 16_000_000
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 5.0
_QUIET_SECONDS = 60.0
"""Between two warnings of the same trouble."""
_UNWATCHED_SECONDS = 60.0
"""After which a reader whose items nobody takes gives the slot free."""


class Feed:
    """Reads on from a place. A server that is away is waited for, in the background.

    Args:
        source: What is read.
        place: Where it begins; `None` at the very beginning.

    Attributes:
        taken: The place behind what was taken.
        era: A name of its own.
    """

    def __init__(self, source: Source, place: Place | None) -> None:
        self.taken = place
        self.era = uuid.uuid4().hex
        self._source = source
        self._reached = place
        self._items: deque[Item] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closed = False
        self._error: Exception | None = None
        self._raised = False
        self._acknowledged = 0
        self._looked = time.monotonic()
        self._warned: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name=f"changes-{source.slot}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it, not even its error."""
        return not self._thread.is_alive() and not self._items and (self._error is None or self._raised)

    def take(self, records: int, size: int) -> list[Item]:
        """What has come, at most so many changes and about so many bytes.

        Raises:
            ConfigurationError: The server is not set up for it.
            ChangesLost: What comes next is not there any more.
        """
        found: list[Item] = []
        with self._changed:
            self._looked = time.monotonic()
            while self._items and records > 0 and size > 0:
                item = self._items.popleft()
                self._size -= item.size
                size -= item.size
                records -= item.change is not None
                found.append(item)
            if found:
                self.taken = found[-1].place
                self._changed.notify_all()
            elif self._error is not None:
                self._raised = True
                raise self._error
        return found

    def acknowledge(self, lsn: int) -> None:
        """Lets the server forget what was committed before."""
        self._acknowledged = max(self._acknowledged, lsn)

    @property
    def acknowledged(self) -> int:
        """Up to where the server may forget."""
        return self._acknowledged

    def close(self) -> None:
        """Ends it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(10.0)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._done():
            began = self._reached
            try:
                self._read()
            except psycopg.Error as error:
                self._error = for_good(self._source, error)
                self._warn(str(error).strip())
            except Exception as error:
                self._error = error
            if self._error is not None:
                return
            pause = _FIRST_PAUSE if self._reached != began else min(2 * pause, _LAST_PAUSE)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause)

    def _read(self) -> None:
        with closing(connect(self._source, replication=True)) as connection:
            place = prepare(connection, self._source, self._reached)
            if self._reached is None:
                self._put(Item(place), self._full)
            with closing(scan(connection, self._source, place)) as rows:
                for item in rows:
                    place = item.place
                    self._put(item, self._full)
                    if self._done():
                        return
            stream = Stream(connection, self._source, place, lambda: self._acknowledged)
            for coming in stream.items():
                if coming is not None:
                    if self._full(0):
                        stream.wait(self._full)
                    self._put(coming)
                if self._done():
                    return

    def _put(self, item: Item, full: Callable[[float], bool] | None = None) -> None:
        while full is not None and full(1.0):
            pass
        with self._changed:
            self._reached = item.place
            if item.change is None and self._items:
                self._items[-1] = self._items[-1]._replace(place=item.place)
            else:
                self._items.append(item)
                self._size += item.size

    def _full(self, seconds: float) -> bool:
        with self._changed:
            return not self._changed.wait_for(lambda: self._closed or self._size < _FULL_BYTES, seconds) and (
                not self._done()
            )

    def _done(self) -> bool:
        return self._closed or time.monotonic() - self._looked > _UNWATCHED_SECONDS

    def _warn(self, trouble: str) -> None:
        now = time.monotonic()
        if now - self._warned.get(trouble, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._warned[trouble] = now
            _LOG.warning("ReadPostgresChanges at %s goes on trying: %s", self._source.place, trouble)
