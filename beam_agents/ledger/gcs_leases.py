"""The leases of a Google Cloud Storage ledger: one object for each worker, written at most about once a second."""

from __future__ import annotations

import json
import threading

from beam_agents.ledger.gcs_log import encode
from beam_agents.ledger.gcs_names import lease_name
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.records import Lease

_FRESH_SECONDS = 1.0


class GcsLeases:
    """Reads and writes leases. Only the worker that a lease names writes it."""

    def __init__(self, store: GcsStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._written: dict[str, Lease] = {}

    def read(self, owner: str) -> Lease | None:
        """A worker's lease as it is now."""
        stored = self._store.get(lease_name(owner))
        return Lease(**json.loads(stored.data)) if stored else None

    def write(self, lease: Lease) -> None:
        """Renews a lease, unless it was renewed within the last second: the store takes no more than one a second."""
        with self._lock:
            last = self._written.get(lease.owner)
            if last is not None and 0.0 <= lease.renewed_at - last.renewed_at < _FRESH_SECONDS:
                return
            form = {"owner": lease.owner, "renewed_at": lease.renewed_at, "until": lease.until}
            self._store.put(lease_name(lease.owner), encode(form))
            self._written[lease.owner] = lease
