"""One use of an agent in a worker process: its live runs, its dependencies, its ledger."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from beam_agents.codec import key_text
from beam_agents.engine.connections import Connections
from beam_agents.engine.end import Ended, Refused, when
from beam_agents.engine.execution import Request
from beam_agents.engine.fault_points import FaultPoints
from beam_agents.engine.live import LiveRun, Parked
from beam_agents.engine.task import Task
from beam_agents.engine.turn import ModelTurn, ToolTurn, Turn
from beam_agents.errors import LedgerChanged, LedgerError
from beam_agents.ledger.base import LEASE_SECONDS
from beam_agents.ledger.commands import FindClosed, FindOrphans, FoundClosed, HorizonIs, Orphans, ReadHorizon
from beam_agents.ledger.records import Run, RunKey
from beam_agents.ledger.writer import LedgerWriter

if TYPE_CHECKING:
    from beam_agents.agent_base import AgentBase, HeldDeps
    from beam_agents.engine.worker import Worker
    from beam_agents.models.base import Model

_LOGGER = logging.getLogger(__name__)

_ORPHANS_EVERY = LEASE_SECONDS / 2
"""Seconds from one search for runs whose worker is gone to the next."""

_LONGEST_ORPHAN_PAUSE = 60.0
"""Seconds between two rings for a run whose worker is gone: at first each search rings."""

_GRACE = 60.0
"""Seconds after its budget of time at which an open run that no event has brought back is ended from its record."""

_BELL_SILENT_AFTER = 5.0
"""Seconds without a call of `drain` after which no doorbell is believed here."""

_TICKER_SILENT_AFTER = 1.5
"""Seconds after which another ticker of the process takes over; the one that drains calls twice a second at least."""

_EMITTED_WITHIN = 60.0
"""Seconds after its close in which a run's outcome is emitted where a doorbell calls, and if nothing dies."""

_TAKEN_WITHIN = 1.5
"""Seconds in which a bundle takes an outcome that it waits for."""

_KEPT_ENDS = 10_000
"""Ended runs that are kept for a driver to fetch; one that comes later asks the ledger."""


@dataclass
class WorkerStatus:
    """What one use of an agent has done in this process so far."""

    scope: str
    agent: str
    opened: int = 0
    """Events that were given to the worker."""
    ended: int = 0
    """Runs that came to an end here, failures included, replays not."""
    failed: int = 0
    """Of the ended, those in `failures`."""
    replayed: int = 0
    """Runs whose end the ledger had already."""
    model_calls: int = 0
    """Model requests made, not replayed."""
    tool_calls: int = 0
    """Tool calls made, not replayed."""
    in_flight: int = 0
    """Runs that are open now."""
    ledger_down_since: float | None = None
    """Seconds since 1970 since when the ledger takes nothing; `None` while it does."""


@dataclass(eq=False)
class Handle:
    """A driver's hold on a run."""

    run: RunKey
    key: Any
    digest: str
    """Of the event."""
    done: Future[Ended | Refused] = field(default_factory=Future)
    live: LiveRun | None = None
    awaited: bool = False
    """Whether a bundle is about to take the outcome: then nobody has to be rung for it at once."""

    @property
    def moves(self) -> bool:
        """Whether it is the engine's turn in the run, so that it may end soon. On any thread; a hint."""
        return self.live is None or self.live.moves


@dataclass(frozen=True, order=True)
class _Ring:
    """A key to be looked at."""

    due: float
    """On the monotonic clock."""
    key: Any = field(compare=False)
    run: RunKey = field(compare=False)
    ended: bool = field(default=False, compare=False)
    """Whether it is for a run that has ended here: not needed any more once that was taken."""
    pause: float = field(default=5.0, compare=False)
    """Seconds until it is rung for again."""


@dataclass
class _Orphan:
    """An open run whose worker is gone."""

    due: float
    """When it is rung for next, on the monotonic clock."""
    pause: float = _ORPHANS_EVERY


class Host:
    """Runs one agent for one scope on the worker's loop. `start`, `fetch` and `drain` may be called on any thread.

    Args:
        worker: The process's worker.
        agent: The agent, unpickled once for all its DoFns in this process.
        deps: What the agent's `deps` made.
        ledger: The ledger's writer.
        scope: The use of the agent.
    """

    def __init__(
        self,
        worker: Worker,
        agent: AgentBase[Any, Any, Any, Any],
        deps: HeldDeps[Any],
        ledger: LedgerWriter,
        scope: str,
    ) -> None:
        self.agent = agent
        self.deps = deps
        self.ledger = ledger
        # Of the host, not of the worker: another host of this process must not take a live run for its own.
        self.owner = uuid.uuid4().hex
        self.openings = itertools.count(1)
        """Numbers that tell one opening by this owner from the next one."""
        self.status = WorkerStatus(scope, agent.name)
        self.users = 0
        self.faults = FaultPoints.from_environment()
        self._worker = worker
        self._handles: dict[RunKey, Handle] = {}
        self._ended: OrderedDict[RunKey, Handle] = OrderedDict()
        self._rings: list[_Ring] = []
        self._drained_at = float("-inf")
        self._ticker: int | None = None
        self._watch: Future[None] | None = None
        self._setups = 0
        self._models = Connections()
        self._limits = worker.limits.of_host(lambda: self.users > 0)
        self._limits.check(agent.model, agent.tools)
        self._state_at: float | None = None
        self._takes_old_state = False
        self._refusal: str | None = None
        self._without_room: OrderedDict[str, Any] = OrderedDict()
        self._most_open = 0
        self._batch_slots: asyncio.Semaphore | None = None

    # ---- for drivers, on any thread ----

    def start(self, task: Task) -> Handle:
        """Opens the run of a task; a run that is live here, or has just ended here, is attached to instead."""
        with self._worker.lock:
            handle = self.find(task.run, task.digest)
            if handle is None:  # or of another event under its id, which the ledger refuses
                handle = Handle(task.run, task.key, task.digest)
                self._handles.setdefault(task.run, handle)
                self.status.opened += 1
                self.status.in_flight += 1
                self._worker.loop.call_soon_threadsafe(self._spawn, handle, task)
        return handle

    def find(self, run: RunKey, digest: str | None = None) -> Handle | None:
        """The handle of a run that is live here, or has just ended here.

        Args:
            run: The run.
            digest: Of its event; a run of another event is none.
        """
        with self._worker.lock:
            handle = self._handles.get(run) or self._ended.get(run)
            return handle if handle is not None and digest in (None, handle.digest) else None

    def forget(self, run: RunKey) -> None:
        """Lets go of an ended run whose outcome was taken."""
        with self._worker.lock:
            self._ended.pop(run, None)

    def drain(self, ticker: int = 0) -> list[Any] | None:
        """The Beam keys to be looked at: a run of theirs has ended, or lost its worker.

        A ring can be lost on its way, so a run that ended is rung for again, with growing pauses, until it is fetched.

        Args:
            ticker: Who asks. One ticker of a process is enough: while it goes on asking, others get `None`.

        Raises:
            LedgerChanged: The job goes on from a state that is too old for this ledger.
        """
        keys, now = [], time.monotonic()
        with self._worker.lock:
            if self._refusal is not None:
                raise LedgerChanged(self._refusal)
            if ticker != self._ticker and now - self._drained_at < _TICKER_SILENT_AFTER:
                return None
            self._ticker, self._drained_at = ticker, now
            while self._rings and self._rings[0].due <= now:
                ring = heapq.heappop(self._rings)
                if ring.ended:
                    if ring.run not in self._ended:
                        continue
                    heapq.heappush(self._rings, replace(ring, due=now + ring.pause, pause=2 * ring.pause))
                keys.append(ring.key)
            for _ in range(min(len(self._without_room), self._most_open - self.status.in_flight)):
                keys.append(self._without_room.popitem(last=False)[1])
        return keys

    def has_room(self, key: Any, most_open: int) -> bool:
        """Whether one more run may be begun here; if not, its key is rung for when there is room.

        Args:
            key: The Beam key.
            most_open: How many runs may be open here.
        """
        with self._worker.lock:
            if self.status.in_flight < most_open:
                return True
            self._most_open = most_open
            self._without_room.setdefault(key_text(key), key)
            return False

    def run_slots(self, most_open: int) -> asyncio.Semaphore:
        """The same limit for the keys of batches, on the loop."""
        if self._batch_slots is None:
            self._batch_slots = asyncio.Semaphore(most_open)
        return self._batch_slots

    def state_is_from(self, at: float, *, take_old: bool = False) -> None:
        """Says that the job goes on from a state in Beam that was alive at a time, perhaps restored from a savepoint.
        What was closed since and pruned could not be emitted: `drain` refuses such a state.

        Args:
            at: Seconds since 1970.
            take_old: Whether such a state is taken all the same, with a warning.
        """
        with self._worker.lock:
            self._state_at = min(at, self._state_at or at)
            self._takes_old_state = take_old

    def bell_is_live(self) -> bool:
        """Whether `drain` is called in this process."""
        return time.monotonic() - self._drained_at < _BELL_SILENT_AFTER

    def _ring(self, key: Any, run: RunKey, *, ended: bool = False, after: float = 0.0) -> None:
        with self._worker.lock:
            if self._watch is not None:  # else there is no doorbell to hear it
                heapq.heappush(self._rings, _Ring(time.monotonic() + after, key, run, ended))

    def watch(self, key_of: Callable[[str], Any], task_of: Callable[[Run], Task]) -> None:
        """Rings, as long as anybody uses this host, for open runs whose worker is gone, and at once for runs that were
        closed lately and whose worker may have died before Beam emitted them: recovery must not wait for timers. An
        open run that nothing brings back is ended from its record some time after its budget of time.

        Args:
            key_of: Makes a Beam key of its text in the ledger.
            task_of: Makes a task of a run's record.
        """
        with self._worker.lock:
            self._setups += 1
            if self._watch is None:
                self._watch = asyncio.run_coroutine_threadsafe(self._keep_watch(key_of, task_of), self._worker.loop)

    async def _keep_watch(self, key_of: Callable[[str], Any], task_of: Callable[[Run], Task]) -> None:
        scope, agent, budget = self.status.scope, self.agent.name, self.agent.budget.wall_clock.total_seconds()
        orphans: dict[RunKey, _Orphan] = {}
        served = 0
        while True:
            setups = self._setups
            try:
                if setups != served:
                    # An event's own timer fires a second after its budget: what was closed before that needs no ring.
                    closed = await self.ledger.ask(FindClosed(scope, agent, within=budget + 1.0))
                    assert isinstance(closed, FoundClosed)
                    for key in closed.runs:
                        if self.find(key) is None:
                            self._ring(key_of(key.key), key)
                    served = setups
                if self._state_at is not None:
                    await self._judge_state(budget)
                found = await self.ledger.ask(FindOrphans(scope, agent))
                assert isinstance(found, Orphans)
            except LedgerError as error:
                _LOGGER.warning("runs without a worker could not be searched for: %r", error)
            else:
                orphans = self._call_orphans(found.runs, orphans, key_of, task_of)
            await asyncio.sleep(_ORPHANS_EVERY)

    async def _judge_state(self, budget: float) -> None:
        scope, agent = self.status.scope, self.agent.name
        answer = await self.ledger.ask(ReadHorizon(scope, agent))
        assert isinstance(answer, HorizonIs)
        with self._worker.lock:
            at, self._state_at = self._state_at, None
            # What was closed before had been emitted: rings are repeated, and in the end the event's own timer fires.
            emitted_within = min(budget + 1.0, _EMITTED_WITHIN)
            if at is None or answer.pruned_to is None or answer.pruned_to < at - emitted_within:
                return
            said = (
                f"the job's state is from {when(at)}, and runs of scope {scope!r}, agent {agent!r} that were closed up "
                f"to {when(answer.pruned_to)} were pruned from the ledger: what runs between came to may be missing, "
                "their events go to duplicates"
            )
            if self._takes_old_state:
                _LOGGER.warning("%s; taken all the same, as --accept_state_older_than_ledger says", said)
            else:
                self._refusal = f"{said}. Start from a newer savepoint, or give --accept_state_older_than_ledger"

    def _call_orphans(
        self,
        runs: Iterable[Run],
        known: dict[RunKey, _Orphan],
        key_of: Callable[[str], Any],
        task_of: Callable[[Run], Task],
    ) -> dict[RunKey, _Orphan]:
        now, orphans = time.monotonic(), {}
        ends_after = self.agent.budget.wall_clock.total_seconds() + _GRACE
        for run in runs:
            if self.find(run.key) is not None:
                continue
            orphan = orphans[run.key] = known.get(run.key) or _Orphan(due=now)
            if orphan.due > now:
                continue
            orphan.due, orphan.pause = now + orphan.pause, min(2 * orphan.pause, _LONGEST_ORPHAN_PAUSE)
            if time.time() - run.opened_at > ends_after:
                self._finish_from_record(task_of(run))
            else:
                self._ring(key_of(run.key.key), run.key)
        return orphans

    def _finish_from_record(self, task: Task) -> None:
        self.start(task).done.add_done_callback(lambda _: self.forget(task.run))

    # ---- for runs, on the loop ----

    def slots(self, request: Request, key: str, *, network_forbidden: bool = False) -> Turn:
        """The turn of an effect: what bounds its calls is waited for when it is entered.

        Args:
            request: The effect.
            key: Of the run, as text.
            network_forbidden: Whether models that use the network are refused.
        """
        if request.kind == "model":
            model, asked = request.payload
            return ModelTurn(self._limits, key, model, asked, forbidden=network_forbidden)
        if request.kind == "tool":
            return ToolTurn(self._limits, key, request.payload[0])
        return Turn(self._limits, key)

    async def connect(self, model: Model) -> None:
        """Connects a model once; after a failure, anew at the next request."""
        await self._models.connect(model)

    async def finish_other(self, task: Task, other: Run) -> None:
        """Waits for the end of the run that stands before `task` in its key, and drives it if its worker is gone."""
        record = replace(task, run=other.key, event=other.event, digest=other.digest, event_time=other.event_time)
        handle = self.start(record)
        try:
            await asyncio.shield(asyncio.wrap_future(handle.done))  # others wait for it too
        finally:
            self.forget(handle.run)

    def _spawn(self, handle: Handle, task: Task) -> None:
        handle.live = LiveRun(self, task)
        running = asyncio.ensure_future(handle.live.main())
        running.add_done_callback(lambda finished: self._finished(handle, finished))
        if not self.users or self._worker.letting_go:
            handle.live.park()

    def _finished(self, handle: Handle, finished: asyncio.Future[Ended | Refused]) -> None:
        error = asyncio.CancelledError() if finished.cancelled() else finished.exception()
        with self._worker.lock:
            attached = self._handles.get(handle.run) is handle
            if attached:
                del self._handles[handle.run]
            self.status.in_flight -= 1
            if error is None:
                result = finished.result()
                if isinstance(result, Ended):
                    self.status.replayed += result.replayed
                    self.status.ended += not result.replayed
                    self.status.failed += not result.replayed and result.end.kind == "failure"
            # A failure is kept too, for the driver to raise: a ledger that refuses for good has to stop the job.
            if attached and not isinstance(error, (Parked, asyncio.CancelledError)):
                self._ended[handle.run] = handle
                if len(self._ended) > _KEPT_ENDS:
                    self._ended.popitem(last=False)
        if error is None:
            handle.done.set_result(result)
        else:
            if not isinstance(error, (Parked, asyncio.CancelledError)):
                _LOGGER.error("run %r of key %s broke off: %r", handle.run.run_id, handle.run.key, error)
            handle.done.set_exception(error)
        parked = isinstance(error, (Parked, asyncio.CancelledError))
        self._ring(handle.key, handle.run, ended=attached and not parked, after=_TAKEN_WITHIN if handle.awaited else 0)

    # ---- for the worker ----

    def park(self) -> None:
        """Lets all live runs go, because no DoFn of this agent is left."""
        for handle in list(self._handles.values()):
            if handle.live is not None:
                handle.live.park()

    def idle(self) -> bool:
        """Whether no run is live."""
        return not self._handles

    async def close(self) -> None:
        """Closes models."""
        if self._watch is not None:
            self._watch.cancel()
        await self._models.close()
