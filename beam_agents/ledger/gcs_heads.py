"""Transactions on the keys of a Google Cloud Storage ledger: each is one new entry in the log of its key."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

from beam_agents.errors import LedgerError
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.commands import Answer, Close, Command, Open
from beam_agents.ledger.gcs_leases import GcsLeases
from beam_agents.ledger.gcs_log import ClosedRun, HeadState
from beam_agents.ledger.gcs_names import checkpoint_name, entry_name, open_marker, run_name
from beam_agents.ledger.gcs_search import GcsSearch, marker_content
from beam_agents.ledger.gcs_store import GcsStore, Stored
from beam_agents.ledger.gcs_transaction import GcsTransaction
from beam_agents.ledger.records import HeadKey, Run, RunKey
from beam_agents.ledger.rules import carry_out

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

_TRIES = 50
_LONGEST_WINDOW = 32
_CHECKPOINT_SECONDS = 1.0
_REMEMBERED_BYTES = 64_000_000
_REMEMBERED_HEADS = 10_000
_LEFT_TO_TIDY = 512
_TIDYING_SECONDS = 5.0


class GcsHeads:
    """Carries out commands on keys, several keys at once.

    Args:
        store: Where the objects are.
        clock: Gives seconds since 1970.
        connections: How many keys are worked on at once.
    """

    def __init__(self, store: GcsStore, clock: Callable[[], float], connections: int) -> None:
        self._store = store
        self._clock = clock
        self._leases = GcsLeases(store)
        self._search = GcsSearch(store, self._leases, self.look)
        # What a key's thread waits for is done by other threads than those of keys: they never wait for each other.
        self._keys = ThreadPoolExecutor(connections, "beam-agents-gcs-key")
        self._requests = ThreadPoolExecutor(connections, "beam-agents-gcs")
        self._tidiers = ThreadPoolExecutor(connections, "beam-agents-gcs-tidy")
        self._tidying: set[Future[None]] = set()
        self._lock = threading.Lock()
        self._remembered: OrderedDict[HeadKey, HeadState] = OrderedDict()
        self._remembered_bytes = 0

    def together(self, actions: Sequence[Callable[[], T]]) -> list[T]:
        """Does something for several keys at once, all of it even if some fails.

        Raises:
            BaseException: The first that was raised, one that waiting does not cure before one that it may.
        """
        return _together(self._keys, actions)

    def carry_out(self, key: HeadKey, commands: Sequence[Command]) -> list[Answer]:
        """Carries out commands on one key, durably before it returns."""
        state, is_newest = self._recall(key)
        answers: list[Answer] = []
        for chunk in _chunks(commands):
            state.forget_closed_run()
            answers += self._transact(state, chunk, is_newest)
            is_newest = True
        self._remember(state)
        return answers

    def carry_out_elsewhere(self, commands: Sequence[Command]) -> list[Answer]:
        """Carries out commands on no key: leases and searches."""
        transaction = self._begin(HeadState(HeadKey("", "", 0, "")))
        answers = [carry_out(transaction, command) for command in commands]
        self._write_leases(transaction)
        return answers

    def look(self, keys: Sequence[RunKey]) -> Sequence[Run | None]:
        """The records of runs as they are now."""
        return self.together([partial(self._look_at, key) for key in keys])

    def wait(self) -> None:
        """Waits until not too much is left to be tidied."""
        self._tidying = {future for future in self._tidying if not future.done()}
        while len(self._tidying) > _LEFT_TO_TIDY:
            self._tidying = wait(self._tidying, return_when=FIRST_COMPLETED).not_done

    def close(self) -> None:
        """Waits for everything that was begun, some seconds for what others can tidy up as well."""
        self._keys.shutdown()
        self._requests.shutdown()
        wait(self._tidying, _TIDYING_SECONDS)
        self._tidiers.shutdown(cancel_futures=True)

    # ---- one transaction ----

    def _transact(self, state: HeadState, commands: Sequence[Command], is_newest: bool) -> list[Answer]:
        """One transaction; `state` is brought up to date.

        Args:
            state: What the key had come to.
            commands: All of one key.
            is_newest: Whether `state` was the newest at some moment since the commands were given.
        """
        for _ in range(_TRIES):
            transaction = self._begin(state)
            try:
                answers = [carry_out(transaction, command) for command in commands]
            except LookupError:
                if is_newest or not self._catch_up(state):
                    raise
                is_newest = True
                continue
            token = uuid.uuid4().hex[:16]
            entry = transaction.entry(token)
            # A new entry is refused if the state was not the newest; without one, somebody has to look.
            if entry is None and not is_newest and self._catch_up(state):
                is_newest = True
                continue
            if not all(self._store.put(name, data, old) for name, old, data in transaction.changed_closed_runs()):
                continue
            if entry is None:
                self._write_leases(transaction)
                return answers
            self._prepare(state, transaction)
            data = entry.encode()
            if self._store.put(entry_name(state.folder, state.number + 1), data, 0):
                state.add(data)
            elif self._catch_up(state)[:1] != [token]:  # not even our own, whose answer was lost
                self._withdraw(state, transaction)
                is_newest = True
                continue
            self._tidy(state, transaction)
            return answers
        raise LedgerUnavailable(f"others keep changing what {state.key} has come to")

    def _begin(self, state: HeadState) -> GcsTransaction:
        return GcsTransaction(state, self._store, self._leases, self._search, self._clock)

    def _prepare(self, state: HeadState, transaction: GcsTransaction) -> None:
        """Writes what has to be there before the entry."""
        actions: list[Callable[[], Any]] = [
            partial(self._store.put, name, marker_content(run)) for name, run in transaction.markers()
        ]
        if transaction.leases:
            actions.append(partial(self._write_leases, transaction))
        if transaction.opens and state.run is not None:
            closed = ClosedRun(state.run, tuple(state.journal.values()))
            actions.append(partial(self._store.put, run_name(state.folder, state.run.key.run_id), closed.encode(), 0))
        _together(self._requests, actions)

    def _write_leases(self, transaction: GcsTransaction) -> None:
        for lease in transaction.leases.values():
            self._leases.write(lease)

    def _withdraw(self, state: HeadState, transaction: GcsTransaction) -> None:
        """Deletes the markers of an entry that was refused. Those that stay are found out by searches."""
        needed = open_marker(state.run) if state.run is not None and state.run.end is None else None
        names = [name for name, _ in transaction.markers() if name != needed]
        self._later(partial(self._delete, names))

    def _tidy(self, state: HeadState, transaction: GcsTransaction) -> None:
        """Does what can wait until after the answer, and is done by others if this process dies before."""
        outdated = transaction.outdated_markers()
        closed = transaction.closed
        if closed is None:
            if outdated:
                self._later(partial(self._delete, outdated))
            return
        checkpoint = None
        if time.monotonic() - state.checkpoint_at >= _CHECKPOINT_SECONDS:
            state.checkpoint_at = time.monotonic()
            checkpoint = state.checkpoint()
        self._later(partial(self._keep, state, closed, checkpoint, outdated))

    def _keep(self, state: HeadState, closed: ClosedRun, checkpoint: bytes | None, outdated: Sequence[str]) -> None:
        run_id = closed.run.key.run_id
        self._store.put(run_name(state.folder, run_id), closed.encode(), 0)
        state.kept_run = run_id
        if checkpoint is not None:
            self._store.put(checkpoint_name(state.folder), checkpoint)
        self._delete(outdated)

    def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._store.delete(name)

    def _later(self, action: Callable[[], None]) -> None:
        def act() -> None:
            try:
                action()
            except (LedgerError, LedgerUnavailable) as error:
                _LOGGER.debug("left to others: %s", error)

        self._tidying.add(self._tidiers.submit(act))

    # ---- states ----

    def _recall(self, key: HeadKey) -> tuple[HeadState, bool]:
        """What a key has come to, as it is remembered or read; and whether it was read."""
        with self._lock:
            state = self._remembered.pop(key, None)
            if state is not None:
                self._remembered_bytes -= state.remembered_size
                return state, False
        return self._read(key), True

    def _remember(self, state: HeadState) -> None:
        with self._lock:
            earlier = self._remembered.pop(state.key, None)
            state.remembered_size = state.size
            self._remembered[state.key] = state
            self._remembered_bytes += state.size - (earlier.remembered_size if earlier else 0)
            while self._remembered_bytes > _REMEMBERED_BYTES or len(self._remembered) > _REMEMBERED_HEADS:
                _, oldest = self._remembered.popitem(last=False)
                self._remembered_bytes -= oldest.remembered_size

    def _read(self, key: HeadKey) -> HeadState:
        state = HeadState(key)
        checkpoint, first = self._get([checkpoint_name(state.folder), entry_name(state.folder, 1)])
        if checkpoint is not None:
            state = HeadState.of_checkpoint(key, checkpoint.data)
        elif first is not None:
            state.add(first.data)
        else:
            return state
        self._catch_up(state, window=2)
        return state

    def _catch_up(self, state: HeadState, window: int = 1) -> list[str]:
        """Counts in the entries that were added by others; returns their tokens."""
        tokens: list[str] = []
        while True:
            names = [entry_name(state.folder, state.number + 1 + ahead) for ahead in range(window)]
            for stored in self._get(names):
                if stored is None:
                    return tokens
                tokens.append(state.add(stored.data))
            window = min(2 * window, _LONGEST_WINDOW)

    def _get(self, names: Sequence[str]) -> list[Stored | None]:
        return _together(self._requests, [partial(self._store.get, name) for name in names])

    def _look_at(self, key: RunKey) -> Run | None:
        state, is_newest = self._recall(key.head)
        if not is_newest:
            self._catch_up(state)
        run = self._begin(state).run(key)
        self._remember(state)
        return run


def _chunks(commands: Sequence[Command]) -> Iterator[Sequence[Command]]:
    """Commands by transactions. A run's end has one of its own, since its record is kept elsewhere from then on."""
    chunk: list[Command] = []
    for command in commands:
        if isinstance(command, Close) and any(isinstance(other, Open) for other in chunk):
            yield chunk
            chunk = []
        chunk.append(command)
        if isinstance(command, Close):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _together(pool: ThreadPoolExecutor, actions: Sequence[Callable[[], T]]) -> list[T]:
    if len(actions) == 1:
        return [actions[0]()]
    futures = [pool.submit(action) for action in actions]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, LedgerUnavailable)):
        raise error
    return [future.result() for future in futures]
