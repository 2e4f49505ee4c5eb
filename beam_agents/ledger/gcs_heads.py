"""Transactions on the keys of a Google Cloud Storage ledger: each is one new entry in the log of its key."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

from beam_agents.errors import LedgerError
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.commands import Answer, Close, Command, Open
from beam_agents.ledger.gcs_horizons import GcsHorizons
from beam_agents.ledger.gcs_leases import GcsLeases
from beam_agents.ledger.gcs_log import ClosedRun, HeadState
from beam_agents.ledger.gcs_names import (
    checkpoint_name,
    closed_marker,
    entry_name,
    head_folder,
    open_marker,
    run_name,
)
from beam_agents.ledger.gcs_retention import GcsRetention
from beam_agents.ledger.gcs_search import GcsSearch, marker_content
from beam_agents.ledger.gcs_states import SKIPPED, GcsStates
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.gcs_sweep import GcsSweep
from beam_agents.ledger.gcs_together import together
from beam_agents.ledger.gcs_transaction import GcsTransaction, Shared
from beam_agents.ledger.records import HeadKey, Run, RunKey
from beam_agents.ledger.rules import carry_out

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

_TRIES = 50
_CHECKPOINT_SECONDS = 1.0
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
        self._leases = GcsLeases(store)
        # What a key's thread waits for is done by other threads than those of keys: they never wait for each other.
        self._keys = ThreadPoolExecutor(connections, "beam-agents-gcs-key")
        self._requests = ThreadPoolExecutor(connections, "beam-agents-gcs")
        self._tidiers = ThreadPoolExecutor(connections, "beam-agents-gcs-tidy")
        self._tidying: set[Future[None]] = set()
        self._states = GcsStates(store, self._requests)
        horizons = GcsHorizons(store)
        search = GcsSearch(store, self._leases, horizons, self.look, self.look_at_closed)
        sweep = GcsSweep(store, self._states, self._requests)
        retention = GcsRetention(store, self, search, horizons, sweep)
        self._shared = Shared(store, clock, self._leases, horizons, search, retention)

    def together(self, actions: Sequence[Callable[[], T]]) -> list[T]:
        """Does something for several keys at once, all of it even if some fails.

        Raises:
            BaseException: The first that was raised, one that waiting does not cure before one that it may.
        """
        return together(self._keys, actions)

    def carry_out(self, key: HeadKey, commands: Sequence[Command]) -> list[Answer]:
        """Carries out commands on one key, durably before it returns."""
        state, is_newest = self._states.recall(key)
        answers: list[Answer] = []
        for chunk in _chunks(commands):
            state.forget_closed_run()
            answers += self._transact(state, partial(_carry_out, chunk), is_newest)
            is_newest = True
        self._states.remember(state)
        return answers

    def change(self, key: HeadKey, action: Callable[[GcsTransaction], T]) -> T:
        """One transaction on one key, durable before it returns."""
        state, is_newest = self._states.recall(key)
        state.forget_closed_run()
        result = self._transact(state, action, is_newest)
        self._states.remember(state)
        return result

    def carry_out_elsewhere(self, commands: Sequence[Command]) -> list[Answer]:
        """Carries out commands on no key: leases, searches, retention."""
        transaction = self._begin(HeadState(HeadKey("", "", 0, "")))
        answers = [carry_out(transaction, command) for command in commands]
        self._write_leases(transaction)
        return answers

    def look(self, keys: Sequence[RunKey]) -> Sequence[Run | None]:
        """The records of runs as they are now."""
        return self.together([partial(self._look_at, key) for key in keys])

    def look_at_closed(self, keys: Sequence[RunKey]) -> Sequence[Run | None]:
        """The same, with one request for each run that has ended."""
        return self.together([partial(self._look_at_closed, key) for key in keys])

    def settle(self) -> None:
        """Waits for everything that was left to be tidied: what is dropped must not be written once more."""
        wait(list(self._tidying))

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

    def _transact(self, state: HeadState, action: Callable[[GcsTransaction], T], is_newest: bool) -> T:
        """One transaction; `state` is brought up to date.

        Args:
            state: What the key had come to.
            action: What is done in it, all of one key; it may be done several times.
            is_newest: Whether `state` was the newest at some moment since this was asked for.
        """
        for _ in range(_TRIES):
            transaction = self._begin(state)
            try:
                result = action(transaction)
            except LookupError:
                if is_newest or not self._states.catch_up(state):
                    raise
                is_newest = True
                continue
            token = uuid.uuid4().hex[:16]
            entry = transaction.entry(token)
            # A new entry is refused if the state was not the newest; without one, somebody has to look.
            if entry is None and not is_newest and self._states.catch_up(state):
                is_newest = True
                continue
            if not all(self._has_put(name, data, old) for name, old, data in transaction.changed_closed_runs()):
                continue
            if entry is None:
                self._write_leases(transaction)
                return result
            self._prepare(state, transaction)
            data, sent = entry.encode(), self._store.now()
            if self._store.put(entry_name(state.folder, state.number + 1), data, 0):
                if not (self._states.is_fresh(state) or self._states.follows(state)):
                    is_newest = False  # the log was swept while this process slept, and this was no new entry
                    continue
                state.add(data)
                state.fresh_at = max(state.fresh_at, sent)
            elif (added := self._states.catch_up(state))[:1] != [token]:  # not even our own, whose answer was lost
                if added[:1] != [SKIPPED]:
                    self._withdraw(state, transaction)
                is_newest = True
                continue
            self._tidy(state, transaction)
            return result
        raise LedgerUnavailable(f"others keep changing what {state.key} has come to")

    def _begin(self, state: HeadState) -> GcsTransaction:
        return GcsTransaction(state, self._shared)

    def _has_put(self, name: str, data: bytes, generation: int) -> bool:
        """Replaces an object; whether it is as it was to be."""
        if self._store.put(name, data, generation):
            return True
        stored = self._store.get(name)  # its answer may have been lost
        return stored is not None and stored.data == data

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
        together(self._requests, actions)

    def _write_leases(self, transaction: GcsTransaction) -> None:
        for lease in transaction.leases.values():
            self._leases.write(lease)

    def _withdraw(self, state: HeadState, transaction: GcsTransaction) -> None:
        """Deletes the markers of an entry that was refused. Those that stay are found out by searches."""
        run, needed = state.run, ""
        if run is not None:
            needed = open_marker(run) if run.closed_at is None else closed_marker(run, run.closed_at)
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
        write_checkpoint = None
        if time.monotonic() - state.checkpoint_at >= _CHECKPOINT_SECONDS:
            state.checkpoint_at = time.monotonic()
            known = state.checkpoint_generation
            write_checkpoint = partial(self._write_checkpoint, state, state.number, state.checkpoint(), known)
        self._later(partial(self._keep, state, closed, write_checkpoint, outdated))

    def _keep(
        self,
        state: HeadState,
        closed: ClosedRun,
        write_checkpoint: Callable[[], None] | None,
        outdated: Sequence[str],
    ) -> None:
        run_id = closed.run.key.run_id
        self._store.put(run_name(state.folder, run_id), closed.encode(), 0)
        state.kept_run = run_id
        if write_checkpoint is not None:
            write_checkpoint()
        self._delete(outdated)

    def _write_checkpoint(self, state: HeadState, number: int, data: bytes, known: int) -> None:
        """Moves a key's checkpoint on, never back; `known` is the generation of one that is not ahead of this."""
        name = checkpoint_name(state.folder)
        written = self._store.put(name, data, known)
        if not written:
            stored = self._store.get(name)
            if stored is None or json.loads(stored.data)["number"] >= number:
                return
            written = self._store.put(name, data, stored.generation)
        state.checkpoint_generation = written or state.checkpoint_generation

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

    def _look_at(self, key: RunKey) -> Run | None:
        state, is_newest = self._states.recall(key.head)
        if not is_newest:
            self._states.catch_up(state)
        run = self._begin(state).run(key)
        self._states.remember(state)
        return run

    def _look_at_closed(self, key: RunKey) -> Run | None:
        stored = self._store.get(run_name(head_folder(key.head), key.run_id))
        return ClosedRun.decode(stored.data).run if stored else self._look_at(key)


def _carry_out(commands: Sequence[Command], transaction: GcsTransaction) -> list[Answer]:
    return [carry_out(transaction, command) for command in commands]


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
