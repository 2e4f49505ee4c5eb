"""A ledger in memory: for tests, `run_sync`, and agents whose tools are all pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence

from beam_agents.ledger.base import Answer, Closed, Command, Effect, Head, HeadKey, Lease, Ledger, Run, RunKey
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

    def __reduce__(self) -> tuple[type[MemoryLedger], tuple[str]]:
        return MemoryLedger, (self._url.removeprefix("memory:"),)

    @property
    def url(self) -> str:
        return self._url

    @property
    def identity(self) -> str:
        return self._identity

    def open(self) -> None:
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
            if (key.scope, key.agent) == (scope, agent) and run.closed_at is not None and run.closed_at >= since
        ]
        return [key for _, key in sorted(found, key=lambda pair: pair[0], reverse=True)[:limit]]


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
