"""The tables of an SQLite ledger: how they are made, checked, and brought up to date."""

from __future__ import annotations

import sqlite3
import uuid

from beam_agents.errors import LedgerError

SCHEMA_VERSION = 2
APPLICATION_ID = 0x42414C67

_INDEXES = (
    """CREATE INDEX closed_runs ON runs (scope, agent, closed_at) WHERE ending <> ''""",
    """CREATE INDEX tombstones ON runs (scope, agent, closed_at) WHERE ending = ''""",
    """CREATE INDEX doubtful_runs ON runs (scope, agent, opened_at) WHERE doubtful = 1""",
    """CREATE INDEX failed_runs ON runs (scope, agent, opened_at) WHERE reason IS NOT NULL AND ending <> ''""",
)

_HORIZONS = """CREATE TABLE horizons (
      scope TEXT NOT NULL, agent TEXT NOT NULL, pruned_to INTEGER NOT NULL, PRIMARY KEY (scope, agent)) WITHOUT ROWID"""

_TABLES = (
    """CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE heads (
      id INTEGER PRIMARY KEY, scope TEXT NOT NULL, agent TEXT NOT NULL, revision INTEGER NOT NULL, key TEXT NOT NULL,
      session_version INTEGER NOT NULL, session TEXT, open_run TEXT, forgotten_to INTEGER,
      UNIQUE (scope, agent, revision, key))""",
    """CREATE TABLE runs (
      id INTEGER PRIMARY KEY, scope TEXT NOT NULL, agent TEXT NOT NULL, revision INTEGER NOT NULL, key TEXT NOT NULL,
      run_id TEXT NOT NULL, event TEXT NOT NULL, digest TEXT NOT NULL, opened_at INTEGER NOT NULL, event_time INTEGER,
      epoch INTEGER NOT NULL, owner TEXT NOT NULL, epoch_at INTEGER NOT NULL, held INTEGER NOT NULL,
      stalls INTEGER NOT NULL, ending TEXT, closed_at INTEGER, nonce TEXT NOT NULL, reason TEXT,
      doubtful INTEGER NOT NULL DEFAULT 0, resolution TEXT,
      UNIQUE (scope, agent, revision, key, run_id))""",
    """CREATE INDEX open_runs ON runs (scope, agent, opened_at) WHERE ending IS NULL""",
    *_INDEXES,
    """CREATE TABLE effects (
      id INTEGER PRIMARY KEY, run INTEGER NOT NULL, path TEXT NOT NULL, attempt INTEGER NOT NULL, kind TEXT NOT NULL,
      name TEXT NOT NULL, digest TEXT NOT NULL, effect TEXT NOT NULL, arguments TEXT, intent_at INTEGER NOT NULL,
      delivered TEXT, due INTEGER, status TEXT, value TEXT, outcome_at INTEGER,
      UNIQUE (run, path, attempt))""",
    """CREATE TABLE leases (
      owner TEXT PRIMARY KEY, renewed_at INTEGER NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID""",
    _HORIZONS,
)
"""The tables. Times and durations are microseconds: SQLite's JSON does not keep all digits of a fraction."""

_FROM_1 = (
    """ALTER TABLE heads ADD COLUMN forgotten_to INTEGER""",
    """ALTER TABLE runs ADD COLUMN reason TEXT""",
    """ALTER TABLE runs ADD COLUMN doubtful INTEGER NOT NULL DEFAULT 0""",
    """ALTER TABLE runs ADD COLUMN resolution TEXT""",
    # What says now that a person has to look at a run stood in its end only.
    """UPDATE runs SET reason = json_extract(ending, '$.reason')
       WHERE CASE WHEN json_valid(ending) THEN json_extract(ending, '$.reason') END IS NOT NULL""",
    """UPDATE runs SET doubtful = 1 WHERE reason = 'in_doubt'""",
    """DROP INDEX closed_runs""",
    *_INDEXES,
    _HORIZONS,
)
"""What makes a store of version 1 one of version 2."""


def prepare(connection: sqlite3.Connection, name: str, *, make: bool) -> str:
    """Makes the store if it is not there, brings one of the version before up to date, and returns its identity.

    Args:
        connection: In autocommit mode.
        name: Names the ledger in errors.
        make: Whether it may be made.

    Raises:
        LedgerError: It is another program's, another release's, cannot be shared by processes, or is not there.
        sqlite3.Error: What SQLite says.
    """
    # Tables before the id: both appear at once, so a file that is being made is not taken for a stranger's.
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise LedgerError(f"{name} is the database of another program; give the ledger a file of its own")
    if not tables and not make:
        raise LedgerError(f"there is no ledger in {name}, which is an empty file: correct the path")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerError(f"{name}: its file system cannot be shared by processes; put the file on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        rows = [("identity", uuid.uuid4().hex), ("schema_version", str(SCHEMA_VERSION))]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    if _meta(connection)["schema_version"] == "1":
        for statement in _FROM_1:
            connection.execute(statement)
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (str(SCHEMA_VERSION),))
    meta = _meta(connection)
    connection.execute("COMMIT")
    if meta["schema_version"] != str(SCHEMA_VERSION):
        raise LedgerError(
            f"{name} has schema version {meta['schema_version']}, this release reads {SCHEMA_VERSION}; "
            "use the release that wrote it, or give a new file"
        )
    return meta["identity"]


def _meta(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM meta").fetchall())
