"""A ledger in memory: for tests, `run_sync`, and agents whose tools are all pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from beam_agents.ledger.base import Ledger, time_of
from beam_agents.ledger.commands import Answer, Closed, Command, FindRuns
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey, UseSummary
from beam_agents.ledger.rules import carry_out


class MemoryLedger(Ledger):
    """Keeps everything in this process until its end, and copies none of it: unpickled, it is empty.

    Args:
        name: Names it in this process.
        clock: Gives seconds since 1970; for tests.
    """

    durable = False
    keep_open = True

    def __init__(self, name: str | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._url = f"memory:{name or uuid.uuid4().hex}"
        self._identity = uuid.uuid4().hex
        self.now = clock
        self._heads: dict[HeadKey, Head] = {}
        self._runs: dict[RunKey, Run] = {}
        self._open: dict[RunKey, None] = {}
        self._effects: dict[RunKey, dict[tuple[str, int], Effect]] = {}
        self._leases: dict[str, Lease] = {}
        self._horizons: dict[tuple[str, str], float] = {}

    def __reduce__(self) -> tuple[type[MemoryLedger], tuple[str]]:
        return MemoryLedger, (self._url.removeprefix("memory:"),)

    @property
    def url(self) -> str:
        return self._url

    @property
    def identity(self) -> str:
        return self._identity

    def open(self, *, make: bool = True) -> None:
        pass

    def close(self) -> None:
        pass

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        return [carry_out(self, command) for command in commands]

    # ---- Transaction ----

    def head(self, key: HeadKey) -> Head | None:
        return self._heads.get(key)

    def put_head(self, head: Head) -> None:
        self._heads[head.key] = head

    def run(self, key: RunKey) -> Run | None:
        return self._runs.get(key)

    def put_run(self, run: Run) -> None:
        self._runs[run.key] = run
        if run.end is None:
            self._open[run.key] = None
        else:
            self._open.pop(run.key, None)

    def effects(self, key: RunKey) -> tuple[Effect, ...]:
        return tuple(self._effects.get(key, {}).values())

    def effect(self, key: RunKey, path: str, attempt: int) -> Effect | None:
        return self._effects.get(key, {}).get((path, attempt))

    def add_effect(self, key: RunKey, effect: Effect) -> None:
        self._effects.setdefault(key, {})[effect.path, effect.attempt] = effect

    def put_outcome(self, key: RunKey, effect: Effect) -> None:
        self._effects[key][effect.path, effect.attempt] = effect

    def lease(self, owner: str) -> Lease | None:
        return self._leases.get(owner)

    def put_lease(self, lease: Lease) -> None:
        self._leases[lease.owner] = lease

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        alive = {lease.owner for lease in self._leases.values() if lease.until > now}
        runs = [self._runs[key] for key in self._open if (key.scope, key.agent) == (scope, agent)]
        left = sorted((run for run in runs if run.owner not in alive), key=lambda run: run.opened_at)
        return left[:limit]

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        found = [
            (run.closed_at, key)
            for key, run in self._runs.items()
            if (key.scope, key.agent) == (scope, agent)
            and run.closed_at is not None
            and run.closed_at >= since
            and not run.tombstone
        ]
        return [key for _, key in sorted(found, key=lambda pair: pair[0], reverse=True)[:limit]]

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        found = sorted(filter(partial(_is_asked_for, query), self._runs.values()), key=lambda run: -run.opened_at)
        return found[: query.limit]

    def uses(self) -> Sequence[UseSummary]:
        runs = self._runs.values()
        return [
            UseSummary(
                scope,
                agent,
                open=sum(run.end is None for run in of_it),
                ended=sum(run.end is not None and not run.tombstone for run in of_it),
                doubtful=sum(run.doubtful for run in of_it),
                tombstones=sum(run.tombstone for run in of_it),
                pruned_to=self.horizon(scope, agent),
            )
            for scope, agent in sorted({(run.key.scope, run.key.agent) for run in runs})
            if (of_it := [run for run in runs if (run.key.scope, run.key.agent) == (scope, agent)])
        ]

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        prunable = self._closed_before(scope, agent, closed_before, tombstones=False)
        older = self._closed_before(scope, agent, forgotten_before, tombstones=False)
        return len(prunable), len(older) + len(self._closed_before(scope, agent, forgotten_before, tombstones=True))

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        old = self._closed_before(scope, agent, closed_before, tombstones=False)[:limit]
        for run in old:
            self._runs[run.key] = replace(run, event="", end="", resolution=None)
            self._effects.pop(run.key, None)
        if old:
            newest = max(run.closed_at or 0.0 for run in old)
            self._horizons[scope, agent] = max(newest, self._horizons.get((scope, agent), 0.0))
        return len(old)

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        old = self._closed_before(scope, agent, closed_before, tombstones=True)[:limit]
        for run in old:
            head = self._heads[run.key.head]
            newest = max(time_of(run.event_time), time_of(head.forgotten_to))
            self._heads[run.key.head] = replace(head, forgotten_to=newest)
            del self._runs[run.key]
        return len(old)

    def horizon(self, scope: str, agent: str) -> float | None:
        return self._horizons.get((scope, agent))

    def _closed_before(self, scope: str, agent: str, before: float, *, tombstones: bool) -> list[Run]:
        found = [
            run
            for run in self._runs.values()
            if (run.key.scope, run.key.agent) == (scope, agent)
            and run.closed_at is not None
            and run.closed_at < before
            and run.tombstone == tombstones
            and not run.doubtful
        ]
        return sorted(found, key=lambda run: run.closed_at or 0.0)


def _is_asked_for(query: FindRuns, run: Run) -> bool:
    key = run.key
    asked = ((query.scope, key.scope), (query.agent, key.agent), (query.key, key.key), (query.run_id, key.run_id))
    if run.tombstone or any(wanted not in (None, own) for wanted, own in (*asked, (query.revision, key.revision))):
        return False
    match query.which:
        case "open":
            return run.end is None
        case "doubtful":
            return run.doubtful
        case "failed":
            return run.reason is not None
    return True


class EphemeralLedger(MemoryLedger):
    """Forgets each run as it is closed: what an agent has that was given no ledger. Its memory does not grow."""

    keep_open = False

    def __reduce__(self) -> tuple[type[MemoryLedger], tuple[str]]:
        return EphemeralLedger, (self._url.removeprefix("memory:"),)

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        answers = super().apply(commands)
        for answer in answers:
            if isinstance(answer, Closed):
                self._runs.pop(answer.run.key, None)
                self._effects.pop(answer.run.key, None)
                self._heads.pop(answer.run.key.head, None)
        return answers
