"""Finds runs in a Google Cloud Storage ledger by their markers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from beam_agents.ledger.commands import FindRuns
from beam_agents.ledger.gcs_horizons import GcsHorizons
from beam_agents.ledger.gcs_leases import GcsLeases
from beam_agents.ledger.gcs_log import encode
from beam_agents.ledger.gcs_names import Marker, marker_folder, newest_first, oldest_first, read_marker
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.records import Lease, Run, RunKey, UseSummary

_LOOKED_AT_ONCE = 64
_STRAY_SECONDS = 3600.0
"""When an opening that came to nothing is no longer waited for."""


def marker_content(run: Run) -> bytes:
    """What a marker's object holds: what may be too long for its name."""
    return encode({"run": run.key, "owner": run.owner})


class Mark(NamedTuple):
    """A marker that was found."""

    marker: Marker
    run: RunKey
    owner: str


class GcsSearch:
    """Markers say where to look, and the logs and the objects of closed runs what is true.

    Args:
        store: Where the markers are.
        leases: Tells who is alive.
        horizons: Tells how far a use was pruned.
        look: Gives the records of runs as they are now.
        look_at_closed: The same, with fewer requests for runs that have ended.
    """

    def __init__(
        self,
        store: GcsStore,
        leases: GcsLeases,
        horizons: GcsHorizons,
        look: Callable[[Sequence[RunKey]], Sequence[Run | None]],
        look_at_closed: Callable[[Sequence[RunKey]], Sequence[Run | None]],
    ) -> None:
        self._store = store
        self._leases = leases
        self._horizons = horizons
        self._look = look
        self._look_at_closed = look_at_closed

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        """The open runs that nobody drives, oldest first."""
        leases: dict[str, Lease | None] = {}

        def is_driven(owner: str) -> bool:
            if owner and owner not in leases:
                leases[owner] = self._leases.read(owner)
            lease = leases.get(owner)
            return lease is not None and lease.until > now

        left = (mark for mark in self.marks(marker_folder("open", scope, agent)) if not is_driven(mark.owner))
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
        marked = list(self.marks(marker_folder("closed", scope, agent), end=newest_first(since) + "0"))
        # A marker is written before the close, which may then have been refused: but such a run is marked as open too,
        # as it was when the closed ones were listed. That of a run that was pruned may be left.
        unsure = {mark.run for mark in self.marks(marker_folder("open", scope, agent))}
        unsure |= {mark.run for mark in self.marks(marker_folder("tombstones", scope, agent), oldest_first(since))}
        looked_at = list({mark.run: None for mark in marked if mark.run in unsure})
        runs = dict(zip(looked_at, self._look_at_closed(looked_at), strict=True))
        found: dict[RunKey, None] = {}
        for mark in marked:
            run = runs.get(mark.run)
            if mark.run not in unsure or (run is not None and run.end):
                found[mark.run] = None
        return list(found)[:limit]

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        """The runs that a person asks for, those opened last first."""
        opened_at: dict[RunKey, float] = {}
        closed = set()
        # Before its close a run is marked as open, and after it as closed: listed in this order, it is not missed.
        kinds = {"all": ("open", "closed"), "open": ("open",)}.get(query.which, ("closed",))
        for kind in kinds:
            for mark in self._asked_for(query, kind):
                opened_at[mark.run] = mark.marker.opened_at
                if kind == "closed":
                    closed.add(mark.run)
        newest = iter(sorted(opened_at, key=lambda key: opened_at[key], reverse=True))
        found: list[Run] = []
        while len(found) < query.limit and (batch := list(islice(newest, _LOOKED_AT_ONCE))):
            runs = [*self._look_at_closed([key for key in batch if key in closed])]
            runs += self._look([key for key in batch if key not in closed])
            found += [run for run in runs if run is not None and _is_asked_for(query, run)]
        return sorted(found, key=lambda run: run.opened_at, reverse=True)[: query.limit]

    def uses(self) -> Sequence[UseSummary]:
        """What there is of each use, by scope and agent."""
        maybe_open = {mark.run for mark in self.marks(marker_folder("open"))}
        closed = {mark.run: mark.marker.came_to for mark in self.marks(marker_folder("closed"))}
        tombstones = {mark.run for mark in self.marks(marker_folder("tombstones"))}
        count: Counter[tuple[str, str, str]] = Counter()
        unsure = [
            key for key, came_to in closed.items() if came_to == "doubtful" or key in maybe_open or key in tombstones
        ]
        for key in closed.keys() - set(unsure):
            count[key.scope, key.agent, "ended"] += 1
        for key in tombstones - closed.keys():
            count[key.scope, key.agent, "tombstones"] += 1
        looked_at = [*self._look_at_closed(unsure), *self._look([*maybe_open - closed.keys()])]
        for run in looked_at:
            if run is None:
                continue
            kind = "open" if run.end is None else "tombstones" if run.tombstone else "ended"
            count[run.key.scope, run.key.agent, kind] += 1
            count[run.key.scope, run.key.agent, "doubtful"] += run.doubtful
        return [
            UseSummary(
                scope,
                agent,
                open=count[scope, agent, "open"],
                ended=count[scope, agent, "ended"],
                doubtful=count[scope, agent, "doubtful"],
                tombstones=count[scope, agent, "tombstones"],
                pruned_to=self._horizons.read(scope, agent),
            )
            for scope, agent in sorted({(scope, agent) for scope, agent, _ in count})
        ]

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        """How many runs and tombstones a prune would come upon; see `Transaction.count_old`."""
        since, maybe_open = newest_first(closed_before), set(self._marked("open", scope, agent))
        closed = {
            mark.run: mark.marker
            for mark in self.marks(marker_folder("closed", scope, agent), since)
            if newest_first(mark.marker.closed_at) != since
        }
        tombstones = self._marked("tombstones", scope, agent)
        unsure = [
            key
            for key, marker in closed.items()
            if marker.came_to == "doubtful" or key in maybe_open or key in tombstones
        ]
        for key, run in zip(unsure, self._look_at_closed(unsure), strict=True):
            if run is None or not run.end or run.doubtful:
                del closed[key]
        tombstones = {key: marker for key, marker in tombstones.items() if key not in closed}
        older = [marker for marker in (*closed.values(), *tombstones.values()) if marker.closed_at < forgotten_before]
        return len(closed), len(older)

    def _marked(self, kind: str, scope: str, agent: str) -> dict[RunKey, Marker]:
        return {mark.run: mark.marker for mark in self.marks(marker_folder(kind, scope, agent))}

    def marks(self, folder: str, start: str = "", end: str | None = None) -> Iterator[Mark]:
        """The markers of a folder, in order, from a time to another."""
        for name in self._store.names(folder, start, end):
            marker = read_marker(name)
            run, owner = marker.run, marker.owner
            if run is None or owner is None:
                stored = self._store.get(name)
                if stored is None:
                    continue
                content = json.loads(stored.data)
                run, owner = RunKey(*content["run"]), str(content["owner"])
            yield Mark(marker, run, owner)

    def _asked_for(self, query: FindRuns, kind: str) -> Iterator[Mark]:
        """The markers of what may be asked for."""
        came_to = {"doubtful": ("doubtful",), "failed": ("failed", "doubtful")}.get(query.which)
        for mark in self.marks(marker_folder(kind, query.scope, query.agent)):
            own = (mark.run.agent, mark.run.key, mark.run.run_id, mark.run.revision)
            wanted = (query.agent, query.key, query.run_id, query.revision)
            if all(asked in (None, value) for asked, value in zip(wanted, own, strict=True)) and (
                came_to is None or mark.marker.came_to in came_to
            ):
                yield mark


def _is_asked_for(query: FindRuns, run: Run) -> bool:
    """Whether a run that was marked so has come to what is asked for."""
    match query.which:
        case "open":
            return run.end is None
        case "doubtful":
            return run.doubtful
        case "failed":
            return run.reason is not None and not run.tombstone
        case "all":
            return not run.tombstone


def _is_outdated(mark: Mark, run: Run | None, now: float) -> bool:
    """Whether nothing can come to a marker any more; its run may be just about to be opened."""
    if run is None:
        return mark.marker.opened_at < now - _STRAY_SECONDS
    return run.end is not None or mark.marker.epoch < run.epoch
