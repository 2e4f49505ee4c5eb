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
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple

from beam_agents.ledger.commands import (
    Close,
    Command,
    FindClosed,
    FindOrphans,
    Intend,
    Load,
    Open,
    ReadHead,
    Record,
    Renew,
)
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey

SCHEMA = (
    """CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE heads (
      id INTEGER PRIMARY KEY, scope TEXT NOT NULL, agent TEXT NOT NULL, revision INTEGER NOT NULL, key TEXT NOT NULL,
      session_version INTEGER NOT NULL, session TEXT, open_run TEXT,
      UNIQUE (scope, agent, revision, key))""",
    """CREATE TABLE runs (
      id INTEGER PRIMARY KEY, scope TEXT NOT NULL, agent TEXT NOT NULL, revision INTEGER NOT NULL, key TEXT NOT NULL,
      run_id TEXT NOT NULL, event TEXT NOT NULL, digest TEXT NOT NULL, opened_at INTEGER NOT NULL, event_time INTEGER,
      epoch INTEGER NOT NULL, owner TEXT NOT NULL, epoch_at INTEGER NOT NULL, held INTEGER NOT NULL,
      stalls INTEGER NOT NULL, ending TEXT, closed_at INTEGER, nonce TEXT NOT NULL,
      UNIQUE (scope, agent, revision, key, run_id))""",
    """CREATE INDEX open_runs ON runs (scope, agent, opened_at) WHERE ending IS NULL""",
    """CREATE INDEX closed_runs ON runs (scope, agent, closed_at) WHERE closed_at IS NOT NULL""",
    """CREATE TABLE effects (
      id INTEGER PRIMARY KEY, run INTEGER NOT NULL, path TEXT NOT NULL, attempt INTEGER NOT NULL, kind TEXT NOT NULL,
      name TEXT NOT NULL, digest TEXT NOT NULL, effect TEXT NOT NULL, arguments TEXT, intent_at INTEGER NOT NULL,
      delivered TEXT, due INTEGER, status TEXT, value TEXT, outcome_at INTEGER,
      UNIQUE (run, path, attempt))""",
    """CREATE TABLE leases (
      owner TEXT PRIMARY KEY, renewed_at INTEGER NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID""",
)
"""The tables. Times and durations are microseconds: SQLite's JSON does not keep all digits of a fraction."""

_MICROSECONDS = 1_000_000
_ROWS_PER_STATEMENT = 512
_OLD_LEASE_SECONDS = 3600.0


class _Table(NamedTuple):
    name: str
    key: str
    """The columns of a unique index."""
    fixed: str
    """Columns that never change."""
    changing: str

    @property
    def columns(self) -> str:
        return ", ".join(filter(None, (self.key, self.fixed, self.changing)))


_HEADS = _Table("heads", "scope, agent, revision, key", "", "session_version, session, open_run")
_RUNS = _Table(
    "runs",
    "id",
    "scope, agent, revision, key, run_id, event, digest, opened_at, event_time",
    "epoch, owner, epoch_at, held, stalls, ending, closed_at, nonce",
)
_EFFECTS = _Table(
    "effects",
    "run, path, attempt",
    "kind, name, digest, effect, arguments, intent_at, delivered, due",
    "status, value, outcome_at",
)
_LEASES = _Table("leases", "owner", "", "renewed_at, until")


class SqliteTransaction:
    """The store inside one transaction. The file is locked meanwhile, so what was read once stays true."""

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
                case Load():
                    journals.add(command.run)
                case Intend():
                    for attempt in {command.effect.attempt, max(1, command.effect.attempt - 1)}:
                        attempts.add((command.run, command.effect.path, attempt))
                case Record():
                    attempts.add((command.run, command.path, command.attempt))
                case ReadHead():
                    heads.add(command.head)
                case Renew():
                    owners.add(command.owner)
                case FindOrphans() | FindClosed():
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
        self._write(_HEADS, [_head_row(head) for key in self._changed_heads if (head := self._heads[key])])
        self._write(_RUNS, [_run_row(self._ids[key], run) for key in self._changed_runs if (run := self._runs[key])])
        effects = [
            _effect_row(self._ids[key], effect)
            for key, path, attempt in self._changed_effects
            if (effect := self._effects[key][path, attempt])
        ]
        self._write(_EFFECTS, effects)
        self._write(_LEASES, [_lease_row(lease) for owner in self._changed_leases if (lease := self._leases[owner])])
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
        self._runs[run.key] = run
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
                (_microseconds(self.now() - _OLD_LEASE_SECONDS),),
            )
        self._leases[lease.owner] = lease
        self._changed_leases.add(lease.owner)

    def open_runs(self, scope: str, agent: str, now: float, limit: int) -> Sequence[Run]:
        self.flush()
        sql = (
            f"SELECT json_group_array(json_array({_RUNS.columns})) FROM ("
            f"SELECT {_RUNS.columns} FROM runs LEFT JOIN leases USING (owner) "
            "WHERE scope = ? AND agent = ? AND ending IS NULL AND (owner = '' OR until IS NULL OR until <= ?) "
            "ORDER BY opened_at, id LIMIT ?)"
        )
        rows = json.loads(self._execute(sql, (scope, agent, _microseconds(now), limit)).fetchone()[0])
        return [_run(row) for row in sorted(rows, key=lambda row: (row[8], row[0]))]  # opened_at, id

    def closed_runs(self, scope: str, agent: str, since: float, limit: int) -> Sequence[RunKey]:
        self.flush()
        sql = (
            "SELECT json_group_array(json_array(closed_at, scope, agent, revision, key, run_id)) FROM ("
            "SELECT closed_at, scope, agent, revision, key, run_id FROM runs "
            "WHERE scope = ? AND agent = ? AND closed_at >= ? ORDER BY closed_at DESC LIMIT ?)"
        )
        rows = json.loads(self._execute(sql, (scope, agent, _microseconds(since), limit)).fetchone()[0])
        return [RunKey(*row[1:]) for row in sorted(rows, key=lambda row: row[0], reverse=True)]

    # ---- statements ----

    def _put_effect(self, key: RunKey, effect: Effect) -> None:
        self._effects.setdefault(key, {})[effect.path, effect.attempt] = effect
        self._changed_effects[key, effect.path, effect.attempt] = None

    def _read_heads(self, keys: Collection[HeadKey]) -> None:
        wanted = [key for key in keys if key not in self._heads]
        self._heads.update(dict.fromkeys(wanted))
        for *key, version, session, open_run in self._read(_HEADS, "scope, agent, revision, key", wanted):
            self._heads[HeadKey(*key)] = Head(HeadKey(*key), version, session, open_run)

    def _read_runs(self, keys: Collection[RunKey]) -> None:
        wanted = [key for key in keys if key not in self._runs]
        self._runs.update(dict.fromkeys(wanted))
        for row in self._read(_RUNS, "scope, agent, revision, key, run_id", wanted):
            run = _run(row)
            self._runs[run.key] = run
            self._ids[run.key] = row[0]

    def _read_journals(self, keys: Collection[RunKey]) -> None:
        wanted = {self._ids[key]: key for key in keys if key in self._ids and key not in self._whole_journals}
        for key in wanted.values():
            self._effects[key] = {}
            self._whole_journals.add(key)
        rows = self._read(_EFFECTS, "run", [(run,) for run in wanted], more="id")
        for run, *row, _ in sorted(rows, key=lambda row: row[-1]):
            effect = _effect(row)
            self._effects[wanted[run]][effect.path, effect.attempt] = effect

    def _read_effects(self, attempts: Collection[tuple[RunKey, str, int]]) -> None:
        wanted: dict[tuple[int, str, int], RunKey] = {}
        for key, path, attempt in attempts:
            known = self._effects.setdefault(key, {})
            if key in self._ids and key not in self._whole_journals and (path, attempt) not in known:
                wanted[self._ids[key], path, attempt] = key
                known[path, attempt] = None
        for run, *row in self._read(_EFFECTS, "run, path, attempt", list(wanted)):
            effect = _effect(row)
            self._effects[wanted[run, effect.path, effect.attempt]][effect.path, effect.attempt] = effect

    def _read_leases(self, owners: Collection[str]) -> None:
        wanted = [owner for owner in owners if owner not in self._leases]
        self._leases.update(dict.fromkeys(wanted))
        for owner, renewed_at, until in self._read(_LEASES, "owner", [(owner,) for owner in wanted]):
            self._leases[owner] = Lease(owner, renewed_at / _MICROSECONDS, until / _MICROSECONDS)

    def _read(self, table: _Table, by: str, wanted: Sequence[Sequence[Any]], more: str = "") -> Iterator[list[Any]]:
        """The rows whose columns `by` are among the wanted ones."""
        for rows in _batches(wanted):
            cursor = self._execute(_select(table, by, more, len(rows)), list(chain.from_iterable(rows)))
            yield from json.loads(cursor.fetchone()[0])

    def _write(self, table: _Table, changed: Sequence[Sequence[Any]]) -> None:
        for rows in _batches(changed):
            self._execute(_upsert(table, len(rows)), list(chain.from_iterable(rows)))

    def _execute(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, parameters)
        except UnicodeEncodeError:  # lone surrogates: Python's text may hold them, its SQLite parameters may not
            encoded = [_encoded(value) for value in parameters]
            casts = ["CAST(? AS TEXT)" if isinstance(value, bytes) else "?" for value in encoded]
            pieces = zip(sql.split("?"), [*casts, ""], strict=True)
            return self._connection.execute("".join(chain.from_iterable(pieces)), encoded)


def decode_text(data: bytes) -> str:
    """Text as `SqliteTransaction` writes it."""
    return data.decode("utf-8", "surrogatepass")


def _encoded(value: Any) -> Any:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _batches(rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    """The rows by sizes of a power of two, the last one repeated: there are few statements then, and all are kept."""
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        batch = list(islice(rows, start, start + _ROWS_PER_STATEMENT))
        yield batch + batch[-1:] * ((1 << (len(batch) - 1).bit_length()) - len(batch))


@cache
def _select(table: _Table, by: str, more: str, rows: int) -> str:
    columns = ", ".join(filter(None, (table.columns, more)))
    return (
        f"WITH wanted ({by}) AS (VALUES {_marks(by, rows)}) "
        f"SELECT json_group_array(json_array({columns})) FROM wanted CROSS JOIN {table.name} USING ({by})"
    )


@cache
def _upsert(table: _Table, rows: int) -> str:
    changes = ", ".join(f"{column} = excluded.{column}" for column in table.changing.split(", "))
    return (
        f"INSERT INTO {table.name} ({table.columns}) VALUES {_marks(table.columns, rows)} "
        f"ON CONFLICT ({table.key}) DO UPDATE SET {changes}"
    )


def _marks(columns: str, rows: int) -> str:
    return ", ".join(["(" + ", ".join("?" for _ in columns.split(", ")) + ")"] * rows)


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * _MICROSECONDS)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / _MICROSECONDS


def _head_row(head: Head) -> tuple[Any, ...]:
    return (*head.key, head.session_version, head.session, head.open_run)


def _lease_row(lease: Lease) -> tuple[Any, ...]:
    return lease.owner, _microseconds(lease.renewed_at), _microseconds(lease.until)


def _run_row(row: int, run: Run) -> tuple[Any, ...]:
    opened_at, epoch_at, held, closed_at = map(_microseconds, (run.opened_at, run.epoch_at, run.held, run.closed_at))
    fixed = (row, *run.key, run.event, run.digest, opened_at, run.event_time)
    return (*fixed, run.epoch, run.owner, epoch_at, held, run.stalls, run.end, closed_at, run.nonce)


def _run(row: Sequence[Any]) -> Run:
    event, digest, opened_at, event_time, epoch, owner, epoch_at, held, stalls, end, closed_at, nonce = row[6:]
    return Run(
        RunKey(*row[1:6]),
        event,
        digest,
        opened_at / _MICROSECONDS,
        epoch,
        owner,
        epoch_at / _MICROSECONDS,
        held / _MICROSECONDS,
        stalls,
        end,
        _seconds(closed_at),
        nonce,
        event_time,
    )


def _effect_row(run: int, effect: Effect) -> tuple[Any, ...]:
    delivered = json.dumps(effect.delivered, separators=(",", ":")) if effect.delivered else None
    asked = (effect.kind, effect.name, effect.digest, effect.effect, effect.arguments, _microseconds(effect.intent_at))
    outcome = (effect.status, effect.value, _microseconds(effect.outcome_at))
    return (run, effect.path, effect.attempt, *asked, delivered, _microseconds(effect.due), *outcome)


def _effect(row: Sequence[Any]) -> Effect:
    path, attempt, kind, name, digest, effect, arguments, intent_at, delivered, due, status, value, outcome_at = row
    return Effect(
        path,
        attempt,
        kind,
        name,
        digest,
        effect,
        arguments,
        intent_at / _MICROSECONDS,
        tuple((path, attempt) for path, attempt in json.loads(delivered)) if delivered else (),
        _seconds(due),
        status,
        value,
        _seconds(outcome_at),
    )
