"""How the records of a PostgreSQL ledger are written and read: its statements, and a row for each record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from beam_agents.codec import digest
from beam_agents.ledger.columns import MICROSECONDS, effect_of, microseconds, run_of
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run, RunKey

_RUN_KEY = "scope, agent, revision, key, run_id"
_RUN_CHANGES = "epoch, owner, epoch_at, held, stalls, ending, closed_at, nonce, reason, doubtful, resolution"
RUN = f"{_RUN_KEY}, event, digest, opened_at, event_time, {_RUN_CHANGES}"
"""What `read_run` reads."""

_OUTCOME = "status, value, outcome_at"
_EFFECT_KEY = "run, path, attempt"
_EFFECT = f"{_EFFECT_KEY}, kind, name, digest, effect, arguments, intent_at, delivered, due, {_OUTCOME}"
_HEAD_KEY = "id, scope, agent, revision, key"
_HEAD_CHANGES = "session_version, session, open_run, open_id, forgotten_to"
_LEASE_CHANGES = "renewed_at, until"

_UUIDS = frozenset(("id", "run", "used_by", "open_id"))
_NUMBERS = frozenset(
    (
        "revision", "session_version", "opened_at", "event_time", "epoch", "epoch_at", "held", "stalls", "closed_at",
        "attempt", "intent_at", "due", "outcome_at", "renewed_at", "until", "forgotten_to",
    )
)  # fmt: skip


class Statements:
    """The statements of a transaction, for one schema. Each parameter of several rows is one JSON text."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        heads, runs, effects, leases = (f"{schema}.{table}" for table in ("heads", "runs", "effects", "leases"))
        in_heads = "id = ANY(%(heads)s::uuid[])"
        in_runs = (
            f"id = ANY(%(runs)s::uuid[] || ARRAY(SELECT open_id FROM {heads} WHERE {in_heads} AND open_id IS NOT NULL))"
        )

        self.look = (
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, "
            f"(SELECT value FROM {schema}.meta WHERE name = 'identity')"
        )
        self.hold_heads = f"INSERT INTO {heads} ({_HEAD_KEY}) {given(_HEAD_KEY)} ON CONFLICT DO NOTHING"
        self.lock_heads = f"SELECT {_HEAD_KEY} FROM {heads} WHERE {in_heads} ORDER BY id FOR UPDATE"
        self.read_heads = (
            f"SELECT {_HEAD_KEY}, session_version, session, open_run, forgotten_to FROM {heads} "
            f"WHERE {in_heads} AND session_version IS NOT NULL"
        )
        self.read_runs = f"SELECT {RUN} FROM {runs} WHERE {in_runs}"
        self.read_leases = (
            f"SELECT owner, {_LEASE_CHANGES} FROM {leases} WHERE owner = ANY("
            "ARRAY(SELECT json_array_elements_text(%(owners)s::json)) || "
            f"ARRAY(SELECT owner FROM {runs} WHERE {in_runs}))"
        )
        self.read_journals = f"SELECT {_EFFECT} FROM {effects} WHERE run = ANY(%(runs)s::uuid[]) ORDER BY number"
        self.read_effects = (
            f"SELECT {_EFFECT} FROM ({given(_EFFECT_KEY)}) AS wanted JOIN {effects} USING ({_EFFECT_KEY})"
        )
        self.open_runs = (
            f"SELECT {RUN} FROM {runs} LEFT JOIN {leases} USING (owner) WHERE used_by = %(used_by)s "
            "AND ending IS NULL AND (owner = '' OR until IS NULL OR until <= %(now)s) "
            "ORDER BY opened_at, id LIMIT %(limit)s"
        )
        self.closed_runs = (
            f"SELECT {_RUN_KEY} FROM {runs} WHERE used_by = %(used_by)s AND closed_at >= %(since)s "
            "AND ending <> '' ORDER BY closed_at DESC LIMIT %(limit)s"
        )
        self.write_heads = _upsert(heads, _HEAD_KEY, "id", _HEAD_CHANGES)
        self.add_runs = f"INSERT INTO {runs} (id, used_by, {RUN}) {given(f'id, used_by, {RUN}')}"
        self.change_runs = _update(runs, "id", _RUN_CHANGES)
        self.add_effects = f"INSERT INTO {effects} ({_EFFECT}) {given(_EFFECT)}"
        self.change_effects = _update(effects, _EFFECT_KEY, _OUTCOME)
        self.write_leases = _upsert(leases, "owner", "owner", _LEASE_CHANGES)


def given(columns: str) -> str:
    """A query for the rows of a parameter."""
    typed = ", ".join(f"{column} {_type_of(column)}" for column in columns.split(", "))
    return f"SELECT {columns} FROM json_to_recordset(%(rows)s::json) AS given ({typed})"


def _type_of(column: str) -> str:
    if column == "doubtful":
        return "boolean"
    return "uuid" if column in _UUIDS else "bigint" if column in _NUMBERS else "text"


def _upsert(table: str, fixed: str, key: str, changes: str) -> str:
    columns = f"{fixed}, {changes}"
    changed = ", ".join(f"{column} = excluded.{column}" for column in changes.split(", "))
    return f"INSERT INTO {table} ({columns}) {given(columns)} ON CONFLICT ({key}) DO UPDATE SET {changed}"


def _update(table: str, key: str, changes: str) -> str:
    changed = ", ".join(f"{column} = changed.{column}" for column in changes.split(", "))
    found = " AND ".join(f"old.{column} = changed.{column}" for column in key.split(", "))
    return f"UPDATE {table} AS old SET {changed} FROM ({given(f'{key}, {changes}')}) AS changed WHERE {found}"


# ---- ids ----


def head_id(key: HeadKey) -> str:
    """Under what a head is found."""
    return _id("head", key.scope, key.agent, str(key.revision), key.key)


def run_id(key: RunKey) -> str:
    """Under what a run is found."""
    return _id("run", key.scope, key.agent, str(key.revision), key.key, key.run_id)


def use_id(scope: str, agent: str) -> str:
    """Under what the runs of one use of an agent are found."""
    return _id("use", scope, agent)


def _id(*parts: str) -> str:
    return str(UUID(digest(*parts)))


def ids(rows: Iterable[str]) -> str:
    """An array of ids as a parameter."""
    return "{" + ",".join(rows) + "}"


# ---- rows ----


def _rows_of(columns: str, rows: Iterable[Sequence[Any]]) -> str:
    """Rows as a parameter."""
    names = columns.split(", ")
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], ensure_ascii=False, separators=(",", ":"))


def held_heads(keys: Iterable[tuple[str, HeadKey]]) -> str:
    """Rows for `Statements.hold_heads`."""
    return _rows_of(_HEAD_KEY, ((row, *key) for row, key in keys))


def heads_to_write(heads: Iterable[Head]) -> str:
    """Rows for `Statements.write_heads`."""
    return _rows_of(f"{_HEAD_KEY}, {_HEAD_CHANGES}", map(_head_row, heads))


def _head_row(head: Head) -> tuple[Any, ...]:
    open_id = None if head.open_run is None else run_id(RunKey(*head.key, head.open_run))
    return (head_id(head.key), *head.key, head.session_version, head.session, head.open_run, open_id, head.forgotten_to)


def runs_to_add(runs: Iterable[Run]) -> str:
    """Rows for `Statements.add_runs`."""
    return _rows_of(f"id, used_by, {RUN}", map(_run_row, runs))


def _run_row(run: Run) -> tuple[Any, ...]:
    fixed = (*run.key, run.event, run.digest, microseconds(run.opened_at), run.event_time)
    return (run_id(run.key), use_id(run.key.scope, run.key.agent), *fixed, *_run_changes(run))


def runs_to_change(runs: Iterable[Run]) -> str:
    """Rows for `Statements.change_runs`."""
    return _rows_of(f"id, {_RUN_CHANGES}", ((run_id(run.key), *_run_changes(run)) for run in runs))


def _run_changes(run: Run) -> tuple[Any, ...]:
    epoch_at, held, closed_at = map(microseconds, (run.epoch_at, run.held, run.closed_at))
    driven = (run.epoch, run.owner, epoch_at, held, run.stalls, run.end, closed_at, run.nonce)
    return (*driven, run.reason, run.doubtful, run.resolution)


def effects_to_add(effects: Iterable[tuple[RunKey, Effect]]) -> str:
    """Rows for `Statements.add_effects`."""
    return _rows_of(_EFFECT, (_effect_row(key, effect) for key, effect in effects))


def _effect_row(key: RunKey, effect: Effect) -> tuple[Any, ...]:
    delivered = json.dumps(effect.delivered, separators=(",", ":")) if effect.delivered else None
    asked = (effect.kind, effect.name, effect.digest, effect.effect, effect.arguments, microseconds(effect.intent_at))
    row = (run_id(key), effect.path, effect.attempt, *asked, delivered, microseconds(effect.due))
    return (*row, effect.status, effect.value, microseconds(effect.outcome_at))


def effects_to_change(effects: Iterable[tuple[RunKey, Effect]]) -> str:
    """Rows for `Statements.change_effects`."""
    return _rows_of(
        f"{_EFFECT_KEY}, {_OUTCOME}",
        (
            (run_id(key), effect.path, effect.attempt, effect.status, effect.value, microseconds(effect.outcome_at))
            for key, effect in effects
        ),
    )


def attempts_to_read(attempts: Iterable[tuple[str, str, int]]) -> str:
    """Rows for `Statements.read_effects`."""
    return _rows_of(_EFFECT_KEY, attempts)


def heads_of_runs(pairs: Iterable[tuple[str, str]]) -> str:
    """Rows of runs and their heads, for `given("run, id")`."""
    return _rows_of("run, id", pairs)


def leases_to_write(leases: Iterable[Lease]) -> str:
    """Rows for `Statements.write_leases`."""
    rows = ((lease.owner, microseconds(lease.renewed_at), microseconds(lease.until)) for lease in leases)
    return _rows_of(f"owner, {_LEASE_CHANGES}", rows)


def read_head(row: Sequence[Any]) -> Head:
    """Of `Statements.read_heads`."""
    return Head(HeadKey(*row[1:5]), *row[5:])


def read_run(row: Sequence[Any]) -> Run:
    """Of `Statements.read_runs` and `open_runs`."""
    return run_of(row[:5], row[5:])


def read_effect(row: Sequence[Any]) -> tuple[str, Effect]:
    """The run's id and the effect; of `Statements.read_journals` and `read_effects`."""
    return str(row[0]), effect_of(row[1:])


def read_lease(row: Sequence[Any]) -> Lease:
    """Of `Statements.read_leases`."""
    owner, renewed_at, until = row
    return Lease(owner, renewed_at / MICROSECONDS, until / MICROSECONDS)
