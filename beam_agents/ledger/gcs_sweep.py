"""Deletes entries of logs in a Google Cloud Storage ledger that nobody needs any more.

A worker goes on from what it remembers of a key: it writes the next entry of the log, which is refused if that entry is
there. If the entry had been deleted, a worker that was behind would not be refused. So an entry goes only when there
has been a checkpoint at it, or further on, for `KEPT_SECONDS`, and a worker that has not looked for
`gcs_states.FRESH_SECONDS`, however long it slept and wherever, reads the checkpoint before it believes that its entry
is the next one. What it wrote by mistake stands before the checkpoint, where nobody reads it, and is deleted later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.gcs_log import ClosedRun, HeadState
from beam_agents.ledger.gcs_names import (
    checkpoint_name,
    entries_to,
    log_folder,
    oldest_first,
    read_sweep,
    run_name,
    sweep_folder,
    sweep_name,
)
from beam_agents.ledger.gcs_states import GcsStates
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.gcs_together import together
from beam_agents.ledger.records import HeadKey

KEPT_SECONDS = 3600.0
"""How long entries stay that a checkpoint makes superfluous; much longer than `gcs_states.FRESH_SECONDS`."""

_TRIES = 10


class GcsSweep:
    """Sweeps logs.

    Args:
        store: Where they are.
        states: Gives what their keys have come to.
        requests: Threads for requests that go side by side.
    """

    def __init__(self, store: GcsStore, states: GcsStates, requests: ThreadPoolExecutor) -> None:
        self._store = store
        self._states = states
        self._requests = requests

    def tidy(self, key: HeadKey) -> None:
        """Deletes what a key's log has before its checkpoint, or notes that it is to be deleted later."""
        state, is_newest = self._states.recall(key)
        if not is_newest:
            self._states.catch_up(state)
        number = self._checkpoint(state)
        self._states.remember(state)
        names = self._entries(state.folder, number)
        if not names:
            return
        # What is newer than the entry that was read here is newer than this look, too.
        written_at = self._store.updated(checkpoint_name(state.folder))
        now = self._store.now()
        if written_at is not None and written_at <= now - KEPT_SECONDS:
            self.delete(names)
        else:
            self._store.put(sweep_name(key, now, number), b"{}")

    def due(self, scope: str, agent: str, limit: int) -> list[str]:
        """Notes of logs to be swept whose time has come."""
        end = oldest_first(self._store.now() - KEPT_SECONDS)
        return list(islice(self._store.names(sweep_folder(scope, agent), end=end), limit))

    def carry_out(self, note: str) -> None:
        """Does what a note says, and deletes it."""
        self.delete(self._entries(*read_sweep(note)))
        self._store.delete(note)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects, several at once."""
        together(self._requests, [partial(self._store.delete, name) for name in names])

    def _entries(self, folder: str, number: int) -> list[str]:
        """The entries of a log up to this one that are still there."""
        return list(self._store.names(log_folder(folder), end=entries_to(number)))

    def _checkpoint(self, state: HeadState) -> int:
        """The entry of a key's checkpoint, which is moved on to `state` if no run is open."""
        name = checkpoint_name(state.folder)
        if state.run is not None and state.run.end is not None:
            closed = ClosedRun(state.run, tuple(state.journal.values()))
            self._store.put(run_name(state.folder, state.run.key.run_id), closed.encode(), 0)
        for _ in range(_TRIES):
            stored = self._store.get(name)
            number = int(json.loads(stored.data)["number"]) if stored else 0
            if number >= state.number or (state.run is not None and state.run.end is None):
                return number
            written = self._store.put(name, state.checkpoint(), stored.generation if stored else 0)
            if written:
                state.checkpoint_generation = written
                return state.number
        raise LedgerUnavailable(f"others keep moving the checkpoint of {state.key}")
