"""The rows that were there when capture began, each once, also when the reading is broken off and begun again."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from psycopg import sql

from beam_agents.io.postgres.pgoutput import Relation
from beam_agents.io.postgres.place import Place, Seen, lsn_number
from beam_agents.io.postgres.server import Connection, Table, tables_of
from beam_agents.io.postgres.source import Source
from beam_agents.io.postgres.transactions import Item, TableChange


def scan(connection: Connection, source: Source, place: Place) -> Generator[Item, None, None]:
    """The rows behind a place, in the order of their keys, and the place behind them all.

    The first reading notes which transactions it sees. The stream leaves out their changes and tells all others, so a
    reading that is begun again leaves out rows that others have written.
    """
    if not place.table:
        return
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    if not place.seen:
        ((seen, until),) = connection.execute(
            "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
        ).fetchall()
        place = place._replace(seen=seen, until=lsn_number(until))
        yield Item(place)
        missed = None
    else:
        ((end,),) = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchall()
        missed = partial(Seen(place.seen).missed, end=end)
    for table in tables_of(connection, sorted(name for name in source.tables if name >= place.table)):
        if table.name != place.table:
            place = place._replace(table=table.name, key=())
        for item in _rows(connection, table, place, missed):
            place = item.place
            yield item
    connection.execute("COMMIT")
    yield Item(place._replace(table="", key=()))


def _rows(
    connection: Connection, table: Table, place: Place, missed: Callable[[int], bool] | None
) -> Generator[Item, None, None]:
    relation = Relation(table.name, table.columns, table.types, table.primary_key)
    # Without a primary key a row is told apart by where it lies.
    keys = [sql.Identifier(name) for name in table.primary_key or ("tableoid", "ctid")]
    order = sql.SQL(", ").join(keys)
    columns = sql.SQL("").join(sql.SQL(", {}::text").format(sql.Identifier(name)) for name in table.columns)
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(key) for key in keys)
    behind: sql.Composable = sql.SQL("")
    if place.key:
        literals = sql.SQL(", ").join(map(sql.Literal, place.key))
        behind = sql.SQL("WHERE ({}) > ({})").format(order, literals)
    statement = sql.SQL("COPY (SELECT xmin::text, {}{} FROM {} {} ORDER BY {}) TO STDOUT").format(
        texts, columns, table.identifier, behind, order
    )
    with connection.cursor().copy(statement) as copy:
        row: tuple[Any, ...]
        for row in copy.rows():
            xid, key, values = row[0], row[1 : 1 + len(keys)], row[1 + len(keys) :]
            place = place._replace(key=key)
            if missed is not None and missed(int(xid)):
                continue
            change = TableChange(
                # A row that is written again has another transaction, so whoever reads this one gives it this id.
                id=f"{table.name}-{key[0] if len(key) == 1 else json.dumps(key)}-{xid}",
                operation="snapshot",
                relation=relation,
                after=dict(zip(table.columns, values, strict=True)),
                transaction=xid,
            )
            yield Item(place, change, sum(len(value or "") for value in values) + 500)
