"""The driver for streams: a key's events wait in its inbox, its runs go on in the worker, a doorbell calls the key.

State of a key, small cells first:

- `now`: the open event and how far the inbox is read; written when a run starts that does not end at once.
- `memory`: the session with its version, the ledger's identity; written when a run ends.
- `inbox`: events that wait, a bag; emptied when the last of them was taken.
- `closed`: the ids of events that were emitted, a bag; read only when the ledger says that a run had ended before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from beam_agents.codec import digest, key_of
from beam_agents.engine.end import Ended, Refused, conflict
from beam_agents.engine.live import Parked
from beam_agents.events import FailureReason
from beam_agents.history import Session
from beam_agents.stored import Stored
from beam_agents.transforms.doorbell import LOOK
from beam_agents.transforms.emission import Emitter, place
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.use import AgentUse

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

QUICK_SECONDS = 0.02
"""How long `process` waits for runs of an agent whose runs have lately ended within that time."""

_PATIENCE = 4
"""After so many waits in vain `process` does not wait until a run turns out to have been quick."""

PAUSE_WITHOUT_BELL = 1.0
"""Seconds between two looks at a key in a worker process where no doorbell calls."""

_INBOX_COMPACT_AFTER = 64
"""Events read from an inbox that was never empty, after which those are dropped from it."""

_COMPACT_AFTER = 256
"""Closed ids of a key from one dropping of those older than `dedupe_for` to the next."""


class Now(Stored):
    """What a key is busy with."""

    open: Envelope | None = None
    revision: int | None = None
    """Of the agent that the open event was given to: its run ends under the revision it began with."""
    taken_by: str = ""
    """The worker that took the open event and did not know its run; empty if it did."""
    read: int = 0
    """How many events of the inbox were taken."""
    waiting: int = 0
    """How many events were put into the inbox since it was last emptied."""


class Memory(Stored):
    """What a key keeps between runs."""

    ledger: str | None = None
    """Identity of the ledger."""
    revision: int = 0
    """Of the agent that wrote the session."""
    session_version: int = 0
    session: str | None = None
    """`history.Session` as JSON."""
    touched: int = 0
    """Event time of the newest event, microseconds since 1970."""
    closed: int = 0
    """How many ids were noted as closed since old ones were last dropped."""
    expiry_set: bool = False


class ClosedId(Stored):
    """An event that was emitted."""

    run_id: str
    digest: str
    """Of the event."""
    at: float
    """Seconds since 1970."""


class _Cells:
    """One key's state during one callback; cells are read once and written when they changed."""

    def __init__(self, key: Any, now: Any, memory: Any, inbox: Any, closed: Any, deadline: Any, expiry: Any) -> None:
        self.key = key
        self._now, self._memory, self._inbox, self._closed = now, memory, inbox, closed
        self.deadline, self.expiry = deadline, expiry
        self.now = Now.from_json(raw) if (raw := now.read()) else Now()
        self.memory = Memory.from_json(raw) if (raw := memory.read()) else Memory()
        self._before = (self.now, self.memory)

    def set_now(self, **changes: Any) -> None:
        self.now = self.now.model_copy(update=changes)

    def set_memory(self, **changes: Any) -> None:
        self.memory = self.memory.model_copy(update=changes)

    def wait(self, envelope: Envelope) -> None:
        """Puts an event into the inbox."""
        self._inbox.add(envelope.encoded())
        self.set_now(waiting=self.now.waiting + 1)

    def next_event(self) -> Envelope | None:
        """Takes the first event that waits."""
        if self.now.read == self.now.waiting:
            if self.now.waiting:
                self._inbox.clear()
                self.set_now(read=0, waiting=0)
            return None
        waiting = list(self._inbox.read())
        event = Envelope.from_json(waiting[self.now.read])
        self.set_now(read=self.now.read + 1)
        if self.now.read >= _INBOX_COMPACT_AFTER:
            left = waiting[self.now.read :]
            self._inbox.clear()
            for raw in left:
                self._inbox.add(raw)
            self.set_now(read=0, waiting=len(left))
        return event

    def unfinished(self) -> list[Envelope]:
        """The open event and those that wait."""
        waiting = list(self._inbox.read())[self.now.read :] if self.now.waiting else []
        events = [Envelope.from_json(raw) for raw in waiting]
        return [self.now.open, *events] if self.now.open else events

    def emitted_before(self, event: Envelope) -> ClosedId | None:
        """What this state has emitted under the event's id."""
        for raw in self._closed.read():
            closed = ClosedId.from_json(raw)
            if closed.run_id == event.run_id:
                return closed
        return None

    def note_emitted(self, event: Envelope, at: float, dedupe_seconds: float) -> None:
        """Notes that the event is emitted."""
        if self.memory.closed >= _COMPACT_AFTER:
            kept = [raw for raw in self._closed.read() if ClosedId.from_json(raw).at > at - dedupe_seconds]
            self._closed.clear()
            for raw in kept:
                self._closed.add(raw)
            self.set_memory(closed=0)
        closed = ClosedId(run_id=event.run_id, digest=event.digest, at=at)
        self._closed.add(closed.to_json())
        self.set_memory(closed=self.memory.closed + 1)

    def write(self) -> None:
        """Writes what changed."""
        now, memory = self._before
        if self.now != now:
            if self.now == Now():
                self._now.clear()
            else:
                self._now.write(self.now.to_json())
        if self.memory != memory:
            self._memory.write(self.memory.to_json())


class StreamingDoFn(beam.DoFn):
    """Takes (key, envelope) and (key, LOOK).

    Args:
        use: The agent and where it runs.
        waits: Whether `process` waits for the end of each run, where there is no real time (TestStream). Otherwise
            runs go on by themselves, and a doorbell calls.
    """

    _NOW = ReadModifyWriteStateSpec("now", BytesCoder())
    _MEMORY = ReadModifyWriteStateSpec("memory", BytesCoder())
    _INBOX = BagStateSpec("inbox", BytesCoder())
    _CLOSED = BagStateSpec("closed", BytesCoder())
    _DEADLINE = TimerSpec("deadline", TimeDomain.REAL_TIME)
    _EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(self, use: AgentUse, *, waits: bool) -> None:
        self._use = use
        self._waits = waits
        self._budget = use.agent.budget.wall_clock.total_seconds()
        self._emitter = Emitter(use.agent, use.scope)
        self._callbacks = Metrics.counter(f"beam_agents.{use.scope}", "callbacks")
        self._quick = _PATIENCE

    def setup(self) -> None:
        """Joins the worker."""
        self._host: Host = self._use.join()
        if not self._waits:
            self._host.watch(key_of, self._use.task_of_record)

    def teardown(self) -> None:
        """Leaves the worker."""
        self._use.leave(self._host)

    def process(
        self,
        element: tuple[Any, bytes],
        now: Any = beam.DoFn.StateParam(_NOW),
        memory: Any = beam.DoFn.StateParam(_MEMORY),
        inbox: Any = beam.DoFn.StateParam(_INBOX),
        closed: Any = beam.DoFn.StateParam(_CLOSED),
        deadline: Any = beam.DoFn.TimerParam(_DEADLINE),
        expiry: Any = beam.DoFn.TimerParam(_EXPIRY),
    ) -> Iterator[TaggedOutput]:
        """An event arrives, or the doorbell calls."""
        key, data = element
        self._callbacks.inc()
        cells = _Cells(key, now, memory, inbox, closed, deadline, expiry)
        if data == LOOK:  # no timer is set here: it would hold the watermark at the doorbell's time
            yield from self._advance(cells)
        else:
            event = Envelope.from_json(data)
            if cells.now.open is None and not cells.now.waiting:
                self._take(cells, event)
            else:
                cells.wait(event)
            yield from self._advance(cells, arrived=event)
            if cells.now.open is not None:
                # One timer for each event, set once: while it is pending it holds the watermark at its event, so that
                # the result is not late. Set again from a callback it would hold at the time of the callback.
                deadline.set(time.time() + self._pause(), dynamic_timer_tag=_tag(event))
        cells.write()

    @on_timer(_DEADLINE)
    def look_at_deadline(
        self,
        key: Any = beam.DoFn.KeyParam,
        tag: str = beam.DoFn.DynamicTimerTagParam,
        now: Any = beam.DoFn.StateParam(_NOW),
        memory: Any = beam.DoFn.StateParam(_MEMORY),
        inbox: Any = beam.DoFn.StateParam(_INBOX),
        closed: Any = beam.DoFn.StateParam(_CLOSED),
        deadline: Any = beam.DoFn.TimerParam(_DEADLINE),
        expiry: Any = beam.DoFn.TimerParam(_EXPIRY),
    ) -> Iterator[TaggedOutput]:
        """An event's budget of time is over, or should be. Cleared timers may fire too: state decides."""
        self._callbacks.inc()
        cells = _Cells(key, now, memory, inbox, closed, deadline, expiry)
        yield from self._advance(cells)
        if any(tag == _tag(event) for event in cells.unfinished()):
            deadline.set(time.time() + self._pause(), dynamic_timer_tag=tag)
        cells.write()

    def _pause(self) -> float:
        """Seconds until an event is looked at again if nothing else calls its key."""
        return self._budget + 1.0 if self._host.bell_is_live() else PAUSE_WITHOUT_BELL

    @on_timer(_EXPIRY)
    def expire(
        self,
        memory: Any = beam.DoFn.StateParam(_MEMORY),
        now: Any = beam.DoFn.StateParam(_NOW),
        expiry: Any = beam.DoFn.TimerParam(_EXPIRY),
        fired: Any = beam.DoFn.TimestampParam,
    ) -> None:
        """The session's time may be over: drops Beam's copy. The engine judges by the session's own time."""
        ttl = self._use.session_ttl
        raw = memory.read()
        if ttl is None or raw is None:
            return
        kept = Memory.from_json(raw)
        due = _over_at(kept.touched, ttl)
        if due > fired:
            expiry.set(due)
            return
        changes: dict[str, Any] = {"expiry_set": False}  # the next run that ends sets the timer again
        if not now.read():
            changes |= {"session": None}
        memory.write(kept.model_copy(update=changes).to_json())

    # ---- the path of an event ----

    def _advance(self, cells: _Cells, arrived: Envelope | None = None) -> Iterator[TaggedOutput]:
        """Emits what has ended and starts what waits, as far as it goes without waiting."""
        while True:
            event = cells.now.open
            if event is None:
                event = cells.next_event()
                if event is None:
                    break
                self._take(cells, event)
            outcome = self._outcome(cells, event)
            if outcome is None:
                break
            for emission in self._close(cells, event, outcome):
                yield TaggedOutput(*place(emission))
            cells.set_now(open=None, revision=None, taken_by="")
            tag = _tag(event)
            # Its own timer is not set yet; one that an event with the same id has set is.
            if event is not arrived and all(tag != _tag(other) for other in cells.unfinished()):
                cells.deadline.clear(dynamic_timer_tag=tag)

    def _take(self, cells: _Cells, event: Envelope) -> None:
        known = self._host.find(self._use.run_key(cells.key, event)) is not None
        taken_by = "" if known else self._host.owner
        cells.set_now(open=event, revision=self._use.agent.revision, taken_by=taken_by)

    def _outcome(self, cells: _Cells, event: Envelope) -> Ended | Refused | ClosedId | None:
        """What the event's run came to, if it has ended; starts it, or attaches to it."""
        if self._use.ephemeral and (before := cells.emitted_before(event)) is not None:  # no ledger knows it
            return before if before.digest == event.digest else conflict(event.run_id)
        task = self._task(cells, event)
        handle = self._host.start(task)
        try:
            if self._waits:
                outcome = handle.done.result()
            elif handle.done.done() or self._quick > 0:
                outcome = handle.done.result(timeout=QUICK_SECONDS)
            else:
                return None
        except FutureTimeout:
            self._quick -= 1
            return None
        except Parked:
            return None
        except BaseException:
            self._host.forget(handle.run)  # the bundle fails; the next one tries again
            raise
        self._host.forget(handle.run)
        # An end that was known before this event was, or to another worker, may have been emitted for an event that
        # came before under the same id; and of what is too old for the ledger, this state may still know it.
        if isinstance(outcome, Ended):
            known = cells.now.taken_by != self._host.owner
        else:
            known = outcome.reason is FailureReason.TOO_OLD
        if known and (before := cells.emitted_before(event)) is not None:
            return before if before.digest == event.digest else conflict(event.run_id)
        if isinstance(outcome, Ended) and (outcome.run.closed_at or 0) - outcome.run.opened_at < QUICK_SECONDS:
            self._quick = _PATIENCE
        return outcome

    def _task(self, cells: _Cells, event: Envelope) -> Any:
        memory = cells.memory
        # A head that does not exist yet is begun with Beam's session only where that is no sign of a lost ledger.
        revision = cells.now.revision or self._use.agent.revision
        begins = self._use.ephemeral or memory.revision != revision
        session = memory.session or Session(version=memory.session_version).model_dump_json()
        return self._use.task(
            cells.key,
            event,
            revision=revision,
            session_version=memory.session_version,
            session=session if begins and memory.session_version else None,
            ledger_identity=None if self._use.ephemeral else memory.ledger,
        )

    def _close(self, cells: _Cells, event: Envelope, outcome: Ended | Refused | ClosedId) -> Iterator[Any]:
        if isinstance(outcome, ClosedId) or (
            isinstance(outcome, Ended) and outcome.replayed and cells.emitted_before(event) is not None
        ):
            yield self._emitter.duplicate(cells.key, event)
            return
        yield from self._emitter.outcome(cells.key, event, outcome)
        if isinstance(outcome, Refused):
            return
        cells.set_memory(ledger=outcome.ledger, touched=max(cells.memory.touched, event.micros))
        if outcome.session_version > cells.memory.session_version:  # an event that came back late has an older one
            cells.set_memory(
                revision=outcome.run.key.revision,
                session_version=outcome.session_version,
                session=outcome.session,
            )
        cells.note_emitted(event, outcome.run.closed_at or time.time(), self._use.dedupe_for.total_seconds())
        if self._use.session_ttl is not None and not cells.memory.expiry_set:
            cells.expiry.set(_over_at(event.micros, self._use.session_ttl))
            cells.set_memory(expiry_set=True)


def _over_at(touched: int, ttl: timedelta) -> Timestamp:
    """When a session is over, in whole milliseconds: runners cut a timer's time to them, and a timer that fires a
    fraction too early would be set again, and fire again, for ever."""
    millis = -(-(touched + ttl // timedelta(microseconds=1)) // 1000)
    return Timestamp(micros=1000 * millis)


def _tag(event: Envelope) -> str:
    return digest(event.run_id)[:16]
