"""`WriteTable`: results as rows of a database table, by upsert."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection
from apache_beam.utils.windowed_value import WindowedValue
from pydantic import BaseModel

from beam_agents.codec import adapter, canonical_json
from beam_agents.errors import BeamAgentsError, ConfigurationError
from beam_agents.events import RunResult
from beam_agents.io.sinks.held import Held
from beam_agents.io.sinks.outgoing import (
    Field,
    Undelivered,
    check_field,
    check_identifiable,
    identify,
    pair_of,
    typed_undelivered,
    undelivered,
)
from beam_agents.io.sinks.table_columns import columns_of, values_of
from beam_agents.io.sinks.table_sqlite import SqliteStore
from beam_agents.io.sinks.table_store import Store
from beam_agents.secrets import Secret

_LOG = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 60.0
"""How long a bundle waits for a database that is away, before it fails and the runner begins it anew."""
_PAUSE_SECONDS: Final = 0.2
_GROUP: Final = 500
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TABLE: Final = re.compile(rf"({_WORD.pattern}\.)?{_WORD.pattern}")


class TableError(BeamAgentsError):
    """A database did not take a group of rows; the runner begins the bundle anew."""


class WriteTable(beam.PTransform[Any, Any]):
    """Writes each value of a PCollection of (key, value) as a row: an output of `RunAgent`, or with `id` anything.

    A row is written by upsert on the element's key and the value's id, so a value that comes again after a crash stands
    in the table once. The rows of a bundle are written before it ends, up to 500 in a transaction.

    Args:
        url: `"sqlite:///file.db"`, `"postgresql://..."`, or a `Secret` that holds one.
        table: The table; with its schema, if it has another than the database's default.
        row_type: A pydantic model: its fields are the columns. What has no type in a database is kept as JSON.
        row: A function of the value that gives the row: a `row_type`, or what pydantic can make one of. By default the
            `output` of a `RunResult`, and otherwise the value itself.
        id: A field of the value that is unique among the values of its key, or a function of the value; not needed for
            outputs of `RunAgent`.
        create: Makes the table if it is missing.
        key_column: The column of the element's key: texts as they are, others as JSON.
        id_column: The column of the value's id, of a result its `run_id`. With `key_column` the primary key.

    Returns:
        (key, `Undelivered`) for each value that is no row, or whose row the database refuses.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        url: str | Secret,
        table: str,
        row_type: type[BaseModel],
        *,
        row: Callable[[Any], Any] | None = None,
        id: Field | None = None,
        create: bool = True,
        key_column: str = "key",
        id_column: str = "id",
    ) -> None:
        super().__init__()
        if not isinstance(table, str) or not _TABLE.fullmatch(table):
            raise ConfigurationError(f"WriteTable(table={table!r}) must be a name, or schema.name, of plain letters")
        if not isinstance(row_type, type) or not issubclass(row_type, BaseModel):
            raise ConfigurationError(f"WriteTable(row_type={row_type!r}) must be a pydantic model")
        if row is not None and not callable(row):
            raise ConfigurationError(f"WriteTable(row={row!r}) must be a function of the value")
        check_field("WriteTable", "id", id)
        for name, column in (("key_column", key_column), ("id_column", id_column)):
            if not _WORD.fullmatch(column) or column in row_type.model_fields:
                raise ConfigurationError(
                    f"WriteTable({name}={column!r}) must be a name of plain letters that is no field of "
                    f"{row_type.__name__}: give another"
                )
        if key_column == id_column:
            raise ConfigurationError(f"WriteTable(key_column={key_column!r}) must not be the id_column, too")
        self._table = table
        self._id = id
        self._to_row = partial(_row_of, row_type, row)
        make = partial(_store, _checked(url), table, (key_column, id_column), row_type)
        self._held = Held(partial(_Table, make, create))

    def default_label(self) -> str:
        """The table."""
        return f"WriteTable({self._table})"

    def display_data(self) -> dict[str, Any]:
        """What a runner shows of the transform."""
        return {"table": self._table}

    def expand(self, pcoll: PCollection[Any]) -> PCollection[Any]:
        """Builds the stages."""
        check_identifiable(pcoll, self.default_label(), self._id, once=True)
        return typed_undelivered(
            pcoll | "Upsert" >> beam.ParDo(_Upsert(self._held, self._to_row, self._id, self._table))
        )


class _Waiting(NamedTuple):
    row: tuple[Any, ...]
    element: tuple[Any, Any]
    place: tuple[Any, Any]
    """The element's timestamp and window."""


class _Upsert(beam.DoFn):
    def __init__(self, held: Held[_Table], to_row: Callable[[Any], list[Any]], id: Field | None, table: str) -> None:
        self._held = held
        self._to_row = to_row
        self._id = id
        self._written = Metrics.counter(f"beam_agents.table.{table}", "written")

    def setup(self) -> None:
        self._database = self._held.enter()

    def teardown(self) -> None:
        self._held.leave()

    def start_bundle(self) -> None:
        self._waiting: list[_Waiting] = []

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[Any]:
        key, value = pair_of(element, "WriteTable")
        try:
            id = identify(value, self._id).id
            row = (key if isinstance(key, str) else canonical_json(key), id, *self._to_row(value))
        except Exception as error:  # the user's functions may raise anything, and the stream has to go on
            yield key, undelivered(value, error)
            return
        self._waiting.append(_Waiting(row, (key, value), (timestamp, window)))
        if len(self._waiting) >= _GROUP:
            yield from self.finish_bundle()

    def finish_bundle(self) -> Iterable[WindowedValue]:
        waiting, self._waiting = self._waiting, []
        refused = self._database.write([one.row for one in waiting]) if waiting else {}
        self._written.inc(len(waiting) - len(refused))
        for index, error in refused.items():
            (key, value), (timestamp, window) = waiting[index].element, waiting[index].place
            failure: Undelivered = undelivered(value, error, id=identify(value, self._id).digest(key), attempts=1)
            yield WindowedValue((key, failure), timestamp, (window,))


class _Table:
    """A table that the bundles of a process write to, one after the other."""

    def __init__(self, make: Callable[[], Store], create: bool) -> None:
        self._make = make
        self._create = create
        self._lock = threading.Lock()
        self._store: Store | None = None

    def write(self, rows: list[tuple[Any, ...]]) -> dict[int, Exception]:
        """Writes rows in one transaction, but for those that the database refuses: these, with the reason."""
        # In one order everywhere, so that two transactions do not wait for each other.
        order = sorted(range(len(rows)), key=lambda index: rows[index][:2])
        with self._lock:
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while True:
                try:
                    return self._transact(self._store or self._open(), rows, order)
                except Exception as error:
                    store = self._store
                    verdict, place = (store.judge(error), store.place) if store is not None else (None, "")
                    self._drop()
                    if verdict is None:
                        raise
                    if verdict == "statement" or time.monotonic() > deadline:
                        raise TableError(f"WriteTable: {place}: {error}") from error
                    _LOG.warning("WriteTable: %s: %s; trying again", place, error)
                    time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._drop()

    def _open(self) -> Store:
        self._store = self._make()
        self._store.connect()
        self._store.prepare(self._create)
        return self._store

    def _transact(self, store: Store, rows: list[tuple[Any, ...]], order: list[int]) -> dict[int, Exception]:
        statement = store.upsert()
        store.execute(store.begin)
        try:
            store.execute_all(statement, [rows[index] for index in order])
        except Exception as error:
            if store.judge(error) != "row":
                raise
            store.execute("ROLLBACK")
            return self._one_by_one(store, statement, rows, order)
        store.execute("COMMIT")
        return {}

    def _one_by_one(
        self, store: Store, statement: str, rows: list[tuple[Any, ...]], order: list[int]
    ) -> dict[int, Exception]:
        refused: dict[int, Exception] = {}
        store.execute(store.begin)
        for index in order:
            store.execute("SAVEPOINT one")
            try:
                store.execute(statement, rows[index])
            except Exception as error:
                if store.judge(error) != "row":
                    raise
                refused[index] = error
                store.execute("ROLLBACK TO SAVEPOINT one")
            store.execute("RELEASE SAVEPOINT one")
        store.execute("COMMIT")
        return refused

    def _drop(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _checked(url: str | Secret, secret: str | None = None) -> str | Secret:
    """The URL.

    Args:
        url: As it was given.
        secret: The name of the secret that it was in.

    Raises:
        ConfigurationError: It is none. The message does not show a secret.
    """
    if isinstance(url, Secret):
        return url
    if isinstance(url, str):
        if url.startswith(("postgresql://", "postgres://")):
            return url
        path = url.removeprefix("sqlite:///")
        if path != url and path:
            return f"sqlite:///{Path(path).absolute()}"
    shown = secret or repr(re.sub(r"//.*@", "//***@", str(url)))
    raise ConfigurationError(
        f"WriteTable(url={shown}) must be 'sqlite:///file.db', "
        "'postgresql://user@host/database' or a Secret that holds one"
    )


def _store(url: str | Secret, table: str, key_columns: tuple[str, str], row_type: type[BaseModel]) -> Store:
    text = _checked(url.reveal(), url.name) if isinstance(url, Secret) else url
    assert isinstance(text, str)
    columns = columns_of(row_type)
    if text.startswith("sqlite:"):
        return SqliteStore(text.removeprefix("sqlite:///"), table, key_columns, columns)
    try:
        from beam_agents.io.sinks.table_postgres import PostgresStore, check_url
    except ImportError as error:
        raise ConfigurationError(
            f"WriteTable on PostgreSQL needs psycopg, which cannot be imported ({error}): "
            "pip install 'beam-agents[postgres]'"
        ) from error
    check_url(text)
    return PostgresStore(text, table, key_columns, columns)


def _row_of(row_type: type[BaseModel], row: Callable[[Any], Any] | None, value: Any) -> list[Any]:
    if row is not None:
        value = row(value)
    elif isinstance(value, RunResult):
        value = value.output
    return values_of(adapter(row_type).validate_python(value, from_attributes=True), columns_of(row_type))
