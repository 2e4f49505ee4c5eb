"""What the rules read and write inside one transaction of an SQLite ledger.

Python lets go of its interpreter lock at each step of an SQLite statement, and gets it back from a busy event loop
only after milliseconds. So a group of commands must not cost a statement each: all that they need is read by a few
statements beforehand, each with a single row of JSON as its result, and all that they change is written by one
statement for each table at the end.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from beam_agents.ledger import sqlite_admin
from beam_agents.ledger import sqlite_rows as rows
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
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey, UseSummary
from beam_agents.ledger.sqlite_text import execute

_OLD_LEASE_SECONDS = 3600.0
_RECORD_BYTES = 1_000
"""Of a run or an effect, without its texts."""


class SqliteTransaction:
    """The store inside one transaction. The file is locked meanwhile, so what was read once stays true; it does so in
    the next transaction, too, if nobody else has written in between."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._heads: dict[HeadKey, Head | None] = {}
        self._runs: dict[RunKey, Run | None] = {}
        self._ids: dict[RunKey, int] = {}
        self._last_id: int | None = None
        self._effects: dict[RunKey, dict[tuple[str, int], Effect | None]] = {}
        self._whole_journals: set[RunKey] = set()
        self._leases: dict[str, Lease | None] = {}
        self._changed_heads: set[HeadKey] = set()
        self._changed_runs: set[RunKey] = set()
        self._changed_effects: dict[tuple[RunKey, str, int], None] = {}
        self._changed_leases: set[str] = set()
        self.known = 0
        """Bytes that it holds in memory, about."""

    def read_ahead(self, commands: Iterable[Command]) -> None:
        """Reads what the commands are going to ask for."""
        heads: set[HeadKey] = set()
        runs: set[RunKey] = set()
        journals: set[RunKey] = set()
        attempts: set[tuple[RunKey, str, int]] = set()
        owners: set[str] = set()
        for command in commands:
            match command:
                case Open():
                    heads.add(command.run.head)
                    journals.add(command.run)
                    owners.add(command.owner)
                case Close():
                    heads.add(command.run.head)
                    journals.add(command.run)
                case Load() | Resolve():
                    journals.add(command.run)
                case Intend():
                    for attempt in {command.effect.attempt, max(1, command.effect.attempt - 1)}:
                        attempts.add((command.run, command.effect.path, attempt))
                    attempts.update((told.run, told.path, told.attempt) for told in command.outcomes)
                case Record():
                    attempts.add((command.run, command.path, command.attempt))
                case ReadHead():
                    heads.add(command.head)
                case Renew():
                    owners.add(command.owner)
                case FindOrphans() | FindClosed() | FindRuns() | Summarize() | Prune() | CountOld() | ReadHorizon():
                    pass
                case _:
                    runs.add(command.run)
        runs |= journals | {run for run, _, _ in attempts}
        self._read_runs(runs)
        self._read_heads(heads)
        self._read_journals(journals)
        self._read_effects(attempts)
        opened = filter(None, map(self._runs.get, journals))
        self._read_leases(owners | {run.owner for run in opened if run.owner})

    def flush(self) -> None:
        """Writes what has changed."""
        self._write(rows.HEADS, [rows.head_row(head) for key in self._changed_heads if (head := self._heads[key])])
        runs = [rows.run_row(self._ids[key], run) for key in self._changed_runs if (run := self._runs[key])]
        self._write(rows.RUNS, runs)
        effects = [
            rows.effect_row(self._ids[key], effect)
            for key, path, attempt in self._changed_effects
            if (effect := self._effects[key][path, attempt])
        ]
        self._write(rows.EFFECTS, effects)
        leases = [rows.lease_row(lease) for owner in self._changed_leases if (lease := self._leases[owner])]
        self._write(rows.LEASES, leases)
        for changed in (self._changed_heads, self._changed_runs, self._changed_effects, self._changed_leases):
            changed.clear()

    # ---- Transaction ----

    def now(self) -> float:
        return round(self._clock(), 6)

    def head(self, key: HeadKey) -> Head | None:
        self._read_heads((key,))
        return self._heads[key]

    def put_head(self, head: Head) -> None:
        self._heads[head.key] = head
        self._changed_heads.add(head.key)

    def run(self, key: RunKey) -> Run | None:
        self._read_runs((key,))
        return self._runs[key]

    def put_run(self, run: Run) -> None:
        if self.run(run.key) is None:
            if self._last_id is None:
                self._last_id = int(self._connection.execute("SELECT ifnull(max(id), 0) FROM runs").fetchone()[0])
            self._last_id += 1
            self._ids[run.key] = self._last_id
            self._effects[run.key] = {}
            self._whole_journals.add(run.key)
        self._know_run(run)
        self._changed_runs.add(run.key)

    def effects(self, key: RunKey) -> tuple[Effect, ...]:
        if self.run(key) is None:
            return ()
        if key not in self._whole_journals:
            self.flush()
            self._read_journals((key,))
        return tuple(filter(None, self._effects[key].values()))

    def effect(self, key: RunKey, path: str, attempt: int) -> Effect | None:
        if self.run(key) is None:
            return None
        self._read_effects(((key, path, attempt),))
        return self._effects[key].get((path, attempt))

    def add_effect(self, key: RunKey, effect: Effect) -> None:
        if self.run(key) is None:
            raise LookupError(f"no record of {key}")
        self._put_effect(key, effect)

    def put_outcome(self, key: RunKey, effect: Effect) -> None:
        if self.effect(key, effect.path, effect.attempt) is None:
            raise LookupError(f"no intent of {key} {effect.path} attempt {effect.attempt}")
        self._put_effect(key, effect)

    def lease(self, owner: str) -> Lease | None:
        self._read_leases((owner,))
        return self._leases[owner]

    def put_lease(self, lease: Lease) -> None:
        if self.lease(lease.owner) is None:
            # The lease that an open run names says how long its worker held it, however long ago.
            self._connection.execute(
                "DELETE FROM leases WHERE until < ? AND owner NOT IN (SELECT owner FROM runs WHERE ending IS NULL)",
                (microseconds(self.now() - _OLD_LEASE_SECONDS),),
            )
        self._leases[lease.owner] = lease
        self._changed_leases.add(lease.owner)

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        self.flush()
        sql = (
            f"SELECT json_group_array(json_array({rows.RUNS.columns})) FROM ("
            f"SELECT {rows.RUNS.columns} FROM runs LEFT JOIN leases USING (owner) "
            "WHERE scope = ? AND agent = ? AND ending IS NULL AND (owner = '' OR until IS NULL OR until <= ?) "
            "ORDER BY opened_at, id LIMIT ?)"
        )
        found = execute(self._connection, sql, (scope, agent, microseconds(now), limit))
        left = json.loads(found.fetchone()[0])
        return [rows.read_run(row) for row in sorted(left, key=lambda row: (row[8], row[0]))]  # opened_at, id

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        self.flush()
        sql = (
            "SELECT json_group_array(json_array(closed_at, scope, agent, revision, key, run_id)) FROM ("
            "SELECT closed_at, scope, agent, revision, key, run_id FROM runs "
            "WHERE scope = ? AND agent = ? AND closed_at >= ? AND ending <> '' ORDER BY closed_at DESC LIMIT ?)"
        )
        found = execute(self._connection, sql, (scope, agent, microseconds(since), limit))
        closed = json.loads(found.fetchone()[0])
        return [RunKey(*row[1:]) for row in sorted(closed, key=lambda row: row[0], reverse=True)]

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        self.flush()
        return sqlite_admin.find_runs(self._connection, query)

    def uses(self) -> Sequence[UseSummary]:
        self.flush()
        return sqlite_admin.uses(self._connection)

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        self.flush()
        return sqlite_admin.count_old(self._connection, scope, agent, closed_before, forgotten_before)

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        self._begin_anew()
        return sqlite_admin.prune(self._connection, scope, agent, closed_before, limit)

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        self._begin_anew()
        return sqlite_admin.forget(self._connection, scope, agent, closed_before, limit)

    def horizon(self, scope: str, agent: str) -> float | None:
        return sqlite_admin.horizon(self._connection, scope, agent)

    # ---- statements ----

    def _begin_anew(self) -> None:
        """Writes what has changed, and knows nothing of heads and what is below them any more."""
        self.flush()
        self._last_id = None
        for known in (self._heads, self._runs, self._ids, self._effects, self._whole_journals):
            known.clear()

    def _know_run(self, run: Run) -> None:
        self._runs[run.key] = run
        self.known += _RECORD_BYTES + len(run.event) + len(run.end or "")

    def _know_effect(self, key: RunKey, effect: Effect) -> None:
        self._effects.setdefault(key, {})[effect.path, effect.attempt] = effect
        self.known += _RECORD_BYTES + len(effect.arguments or "") + len(effect.value or "")

    def _put_effect(self, key: RunKey, effect: Effect) -> None:
        self._know_effect(key, effect)
        self._changed_effects[key, effect.path, effect.attempt] = None

    def _read_heads(self, keys: Collection[HeadKey]) -> None:
        wanted = [key for key in keys if key not in self._heads]
        self._heads.update(dict.fromkeys(wanted))
        for head in map(rows.read_head, self._read(rows.HEADS, "scope, agent, revision, key", wanted)):
            self._heads[head.key] = head

    def _read_runs(self, keys: Collection[RunKey]) -> None:
        wanted = [key for key in keys if key not in self._runs]
        self._runs.update(dict.fromkeys(wanted))
        for row in self._read(rows.RUNS, "scope, agent, revision, key, run_id", wanted):
            run = rows.read_run(row)
            self._know_run(run)
            self._ids[run.key] = row[0]

    def _read_journals(self, keys: Collection[RunKey]) -> None:
        wanted = {self._ids[key]: key for key in keys if key in self._ids and key not in self._whole_journals}
        for key in wanted.values():
            self._effects[key] = {}
            self._whole_journals.add(key)
        found = self._read(rows.EFFECTS, "run", [(run,) for run in wanted], more="id")
        for run, *row, _ in sorted(found, key=lambda row: row[-1]):
            self._know_effect(wanted[run], rows.read_effect(row))

    def _read_effects(self, attempts: Collection[tuple[RunKey, str, int]]) -> None:
        wanted: dict[tuple[int, str, int], RunKey] = {}
        for key, path, attempt in attempts:
            known = self._effects.setdefault(key, {})
            if key in self._ids and key not in self._whole_journals and (path, attempt) not in known:
                wanted[self._ids[key], path, attempt] = key
                known[path, attempt] = None
        for run, *row in self._read(rows.EFFECTS, "run, path, attempt", list(wanted)):
            effect = rows.read_effect(row)
            self._know_effect(wanted[run, effect.path, effect.attempt], effect)

    def _read_leases(self, owners: Collection[str]) -> None:
        wanted = [owner for owner in owners if owner not in self._leases]
        self._leases.update(dict.fromkeys(wanted))
        for lease in map(rows.read_lease, self._read(rows.LEASES, "owner", [(owner,) for owner in wanted])):
            self._leases[lease.owner] = lease

    def _read(self, table: rows.Table, by: str, wanted: Sequence[Sequence[Any]], more: str = "") -> Iterator[list[Any]]:
        """The rows whose columns `by` are among the wanted ones."""
        for batch in rows.batches(wanted):
            sql = rows.select(table, by, more, len(batch))
            yield from json.loads(execute(self._connection, sql, list(chain.from_iterable(batch))).fetchone()[0])

    def _write(self, table: rows.Table, changed: Sequence[Sequence[Any]]) -> None:
        for batch in rows.batches(changed):
            execute(self._connection, rows.upsert(table, len(batch)), list(chain.from_iterable(batch)))
