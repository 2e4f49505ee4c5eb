"""`DynamoDbStream`: the records of DynamoDB Streams, as `Change`s."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from beam_agents.codec import canonical_json
from beam_agents.io.changes import Operation
from beam_agents.io.debezium_rows import Rows
from beam_agents.io.kafka_record import KafkaRecord, Reading, RecordFormat

_OPERATIONS: Final[Mapping[str, Operation]] = {"INSERT": "insert", "MODIFY": "update", "REMOVE": "delete"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ARN: Final = re.compile(r":table/([^/]+)/")
_INTEGER: Final = re.compile(r"-?\d+")
_DELETER: Final = "dynamodb.amazonaws.com"
_NO_ITEM: Final = (
    "the delete has no OldImage: set StreamViewType=NEW_AND_OLD_IMAGES, or name an attribute of the item's key"
)


class DynamoDbStream(RecordFormat):
    """The records of DynamoDB Streams, for `ReadKafka(value=DynamoDbStream(Order))`: as Lambda and pipes hand them on,
    and as Kinesis Data Streams has them.

    The events are `Change`s of items. Their key is by default the item's, the value of a key of one attribute, JSON of
    one of two. `key=` and `event_id=` may name fields of the item. Their id is by default the `eventID`, which is the
    same when a record is passed on again. Tombstones are no events.

    Args:
        row: What an item is, for pydantic; or a type for each table, by name.
        table: The table's name, where the records do not have it (neither `eventSourceARN` nor `tableName`).
        expired: Whether an item that DynamoDB deleted at the end of its time to live is an event.

    Raises:
        ConfigurationError: An item cannot be read by pydantic, or has bytes that JSON cannot hold.
    """

    def __init__(self, row: Any, *, table: str | None = None, expired: bool = True) -> None:
        self._rows = Rows("DynamoDbStream", row)
        self._table = table
        self._expired = expired

    def __repr__(self) -> str:
        return f"DynamoDbStream({self._rows})"

    @property
    def element(self) -> Any:
        """`Change` of the item, or the union over the tables."""
        return self._rows.change

    @property
    def rows(self) -> tuple[Any, ...]:
        """The types of the items."""
        return self._rows.types

    def read(self, record: KafkaRecord) -> Reading | None:
        """The change; `None` for a tombstone, and for an item that expired if those are not wanted.

        Raises:
            ValueError: It is no record of a stream, or its item is not what was said.
        """
        if record.value is None:
            return None
        told = json.loads(record.value)
        if not isinstance(told, dict) or not isinstance(stream := told.get("dynamodb"), dict):
            raise ValueError(  # noqa: TRY004
                "it has no 'dynamodb', so it is no record of DynamoDB Streams; of a list of 'Records' each must be "
                "written by itself"
            )
        if (told.get("userIdentity") or {}).get("principalId") == _DELETER and not self._expired:
            return None
        operation = _OPERATIONS.get(told.get("eventName", ""))
        if operation is None:
            raise ValueError(f"its eventName is {told.get('eventName')!r}, not one of {', '.join(_OPERATIONS)}")
        table = self._table_of(told)
        keys = _item(stream.get("Keys") or {})
        images = {name: stream.get(image) for name, image in (("before", "OldImage"), ("after", "NewImage"))}
        if operation != "delete" and images["after"] is None:
            raise ValueError(
                f"the {operation} has no NewImage: the stream's view is {stream.get('StreamViewType') or 'unknown'}, "
                "set StreamViewType=NEW_AND_OLD_IMAGES, or NEW_IMAGE (Kinesis has both)"
            )
        rows = {name: self._rows.row(table, name, _item(image)) for name, image in images.items() if image is not None}
        if operation == "delete" and "before" not in rows:
            rows["before"] = self._rows.perhaps(table, keys)
        position = stream.get("SequenceNumber")
        change = self._rows.changed(
            operation=operation, table=table, **rows, position=position, committed=_committed(stream)
        )
        simple = next(iter(keys.values())) if len(keys) == 1 else None
        key = (canonical_json(keys) if simple is None else str(simple)) if keys else None
        id = told.get("eventID") or (f"{table}-{position}" if position else None)
        return Reading(change, partial(self._rows.field, change, keys, _NO_ITEM), key, id)

    def _table_of(self, told: Mapping[str, Any]) -> str:
        found = _ARN.search(told.get("eventSourceARN") or "")
        name = self._table or told.get("tableName") or (found and found[1])
        if not name:
            raise ValueError(
                "it names no table, with neither eventSourceARN nor tableName: say DynamoDbStream(..., table='...')"
            )
        return str(name)


def _item(image: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(name, value) for name, value in image.items()}


def _value(name: str, value: Any) -> Any:
    """An attribute's value as JSON that pydantic reads: numbers exactly, bytes in base64."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"attribute {name!r} is {value!r}, which is no value with its type, as {{'S': 'text'}}")
    ((kind, of),) = value.items()
    match kind:
        case "S" | "BOOL" | "B" | "SS" | "BS":
            return of
        case "N":
            return _number(of)
        case "NS":
            return [_number(item) for item in of]
        case "NULL":
            return None
        case "L":
            return [_value(name, item) for item in of]
        case "M":
            return {key: _value(f"{name}.{key}", item) for key, item in of.items()}
    raise ValueError(f"attribute {name!r} has the unknown type {kind!r}")


def _number(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text


def _committed(stream: Mapping[str, Any]) -> datetime | None:
    told = stream.get("ApproximateCreationDateTime")
    if not isinstance(told, (int, float)):
        return None
    # Streams tell seconds, Kinesis milliseconds or microseconds; only newer records say which.
    micros = told * (1 if told > 1e14 else 1_000 if told > 1e11 else 1_000_000)
    return _EPOCH + timedelta(microseconds=micros)
