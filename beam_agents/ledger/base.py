"""The ledger's protocol: what a backend has to provide.

State decides what is emitted, the ledger decides what is done. It holds a record for each run, a journal of each
run's effects, and a head for each key. Workers change it by commands; a group of commands is one transaction. What
a command means stands in `rules.py`, once for all backends. Times are seconds since 1970 and durations are seconds; a
store keeps both to the microsecond.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from beam_agents.errors import BeamAgentsError
from beam_agents.ledger.commands import Answer, Command, FindRuns
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey, UseSummary

LEASE_SECONDS = 4.0
"""How long a worker is believed alive after its last renewal."""


BEGINNING = -(2**62)
"""The event time, in microseconds, of an event that has none: before all others."""


def time_of(event_time: int | None) -> int:
    """An event time in microseconds, `BEGINNING` if there is none."""
    return BEGINNING if event_time is None else event_time


class LedgerUnavailable(BeamAgentsError):
    """The store did not take the commands this time (down, locked, full); they may be given again as they are."""


class Transaction(Protocol):
    """What the rules need of a store inside one transaction."""

    def now(self) -> float:
        """Seconds since 1970, by one clock for all workers of this ledger."""
        ...

    def head(self, key: HeadKey) -> Head | None: ...
    def put_head(self, head: Head) -> None: ...
    def run(self, key: RunKey) -> Run | None: ...
    def put_run(self, run: Run) -> None: ...
    def effects(self, key: RunKey) -> tuple[Effect, ...]:
        """The journal in the order in which `add_effect` was called."""
        ...

    def effect(self, key: RunKey, path: str, attempt: int) -> Effect | None: ...
    def add_effect(self, key: RunKey, effect: Effect) -> None: ...
    def put_outcome(self, key: RunKey, effect: Effect) -> None:
        """Stores `status`, `value` and `outcome_at` of an attempt that is there."""
        ...

    def lease(self, owner: str) -> Lease | None: ...
    def put_lease(self, lease: Lease) -> None: ...
    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        """The runs without an end that nobody drives, of all keys and revisions, at most `limit`, oldest first.

        Nobody drives a run that was let go, whose owner has no lease, or whose owner's lease ended at or before `now`.
        """
        ...

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        """The runs that were closed at or after `since`, of all keys and revisions, at most `limit`, newest first.
        Tombstones are not among them."""
        ...

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        """The runs that `query` asks for, no tombstones, those opened last first."""
        ...

    def uses(self) -> Sequence[UseSummary]:
        """What is there, in the order of scope and agent."""
        ...

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        """How many runs that are no tombstones were closed before the first time, and how many runs and tombstones
        before the second. `doubtful` runs are not counted."""
        ...

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        """Makes tombstones of runs closed before that time, the oldest first: `event` and `end` become empty,
        `resolution` becomes `None`, and their effects are dropped. Raises the horizon to the newest
        `closed_at` among them. Returns how many, `limit` at most. `doubtful` runs stay: a person has to see them."""
        ...

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        """Drops tombstones of runs closed before that time, the oldest first, and raises `forgotten_to` of their heads
        to the newest of their `event_time`; a run without one counts as one at the beginning of time (`BEGINNING`).
        Returns how many, `limit` at most."""
        ...

    def horizon(self, scope: str, agent: str) -> float | None:
        """When the newest run that was ever pruned had been closed, seconds since 1970."""
        ...


class Ledger(ABC):
    """A store of runs. An instance is pickled with the pipeline and opened in each worker process.

    `open`, `apply` and `close` are called on one thread, the ledger writer's.
    """

    durable: bool = True
    """Whether it outlives the process; a ledger that does not cannot keep promises about `once` tools."""

    keep_open: bool = False
    """Whether a worker process that has opened it keeps it until its own end, though nobody uses it for a while."""

    schema_version: int = 1
    """Of the form in which this release keeps records. A store of another one is brought up to date or refused by
    `open`."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Names the store; two ledgers with one URL are the same one."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Given to the store when it was made, and remembered by Beam's state; known once it is open."""

    @abstractmethod
    def open(self, *, make: bool = True) -> None:
        """Connects.

        Args:
            make: Makes the store if it is not there, now or when it has connected again. Who only looks does not.

        Raises:
            LedgerUnavailable: Try again later.
            LedgerError: It cannot be used (another schema version, no permission), or it is not there and not made.
        """

    @abstractmethod
    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        """Carries out the commands in order, all of them or none, durably before it returns.

        Raises:
            LedgerUnavailable: Nothing is known to be recorded; giving the same commands again is safe.
            LedgerError: This ledger can never carry them out.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnects."""
