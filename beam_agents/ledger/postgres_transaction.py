"""What the rules read and write inside one transaction of a PostgreSQL ledger.

A group of commands costs two round trips, however large it is: one that locks and reads all that the commands need,
and one that writes all that they change and commits. Each sends its statements as one message, and each statement has
its rows as one JSON text.

The head of a key is the lock for all that is below it. Heads are locked in the order of their ids, after those that
are not there yet were put there in the same order: two groups never wait for each other. Each statement sees what was
committed before it began, so what is read after the lock is what the last holder left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import psycopg

from beam_agents.errors import LedgerError
from beam_agents.ledger import postgres_rows as rows
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.columns import microseconds
from beam_agents.ledger.commands import (
    Close,
    Command,
    CountOld,
    FindClosed,
    FindOrphans,
    FindRuns,
    Intend,
    Load,
    Open,
    Prune,
    ReadHead,
    ReadHorizon,
    Record,
    Renew,
    Resolve,
    Summarize,
)
from beam_agents.ledger.postgres_admin import PostgresAdmin
from beam_agents.ledger.postgres_connection import Connection
from beam_agents.ledger.postgres_message import Message
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey, UseSummary

_Attempt: TypeAlias = tuple[RunKey, str, int]


@dataclass(slots=True)
class _Wanted:
    """What is to be read."""

    opened: set[HeadKey] = field(default_factory=set)
    """Heads that get a place if they are not there."""
    heads: set[HeadKey] = field(default_factory=set)
    runs: set[RunKey] = field(default_factory=set)
    journals: set[RunKey] = field(default_factory=set)
    attempts: set[_Attempt] = field(default_factory=set)
    owners: set[str] = field(default_factory=set)


class PostgresTransaction:
    """The store inside one transaction. `begin` comes first and `commit` last.

    Args:
        connection: In autocommit mode, without a transaction.
        statements: For the schema.
        identity: That of the store which the connection was made for.
        clock: Instead of the server's; for tests.
    """

    def __init__(
        self,
        connection: Connection,
        statements: rows.Statements,
        identity: str,
        clock: Callable[[], float] | None,
    ) -> None:
        self._connection = connection
        self._sql = statements
        self._identity = identity
        self._clock = clock
        self._now = 0.0
        self._locked: set[HeadKey] = set()
        self._heads: dict[HeadKey, Head | None] = {}
        self._runs: dict[RunKey, Run | None] = {}
        self._effects: dict[RunKey, dict[tuple[str, int], Effect | None]] = {}
        self._whole_journals: set[RunKey] = set()
        self._leases: dict[str, Lease | None] = {}
        self._changed_heads: set[HeadKey] = set()
        self._new_runs: set[RunKey] = set()
        self._changed_runs: set[RunKey] = set()
        self._new_effects: dict[_Attempt, None] = {}
        self._changed_effects: set[_Attempt] = set()
        self._changed_leases: set[str] = set()

    def begin(self, commands: Iterable[Command]) -> None:
        """Begins, and reads what the commands are going to ask for.

        Raises:
            LedgerError: Another store stands in the place of this one.
            LedgerUnavailable: Something changed meanwhile; to be tried again.
            psycopg.Error: What the server says.
        """
        wanted = _wanted_by(commands)
        message = Message(self._connection)
        message.add("BEGIN ISOLATION LEVEL READ COMMITTED")
        if wanted.opened:
            heads = sorted((rows.head_id(key), key) for key in wanted.opened)
            message.add(self._sql.hold_heads, rows=rows.held_heads(heads))
        asked = self._ask(wanted, message)
        look = message.add(self._sql.look)
        message.send()
        ((now, identity),) = message.rows(look)
        if identity != self._identity:
            raise LedgerError("another store was put in the place of this one while it was in use")
        self._now = now / 1_000_000 if self._clock is None else round(self._clock(), 6)
        self._take(wanted, asked, message)
        if not wanted.opened <= self._locked:
            raise LedgerUnavailable("a head was deleted while its run was being opened")

    def commit(self) -> None:
        """Writes what has changed, and commits.

        Raises:
            psycopg.Error: What the server says.
        """
        message = Message(self._connection)
        self._write(message)
        message.add("COMMIT")
        if message.send() != "COMMIT":
            raise psycopg.OperationalError("the server rolled back what was to be committed")

    # ---- Transaction ----

    def now(self) -> float:
        return self._now

    def head(self, key: HeadKey) -> Head | None:
        if key not in self._heads:
            self._read(_Wanted(heads={key}))
        return self._heads[key]

    def put_head(self, head: Head) -> None:
        self._heads[head.key] = head
        self._changed_heads.add(head.key)

    def run(self, key: RunKey) -> Run | None:
        if key not in self._runs:
            self._read(_Wanted(runs={key}))
        return self._runs[key]

    def put_run(self, run: Run) -> None:
        if self.run(run.key) is None:
            self._new_runs.add(run.key)
            self._effects[run.key] = {}
            self._whole_journals.add(run.key)
        elif run.key not in self._new_runs:
            self._changed_runs.add(run.key)
        self._runs[run.key] = run

    def effects(self, key: RunKey) -> tuple[Effect, ...]:
        if self.run(key) is None:
            return ()
        if key not in self._whole_journals:
            self._read(_Wanted(journals={key}))
        return tuple(filter(None, self._effects[key].values()))

    def effect(self, key: RunKey, path: str, attempt: int) -> Effect | None:
        if self.run(key) is None:
            return None
        known = self._effects.setdefault(key, {})
        if (path, attempt) not in known and key not in self._whole_journals:
            self._read(_Wanted(attempts={(key, path, attempt)}))
        return known.get((path, attempt))

    def add_effect(self, key: RunKey, effect: Effect) -> None:
        if self.run(key) is None:
            raise LookupError(f"no record of {key}")
        # Read as absent, it stands among the journal's effects already, but not at its end.
        self._effects.setdefault(key, {}).pop((effect.path, effect.attempt), None)
        self._effects[key][effect.path, effect.attempt] = effect
        self._new_effects[key, effect.path, effect.attempt] = None

    def put_outcome(self, key: RunKey, effect: Effect) -> None:
        if self.effect(key, effect.path, effect.attempt) is None:
            raise LookupError(f"no intent of {key} {effect.path} attempt {effect.attempt}")
        self._effects[key][effect.path, effect.attempt] = effect
        if (key, effect.path, effect.attempt) not in self._new_effects:
            self._changed_effects.add((key, effect.path, effect.attempt))

    def lease(self, owner: str) -> Lease | None:
        if owner not in self._leases:
            self._read(_Wanted(owners={owner}))
        return self._leases[owner]

    def put_lease(self, lease: Lease) -> None:
        self._leases[lease.owner] = lease
        self._changed_leases.add(lease.owner)

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        used_by = rows.use_id(scope, agent)
        message = Message(self._connection)
        self._write(message)
        found = message.add(self._sql.open_runs, used_by=used_by, now=microseconds(now), limit=limit)
        message.send()
        return [rows.read_run(row) for row in message.rows(found)]

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        used_by = rows.use_id(scope, agent)
        message = Message(self._connection)
        self._write(message)
        found = message.add(self._sql.closed_runs, used_by=used_by, since=microseconds(since), limit=limit)
        message.send()
        return [RunKey(*row) for row in message.rows(found)]

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        self._send_changes()
        return self._admin().find_runs(query)

    def uses(self) -> Sequence[UseSummary]:
        self._send_changes()
        return self._admin().uses()

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        self._send_changes()
        return self._admin().count_old(scope, agent, closed_before, forgotten_before)

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        self._begin_anew()
        return self._admin().prune(scope, agent, closed_before, limit)

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        self._begin_anew()
        return self._admin().forget(scope, agent, closed_before, limit)

    def horizon(self, scope: str, agent: str) -> float | None:
        return self._admin().horizon(scope, agent)

    # ---- statements ----

    def _admin(self) -> PostgresAdmin:
        return PostgresAdmin(self._connection, self._sql.schema)

    def _send_changes(self) -> None:
        message = Message(self._connection)
        self._write(message)
        message.send()

    def _begin_anew(self) -> None:
        """Writes what has changed, and knows nothing of heads and what is below them any more."""
        self._send_changes()
        for known in (self._heads, self._runs, self._effects, self._whole_journals):
            known.clear()

    def _read(self, wanted: _Wanted) -> None:
        """Reads what was not foreseen."""
        message = Message(self._connection)
        asked = self._ask(wanted, message)
        message.send()
        self._take(wanted, asked, message)

    def _ask(self, wanted: _Wanted, message: Message) -> _Asked:
        asked = _Asked()
        below = wanted.runs | wanted.journals | {run for run, _, _ in wanted.attempts}
        heads = wanted.heads | {run.head for run in below}
        if heads:
            asked.locked = message.add(self._sql.lock_heads, heads=rows.ids(map(rows.head_id, heads)))
        read_heads = rows.ids(map(rows.head_id, wanted.heads))
        read_runs = rows.ids(rows.run_id(run) for run in below if run not in self._runs)
        if wanted.heads:
            asked.heads = message.add(self._sql.read_heads, heads=read_heads)
        if wanted.heads or below:
            asked.runs = message.add(self._sql.read_runs, heads=read_heads, runs=read_runs)
        if wanted.owners:
            owners = json.dumps(list(wanted.owners))
            asked.leases = message.add(self._sql.read_leases, owners=owners, heads=read_heads, runs=read_runs)
        if wanted.journals:
            asked.journals = message.add(self._sql.read_journals, runs=rows.ids(map(rows.run_id, wanted.journals)))
        if wanted.attempts:
            attempts = ((rows.run_id(run), path, attempt) for run, path, attempt in wanted.attempts)
            asked.effects = message.add(self._sql.read_effects, rows=rows.attempts_to_read(attempts))
        return asked

    def _take(self, wanted: _Wanted, asked: _Asked, message: Message) -> None:
        self._locked.update(HeadKey(*key) for _, *key in message.rows(asked.locked))
        for head_key in wanted.heads:
            self._heads.setdefault(head_key, None)
        for row in message.rows(asked.heads):
            head = rows.read_head(row)
            if head.key not in self._changed_heads:
                self._heads[head.key] = head
        below = wanted.runs | wanted.journals | {run for run, _, _ in wanted.attempts}
        found = {run.key: run for run in map(rows.read_run, message.rows(asked.runs)) if run.key.head in self._locked}
        # Without its head nothing locks a run: it was opened after the lock was asked for, and is taken as not there.
        for run_key in below | found.keys():
            self._runs.setdefault(run_key, found.get(run_key))
        for owner in wanted.owners | {run.owner for run in found.values() if asked.leases is not None}:
            self._leases.setdefault(owner, None)
        for row in message.rows(asked.leases):
            lease = rows.read_lease(row)
            if lease.owner not in self._changed_leases:
                self._leases[lease.owner] = lease
        keys = {rows.run_id(key): key for key in below}
        for key in wanted.journals:
            self._whole_journals.add(key)
        for key, path, attempt in wanted.attempts:
            self._effects.setdefault(key, {}).setdefault((path, attempt), None)
        journals: dict[RunKey, dict[tuple[str, int], Effect | None]] = {key: {} for key in wanted.journals}
        for run_id, effect in map(rows.read_effect, message.rows(asked.journals)):
            journals[keys[run_id]][effect.path, effect.attempt] = effect
        for key, journal in journals.items():
            known = self._effects.get(key, {})
            self._effects[key] = {**journal, **{at: effect for at, effect in known.items() if effect is not None}}
        for run_id, effect in map(rows.read_effect, message.rows(asked.effects)):
            if self._effects[keys[run_id]].get((effect.path, effect.attempt)) is None:
                self._effects[keys[run_id]][effect.path, effect.attempt] = effect

    def _write(self, message: Message) -> None:
        """Has what has changed written by a message."""
        heads = [head for key in self._changed_heads if (head := self._heads[key])]
        new_runs = [run for key in self._new_runs if (run := self._runs[key])]
        changed_runs = [run for key in self._changed_runs if (run := self._runs[key])]
        new_effects, changed_effects = list(self._named(self._new_effects)), list(self._named(self._changed_effects))
        leases = [lease for owner in sorted(self._changed_leases) if (lease := self._leases[owner])]
        if heads:
            message.add(self._sql.write_heads, rows=rows.heads_to_write(heads))
        if new_runs:
            message.add(self._sql.add_runs, rows=rows.runs_to_add(new_runs))
        if changed_runs:
            message.add(self._sql.change_runs, rows=rows.runs_to_change(changed_runs))
        if new_effects:
            message.add(self._sql.add_effects, rows=rows.effects_to_add(new_effects))
        if changed_effects:
            message.add(self._sql.change_effects, rows=rows.effects_to_change(changed_effects))
        if leases:  # last and in order: other groups write the same ones without holding a lock for them
            message.add(self._sql.write_leases, rows=rows.leases_to_write(leases))
        for changed in (self._changed_heads, self._new_runs, self._changed_runs, self._changed_effects):
            changed.clear()
        self._new_effects.clear()
        self._changed_leases.clear()

    def _named(self, attempts: Iterable[_Attempt]) -> Iterator[tuple[RunKey, Effect]]:
        for key, path, attempt in attempts:
            effect = self._effects[key][path, attempt]
            if effect is not None:
                yield key, effect


@dataclass(slots=True)
class _Asked:
    """The statements of a message by their numbers; `None` where nothing is asked for."""

    locked: int | None = None
    heads: int | None = None
    runs: int | None = None
    leases: int | None = None
    journals: int | None = None
    effects: int | None = None


def _wanted_by(commands: Iterable[Command]) -> _Wanted:
    wanted = _Wanted()
    for command in commands:
        match command:
            case Open():
                wanted.opened.add(command.run.head)
                wanted.heads.add(command.run.head)
                wanted.journals.add(command.run)
                wanted.owners.add(command.owner)
            case Close():
                wanted.heads.add(command.run.head)
                wanted.journals.add(command.run)
            case Load() | Resolve():
                wanted.journals.add(command.run)
            case Intend():
                for attempt in {command.effect.attempt, max(1, command.effect.attempt - 1)}:
                    wanted.attempts.add((command.run, command.effect.path, attempt))
                wanted.attempts.update((told.run, told.path, told.attempt) for told in command.outcomes)
            case Record():
                wanted.attempts.add((command.run, command.path, command.attempt))
            case ReadHead():
                wanted.heads.add(command.head)
            case (
                Renew() | FindOrphans() | FindClosed() | FindRuns() | Summarize() | Prune() | CountOld() | ReadHorizon()
            ):
                pass
            case _:
                wanted.runs.add(command.run)
    return wanted
