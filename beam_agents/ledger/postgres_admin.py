"""What operators and retention ask of a PostgreSQL ledger, by statements over many runs.

All of it is inside a transaction whose changes were sent. Whoever changes a run has locked the head of its key; here
heads that others have locked are passed over, so that nobody waits and their runs are left for the next time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beam_agents.ledger import postgres_rows as rows
from beam_agents.ledger.base import BEGINNING
from beam_agents.ledger.columns import microseconds, seconds
from beam_agents.ledger.commands import FindRuns
from beam_agents.ledger.postgres_connection import Connection
from beam_agents.ledger.postgres_message import Message
from beam_agents.ledger.records import HeadKey, Run, UseSummary

_WHICH = {
    "all": "ending IS DISTINCT FROM ''",
    "open": "ending IS NULL",
    "doubtful": "doubtful",
    "failed": "reason IS NOT NULL AND ending <> ''",
}

_LOOKING_SECONDS = 300
"""How long a server may look for what a person asks: there is no index for everything."""


class PostgresAdmin:
    """What is asked of one schema.

    Args:
        connection: In a transaction.
        schema: Its name, which has no characters that need quotes.
    """

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._heads, self._runs, self._effects, self._horizons = (
            f"{schema}.{table}" for table in ("heads", "runs", "effects", "horizons")
        )

    def find_runs(self, query: FindRuns) -> Sequence[Run]:
        """See `Transaction.find_runs`."""
        asked: dict[str, Any] = {
            "scope": query.scope,
            "agent": query.agent,
            "key": query.key,
            "run_id": query.run_id,
            "revision": query.revision,
        }
        wanted = {column: value for column, value in asked.items() if value is not None}
        if query.scope is not None and query.agent is not None:
            wanted["used_by"] = rows.use_id(query.scope, query.agent)
        conditions = " AND ".join([_WHICH[query.which], *(f"{column} = %({column})s" for column in wanted)])
        sql = f"SELECT {rows.RUN} FROM {self._runs} WHERE {conditions} ORDER BY opened_at DESC, id LIMIT %(limit)s"
        return [rows.read_run(row) for row in self._ask_patiently(sql, **wanted, limit=query.limit)]

    def uses(self) -> Sequence[UseSummary]:
        """See `Transaction.uses`."""
        found = self._ask_patiently(
            "SELECT named, called, opened, ended, doubtful, tombstones, pruned_to FROM ("
            "SELECT used_by, min(scope) AS named, min(agent) AS called, "
            "count(*) FILTER (WHERE ending IS NULL) AS opened, count(*) FILTER (WHERE ending <> '') AS ended, "
            "count(*) FILTER (WHERE doubtful) AS doubtful, count(*) FILTER (WHERE ending = '') AS tombstones "
            f"FROM {self._runs} GROUP BY used_by) AS counted LEFT JOIN {self._horizons} USING (used_by)"
        )
        counted = [
            UseSummary(scope, agent, opened, ended, doubtful, tombstones, seconds(pruned_to))
            for scope, agent, opened, ended, doubtful, tombstones, pruned_to in found
        ]
        return sorted(counted, key=lambda use: (use.scope, use.agent))

    def count_old(self, scope: str, agent: str, closed_before: float, forgotten_before: float) -> tuple[int, int]:
        """See `Transaction.count_old`."""
        closed, tombstone = "ending <> '' AND NOT doubtful", "ending = ''"
        of_use = f"SELECT count(*) FROM {self._runs} WHERE used_by = %(used_by)s AND"
        ((runs, older, tombstones),) = self._ask_patiently(
            f"SELECT ({of_use} {closed} AND closed_at < %(closed_before)s), "
            f"({of_use} {closed} AND closed_at < %(forgotten_before)s), "
            f"({of_use} {tombstone} AND closed_at < %(forgotten_before)s)",
            used_by=rows.use_id(scope, agent),
            closed_before=microseconds(closed_before),
            forgotten_before=microseconds(forgotten_before),
        )
        return runs, older + tombstones

    def prune(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        """See `Transaction.prune`."""
        found = self._locked(scope, agent, closed_before, limit, "ending <> '' AND NOT doubtful")
        ((done,),) = self._ask(
            f"WITH pruned AS (UPDATE {self._runs} SET event = '', ending = '', resolution = NULL "
            "WHERE id = ANY(%(runs)s::uuid[]) AND ending <> '' AND NOT doubtful RETURNING id, closed_at), "
            f"dropped AS (DELETE FROM {self._effects} USING pruned WHERE run = id), "
            f"raised AS (INSERT INTO {self._horizons} AS old (used_by, scope, agent, pruned_to) "
            "SELECT %(used_by)s, %(scope)s, %(agent)s, max(closed_at) FROM pruned HAVING count(*) > 0 "
            "ON CONFLICT (used_by) DO UPDATE SET pruned_to = greatest(old.pruned_to, excluded.pruned_to)) "
            "SELECT count(*) FROM pruned",
            runs=rows.ids(run for run, _ in found),
            used_by=rows.use_id(scope, agent),
            scope=scope,
            agent=agent,
        )
        return int(done)

    def forget(self, scope: str, agent: str, closed_before: float, limit: int) -> int:
        """See `Transaction.forget`."""
        found = self._locked(scope, agent, closed_before, limit, "ending = ''")
        ((done,),) = self._ask(
            f"WITH gone AS (DELETE FROM {self._runs} USING ({rows.given('run, id')}) AS wanted "
            f"WHERE runs.id = wanted.run AND ending = '' "
            "RETURNING wanted.id AS head, coalesce(event_time, %(beginning)s) AS event_time), "
            f"marked AS (UPDATE {self._heads} SET forgotten_to = greatest(forgotten_to, newest) FROM "
            "(SELECT head, max(event_time) AS newest FROM gone GROUP BY head) AS heads_of_them WHERE id = head) "
            "SELECT count(*) FROM gone",
            rows=rows.heads_of_runs(found),
            beginning=BEGINNING,
        )
        return int(done)

    def horizon(self, scope: str, agent: str) -> float | None:
        """See `Transaction.horizon`."""
        sql = f"SELECT pruned_to FROM {self._horizons} WHERE used_by = %(used_by)s"
        found = self._ask(sql, used_by=rows.use_id(scope, agent))
        return seconds(found[0][0]) if found else None

    def _locked(self, scope: str, agent: str, before: float, limit: int, condition: str) -> list[tuple[str, str]]:
        """Runs that were closed before that time, the oldest first, with their heads, which are locked from now on."""
        old = self._ask(
            f"SELECT id, scope, agent, revision, key FROM {self._runs} WHERE used_by = %(used_by)s "
            f"AND closed_at < %(before)s AND {condition} ORDER BY closed_at LIMIT %(limit)s",
            used_by=rows.use_id(scope, agent),
            before=microseconds(before),
            limit=limit,
        )
        heads = {str(run): rows.head_id(HeadKey(*key)) for run, *key in old}
        locked = self._ask(
            f"SELECT id FROM {self._heads} WHERE id = ANY(%(heads)s::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED",
            heads=rows.ids(set(heads.values())),
        )
        free = {str(head) for (head,) in locked}
        return [(run, head) for run, head in heads.items() if head in free]

    def _ask_patiently(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """`_ask` for what may look at all runs."""
        with self._connection.patiently(_LOOKING_SECONDS):
            self._ask(f"SET LOCAL statement_timeout = '{_LOOKING_SECONDS}s'")
            return self._ask(statement, **parameters)

    def _ask(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        message = Message(self._connection)
        number = message.add(statement, **parameters)
        message.send()
        return message.rows(number)
