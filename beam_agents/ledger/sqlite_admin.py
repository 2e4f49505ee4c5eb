"""What operators and retention ask of an SQLite ledger, by statements over many runs.

All of it is inside a transaction whose changes are written.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from typing import Any

from beam_agents.ledger.base import BEGINNING
from beam_agents.ledger.columns import microseconds, seconds
from beam_agents.ledger.commands import FindRuns
from beam_agents.ledger.records import Run, UseSummary
from beam_agents.ledger.sqlite_rows import RUNS, read_run
from beam_agents.ledger.sqlite_text import execute

# Ids are given in the order of opening, and there is no index of all runs by time.
_WHICH = {
    "all": ("runs", "ending IS NOT ''", "id"),
    "open": ("runs INDEXED BY open_runs", "ending IS NULL", "opened_at"),
    "doubtful": ("runs INDEXED BY doubtful_runs", "doubtful = 1", "opened_at"),
    "failed": ("runs INDEXED BY failed_runs", "reason IS NOT NULL AND ending <> ''", "opened_at"),
}

_GIVEN = "(SELECT value FROM json_each(?))"
"""The numbers of a parameter."""

_USES = " UNION ALL ".join(
    f"SELECT scope, agent, '{what}' AS what, count(*) AS number FROM runs WHERE {condition} GROUP BY scope, agent"
    for what, condition in (
        ("open", "ending IS NULL"),
        ("ended", "ending <> ''"),
        ("doubtful", "doubtful = 1"),
        ("tombstones", "ending = ''"),
    )
)


def find_runs(connection: sqlite3.Connection, query: FindRuns) -> list[Run]:
    """See `Transaction.find_runs`."""
    table, condition, order = _WHICH[query.which]
    asked: dict[str, Any] = {
        "scope": query.scope,
        "agent": query.agent,
        "key": query.key,
        "run_id": query.run_id,
        "revision": query.revision,
    }
    wanted = {column: value for column, value in asked.items() if value is not None}
    # With '+' no index is used: from the newest on, the limit is reached soon, and nothing is sorted.
    plus = "+" if order == "id" and not wanted.keys() & {"key", "run_id"} else ""
    conditions = " AND ".join([condition, *(f"{plus}{column} = ?" for column in wanted)])
    sql = f"SELECT {RUNS.columns} FROM {table} WHERE {conditions} ORDER BY {order} DESC LIMIT ?"
    rows = _rows(connection, RUNS.columns, sql, *wanted.values(), query.limit)
    at = RUNS.columns.split(", ").index(order)
    return [read_run(row) for row in sorted(rows, key=lambda row: row[at], reverse=True)]


def uses(connection: sqlite3.Connection) -> list[UseSummary]:
    """See `Transaction.uses`."""
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for scope, agent, what, number in _rows(connection, "scope, agent, what, number", _USES):
        counts[scope, agent][what] = number
    return [
        UseSummary(
            *use,
            open=count["open"],
            ended=count["ended"],
            doubtful=count["doubtful"],
            tombstones=count["tombstones"],
            pruned_to=horizon(connection, *use),
        )
        for use, count in sorted(counts.items())
    ]


def count_old(
    connection: sqlite3.Connection, scope: str, agent: str, closed_before: float, forgotten_before: float
) -> tuple[int, int]:
    """See `Transaction.count_old`."""
    of_use = "SELECT count(*) FROM runs WHERE scope = ? AND agent = ? AND closed_at < ?"
    runs, tombstones = f"{of_use} AND ending <> '' AND doubtful = 0", f"{of_use} AND ending = ''"

    def count(sql: str, before: float) -> int:
        found: int = execute(connection, sql, (scope, agent, microseconds(before))).fetchone()[0]
        return found

    return count(runs, closed_before), count(runs, forgotten_before) + count(tombstones, forgotten_before)


def prune(connection: sqlite3.Connection, scope: str, agent: str, closed_before: float, limit: int) -> int:
    """See `Transaction.prune`."""
    sql = (
        "SELECT id, closed_at FROM runs WHERE scope = ? AND agent = ? AND closed_at < ? AND ending <> '' "
        "AND doubtful = 0 ORDER BY closed_at LIMIT ?"
    )
    old = _rows(connection, "id, closed_at", sql, scope, agent, microseconds(closed_before), limit)
    if not old:
        return 0
    ids = json.dumps([row for row, _ in old])
    connection.execute(
        "UPDATE runs SET event = '', ending = '', resolution = NULL WHERE id IN (SELECT value FROM json_each(?))",
        (ids,),
    )
    connection.execute("DELETE FROM effects WHERE run IN (SELECT value FROM json_each(?))", (ids,))
    raised = (
        "INSERT INTO horizons VALUES (?, ?, ?) "
        "ON CONFLICT (scope, agent) DO UPDATE SET pruned_to = max(pruned_to, excluded.pruned_to)"
    )
    execute(connection, raised, (scope, agent, max(closed_at for _, closed_at in old)))
    return len(old)


def forget(connection: sqlite3.Connection, scope: str, agent: str, closed_before: float, limit: int) -> int:
    """See `Transaction.forget`."""
    sql = (
        "SELECT id FROM runs WHERE scope = ? AND agent = ? AND closed_at < ? AND ending = '' ORDER BY closed_at LIMIT ?"
    )
    old = _rows(connection, "id", sql, scope, agent, microseconds(closed_before), limit)
    if not old:
        return 0
    ids = json.dumps([row for (row,) in old])
    connection.execute(
        "UPDATE heads SET forgotten_to = max(ifnull(forgotten_to, newest), newest) FROM ("
        f"SELECT scope, agent, revision, key, max(ifnull(event_time, {BEGINNING})) AS newest FROM runs "
        f"WHERE id IN {_GIVEN} GROUP BY scope, agent, revision, key) AS gone WHERE heads.scope = gone.scope "
        "AND heads.agent = gone.agent AND heads.revision = gone.revision AND heads.key = gone.key",
        (ids,),
    )
    connection.execute(f"DELETE FROM runs WHERE id IN {_GIVEN}", (ids,))
    return len(old)


def horizon(connection: sqlite3.Connection, scope: str, agent: str) -> float | None:
    """See `Transaction.horizon`."""
    sql = "SELECT pruned_to FROM horizons WHERE scope = ? AND agent = ?"
    found = execute(connection, sql, (scope, agent)).fetchone()
    return seconds(found[0]) if found else None


def _rows(connection: sqlite3.Connection, columns: str, sql: str, *parameters: Any) -> list[list[Any]]:
    found = f"SELECT json_group_array(json_array({columns})) FROM ({sql})"
    rows: list[list[Any]] = json.loads(execute(connection, found, parameters).fetchone()[0])
    return rows
