"""From a change as the server tells it to a keyed event."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from apache_beam import coders
from pydantic import TypeAdapter, ValidationError

from beam_agents.codec import dump, explain, named
from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason, Identified, RunFailure
from beam_agents.io.changes import Change, change_type
from beam_agents.io.debezium_rows import wanted_columns
from beam_agents.io.kafka_record import Part, part_of, text_of
from beam_agents.io.postgres.pgoutput import Row
from beam_agents.io.postgres.transactions import TableChange
from beam_agents.template import field_names, members
from beam_agents.transforms.coders import PydanticCoder

_WHOLE = "ALTER TABLE {table} REPLICA IDENTITY FULL"


class ChangeCoder(PydanticCoder):
    """Codes the events of some tables.

    Args:
        tables: The type of each table's rows. They are what is pickled: the type of a union of changes cannot be.
    """

    def __init__(self, tables: Mapping[str, Any]) -> None:
        super().__init__(Identified[change_type(tables)])  # type: ignore[misc]
        self._tables = dict(tables)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChangeCoder, (self._tables,)


def register_changes(tables: Mapping[str, Any]) -> Any:
    """The type of the tables' events, made known to Beam."""
    coder = ChangeCoder(tables)
    identified = coder.to_type_hint()
    made = {"from_type_hint": classmethod(lambda cls, _type, _registry: coder)}
    coders.registry.register_coder(identified, type("ChangeCoder", (ChangeCoder,), made))
    return identified


class RowDecoder:
    """Makes (key, `Identified`) of a change, or a `RunFailure` that has its id.

    Args:
        tables: The type of each table's rows.
        key: The event's key: a field of the row or a function of the `Change`.

    Raises:
        ConfigurationError: A row has no such field, or its type cannot be read.
    """

    def __init__(self, tables: Mapping[str, Any], key: Part) -> None:
        self._tables = dict(tables)
        self._key = key
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        self._values: Callable[[int, str], Any] | None = None
        if not (callable(key) or (isinstance(key, str) and key)):
            raise ConfigurationError(
                f"ReadPostgresChanges(key={key!r}) must be a field of the row or a function of the Change"
            )
        for table, row in self._tables.items():
            try:
                TypeAdapter(row)
            except Exception as error:
                raise ConfigurationError(
                    f"ReadPostgresChanges(tables={{{table!r}: {row!r}}}): pydantic cannot read such rows: {error}"
                ) from error
            for member in members(row):
                names = field_names(member)
                if isinstance(key, str) and names is not None and key not in names:
                    raise ConfigurationError(
                        f"ReadPostgresChanges(key={key!r}): {member.__name__}, the row of {table}, has no such field, "
                        f"it has: {', '.join(names) or 'none'}; name one of them, or give a function of the Change"
                    )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_adapters": {}, "_values": None}

    def __call__(self, told: TableChange) -> tuple[str, Identified[Any]] | RunFailure[Any] | None:
        """The keyed event; whatever is wrong with the row is told and never raised. `None` for a table of others."""
        table = told.relation.name
        if table not in self._tables:
            return None
        try:
            before, after = self._before(told), self._after(told)
        except _BadRow as error:
            return self._bad(told, FailureReason.INVALID_EVENT, str(error))
        try:
            change = Change[self._tables[table]](  # type: ignore[name-defined]
                operation=told.operation,
                table=table,
                before=before,
                after=after,
                position=told.position,
                transaction=told.transaction,
                committed=told.committed,
            )
            dump(type(change), change)  # what cannot be sent on would stop the job
        except ValueError as error:
            return self._bad(told, FailureReason.INVALID_EVENT, str(error))
        try:
            key = text_of(self._key(change) if callable(self._key) else self._field(change, self._key))
        except Exception as error:
            return self._bad(told, FailureReason.MISSING_KEY, f"key={self._key!r}: {named(error)}")
        return key, Identified(id=told.id, event=change)

    def _field(self, change: Change[Any], name: str) -> Any:
        if change.row is None:
            raise ValueError(f"a {change.operation} has no row; give a function of the Change")
        return part_of(change.row, name)

    def _after(self, told: TableChange) -> Any:
        if told.after is None:
            return None
        absent = [name for name in told.relation.columns if name not in told.after]
        wanted = wanted_columns(self._tables[told.relation.name]) or frozenset()
        for name in absent:
            if name in wanted:
                raise _BadRow(
                    f"column {name!r} was not changed, and the server does not send long values again; "
                    f"{_WHOLE.format(table=told.relation.name)} makes it send them"
                )
        return self._row(told, told.after)

    def _before(self, told: TableChange) -> Any:
        if told.before is None:
            return None
        try:
            return self._row(told, told.before)
        except _BadRow as error:
            if told.whole:
                raise
            if told.operation == "update":  # the key alone is no row
                return None
            raise _BadRow(
                f"{error}; the server tells only the key of a deleted row; "
                f"{_WHOLE.format(table=told.relation.name)} makes it tell all"
            ) from None

    def _row(self, told: TableChange, row: Row) -> Any:
        table = told.relation.name
        if table not in self._adapters:
            self._adapters[table] = TypeAdapter(self._tables[table])
        if self._values is None:
            from beam_agents.io.postgres.values import Values

            self._values = Values()
        values: dict[str, Any] = {}
        for name, type_ in zip(told.relation.columns, told.relation.types, strict=True):
            if name in row:
                text = row[name]
                try:
                    values[name] = None if text is None else self._values(type_, text)
                except Exception as error:  # a date that Python does not have, for one
                    raise _BadRow(f"column {name!r}: {named(error)}") from error
        try:
            return self._adapters[table].validate_python(values)
        except ValidationError as error:
            raise _BadRow(explain(error, "row")) from error
        except Exception as error:  # the user's validators may raise anything
            raise _BadRow(named(error)) from error

    def _bad(self, told: TableChange, reason: FailureReason, why: str) -> RunFailure[Any]:
        row = told.before if told.after is None else told.after
        return RunFailure(
            reason=reason,
            message=f"{told.operation} {told.id} of {told.relation.name}: {why}",
            raw=None if row is None else json.dumps(row, ensure_ascii=False),
        )


class _BadRow(Exception):
    pass
