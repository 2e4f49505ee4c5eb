"""Drops what is old in a Google Cloud Storage ledger: ended runs but for their tombstones, then tombstones.

Each step can be given up after any request, and is done again from the markers, which go last.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from beam_agents.ledger.base import time_of
from beam_agents.ledger.gcs_horizons import GcsHorizons
from beam_agents.ledger.gcs_names import marker_folder, newest_first, oldest_first, tombstone_marker
from beam_agents.ledger.gcs_search import GcsSearch, Mark, marker_content
from beam_agents.ledger.gcs_store import GcsStore
from beam_agents.ledger.gcs_sweep import GcsSweep
from beam_agents.ledger.records import HeadKey, Run

if TYPE_CHECKING:
    from beam_agents.ledger.gcs_heads import GcsHeads
    from beam_agents.ledger.gcs_transaction import GcsTransaction

R = TypeVar("R")


class GcsRetention:
    """Prunes and forgets.

    Args:
        store: Where the objects are.
        heads: Carries out transactions.
        search: Finds what is old.
        horizons: Remember how far it went.
        sweep: Deletes from logs.
    """

    def __init__(
        self, store: GcsStore, heads: GcsHeads, search: GcsSearch, horizons: GcsHorizons, sweep: GcsSweep
    ) -> None:
        self._store = store
        self._heads = heads
        self._search = search
        self._horizons = horizons
        self._sweep = sweep

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        """Makes tombstones of old runs, the oldest first; how many."""
        self._heads.settle()
        notes = self._sweep.due(scope, agent, limit)
        self._heads.together([partial(self._sweep.carry_out, note) for note in notes])
        folder, start = marker_folder("closed", scope, agent), newest_first(closed_before)

        def oldest(count: int, seen: set[str]) -> list[Mark]:
            marks = self._search.marks(folder, start)
            older = (mark for mark in marks if not _is_of(mark, closed_before) and mark.marker.name not in seen)
            return list(deque(older, maxlen=count))

        return self._batches(limit, oldest, partial(self._prune, scope, agent))

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        """Drops old tombstones, the oldest first; how many."""
        self._heads.settle()
        folder, end = marker_folder("tombstones", scope, agent), oldest_first(closed_before)

        def oldest(count: int, seen: set[str]) -> list[Mark]:
            marks = self._search.marks(folder, end=end)
            return list(islice((mark for mark in marks if mark.marker.name not in seen), count))

        return self._batches(limit, oldest, self._forget)

    def _batches(
        self,
        limit: int,
        oldest: Callable[[int, set[str]], list[Mark]],
        drop: Callable[[Sequence[Mark]], int],
    ) -> int:
        """Drops up to `limit` of what is found, however many markers turn out to be of something else."""
        dropped, seen = 0, set[str]()
        while dropped < limit and (marks := oldest(limit - dropped, seen)):
            seen.update(mark.marker.name for mark in marks)
            dropped += drop(marks)
        return dropped

    # ---- one batch ----

    def _prune(self, scope: str, agent: str, marks: Sequence[Mark]) -> int:
        outdated: list[str] = []
        old: list[tuple[Mark, Run]] = []
        for mark, run in zip(marks, self._heads.look_at_closed([mark.run for mark in marks]), strict=True):
            if run is None or (run.end is not None and not _is_of(mark, run.closed_at)):
                outdated.append(mark.marker.name)
            elif run.end is not None and not run.doubtful:
                old.append((mark, run))
        self._sweep.delete(outdated)
        closed = [run.closed_at for _, run in old if run.closed_at is not None and not run.tombstone]
        if closed:
            self._horizons.raise_to(scope, agent, max(closed))
        return sum(self._for_each_key(old, self._prune_key))

    def _prune_key(self, key: HeadKey, old: Sequence[tuple[Mark, Run]]) -> int:
        for _, run in old:
            if run.closed_at is not None:
                self._store.put(tombstone_marker(run, run.closed_at), marker_content(run))

        def make_tombstones(tx: GcsTransaction) -> int:
            return sum([tx.make_tombstone(run.key) for _, run in old])

        count = self._heads.change(key, make_tombstones)
        self._sweep.tidy(key)
        self._sweep.delete([mark.marker.name for mark, _ in old])
        return count

    def _forget(self, marks: Sequence[Mark]) -> int:
        found = zip(marks, self._heads.look_at_closed([mark.run for mark in marks]), strict=True)
        # That of a run that is not there any more was left by one who died before its log was tidied.
        old = [(mark, run) for mark, run in found if run is None or run.tombstone or not _is_of(mark, run.closed_at)]
        return sum(self._for_each_key(old, self._forget_key))

    def _forget_key(self, key: HeadKey, old: Sequence[tuple[Mark, Run | None]]) -> int:
        runs = [run for mark, run in old if run is not None and _is_of(mark, run.closed_at)]

        def drop_tombstones(tx: GcsTransaction) -> list[tuple[str, int]]:
            dropped = [tx.drop_tombstone(run.key, time_of(run.event_time)) for run in runs]
            return [each for each in dropped if each is not None]

        dropped = self._heads.change(key, drop_tombstones)
        for name, generation in dropped:
            self._store.delete(name, generation)
        self._sweep.tidy(key)
        self._sweep.delete([mark.marker.name for mark, _ in old])
        return len(dropped)

    def _for_each_key(
        self, old: Iterable[tuple[Mark, R]], action: Callable[[HeadKey, Sequence[tuple[Mark, R]]], int]
    ) -> list[int]:
        by_key: defaultdict[HeadKey, list[tuple[Mark, R]]] = defaultdict(list)
        for mark, run in old:
            by_key[mark.run.head].append((mark, run))
        return self._heads.together([partial(action, key, runs) for key, runs in by_key.items()])


def _is_of(mark: Mark, closed_at: float | None) -> bool:
    """Whether a marker is of this close, and not of one that was refused."""
    return closed_at is not None and newest_first(mark.marker.closed_at) == newest_first(closed_at)
