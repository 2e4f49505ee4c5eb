"""The driver for streams: a key's events wait in its inbox, its runs go on in the worker, a doorbell calls the key.

The runs that a bundle starts go on side by side. When it ends, it waits some milliseconds for those that end soon, and
emits them; the doorbell calls the keys of the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from beam_agents.codec import digest, key_of, key_text
from beam_agents.engine.end import Ended, Refused, conflict, overloaded
from beam_agents.engine.live import Parked
from beam_agents.engine.task import Task
from beam_agents.events import FailureReason
from beam_agents.history import Session
from beam_agents.ledger.records import RunKey
from beam_agents.transforms.cells import Cells, ClosedId
from beam_agents.transforms.doorbell import LOOK
from beam_agents.transforms.emission import Emitter, place
from beam_agents.transforms.envelope import Envelope
from beam_agents.transforms.patience import Patience
from beam_agents.transforms.state_ahead import WriteAhead
from beam_agents.transforms.use import AgentUse

if TYPE_CHECKING:
    from beam_agents.engine.host import Host

PAUSE_WITHOUT_BELL = 1.0
"""Seconds between two looks at a key in a worker process where no doorbell calls."""

PAUSE_WITHOUT_ROOM = 30.0
"""The most seconds between two looks at a key whose events wait for room in the worker: the call may be lost."""

LONGEST_BLOCK = 10.0
"""The most seconds that an event waits at the door of a key with too many: a checkpoint waits for its bundle."""


class StreamingDoFn(beam.DoFn):
    """Takes (key, envelope) and (key, LOOK).

    Args:
        use: The agent and where it runs.
        waits: Whether `process` waits for the end of each run, where there is no real time (TestStream). Otherwise
            runs go on by themselves, and a doorbell calls.
    """

    _RECORD = ReadModifyWriteStateSpec("record", BytesCoder())
    _SESSION = ReadModifyWriteStateSpec("session", BytesCoder())
    _INBOX = BagStateSpec("inbox", BytesCoder())
    _BATCH = ReadModifyWriteStateSpec("batch", BytesCoder())
    _CLOSED = BagStateSpec("closed", BytesCoder())
    _DEADLINE = TimerSpec("deadline", TimeDomain.REAL_TIME)
    _EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)

    def __init__(self, use: AgentUse, *, waits: bool) -> None:
        self._use = use
        self._waits = waits
        self._budget = use.agent.budget.wall_clock.total_seconds()
        self._emitter = Emitter(use.agent, use.scope)
        self._callbacks = Metrics.counter(f"beam_agents.{use.scope}", "callbacks")
        self._patience = Patience()
        self._touched: dict[str, Cells] = {}
        self._come: list[tuple[Cells, Envelope | None]] = []

    def setup(self) -> None:
        """Joins the worker."""
        self._host: Host = self._use.join()
        if not self._waits:
            self._host.watch(key_of, self._use.task_of_record)

    def teardown(self) -> None:
        """Leaves the worker."""
        self._use.leave(self._host)

    def start_bundle(self) -> None:
        """Begins with no keys."""
        self._touched, self._come = {}, []

    def process(
        self,
        element: tuple[Any, bytes],
        record: Any = beam.DoFn.StateParam(_RECORD),
        session: Any = beam.DoFn.StateParam(_SESSION),
        inbox: Any = beam.DoFn.StateParam(_INBOX),
        batch: Any = beam.DoFn.StateParam(_BATCH),
        closed: Any = beam.DoFn.StateParam(_CLOSED),
        deadline: Any = beam.DoFn.TimerParam(_DEADLINE),
        expiry: Any = beam.DoFn.TimerParam(_EXPIRY),
    ) -> Iterator[TaggedOutput]:
        """An event arrives, or the doorbell calls."""
        key, data = element
        self._callbacks.inc()
        cells = self._cells(key, record, session, inbox, batch, closed, deadline, expiry)
        event = None
        if data != LOOK:  # no timer is set for a look: it would hold the watermark at the doorbell's time
            event = Envelope.from_json(data)
            # One timer for each event, set once: while it is pending it holds the watermark at its event, so that
            # the result is not late. Set again from a callback it would hold at the time of the callback.
            cells.expect(_tag(event), deadline)
        yield from self._handle(cells, event)

    @on_timer(_DEADLINE)
    def look_at_deadline(
        self,
        key: Any = beam.DoFn.KeyParam,
        tag: str = beam.DoFn.DynamicTimerTagParam,
        record: Any = beam.DoFn.StateParam(_RECORD),
        session: Any = beam.DoFn.StateParam(_SESSION),
        inbox: Any = beam.DoFn.StateParam(_INBOX),
        batch: Any = beam.DoFn.StateParam(_BATCH),
        closed: Any = beam.DoFn.StateParam(_CLOSED),
        deadline: Any = beam.DoFn.TimerParam(_DEADLINE),
        expiry: Any = beam.DoFn.TimerParam(_EXPIRY),
    ) -> Iterator[TaggedOutput]:
        """An event's budget of time is over, or should be. Cleared timers may fire too: state decides."""
        self._callbacks.inc()
        cells = self._cells(key, record, session, inbox, batch, closed, deadline, expiry)
        cells.expect(tag, deadline)
        yield from self._handle(cells, None)

    @on_timer(_EXPIRY)
    def expire(
        self,
        key: Any = beam.DoFn.KeyParam,
        record: Any = beam.DoFn.StateParam(_RECORD),
        session: Any = beam.DoFn.StateParam(_SESSION),
        inbox: Any = beam.DoFn.StateParam(_INBOX),
        batch: Any = beam.DoFn.StateParam(_BATCH),
        closed: Any = beam.DoFn.StateParam(_CLOSED),
        deadline: Any = beam.DoFn.TimerParam(_DEADLINE),
        expiry: Any = beam.DoFn.TimerParam(_EXPIRY),
        fired: Any = beam.DoFn.TimestampParam,
    ) -> None:
        """The session's time may be over: drops Beam's copy. The engine judges by the session's own time."""
        cells = self._cells(key, record, session, inbox, batch, closed, deadline, expiry)
        ttl, kept = self._use.session_ttl, cells.record
        if ttl is not None and kept.expiry_set:
            due = _over_at(kept.touched, ttl)
            if due > fired:
                expiry.set(due)
            else:
                cells.set(expiry_set=False)  # the next run that ends sets the timer again
                if kept.open is None and not kept.waiting:
                    cells.drop_session()
        if self._waits:
            self._leave(cells)

    def finish_bundle(self) -> Iterator[TaggedOutput]:
        """Takes what has come, emits what ends soon, and writes the state of all keys of the bundle."""
        # Runs begin after all state is read: a busy event loop would hold up the threads that read.
        for cells, event in self._come:
            if event is not None:
                yield from self._arrive(cells, event)
        self._come = []
        wait, writes = self._patience.begin(), WriteAhead()
        going_on, left = True, list(self._touched.values())
        while going_on:
            for cells in left:
                yield from self._advance(cells)
                if cells.idle:  # the runner writes its state while the runs of others go on
                    self._leave(cells)
                    writes.send(cells.states)
            left = [cells for cells in left if not cells.idle]
            going_on = wait.for_some([cells.handle for cells in left if cells.handle is not None])
        for cells in left:
            self._leave(cells)
            writes.send(cells.states)
        writes.wait()
        self._touched = {}

    def _handle(self, cells: Cells, event: Envelope | None) -> Iterator[TaggedOutput]:
        """Lets an event, or a look, wait for the end of its bundle, when its state has come."""
        if not self._waits:
            self._come.append((cells, event))
            return
        if event is not None:
            yield from self._arrive(cells, event)
        yield from self._advance(cells)
        self._leave(cells)

    def _cells(self, key: Any, *states: Any) -> Cells:
        """The key's state: what this bundle has changed is written at its end only."""
        if self._waits:
            return Cells(key, *states)
        name = key_text(key)
        cells = self._touched.get(name)
        if cells is None:
            cells = self._touched[name] = Cells(key, *states)
        else:
            cells.deadline, cells.expiry = states[-2:]
        return cells

    def _leave(self, cells: Cells) -> None:
        """Sets the timers of events that are not done, and writes."""
        if cells.handle is not None:
            cells.handle.awaited = False
        if cells.deadlines:
            unfinished = {_tag(event) for event in cells.unfinished()}
            for tag, deadline in cells.deadlines.items():
                if tag in unfinished:
                    deadline.set(time.time() + self._pause(cells), dynamic_timer_tag=tag)
        cells.write()

    def _pause(self, cells: Cells) -> float:
        """Seconds until an event is looked at again if nothing else calls its key."""
        if not self._host.bell_is_live():
            return PAUSE_WITHOUT_BELL
        pause = self._budget + 1.0
        return pause if cells.record.open is not None else min(pause, PAUSE_WITHOUT_ROOM)

    # ---- the path of an event ----

    def _arrive(self, cells: Cells, event: Envelope) -> Iterator[TaggedOutput]:
        """Lets an event begin, or wait."""
        if (
            cells.record.open is None
            and not cells.record.waiting
            and self._host.has_room(cells.key, self._use.max_open_runs)
        ):
            self._take(cells, event)
            return
        bound = self._use.max_waiting
        if bound is not None and cells.record.waiting >= bound and self._use.when_full == "block":
            until = time.monotonic() + LONGEST_BLOCK
            while cells.record.waiting >= bound and time.monotonic() < until:
                if cells.handle is not None:
                    with suppress(Exception):  # raised when the outcome is taken
                        cells.handle.done.result(timeout=until - time.monotonic())
                yield from self._advance(cells)
        elif bound is not None and cells.record.waiting >= bound and not cells.knows(event):
            yield from self._emit(cells, event, overloaded(bound))
            return
        cells.wait(event)

    def _advance(self, cells: Cells) -> Iterator[TaggedOutput]:
        """Emits what has ended and starts what waits, as far as it goes without waiting."""
        while True:
            event = cells.record.open
            if event is None:
                if not cells.record.waiting or not self._host.has_room(cells.key, self._use.max_open_runs):
                    break
                event = cells.next_event()
                assert event is not None
                self._take(cells, event)
            outcome = self._outcome(cells, event)
            if outcome is None:
                break
            yield from self._close(cells, event, outcome)
            cells.set(open=None, revision=None, taken_by="")
            tag = _tag(event)
            cells.pending[tag] += 1
            # The timer of an event of this bundle is not set yet; one that an event with the same id has set is.
            if cells.pending[tag] > 0 and all(tag != _tag(other) for other in cells.unfinished()):
                cells.deadline.clear(dynamic_timer_tag=tag)

    def _take(self, cells: Cells, event: Envelope) -> None:
        known = self._host.find(self._use.run_key(cells.key, event)) is not None
        taken_by = "" if known else self._host.owner
        cells.set(open=event, revision=self._use.agent.revision, taken_by=taken_by)

    def _outcome(self, cells: Cells, event: Envelope) -> Ended | Refused | ClosedId | None:
        """What the event's run came to, if it has ended; starts it, or attaches to it."""
        if self._use.ephemeral and (before := cells.emitted_before(event)) is not None:  # no ledger knows it
            return before if before.digest == event.digest else conflict(event.run_id)
        if cells.handle is None:
            run = self._use.run_key(cells.key, event, cells.record.revision)
            cells.handle = self._host.start(self._task(cells, event, run))
            cells.handle.awaited = self._patience.willing
        handle = cells.handle
        if not self._waits and not handle.done.done():
            return None
        cells.handle = None
        try:
            outcome = handle.done.result()
        except Parked:
            return None
        except BaseException:
            self._host.forget(handle.run)  # the bundle fails; the next one tries again
            raise
        self._host.forget(handle.run)
        # An end that was known before this event was, or to another worker, may have been emitted for an event that
        # came before under the same id; and of what is too old for the ledger, this state may still know it.
        if isinstance(outcome, Ended):
            known = cells.record.taken_by != self._host.owner
        else:
            known = outcome.reason is FailureReason.TOO_OLD
        if known and (before := cells.emitted_before(event)) is not None:
            return before if before.digest == event.digest else conflict(event.run_id)
        return outcome

    def _task(self, cells: Cells, event: Envelope, run: RunKey) -> Task:
        record = cells.record
        # A head that does not exist yet is begun with Beam's session only where that is no sign of a lost ledger.
        begins = record.session_version and (self._use.ephemeral or record.session_revision != run.revision)
        session = cells.session() or Session(version=record.session_version).model_dump_json() if begins else None
        return self._use.task(
            cells.key,
            event,
            run,
            session_version=record.session_version,
            session=session,
            ledger_identity=None if self._use.ephemeral else record.ledger,
        )

    def _close(self, cells: Cells, event: Envelope, outcome: Ended | Refused | ClosedId) -> Iterator[TaggedOutput]:
        if isinstance(outcome, ClosedId) or (
            isinstance(outcome, Ended) and outcome.replayed and cells.emitted_before(event) is not None
        ):
            yield TaggedOutput(*place(self._emitter.duplicate(cells.key, event)))
            return
        yield from self._emit(cells, event, outcome)
        if isinstance(outcome, Refused):
            return
        cells.set(ledger=outcome.ledger, touched=max(cells.record.touched, event.micros))
        if outcome.session_version > cells.record.session_version:  # an event that came back late has an older one
            cells.set_session(outcome.session, version=outcome.session_version, revision=outcome.run.key.revision)
        cells.note_emitted(event, outcome.run.closed_at or time.time(), self._use.dedupe_for.total_seconds())
        if self._use.session_ttl is not None and not cells.record.expiry_set:
            cells.expiry.set(_over_at(event.micros, self._use.session_ttl))
            cells.set(expiry_set=True)

    def _emit(self, cells: Cells, event: Envelope, outcome: Ended | Refused) -> Iterator[TaggedOutput]:
        for emission in self._emitter.outcome(cells.key, event, outcome):
            yield TaggedOutput(*place(emission))


def _over_at(touched: int, ttl: timedelta) -> Timestamp:
    """When a session is over, in whole milliseconds: runners cut a timer's time to them, and a timer that fires a
    fraction too early would be set again, and fire again, for ever."""
    millis = -(-(touched + ttl // timedelta(microseconds=1)) // 1000)
    return Timestamp(micros=1000 * millis)


def _tag(event: Envelope) -> str:
    return digest(event.run_id)[:16]
