"""How the records of an SQLite ledger are written and read: its statements, and a row for each record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from beam_agents.ledger.columns import MICROSECONDS, effect_of, microseconds, run_of
from beam_agents.ledger.records import Effect, Head, HeadKey, Lease, Run

_ROWS_PER_STATEMENT = 512


class Table(NamedTuple):
    """A table by what its columns are for."""

    name: str
    key: str
    """The columns of a unique index."""
    fixed: str
    """Columns that never change."""
    changing: str

    @property
    def columns(self) -> str:
        """All of them, with commas."""
        return ", ".join(filter(None, (self.key, self.fixed, self.changing)))


HEADS = Table("heads", "scope, agent, revision, key", "", "session_version, session, open_run, forgotten_to")
RUNS = Table(
    "runs",
    "id",
    "scope, agent, revision, key, run_id, event, digest, opened_at, event_time",
    "epoch, owner, epoch_at, held, stalls, ending, closed_at, nonce, reason, doubtful, resolution",
)
EFFECTS = Table(
    "effects",
    "run, path, attempt",
    "kind, name, digest, effect, arguments, intent_at, delivered, due",
    "status, value, outcome_at",
)
LEASES = Table("leases", "owner", "", "renewed_at, until")


def batches(rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    """The rows by sizes of a power of two, the last one repeated: there are few statements then, and all are kept."""
    for start in range(0, len(rows), _ROWS_PER_STATEMENT):
        batch = list(islice(rows, start, start + _ROWS_PER_STATEMENT))
        yield batch + batch[-1:] * ((1 << (len(batch) - 1).bit_length()) - len(batch))


@cache
def select(table: Table, by: str, more: str, rows: int) -> str:
    """Reads the rows whose columns `by` are among so many given ones, with `more` columns, as one JSON text."""
    columns = ", ".join(filter(None, (table.columns, more)))
    return (
        f"WITH wanted ({by}) AS (VALUES {_marks(by, rows)}) "
        f"SELECT json_group_array(json_array({columns})) FROM wanted CROSS JOIN {table.name} USING ({by})"
    )


@cache
def upsert(table: Table, rows: int) -> str:
    """Adds or changes so many rows."""
    changes = ", ".join(f"{column} = excluded.{column}" for column in table.changing.split(", "))
    return (
        f"INSERT INTO {table.name} ({table.columns}) VALUES {_marks(table.columns, rows)} "
        f"ON CONFLICT ({table.key}) DO UPDATE SET {changes}"
    )


def _marks(columns: str, rows: int) -> str:
    return ", ".join(["(" + ", ".join("?" for _ in columns.split(", ")) + ")"] * rows)


def head_row(head: Head) -> tuple[Any, ...]:
    """For `HEADS`."""
    return (*head.key, head.session_version, head.session, head.open_run, head.forgotten_to)


def read_head(row: Sequence[Any]) -> Head:
    """Of `HEADS`."""
    return Head(HeadKey(*row[:4]), *row[4:])


def lease_row(lease: Lease) -> tuple[Any, ...]:
    """For `LEASES`."""
    return lease.owner, microseconds(lease.renewed_at), microseconds(lease.until)


def read_lease(row: Sequence[Any]) -> Lease:
    """Of `LEASES`."""
    owner, renewed_at, until = row
    return Lease(owner, renewed_at / MICROSECONDS, until / MICROSECONDS)


def run_row(row: int, run: Run) -> tuple[Any, ...]:
    """For `RUNS`; `row` is its id there."""
    opened_at, epoch_at, held, closed_at = map(microseconds, (run.opened_at, run.epoch_at, run.held, run.closed_at))
    fixed = (row, *run.key, run.event, run.digest, opened_at, run.event_time)
    changing = (run.epoch, run.owner, epoch_at, held, run.stalls, run.end, closed_at, run.nonce)
    return (*fixed, *changing, run.reason, run.doubtful, run.resolution)


def read_run(row: Sequence[Any]) -> Run:
    """Of `RUNS`."""
    return run_of(row[1:6], row[6:])


def effect_row(run: int, effect: Effect) -> tuple[Any, ...]:
    """For `EFFECTS`; `run` is the id of its run."""
    delivered = json.dumps(effect.delivered, separators=(",", ":")) if effect.delivered else None
    asked = (effect.kind, effect.name, effect.digest, effect.effect, effect.arguments, microseconds(effect.intent_at))
    outcome = (effect.status, effect.value, microseconds(effect.outcome_at))
    return (run, effect.path, effect.attempt, *asked, delivered, microseconds(effect.due), *outcome)


def read_effect(row: Sequence[Any]) -> Effect:
    """Of `EFFECTS`, without the run."""
    return effect_of(row)
