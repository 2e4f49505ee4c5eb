"""From the runner's checkpoint back to the server: what it may forget.

A bundle's finalizer runs after a checkpoint, but Flink's runner does not say which one: it runs the finalizers of all
bundles until the moment at which it hears of the checkpoint, also of those that came after the checkpoint was taken.
So a place goes the way three times: only when a second and a third checkpoint have followed the first, it is certain
that a completed checkpoint holds it.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
from apache_beam.utils.shared import Shared

from beam_agents.io.postgres.place import Place
from beam_agents.io.postgres.source import Source

if TYPE_CHECKING:
    from beam_agents.io.postgres.feed import Feed

_LOG = logging.getLogger(__name__)

_TICKET_SECONDS = 1.0
_OVERDUE_SECONDS = 60.0
"""After which another ticket is sent. Each that is under way keeps a bundle's processor in the worker."""
_WARN_SECONDS = 900.0


class Ticket(NamedTuple):
    """What goes through a bundle: LSNs that it carries for the first, the second and the third time."""

    era: str
    first: int
    second: int
    third: int


class Holder:
    """The one `Feed` of a source in a process; bundles have DoFns of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._feed: Feed | None = None
        self._once = self._twice = 0
        self._sent = 0.0
        self._under_way = False
        self._waiting_since = 0.0

    def enter(self) -> None:
        """One more DoFn uses it."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """One less; the last one ends the reader."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._feed is not None:
                self._feed.close()
                self._feed = None

    def feed(self, source: Source, place: Place | None) -> Feed:
        """The reader that goes on at a place: another one if the bundle before did not count."""
        from beam_agents.io.postgres.feed import Feed

        with self._lock:
            if self._feed is None or self._feed.ended or self._feed.taken != place:
                if self._feed is not None:
                    self._feed.close()
                self._feed = Feed(source, place)
                self._once = self._twice = 0
                self._under_way = False
            return self._feed

    def ticket(self, place: Place) -> Ticket | None:
        """What is to go through this bundle, if anything is."""
        with self._lock:
            feed, waited = self._feed, time.monotonic() - self._sent
            if feed is None or feed.acknowledged >= place.lsn:
                return None
            if waited < (_OVERDUE_SECONDS if self._under_way else _TICKET_SECONDS):
                return None
            self._sent = time.monotonic()
            if not self._under_way:
                self._under_way, self._waiting_since = True, self._sent
            if self._sent - self._waiting_since > _WARN_SECONDS:
                self._waiting_since = self._sent
                _LOG.warning(
                    "ReadPostgresChanges: the runner has completed no checkpoint for %d minutes, so the server keeps "
                    "all of its log; --checkpointing_interval says how often there is one",
                    _WARN_SECONDS // 60,
                )
            return Ticket(feed.era, place.lsn, self._once, self._twice)

    def finalized(self, ticket: Ticket) -> None:
        """A checkpoint was completed after the ticket's bundle."""
        with self._lock:
            if self._feed is None or self._feed.era != ticket.era:
                return
            self._under_way = False
            self._once = max(self._once, ticket.first)
            self._twice = max(self._twice, ticket.second)
            self._feed.acknowledge(ticket.third)


class AcknowledgeDoFn(beam.DoFn):
    """Has its tickets punched by the runner. Timer callbacks have no finalizers, so it is a DoFn of its own."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._holder: Holder | None = None

    def setup(self) -> None:
        """Finds the process's reader."""
        self._holder = self._shared.acquire(Holder)

    def process(self, ticket: Ticket, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> None:
        """Waits for the checkpoint."""
        assert self._holder is not None
        finalizer.register(partial(self._holder.finalized, Ticket(*ticket)))
