"""What the rules read and write inside one transaction of a Google Cloud Storage ledger: the records of one key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beam_agents.ledger.commands import FindRuns
from beam_agents.ledger.gcs_horizons import GcsHorizons
from beam_agents.ledger.gcs_leases import GcsLeases
from beam_agents.ledger.gcs_log import ClosedRun, Entry, HeadState, changes
from beam_agents.ledger.gcs_names import closed_marker, open_marker, run_name
from beam_agents.ledger.gcs_retention import GcsRetention
from beam_agents.ledger.gcs_search import GcsSearch
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey, UseSummary


@dataclass
class _Kept:
    """A closed run as it was read, and as it is to be written."""

    generation: int
    closed: ClosedRun
    changed: bool = False


@dataclass(frozen=True)
class Shared:
    """What all transactions of a ledger have in common."""

    store: GcsStore
    clock: Callable[[], float]
    leases: GcsLeases
    horizons: GcsHorizons
    search: GcsSearch
    retention: GcsRetention


class GcsTransaction:
    """The store as one transaction sees it, and what it wants to change in the records of its key.

    Args:
        state: What the key has come to. It is not changed by this, but may be by others once this is carried out.
        shared: What is not the key's.
    """

    def __init__(self, state: HeadState, shared: Shared) -> None:
        self._state = state
        self._shared = shared
        self._head = state.head
        self._before = state.run
        self._run = state.run
        self._is_new = False
        self._added: dict[tuple[str, int], Effect] = {}
        self._outcomes: dict[tuple[str, int], Effect] = {}
        self._kept: dict[RunKey, _Kept | None] = {}
        self._drops_run = False
        self.leases: dict[str, Lease] = {}
        """To be written before the changes of the key."""

    # ---- what it came to ----

    @property
    def opens(self) -> bool:
        """Whether it opens a run that was not there."""
        return self._is_new

    @property
    def closed(self) -> ClosedRun | None:
        """The run that it closes."""
        if self._run is None or self._run.end is None or self._run is self._before:
            return None
        return ClosedRun(self._run, self._journal())

    def markers(self) -> list[tuple[str, Run]]:
        """The markers that have to be there before its entry is."""
        run, before = self._run, self._before
        if run is None or run is before:
            return []
        if run.closed_at is not None:
            return [(closed_marker(run, run.closed_at), run)]
        if self._is_new or before is None or (run.epoch, run.owner) != (before.epoch, before.owner):
            return [(open_marker(run), run)]
        return []

    def outdated_markers(self) -> list[str]:
        """The markers that nobody needs any more once its entry is there."""
        run, before = self._run, self._before
        if run is None or before is None or self._is_new or before.end is not None:
            return []
        if run.end is None and (run.epoch, run.owner) == (before.epoch, before.owner):
            return []
        return [open_marker(before)]

    def entry(self, token: str) -> Entry | None:
        """What it changes in the log of the key, `None` for nothing."""
        head = changes(self._state.head or Head(self._state.key), self._head) if self._head else {}
        run: dict[str, Any] = {}
        if self._run is not None and self._before is not None and not self._is_new:
            run = changes(self._before, self._run)
        if not (head or run or self._is_new or self._added or self._outcomes or self._drops_run):
            return None
        added = [self._outcomes.get(place, effect) for place, effect in self._added.items()]
        outcomes = [effect for place, effect in self._outcomes.items() if place not in self._added]
        return Entry(token, head, self._run if self._is_new else None, run, added, outcomes, self._drops_run)

    def changed_closed_runs(self) -> Iterator[tuple[str, int, bytes]]:
        """Closed runs to write: the name, the generation that may be replaced, the content."""
        for key, kept in self._kept.items():
            if kept is not None and kept.changed:
                yield run_name(self._state.folder, key.run_id), kept.generation, kept.closed.encode()

    # ---- what is dropped ----

    def make_tombstone(self, key: RunKey) -> bool:
        """Drops all of an ended run but its tombstone, unless a person has to see it; whether it did."""
        kept = None if self._is_current(key) else self._closed_run(key)
        if kept is None or kept.closed.run.tombstone or kept.closed.run.doubtful:
            return False
        kept.closed = ClosedRun(replace(kept.closed.run, event="", end="", resolution=None), ())
        kept.changed = True
        return True

    def drop_tombstone(self, key: RunKey, forgotten_to: int) -> tuple[str, int] | None:
        """Notes in the head that a tombstone is dropped.

        Returns:
            The object to delete once that is noted, and its generation; `None` if there is no such tombstone.
        """
        kept = None if self._is_current(key) else self._closed_run(key)
        if kept is None or not kept.closed.run.tombstone or self._head is None:
            return None
        if self._head.forgotten_to is None or self._head.forgotten_to < forgotten_to:
            self._head = replace(self._head, forgotten_to=forgotten_to)
        self._drops_run = self._drops_run or (self._before is not None and self._before.key == key)
        return run_name(self._state.folder, key.run_id), kept.generation

    # ---- Transaction ----

    def now(self) -> float:
        return round(self._shared.clock(), 6)

    def head(self, key: HeadKey) -> Head | None:
        return self._head

    def put_head(self, head: Head) -> None:
        self._head = head

    def run(self, key: RunKey) -> Run | None:
        if self._is_current(key):
            return self._run
        kept = self._closed_run(key)
        return kept.closed.run if kept else None

    def put_run(self, run: Run) -> None:
        if self._is_current(run.key):
            self._run = run
        elif kept := self._closed_run(run.key):
            kept.closed, kept.changed = kept.closed._replace(run=run), True
        else:
            self._run, self._is_new = run, True

    def effects(self, key: RunKey) -> tuple[Effect, ...]:
        if self._is_current(key):
            return self._journal()
        kept = self._closed_run(key)
        return kept.closed.effects if kept else ()

    def effect(self, key: RunKey, path: str, attempt: int) -> Effect | None:
        place = path, attempt
        if self._is_current(key):
            found = self._outcomes.get(place) or self._added.get(place)
            return found or (None if self._is_new else self._state.journal.get(place))
        kept = self._closed_run(key)
        effects = kept.closed.effects if kept else ()
        return next((effect for effect in effects if (effect.path, effect.attempt) == place), None)

    def add_effect(self, key: RunKey, effect: Effect) -> None:
        if not self._is_current(key):
            raise LookupError(f"no open run {key}")
        self._added[effect.path, effect.attempt] = effect

    def put_outcome(self, key: RunKey, effect: Effect) -> None:
        if self._is_current(key):
            self._outcomes[effect.path, effect.attempt] = effect
            return
        kept = self._closed_run(key)
        if kept is None:
            raise LookupError(f"no record of {key}")
        place = effect.path, effect.attempt
        effects = tuple(effect if (each.path, each.attempt) == place else each for each in kept.closed.effects)
        kept.closed, kept.changed = kept.closed._replace(effects=effects), True

    def lease(self, owner: str) -> Lease | None:
        return self.leases.get(owner) or self._shared.leases.read(owner)

    def put_lease(self, lease: Lease) -> None:
        self.leases[lease.owner] = lease

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        return self._shared.search.open_runs(scope, agent, now, limit)

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        return self._shared.search.closed_runs(scope, agent, since, limit)

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        return self._shared.search.find_runs(query)

    def uses(self) -> Sequence[UseSummary]:
        return self._shared.search.uses()

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        return self._shared.search.count_old(scope, agent, closed_before, forgotten_before)

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        return self._shared.retention.prune(scope, agent, closed_before, limit)

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        return self._shared.retention.forget(scope, agent, closed_before, limit)

    def horizon(self, scope: str, agent: str) -> float | None:
        return self._shared.horizons.read(scope, agent)

    # ---- records ----

    def _is_current(self, key: RunKey) -> bool:
        """Whether a run is kept in the log: it is open, or this transaction closes it."""
        run = self._run
        return run is not None and run.key == key and (run.end is None or run is not self._before)

    def _journal(self) -> tuple[Effect, ...]:
        places = {} if self._is_new else self._state.journal
        return tuple({**places, **self._added, **self._outcomes}.values())

    def _closed_run(self, key: RunKey) -> _Kept | None:
        """A run that was closed earlier. Outcomes that came later stand in its object only, so that is read first."""
        if key not in self._kept:
            self._kept[key] = self._read_closed_run(key)
        return self._kept[key]

    def _read_closed_run(self, key: RunKey) -> _Kept | None:
        if self._state.number == 0:
            return None
        stored = self._shared.store.get(run_name(self._state.folder, key.run_id))
        if stored is not None:
            return _Kept(stored.generation, ClosedRun.decode(stored.data))
        last = self._before
        if last is None or last.key != key or last.end is None:
            return None
        return _Kept(0, ClosedRun(last, tuple(self._state.journal.values())))
