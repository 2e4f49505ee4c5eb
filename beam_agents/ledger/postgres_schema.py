"""The tables of a PostgreSQL ledger: how they are made, checked, and told from other ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import psycopg

from beam_agents.errors import LedgerError
from beam_agents.ledger.postgres_connection import Connection

SCHEMA_VERSION = 2

_MAKING = 0x42414C67
"""The number of the lock that makers hold; another one for each schema."""

_OLD_LEASE_SECONDS = 3600

_UPDATE_SECONDS = 3600
"""How long it may take to bring a large store up to date."""

_INDEXES = """
CREATE INDEX closed_runs ON {schema}.runs (used_by, closed_at) WHERE ending <> '';
CREATE INDEX tombstones ON {schema}.runs (used_by, closed_at) WHERE ending = '';
CREATE INDEX doubtful_runs ON {schema}.runs (used_by, opened_at) WHERE doubtful;
CREATE INDEX failed_runs ON {schema}.runs (used_by, opened_at) WHERE reason IS NOT NULL AND ending <> '';
"""

_HORIZONS = """
CREATE TABLE {schema}.horizons (
  used_by uuid PRIMARY KEY, scope text NOT NULL, agent text NOT NULL, pruned_to bigint NOT NULL
);
"""

# Rows are found by digests: an index cannot hold long texts. A head without a version is a place that is held for a
# key whose first run is being opened. Times and durations are microseconds.
_TABLES = """
CREATE TABLE {schema}.meta (name text COLLATE "C" PRIMARY KEY, value text NOT NULL);

CREATE TABLE {schema}.heads (
  id uuid PRIMARY KEY, scope text NOT NULL, agent text NOT NULL, revision bigint NOT NULL, key text NOT NULL,
  session_version bigint, session text, open_run text, open_id uuid, forgotten_to bigint
) WITH (fillfactor = 80);

CREATE TABLE {schema}.runs (
  id uuid PRIMARY KEY, used_by uuid NOT NULL, scope text NOT NULL, agent text NOT NULL, revision bigint NOT NULL,
  key text NOT NULL, run_id text NOT NULL, event text NOT NULL, digest text NOT NULL, opened_at bigint NOT NULL,
  event_time bigint, epoch bigint NOT NULL, owner text COLLATE "C" NOT NULL, epoch_at bigint NOT NULL,
  held bigint NOT NULL, stalls bigint NOT NULL, ending text, closed_at bigint, nonce text NOT NULL, reason text,
  doubtful boolean NOT NULL DEFAULT false, resolution text
) WITH (fillfactor = 80);
CREATE INDEX open_runs ON {schema}.runs (used_by, opened_at, id) WHERE ending IS NULL;
CREATE INDEX owned_runs ON {schema}.runs (owner) WHERE ending IS NULL;

CREATE TABLE {schema}.effects (
  run uuid NOT NULL, path text COLLATE "C" NOT NULL, attempt bigint NOT NULL,
  number bigint NOT NULL GENERATED ALWAYS AS IDENTITY, kind text NOT NULL, name text NOT NULL, digest text NOT NULL,
  effect text NOT NULL, arguments text, intent_at bigint NOT NULL, delivered text, due bigint,
  status text, value text, outcome_at bigint, PRIMARY KEY (run, path, attempt)
) WITH (fillfactor = 80);

CREATE TABLE {schema}.leases (
  owner text COLLATE "C" PRIMARY KEY, renewed_at bigint NOT NULL, until bigint NOT NULL
) WITH (fillfactor = 50);
"""

_FROM_1 = """
ALTER TABLE {schema}.heads ADD COLUMN forgotten_to bigint;
ALTER TABLE {schema}.runs ADD COLUMN reason text, ADD COLUMN doubtful boolean NOT NULL DEFAULT false,
  ADD COLUMN resolution text;
UPDATE {schema}.runs SET reason = substring(ending from '"reason":"([a-z_]+)"'),
  doubtful = ending LIKE '{failure}"reason":"in_doubt"%'
  WHERE ending LIKE '{failure}"reason":"%';
DROP INDEX {schema}.closed_runs;
"""
"""Makes a store of version 1 one of version 2, with the indexes and the table that are new."""

_FAILURE_OF_1 = '{"schema_version":1,"kind":"failure","output":null,'
"""How the end of a run without an answer began. There alone it stood why."""


def prepare(connection: Connection, schema: str, name: str, clock: Callable[[], float] | None, *, make: bool) -> str:
    """Makes the store if it is not there, or brings one of the version before up to date; checks it, deletes old
    leases, and returns its identity.

    Args:
        connection: In autocommit mode.
        schema: The PostgreSQL schema, which has no characters that need quotes.
        name: Names the ledger in errors.
        clock: Instead of the server's; for tests.
        make: Whether it may be made.

    Raises:
        LedgerError: The schema is another program's or another release's, this user may not use it, or it is not there.
        psycopg.Error: What the server says.
    """
    if not _has_store(connection, schema):
        if not make:
            raise LedgerError(f"there is no ledger in the schema {schema!r} of {name}: correct the URL, ?schema=...")
        with connection.transaction():
            # CREATE ... IF NOT EXISTS fails when two do it at once.
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_MAKING, schema))
            if not _has_store(connection, schema):
                _make(connection, schema, name)
    meta = _meta(connection, schema, name)
    if meta["schema_version"] == "1":
        _bring_up_to_date(connection, schema, name)
        meta = _meta(connection, schema, name)
    if meta["schema_version"] != str(SCHEMA_VERSION):
        raise LedgerError(
            f"{name} has schema version {meta['schema_version']}, this release reads {SCHEMA_VERSION}; "
            "use the release that wrote it, or give another schema"
        )
    _check_rights(connection, schema, name)
    _delete_old_leases(connection, schema, clock)
    return str(meta["identity"])


def _has_store(connection: Connection, schema: str) -> bool:
    # to_regclass() would answer from a cache that does not hear of others during a transaction.
    space = "SELECT oid FROM pg_namespace WHERE nspname = %s"
    asked = f"SELECT FROM pg_class WHERE relname = 'meta' AND relnamespace = ({space})"
    return connection.execute(asked, (schema,)).fetchone() is not None


def _make(connection: Connection, schema: str, name: str) -> None:
    is_there = "SELECT oid FROM pg_namespace WHERE nspname = %s"
    space = connection.execute(is_there, (schema,)).fetchone()
    if space is None:
        connection.execute(f"CREATE SCHEMA {schema}")
    elif connection.execute("SELECT 1 FROM pg_class WHERE relnamespace = %s LIMIT 1", space).fetchone():
        raise LedgerError(_others(schema, name))
    connection.execute((_TABLES + _INDEXES + _HORIZONS).format(schema=schema))
    for row in (("identity", uuid.uuid4().hex), ("schema_version", str(SCHEMA_VERSION))):
        connection.execute(f"INSERT INTO {schema}.meta VALUES (%s, %s)", row)


def _meta(connection: Connection, schema: str, name: str) -> dict[str, str]:
    try:
        meta = dict(connection.execute(f"SELECT name, value FROM {schema}.meta").fetchall())
    except psycopg.errors.UndefinedColumn:
        meta = {}
    if "identity" not in meta or "schema_version" not in meta:
        raise LedgerError(_others(schema, name))
    return meta


def _bring_up_to_date(connection: Connection, schema: str, name: str) -> None:
    statements = (_FROM_1 + _INDEXES + _HORIZONS).format(schema=schema, failure=_FAILURE_OF_1.replace("_", r"\_"))
    try:
        with connection.patiently(_UPDATE_SECONDS), connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_MAKING, schema))
            if _meta(connection, schema, name)["schema_version"] == "1":
                connection.execute(f"SET LOCAL statement_timeout = '{_UPDATE_SECONDS}s'")
                connection.execute(statements)
                connection.execute(
                    f"UPDATE {schema}.meta SET value = %s WHERE name = 'schema_version'", (str(SCHEMA_VERSION),)
                )
    except psycopg.errors.InsufficientPrivilege as error:
        raise LedgerError(
            f"{name} has schema version 1, and this user may not bring it up to date: have a command of "
            f"'beam-agents ledger' carried out as the owner of its tables, then GRANT SELECT, INSERT, UPDATE, DELETE "
            f"ON ALL TABLES IN SCHEMA {schema} to this user"
        ) from error


def _others(schema: str, name: str) -> str:
    return (
        f"{name}: the schema {schema!r} has the tables of another program; give the ledger one of its own, ?schema=..."
    )


def _check_rights(connection: Connection, schema: str, name: str) -> None:
    asked = (
        "SELECT DISTINCT name FROM unnest(ARRAY['meta', 'heads', 'runs', 'effects', 'leases', 'horizons']) AS name "
        "CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS wanted "
        "WHERE NOT has_table_privilege(%s || '.' || name, wanted) AND (name <> 'meta' OR wanted = 'SELECT') "
        "ORDER BY name"
    )
    missing = [table for (table,) in connection.execute(asked, (schema,)).fetchall()]
    if missing:
        raise LedgerError(
            f"{name}: the user may not read and write {', '.join(missing)}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}"
        )


def _delete_old_leases(connection: Connection, schema: str, clock: Callable[[], float] | None) -> None:
    """Each new connection does it, so that there are never many more leases than workers.

    The lease that an open run names says how long its worker held it, however long ago.
    """
    now = "extract(epoch FROM clock_timestamp())" if clock is None else repr(float(clock()))
    connection.execute(
        f"DELETE FROM {schema}.leases WHERE owner IN (SELECT owner FROM {schema}.leases AS old "
        f"WHERE until < ({now} - {_OLD_LEASE_SECONDS}) * 1000000 AND NOT EXISTS "
        f"(SELECT FROM {schema}.runs WHERE runs.owner = old.owner AND ending IS NULL) FOR UPDATE SKIP LOCKED)"
    )
