"""What a source finds and makes on a PostgreSQL server: connections, the publication, the slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from beam_agents.errors import ConfigurationError
from beam_agents.io.postgres.place import ChangesLost, Place, lsn_number, lsn_text
from beam_agents.io.postgres.source import Source

Connection = psycopg.Connection[tuple[Any, ...]]

_SETTINGS = {  # in these forms values come as texts
    "client_encoding": "UTF8",
    "datestyle": "ISO",
    "timezone": "UTC",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
_REPLICATION = {"wal_sender_timeout": "30s"}
"""How soon the server ends the stream of a worker that died without a word, and so gives the slot free."""


@dataclass(frozen=True)
class Table:
    """A table as it is now."""

    name: str
    columns: tuple[str, ...]
    types: tuple[int, ...]
    primary_key: tuple[str, ...]

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement."""
        return sql.Identifier(*self.name.split(".", 1))


def connect(source: Source, *, replication: bool) -> Connection:
    """A connection; with `replication` one that takes the commands of replication, too.

    Raises:
        ConfigurationError: The password is not there.
        psycopg.OperationalError: There is none to be had.
    """
    settings = _SETTINGS | (_REPLICATION if replication else {})
    more: dict[str, Any] = {"replication": "database"} if replication else {}
    if source.password is not None:
        more["password"] = source.password.reveal()
    return psycopg.connect(
        source.url,
        autocommit=True,
        cursor_factory=psycopg.ClientCursor,  # replication has no statements with parameters
        connect_timeout=10,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=30_000,
        application_name="beam-agents",
        options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        **more,
    )


def for_good(source: Source, error: psycopg.Error) -> ConfigurationError | None:
    """The error to stop with, or `None` if the server may do better another time."""
    state, told = error.sqlstate, str(error).strip().partition("\n")[0]
    if state is None and "WAL sender" in told:
        return ConfigurationError(
            f"ReadPostgresChanges at {source.place}: {told}; ALTER ROLE ... REPLICATION gives the right"
        )
    if state is None or state == "55006" or (state[:2] in ("08", "40", "53", "57") and state != "53400"):
        return None
    hint = {
        "42501": "; it needs SELECT on the tables, and the REPLICATION attribute; to make the publication it must own "
        "the tables, or let their owner make it: " + source.publication_sql,
        "53400": "; drop a slot that nobody needs, or raise max_replication_slots",
    }.get(state, "")
    return ConfigurationError(f"ReadPostgresChanges at {source.place}: {told}{hint}")


def tables_of(connection: Connection, names: Sequence[str]) -> list[Table]:
    """The tables.

    Raises:
        ConfigurationError: One is not there, or its rows cannot be told apart.
    """
    found = []
    for name in names:
        identifier = sql.Identifier(*name.split(".", 1)).as_string(connection)
        row = connection.execute(
            "SELECT oid::bigint, relreplident::text FROM pg_class "
            "WHERE oid = to_regclass(%s) AND relkind IN ('r', 'p')",
            (identifier,),
        ).fetchone()
        if row is None:
            raise ConfigurationError(
                f"ReadPostgresChanges: there is no table {name!r} in {connection.info.dbname!r}; name it with its "
                "schema, and as it is stored, as in 'public.readings'"
            )
        oid, identity = row
        columns = connection.execute(
            "SELECT attname, atttypid::bigint FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            (oid,),
        ).fetchall()
        keys = connection.execute(
            "SELECT attname FROM pg_index i "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) "
            "WHERE i.indrelid = %s AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum)",
            (oid,),
        ).fetchall()
        if identity == "n" or (identity == "d" and not keys):
            raise ConfigurationError(
                f"ReadPostgresChanges: {name} has no primary key, so PostgreSQL would refuse to update or delete its "
                f"published rows: ALTER TABLE {identifier} ADD PRIMARY KEY (...), or "
                f"ALTER TABLE {identifier} REPLICA IDENTITY FULL"
            )
        names_, types = zip(*columns, strict=True) if columns else ((), ())
        found.append(Table(name, tuple(names_), tuple(types), tuple(key for (key,) in keys)))
    return found


def slot_lsn(connection: Connection, source: Source) -> int | None:
    """Where the source's slot is, or `None` if there is none.

    Raises:
        ConfigurationError: It is a slot of another kind.
        ChangesLost: The server has given it up.
        psycopg.errors.ObjectInUse: It is being made.
    """
    row = connection.execute(
        "SELECT plugin, coalesce(database, ''), wal_status, confirmed_flush_lsn::text FROM pg_replication_slots "
        "WHERE slot_name = %s",
        (source.slot,),
    ).fetchone()
    if row is None:
        return None
    plugin, database, status, confirmed = row
    if plugin != "pgoutput" or database != connection.info.dbname:
        raise ConfigurationError(
            f"ReadPostgresChanges(slot={source.slot!r}): the slot is for {plugin or 'physical replication'} in "
            f"{database or 'no database'}, not for pgoutput in {connection.info.dbname}; give another name"
        )
    if status == "lost":
        raise ChangesLost(
            f"the server at {source.place} has given up slot {source.slot!r} and dropped changes that were not read "
            "(max_slot_wal_keep_size was too small for how long nobody read, or the slot was invalidated): "
            + source.anew
        )
    if confirmed is None:
        raise psycopg.errors.ObjectInUse(f"slot {source.slot!r} is still being made")
    return lsn_number(confirmed)


def prepare(connection: Connection, source: Source, place: Place | None) -> Place:
    """Sees to it that changes can be read from a place on, or from the beginning.

    Raises:
        ConfigurationError: The server is not set up for it; the message has the statement that does it.
        ChangesLost: What comes next is not there any more.
        psycopg.Error: The server refuses.
    """
    ((system, *_),) = connection.execute("IDENTIFY_SYSTEM").fetchall()
    if place is not None and place.system != system:
        raise ChangesLost(
            f"the job's state is of the server {place.system}, and {source.place} is the server {system}: {source.anew}"
        )
    ((level,),) = connection.execute("SHOW wal_level").fetchall()
    if level != "logical":
        raise ConfigurationError(
            f"ReadPostgresChanges: the server at {source.place} has wal_level={level}; "
            "ALTER SYSTEM SET wal_level = logical, and restart it"
        )
    tables = tables_of(connection, source.tables)
    there = slot_lsn(connection, source)
    if place is not None and there is None:
        raise ChangesLost(f"there is no slot {source.slot!r} at {source.place} any more: {source.anew}")
    if place is not None and there is not None and place.lsn < there:
        raise ChangesLost(
            f"the job's state is at {lsn_text(place.lsn)}, and slot {source.slot!r} at {source.place} is at "
            f"{lsn_text(there)} already: the job was restored from an old savepoint or checkpoint, or another job "
            f"reads the slot. What lies between is gone: {source.anew}"
        )
    _check_publication(connection, source, tables, there is not None)
    if there is None:
        if not source.create:
            raise ConfigurationError(
                f"ReadPostgresChanges(slot={source.slot!r}): there is no such slot at {source.place}: {source.slot_sql}"
            )
        ((made,),) = connection.execute(
            "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')", (source.slot,)
        ).fetchall()
        there = lsn_number(made)
    return place or Place(system, there, table=source.tables[0] if source.snapshot else "")


def _check_publication(connection: Connection, source: Source, tables: list[Table], has_slot: bool) -> None:
    ((there,),) = connection.execute(
        "SELECT count(*) FROM pg_publication WHERE pubname = %s", (source.publication,)
    ).fetchall()
    if not there:
        if has_slot:
            raise ConfigurationError(
                f"ReadPostgresChanges(publication={source.publication!r}): there is no such publication, and slot "
                f"{source.slot!r} is there already; a publication must be older than its slot. Drop the slot: "
                f"SELECT pg_drop_replication_slot('{source.slot}')"
            )
        if not source.create:
            raise ConfigurationError(
                f"ReadPostgresChanges(publication={source.publication!r}): there is no such publication at "
                f"{source.place}: {source.publication_sql}"
            )
        connection.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)").format(
                sql.Identifier(source.publication), sql.SQL(", ").join(table.identifier for table in tables)
            )
        )
        return
    published = connection.execute(
        "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s", (source.publication,)
    ).fetchall()
    missing = [table for table in tables if (table.name,) not in published]
    if missing:
        names = sql.SQL(", ").join(table.identifier for table in missing).as_string(connection)
        raise ConfigurationError(
            f"ReadPostgresChanges: publication {source.publication!r} at {source.place} does not have all tables: "
            f"ALTER PUBLICATION {sql.Identifier(source.publication).as_string(connection)} ADD TABLE {names}"
        )
