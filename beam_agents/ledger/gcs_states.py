"""What the keys of a Google Cloud Storage ledger have come to, as it is remembered or read from their logs."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.gcs_log import HeadState
from beam_agents.ledger.gcs_names import checkpoint_name, entry_name
from beam_agents.ledger.gcs_store import GcsStore, Stored
from beam_agents.ledger.gcs_together import together
from beam_agents.ledger.records import HeadKey

FRESH_SECONDS = 600.0
"""How long after a look an entry that is not there was surely never there; see `gcs_sweep.KEPT_SECONDS`."""

SKIPPED = ""
"""Stands for the tokens of entries that were not read, since a checkpoint has what they did."""

_TRIES = 5
_LONGEST_WINDOW = 32
_REMEMBERED_BYTES = 64_000_000
_REMEMBERED_HEADS = 10_000


class GcsStates:
    """Remembers states, and brings them up to date.

    Args:
        store: Where the logs are.
        requests: Threads for requests that go side by side.
    """

    def __init__(self, store: GcsStore, requests: ThreadPoolExecutor) -> None:
        self._store = store
        self._requests = requests
        self._lock = threading.Lock()
        self._remembered: OrderedDict[HeadKey, HeadState] = OrderedDict()
        self._remembered_bytes = 0

    def recall(self, key: HeadKey) -> tuple[HeadState, bool]:
        """What a key has come to, as it is remembered or read; and whether it is the newest now."""
        with self._lock:
            state = self._remembered.pop(key, None)
            if state is not None:
                self._remembered_bytes -= state.remembered_size
        if state is None:
            return self._read(key), True
        if self.is_fresh(state):
            return state, False
        self.catch_up(state)
        return state, True

    def remember(self, state: HeadState) -> None:
        """Keeps a state for the next time, and forgets the ones that were not asked for longest."""
        with self._lock:
            earlier = self._remembered.pop(state.key, None)
            state.remembered_size = state.size
            self._remembered[state.key] = state
            self._remembered_bytes += state.size - (earlier.remembered_size if earlier else 0)
            while self._remembered_bytes > _REMEMBERED_BYTES or len(self._remembered) > _REMEMBERED_HEADS:
                _, oldest = self._remembered.popitem(last=False)
                self._remembered_bytes -= oldest.remembered_size

    def is_fresh(self, state: HeadState) -> bool:
        """Whether entries that follow this state cannot have been swept away yet."""
        return self._store.now() - state.fresh_at <= FRESH_SECONDS

    def catch_up(self, state: HeadState, window: int = 1) -> list[str]:
        """Counts in the entries that were added by others.

        Returns:
            Their tokens, the first one `SKIPPED` if there may have been more.

        Raises:
            LedgerUnavailable: Requests take so long that nothing that they say is sure.
        """
        tokens = [] if self.is_fresh(state) or self.follows(state) else [SKIPPED]
        tries = _TRIES
        while tries:
            asked = self._store.now()
            names = [entry_name(state.folder, state.number + 1 + ahead) for ahead in range(window)]
            for stored in self._get(names):
                if stored is not None:
                    tokens.append(state.add(stored.data))
                    continue
                if self.is_fresh(state):
                    state.fresh_at = asked
                    return tokens
                # This process was asleep: what was read since may be what a sleeper like this one left behind.
                self._start_again(state)
                tokens = [SKIPPED]
                tries -= 1
                break
            window = min(2 * window, _LONGEST_WINDOW)
        raise LedgerUnavailable(f"it takes minutes to look what {state.key} has come to")

    def follows(self, state: HeadState) -> bool:
        """Whether the entries after this state are surely still there; if not, the state becomes the checkpoint's."""
        asked = self._store.now()
        checkpoint = self._store.get(checkpoint_name(state.folder))
        if checkpoint is None or json.loads(checkpoint.data)["number"] <= state.number:
            state.fresh_at = asked
            return True
        state.restore(checkpoint.data, checkpoint.generation)
        state.fresh_at = asked
        return False

    def _read(self, key: HeadKey) -> HeadState:
        state = HeadState(key)
        state.fresh_at = self._store.now()
        checkpoint, first = self._get([checkpoint_name(state.folder), entry_name(state.folder, 1)])
        if checkpoint is not None:
            state.restore(checkpoint.data, checkpoint.generation)
        elif first is not None:
            state.add(first.data)
        elif self.is_fresh(state):
            return state
        self.catch_up(state, window=2)
        return state

    def _start_again(self, state: HeadState) -> None:
        state.fresh_at = self._store.now()
        checkpoint = self._store.get(checkpoint_name(state.folder))
        state.restore(*(checkpoint or (None, 0)))

    def _get(self, names: Sequence[str]) -> list[Stored | None]:
        return together(self._requests, [partial(self._store.get, name) for name in names])
