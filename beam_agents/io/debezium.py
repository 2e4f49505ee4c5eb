"""`Debezium`: the change events that its connectors write to Kafka, as `Change`s."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from beam_agents.codec import canonical_json
from beam_agents.io.changes import Operation
from beam_agents.io.debezium_mongodb import document
from beam_agents.io.debezium_rows import Rows
from beam_agents.io.debezium_source import (
    committed_of,
    id_of,
    is_mongodb,
    is_postgresql,
    position_of,
    table_of,
    transaction_of,
)
from beam_agents.io.debezium_unsent import Unsent
from beam_agents.io.debezium_values import plain
from beam_agents.io.kafka_record import KafkaRecord, Reading, RecordFormat

_OPERATIONS: Final[Mapping[str, Operation]] = {
    "r": "snapshot",
    "c": "insert",
    "u": "update",
    "d": "delete",
    "t": "truncate",
}
_MESSAGE: Final = "m"
_SCHEMAS: Final = "set value.converter.schemas.enable=true"
_FLAT: Final = (
    "it has no 'op', so it is no change event of Debezium. If the connector flattens its events (transform "
    "ExtractNewRecordState), take the transform out, or read the rows as they are with value=<the type of a row>"
)
_NO_ROW: Final = (
    "the delete tells only the key of its row; make the database tell all of it (PostgreSQL: REPLICA IDENTITY FULL; "
    "MongoDB: capture.mode=change_streams_update_full_with_pre_image), or name a column of the key"
)


class Debezium(RecordFormat):
    """The change events of Debezium's connectors, for `ReadKafka(value=Debezium(Order))`.

    The events are `Change`s of rows. Their key is by default that of the row, without Debezium's schema: the value of
    a key of one column, JSON of one of several. `key=` and `event_id=` may name fields of the row. Their id is by
    default made of the place in the database's log where that is unique, so a change that a connector sends again is
    known; snapshots, tables without a key, and MongoDB's transactions have the record's coordinates.

    Tombstones, heartbeats, the marks of transactions, schema changes and logical messages are no events.

    Args:
        row: What a row is, for pydantic; or a type for each table, by names such as `public.orders` (MySQL and
            MongoDB: `shop.orders`).
        as_is: Without schemas: fields take what pydantic makes of the JSON that is there. Otherwise texts in number
            fields, which may be base64, and numbers in time fields, which may be days or microseconds, are refused.
        unavailable: The connector's `unavailable.value.placeholder`.

    Raises:
        ConfigurationError: A row cannot be read by pydantic, or has bytes that JSON cannot hold.
    """

    def __init__(
        self,
        row: Any,
        *,
        as_is: bool = False,
        unavailable: str = "__debezium_unavailable_value",
    ) -> None:
        self._rows = Rows("Debezium", row)
        self._as_is = as_is
        self._unsent = Unsent(unavailable)

    def __repr__(self) -> str:
        return f"Debezium({self._rows})"

    @property
    def element(self) -> Any:
        """`Change` of the row, or the union over the tables."""
        return self._rows.change

    @property
    def rows(self) -> tuple[Any, ...]:
        """The types of the rows."""
        return self._rows.types

    def read(self, record: KafkaRecord) -> Reading | None:
        """The change; `None` for what stands between changes.

        Raises:
            ValueError: It is no change event, or its row is not what was said.
        """
        schema, payload = (None, None) if record.value is None else _opened(record.value, "value")
        if payload is None or _is_notice(payload):
            return None
        if not isinstance(payload, dict) or "op" not in payload:
            raise ValueError(_FLAT)
        operation = _OPERATIONS.get(payload["op"])
        if operation is None or not isinstance(payload.get("source"), dict):
            raise ValueError(f"Debezium has no op {payload['op']!r} with a 'source'")
        source = payload["source"]
        table = table_of(source)
        key = _Key.of(record.key, is_mongodb(source))
        change = self._rows.changed(
            operation=operation,
            table=table,
            **self._images(table, operation, payload, schema, key),
            position=position_of(source),
            transaction=transaction_of(payload, source),
            committed=None if operation == "snapshot" else committed_of(source),
        )
        field = partial(self._rows.field, change, key.columns, _NO_ROW)
        return Reading(change, field, key.text, id_of(payload, source, table, key.told))

    def _images(
        self, table: str, operation: Operation, payload: dict[str, Any], schema: Any, key: _Key
    ) -> dict[str, Any]:
        before, after = payload.get("before"), payload.get("after")
        if operation == "truncate":
            return {}
        if operation != "delete" and after is None:
            raise ValueError(
                f"the {operation} has no 'after'. MongoDB: set capture.mode=change_streams_update_full; with it, the "
                "document was deleted before the connector looked it up"
            )
        read: Callable[..., Any] = self._document if is_mongodb(payload["source"]) else self._row
        if operation == "delete":
            alone = before is None or (
                is_postgresql(payload["source"]) and _is_key_alone(before, key.columns, _columns(schema, "before"))
            )
            # The key is a row if its type says nothing of the other columns.
            row = self._rows.perhaps(table, key.columns) if alone else read(table, "before", before, schema)
            return {"before": row}
        whole_before = None if before is None else read(table, "before", before, schema)
        if isinstance(after, dict):
            after = self._unsent.filled(table, after, before, self._rows.wanted(table))
        return {"before": whole_before, "after": read(table, "after", after, schema)}

    def _document(self, table: str, image: str, raw: Any, _: Any) -> Any:
        return self._rows.row(table, image, document(raw) if isinstance(raw, str) else raw)

    def _row(self, table: str, image: str, raw: Any, schema: Any) -> Any:
        if not isinstance(raw, dict):
            raise ValueError(f"'{image}' is no row but {raw!r}")  # noqa: TRY004
        columns = _columns(schema, image)
        if columns is None:
            if not self._as_is:
                self._refuse_unclear(table, image, raw)
            return self._rows.row(table, image, raw)
        texts = self._rows.texts(table)
        row = {}
        for name, value in raw.items():
            try:
                row[name] = plain(columns[name], value, text=name in texts) if name in columns else value
            except ValueError as error:
                raise ValueError(f"{image}.{name}: {error}") from error
        return self._rows.row(table, image, row)

    def _refuse_unclear(self, table: str, image: str, raw: dict[str, Any]) -> None:
        if name := next((name for name in sorted(self._rows.numbers(table)) if _holds(raw.get(name), str)), None):
            raise ValueError(
                f"{image}.{name} is the text {raw[name]!r}, and without schemas digits look like base64: {_SCHEMAS}; "
                "or decimal.handling.mode=double; or decimal.handling.mode=string and Debezium(..., as_is=True)"
            )
        if name := next((name for name in sorted(self._rows.times(table)) if _holds(raw.get(name), int)), None):
            raise ValueError(
                f"{image}.{name} is the number {raw[name]!r}, and without schemas it may be days or microseconds: "
                f"{_SCHEMAS}; or take it as int; or read it with a validator and say Debezium(..., as_is=True)"
            )


def _holds(value: Any, kind: type) -> bool:
    return isinstance(value, kind) or (isinstance(value, list) and any(_holds(one, kind) for one in value))


class _Key:
    """The key of a record: the row's, if it has one.

    Attributes:
        told: As JSON data.
        columns: By their names; empty if the key is not of columns.
        text: What events have for their key.
    """

    def __init__(self, told: Any, columns: dict[str, Any], text: str | bytes | None) -> None:
        self.told = told
        self.columns = columns
        self.text = text

    @classmethod
    def of(cls, raw: bytes | None, mongodb: bool) -> _Key:
        """The key of a record."""
        if raw is None:
            return cls(None, {}, None)
        try:
            schema, told = _opened(raw, "key")
        except ValueError:  # another converter wrote it
            return cls(raw, {}, raw)
        if not isinstance(told, dict):
            return cls(told, {}, None if told is None else raw)
        if mongodb and isinstance(told.get("id"), str):
            columns = {"_id": document(told["id"])}
        else:
            fields = {} if schema is None else {field["field"]: field for field in schema.get("fields", ())}
            columns = {name: plain(fields.get(name, {}), value) for name, value in told.items()}
        first = next(iter(columns.values()), None)
        simple = len(columns) == 1 and isinstance(first, (str, int)) and not isinstance(first, bool)
        return cls(told, columns, str(first) if simple else canonical_json(columns))


def _opened(raw: bytes, what: str) -> tuple[dict[str, Any] | None, Any]:
    """The schema, if there is one, and the payload.

    Raises:
        ValueError: It is no JSON.
    """
    if raw[:1] == b"\0":
        raise ValueError(
            f"its {what} begins with byte 0, as those of a schema registry do (Avro, Protobuf): set {what}.converter="
            "org.apache.kafka.connect.json.JsonConverter"
        )
    try:
        told = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"its {what} is no JSON: {error}") from error
    if isinstance(told, dict) and told.keys() == {"schema", "payload"}:
        return told["schema"], told["payload"]
    return None, told


def _is_notice(payload: Any) -> bool:
    """Whether it is a heartbeat, the mark of a transaction, a change of a schema or a logical message."""
    if not isinstance(payload, dict):
        return False
    return (
        payload.get("op") == _MESSAGE
        or ("ts_ms" in payload and payload.keys() <= {"ts_ms", "ts_us", "ts_ns"})
        or (payload.get("status") in ("BEGIN", "END") and "id" in payload and "source" not in payload)
        or ("tableChanges" in payload and "op" not in payload)
    )


def _columns(schema: dict[str, Any] | None, image: str) -> dict[str, Any] | None:
    """The schemas of the columns."""
    for field in () if schema is None else schema["fields"]:
        if field["field"] == image:
            return {column["field"]: column for column in field["fields"]}
    return None


def _is_key_alone(before: Any, key: Mapping[str, Any], columns: Mapping[str, Any] | None) -> bool:
    """Whether all that is not the key is null, or what Debezium puts for null in columns that cannot have it."""
    others = [name for name in before if name not in key]
    return bool(key and others) and all(
        before[name] in (None, "", 0, [], "AA==") or before[name] == ((columns or {}).get(name) or {}).get("default")
        for name in others
    )
