"""What there is now in PostgreSQL's tables and in a slot, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apache_beam as beam
import psycopg
from apache_beam.utils.timestamp import Timestamp

from beam_agents.errors import ConfigurationError
from beam_agents.io.postgres.place import Place
from beam_agents.io.postgres.read import placed
from beam_agents.io.postgres.rows import RowDecoder
from beam_agents.io.postgres.scan import scan
from beam_agents.io.postgres.server import Connection, connect, for_good, slot_lsn, tables_of
from beam_agents.io.postgres.source import Source, quoted
from beam_agents.io.postgres.transactions import Item, Transactions


class ReadNowDoFn(beam.DoFn):
    """Reads the rows, and the changes that the slot keeps if it is there. The slot stays as it is."""

    def __init__(self, source: Source, decode: RowDecoder) -> None:
        self._source = source
        self._decode = decode

    def process(self, element: bytes) -> Iterator[Any]:
        """Emits the events.

        Raises:
            ConfigurationError: They cannot be read.
            ChangesLost: The server has given up the slot.
        """
        try:
            with closing(connect(self._source, replication=False)) as connection:
                for change in (item.change for item in self._items(connection) if item.change is not None):
                    at = Timestamp.from_utc_datetime(change.committed) if change.committed else Timestamp.now()
                    yield from placed(self._decode, change, at)
        except psycopg.Error as error:
            told = str(error).strip()
            raise for_good(self._source, error) or ConfigurationError(
                f"ReadPostgresChanges at {self._source.place}: {told}"
            ) from error

    def _items(self, connection: Connection) -> Iterator[Item]:
        source = self._source
        tables_of(connection, source.tables)
        kept = slot_lsn(connection, source)
        if kept is None and not source.snapshot:
            raise ConfigurationError(
                f"ReadPostgresChanges(slot={source.slot!r}, snapshot=False): there is no such slot at {source.place}, "
                f"and this runner reads only what is kept already: {source.slot_sql}"
            )
        place = Place("", kept or 0, table=source.tables[0] if source.snapshot else "")
        for item in scan(connection, source, place):
            place = item.place
            yield item
        if kept is not None:
            follow = Transactions(place)
            statement = psycopg.sql.SQL(
                "COPY (SELECT data FROM pg_logical_slot_peek_binary_changes({}, NULL, NULL, "
                "'proto_version', '1', 'publication_names', {})) TO STDOUT"
            ).format(source.slot, quoted(source.publication))
            with connection.cursor().copy(statement) as copy:
                for (data,) in copy.rows():
                    yield from follow.follow(bytes.fromhex(data.removeprefix("\\x")))
