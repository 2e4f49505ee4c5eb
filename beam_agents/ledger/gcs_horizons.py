"""How far the uses of a Google Cloud Storage ledger were pruned: one object for each, which only ever rises."""

from __future__ import annotations

import json

from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.gcs_log import encode
from beam_agents.ledger.gcs_names import horizon_name
from beam_agents.ledger.gcs_store import GcsStore

_TRIES = 20


class GcsHorizons:
    """Reads and raises horizons."""

    def __init__(self, store: GcsStore) -> None:
        self._store = store

    def read(self, scope: str, agent: str) -> float | None:
        """When the newest run that was pruned had been closed, seconds since 1970."""
        stored = self._store.get(horizon_name(scope, agent))
        return float(json.loads(stored.data)["pruned_to"]) if stored else None

    def raise_to(self, scope: str, agent: str, closed_at: float) -> None:
        """Makes a horizon at least this.

        Raises:
            LedgerUnavailable: Others keep raising it.
        """
        name = horizon_name(scope, agent)
        for _ in range(_TRIES):
            stored = self._store.get(name)
            if stored is not None and json.loads(stored.data)["pruned_to"] >= closed_at:
                return
            if self._store.put(name, encode({"pruned_to": closed_at}), stored.generation if stored else 0):
                return
        raise LedgerUnavailable(f"others keep raising the horizon of {agent!r} in {scope!r}")
