"""What Beam's state keeps for a key of a stream, and its access during a bundle.

Each cell that is read or written costs a round trip to the runner, which on Flink is most of what an event costs. So
what changes often is in one small cell, and an event whose run ends at once costs one read and one write:

- `record`: the open event, how much waits, the ledger's identity, the session's version and, if it is short, the
  session, the ids that were emitted last.
- `session`: a session that is too long for `record`; written when a run ends.
- `inbox`: events that wait, a bag.
- `batch`: the events that were taken from the inbox together, so that it is not read for each of them.
- `closed`: older ids of events that were emitted, a bag; read only when the ledger says that a run had ended before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from beam_agents.stored import Stored
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.state_ahead import ReadAhead

if TYPE_CHECKING:
    from beam_agents.engine.host import Handle

_SHORT_SESSION = 4_096
"""Characters up to which a session is in `record`."""

_BATCH = 64
"""Events that are taken from an inbox at once."""

_RECENT = 16
"""Emitted ids in `record`; older ones are moved to `closed`."""

_COMPACT_AFTER = 256
"""Emitted ids of a key from one dropping of those older than `dedupe_for` to the next."""


class ClosedId(NamedTuple):
    """An event that was emitted."""

    run_id: str
    digest: str
    """Of the event."""
    at: float
    """Seconds since 1970."""


class ClosedIds(Stored):
    """An element of the bag `closed`."""

    ids: tuple[ClosedId, ...]


class KeyRecord(Stored):
    """The small cell of a key."""

    open: Envelope | None = None
    revision: int | None = None
    """Of the agent that the open event was given to: its run ends under the revision it began with."""
    taken_by: str = ""
    """The worker that took the open event and did not know its run; empty if it did."""
    waiting: int = 0
    """How many events wait in `batch` and `inbox`."""
    batch_left: int = 0
    """How many of them are in `batch`: its last ones."""
    ledger: str | None = None
    """Identity of the ledger."""
    session_revision: int = 0
    """Of the agent that wrote the session."""
    session_version: int = 0
    session: str | None = None
    """`history.Session` as JSON, if it is short."""
    session_apart: bool = False
    """Whether the session is in a cell of its own."""
    touched: int = 0
    """Event time of the newest event, microseconds since 1970."""
    expiry_set: bool = False
    recent: tuple[ClosedId, ...] = ()
    """The ids that were emitted last, the newest at the end."""
    closed: int = 0
    """How many ids were moved to `closed` since old ones were last dropped."""


class Cells:
    """One key's state during one bundle; cells are read once, and written when they changed.

    Attributes:
        key: The Beam key.
        handle: The worker's hold on the run of the open event.
        deadlines: The timers of events that are looked at again if nothing else calls the key, by tag, as the
            callbacks of this bundle were given them.
        pending: By tag, how many timers of older bundles are pending at least for events that are done: those that are
            done less those that came, or whose timer fired, in this bundle.
        deadline: The timer of the newest callback.
        expiry: The timer of the session.
    """

    def __init__(
        self, key: Any, record: Any, session: Any, inbox: Any, batch: Any, closed: Any, deadline: Any, expiry: Any
    ) -> None:
        self.key = key
        self._record, self._session, self._inbox, self._batch, self._closed = record, session, inbox, batch, closed
        self.deadline, self.expiry = deadline, expiry
        self.deadlines: dict[str, Any] = {}
        self.pending: Counter[str] = Counter()
        self.handle: Handle | None = None
        self._ahead = ReadAhead(record)
        self._now: KeyRecord | None = None
        self._was_empty = False
        self._written: KeyRecord | None = None
        self._long_session: str | None = None
        self._events: list[bytes] | None = None

    @property
    def record(self) -> KeyRecord:
        """The small cell as it is now; it is waited for when it is first needed."""
        if self._now is None:
            raw = self._ahead.value()
            self._was_empty = not raw
            self._now = self._written = KeyRecord.from_json(raw) if raw else KeyRecord()
        return self._now

    @property
    def idle(self) -> bool:
        """Whether no event is open, and none waits."""
        return self.record.open is None and not self.record.waiting

    def set(self, **changes: Any) -> None:
        """Changes the small cell."""
        self._now = self.record.model_copy(update=changes)

    def expect(self, tag: str, deadline: Any) -> None:
        """Notes that an event has no timer that is pending, and needs one unless it is done in this bundle."""
        self.deadlines[tag] = deadline
        self.pending[tag] -= 1

    # ---- events that wait ----

    def wait(self, envelope: Envelope) -> None:
        """Puts an event into the inbox."""
        self._inbox.add(envelope.encoded())
        self.set(waiting=self.record.waiting + 1)

    def next_event(self) -> Envelope | None:
        """Takes the first event that waits."""
        if not self.record.waiting:
            return None
        events = self._batched()
        if not events:
            events = list(self._inbox.read())
            self._inbox.clear()
            for raw in events[_BATCH:]:
                self._inbox.add(raw)
            del events[_BATCH:]
            self._events = events
            if len(events) > 1:
                self._batch.write(b"\n".join(events))
        elif len(events) == 1:
            self._batch.clear()
        first = events.pop(0)
        self.set(waiting=self.record.waiting - 1, batch_left=len(events))
        return Envelope.from_json(first)

    def unfinished(self) -> Iterator[Envelope]:
        """The open event and those that wait."""
        if self.record.open is not None:
            yield self.record.open
        if self.record.waiting:
            yield from map(Envelope.from_json, (*self._batched(), *self._inbox.read()))

    def _batched(self) -> list[bytes]:
        if self._events is None:
            left = self.record.batch_left
            self._events = self._batch.read().split(b"\n")[-left:] if left else []
        return self._events

    # ---- the session ----

    def session(self) -> str | None:
        """The key's session as JSON."""
        if self.record.session_apart and self._long_session is None:
            self._long_session = self._session.read().decode()
        return self._long_session if self.record.session_apart else self.record.session

    def set_session(self, session: str | None, *, version: int, revision: int) -> None:
        """Notes the session that a run has left."""
        self._put_session(session)
        self.set(session_version=version, session_revision=revision)

    def drop_session(self) -> None:
        """Drops the session, and keeps its version."""
        self._put_session(None)

    def _put_session(self, session: str | None) -> None:
        apart = session is not None and len(session) > _SHORT_SESSION
        if session is not None and apart:
            self._session.write(session.encode())
        elif self.record.session_apart:
            self._session.clear()
        self._long_session = session if apart else None
        self.set(session=None if apart else session, session_apart=apart)

    # ---- what was emitted ----

    def emitted_before(self, event: Envelope) -> ClosedId | None:
        """What this state has emitted under the event's id."""
        for closed in self.record.recent:
            if closed.run_id == event.run_id:
                return closed
        for closed in self._older_ids():
            if closed.run_id == event.run_id:
                return closed
        return None

    def knows(self, event: Envelope) -> bool:
        """Whether an event with this id was emitted, is open or waits."""
        return self.emitted_before(event) is not None or any(event.run_id == e.run_id for e in self.unfinished())

    def note_emitted(self, event: Envelope, at: float, dedupe_seconds: float) -> None:
        """Notes that the event is emitted."""
        recent = (*self.record.recent, ClosedId(event.run_id, event.digest, at))
        if len(recent) > _RECENT:
            closed = self.record.closed + len(recent)
            if closed >= _COMPACT_AFTER:
                recent = tuple(seen for seen in (*self._older_ids(), *recent) if seen.at > at - dedupe_seconds)
                self._closed.clear()
                closed = 0
            if recent:
                self._closed.add(ClosedIds(ids=recent).to_json())
            self.set(closed=closed)
            recent = ()
        self.set(recent=recent)

    def _older_ids(self) -> Iterator[ClosedId]:
        for raw in self._closed.read():
            yield from ClosedIds.from_json(raw).ids

    # ---- the end of the bundle ----

    @property
    def states(self) -> Iterator[tuple[Any, bool]]:
        """What may have to be written, and whether it is known to be empty."""
        yield self._record, self._was_empty
        for state in (self._session, self._inbox, self._batch, self._closed):
            yield state, False

    def write(self) -> None:
        """Writes what changed."""
        if self.record != self._written:
            if self.record == KeyRecord():
                self._record.clear()
            else:
                self._record.write(self.record.to_json())
            self._written = self.record
