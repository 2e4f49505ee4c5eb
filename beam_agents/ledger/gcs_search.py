"""Finds open and closed runs in a Google Cloud Storage ledger by their markers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from beam_agents.ledger.gcs_leases import GcsLeases
from beam_agents.ledger.gcs_log import encode
from beam_agents.ledger.gcs_names import Marker, closed_folder, newest_first, open_folder, read_marker
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.records import Lease, Run, RunKey

_LOOKED_AT_ONCE = 64
_STRAY_SECONDS = 3600.0
"""When an opening that came to nothing is no longer waited for."""


def marker_content(run: Run) -> bytes:
    """What a marker's object holds: what may be too long for its name."""
    return encode({"run": run.key, "owner": run.owner})


class GcsSearch:
    """Markers say where to look, and the logs what is true.

    Args:
        store: Where the markers are.
        leases: Tells who is alive.
        look: Gives the records of runs as they are now.
    """

    def __init__(
        self, store: GcsStore, leases: GcsLeases, look: Callable[[Sequence[RunKey]], Sequence[Run | None]]
    ) -> None:
        self._store = store
        self._leases = leases
        self._look = look

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        """The open runs that nobody drives, oldest first."""
        leases: dict[str, Lease | None] = {}

        def is_driven(owner: str) -> bool:
            if owner and owner not in leases:
                leases[owner] = self._leases.read(owner)
            lease = leases.get(owner)
            return lease is not None and lease.until > now

        marked = self._marked(open_folder(scope, agent), scope, agent)
        left = (mark for mark in marked if not is_driven(mark.owner))
        found: dict[RunKey, Run] = {}
        while len(found) < limit and (batch := list(islice(left, _LOOKED_AT_ONCE))):
            for mark, run in zip(batch, self._look([mark.run for mark in batch]), strict=True):
                if _is_outdated(mark, run, now):
                    self._store.delete(mark.marker.name)
                elif run is not None and run.end is None and not is_driven(run.owner):
                    found[run.key] = run
        return sorted(found.values(), key=lambda run: run.opened_at)[:limit]

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        """The runs that were closed lately, newest first."""
        marked = list(self._marked(closed_folder(scope, agent), scope, agent, end=newest_first(since) + "0"))
        # A marker is written before the close, which may then have been refused: but such a run is marked as open too,
        # as it was when the closed ones were listed.
        maybe_open = {mark.run for mark in self._marked(open_folder(scope, agent), scope, agent)}
        unsure = list({mark.run: None for mark in marked if mark.run in maybe_open})
        runs = dict(zip(unsure, self._look(unsure), strict=True))
        found: dict[RunKey, None] = {}
        for mark in marked:
            run = runs.get(mark.run)
            if mark.run not in maybe_open or (run is not None and run.end is not None):
                found[mark.run] = None
        return list(found)[:limit]

    def _marked(self, folder: str, scope: str, agent: str, end: str | None = None) -> Iterator[_Mark]:
        for name in self._store.names(folder, end=end):
            marker = read_marker(name, scope, agent)
            run, owner = marker.run, marker.owner
            if run is None or owner is None:
                stored = self._store.get(name)
                if stored is None:
                    continue
                content = json.loads(stored.data)
                run, owner = RunKey(*content["run"]), str(content["owner"])
            yield _Mark(marker, run, owner)


class _Mark(NamedTuple):
    marker: Marker
    run: RunKey
    owner: str


def _is_outdated(mark: _Mark, run: Run | None, now: float) -> bool:
    """Whether nothing can come to a marker any more; its run may be just about to be opened."""
    if run is None:
        return mark.marker.opened_at < now - _STRAY_SECONDS
    return run.end is not None or mark.marker.epoch < run.epoch
