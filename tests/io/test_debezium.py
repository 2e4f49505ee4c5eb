"""`Debezium`: what it makes of the records of its connectors."""

from __future__ import annotations

import base64
import pickle
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, NotRequired
from uuid import UUID

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from pydantic import BaseModel, ConfigDict, Field, Json
from typing_extensions import TypedDict

from beam_agents import RunFailure
from beam_agents.errors import ConfigurationError
from beam_agents.io import Identified, Kafka, KafkaRecord, ReadKafka
from beam_agents.io.changes import Change
from beam_agents.io.debezium import Debezium
from beam_agents.io.debezium_values import plain
from beam_agents.io.kafka_record import Decoder
from beam_agents.transforms.coders import PydanticCoder
from runners.kafka import KafkaServer
from tests.cdc_kit import record, recorded
from tests.kafka_kit import make_topic, produce

_BASE64 = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
_REF = UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
_AT = datetime(2024, 2, 29, 23, 59, 59)  # noqa: DTZ001


class Mood(StrEnum):
    CALM = "calm"
    CROSS = "cross"


class Order(BaseModel):
    model_config = _BASE64

    id: int
    customer: str
    amount: Decimal
    rate: Decimal | None
    ordered: date | None
    packed: datetime | None
    sent: datetime | None
    seen: datetime | None
    alarm: time | None
    span: str | None
    ref: UUID | None
    detail: dict[str, Any] | None
    photo: bytes | None
    tags: list[str | None] | None
    levels: list[int] | None
    mood: Mood | None
    paid: bool
    weight: float | None
    bits: int | None


class Account(BaseModel):
    owner: str
    number: int
    balance: Decimal
    note: str | None


class Brief(BaseModel):
    id: int
    customer: str = ""


class MySqlOrder(BaseModel):
    model_config = _BASE64

    id: int
    customer: str
    amount: Decimal
    packed: datetime
    sent: datetime
    seen: datetime
    ordered: date
    lasted: timedelta
    made: int
    size: str
    extras: frozenset[str]
    bits: int
    detail: Json[dict[str, Any]]
    photo: bytes
    paid: bool


class Line(BaseModel):
    sku: str
    count: int


class Document(BaseModel):
    model_config = _BASE64

    id: str = Field(alias="_id")
    customer: str
    count: int
    units: int
    amount: Decimal
    weight: float
    seen: datetime
    sent: datetime
    packed: datetime
    ref: UUID
    photo: bytes
    lines: list[Line]


def decoded(name: str, row: Any, key: Any = None, event_id: Any = None, **more: Any) -> list[Any]:
    decode = Decoder(Debezium(row, **more), key, event_id)
    return [decode(record) for record in recorded(name)]


def events(name: str, row: Any, **more: Any) -> list[tuple[str, Identified[Any]]]:
    return [found for found in decoded(name, row, **more) if isinstance(found, tuple)]


def envelope(operation: str = "c", **more: Any) -> dict[str, Any]:
    source = {"connector": "postgresql", "name": "shop", "schema": "public", "table": "orders", "lsn": 5, "txId": 7}
    return {"op": operation, "before": None, "after": {"id": 1}, "source": source} | more


def refused(value: Any, row: Any = Brief, **more: Any) -> str:
    failure = Decoder(Debezium(row, **more), None, None)(value if isinstance(value, KafkaRecord) else record(value))
    assert isinstance(failure, RunFailure)
    assert failure.reason == "invalid_event"
    return failure.message


# ---- PostgreSQL, recorded ----

_SHOP = {"public.orders": Order, "public.accounts": Account, "public.log": dict[str, str], "public.done": Brief}
_TABLE = {"key": lambda change: change.table}


def of_table(table: str, name: str = "postgresql", row: Any = _SHOP, **more: Any) -> list[Change[Any]]:
    found = [identified.event for _, identified in events(name, row, **(_TABLE | more))]
    return [change for change in found if change.table == f"public.{table}"]


def full_order(name: str, **more: Any) -> Order:
    return next(change.row for change in of_table("orders", name, **more) if change.row and change.row.id == 3)


@pytest.mark.parametrize(
    ("name", "sent"),
    [("postgresql", _AT.replace(microsecond=123_000)), ("postgresql_connect", _AT.replace(microsecond=123_000))],
)
def test_postgresql_columns_are_read_by_their_schemas(name: str, sent: datetime) -> None:
    fine = name == "postgresql"  # Connect's own types have milliseconds
    assert full_order(name) == Order.model_construct(
        id=3,
        customer="carla",
        amount=Decimal("-1234567890.12"),
        rate=Decimal("0.000123"),
        ordered=date(2024, 2, 29),
        packed=_AT.replace(microsecond=123_456 if fine else 123_000),
        sent=sent,
        seen=datetime(2024, 2, 29, 21, 59, 59, 123_456, tzinfo=UTC),
        alarm=time(13, 14, 15, 123_456 if fine else 123_000),
        span="P1Y2M3DT4H5M6.5S" if fine else "PT37091106.500000S",
        ref=_REF,
        detail={"lines": [{"sku": "x", "count": 2}]},
        photo=b"\xff\x00\xfe",
        tags=["a", "b c", None],
        levels=[1, -2],
        mood=Mood.CROSS,
        paid=True,
        weight=0.1,
        bits=0b10100101,
    )


def test_postgresql_operations_in_their_order() -> None:
    found = of_table("orders")
    assert [(change.operation, change.row and change.row.id) for change in found] == [
        ("snapshot", 1),
        ("snapshot", 2),
        ("insert", 3),
        ("update", 3),
        ("insert", 4),
        ("update", 4),
        ("delete", None),
        ("insert", 5),
        ("delete", None),
        ("insert", 6),
        ("insert", 7),
        ("insert", 8),
    ]
    assert found[3].row.rate == Decimal("98765432109876543210.5")
    assert found[0].committed is None
    assert all(change.committed is not None and change.transaction for change in found[2:])
    assert found[9].transaction == found[10].transaction != found[2].transaction
    assert [change.operation for change in of_table("log")] == ["insert", "truncate"]


def test_an_id_is_the_same_when_the_connector_sends_the_change_again() -> None:
    first, again = (
        [identified for _, identified in events(name, _SHOP, **_TABLE) if identified.event.operation != "snapshot"]
        for name in ("postgresql", "postgresql_again")
    )
    without_key = [identified.event.table == "public.log" and identified.event.row for identified in first]
    assert [one.event for one in first] == [one.event for one in again]
    assert [one.id for one, odd in zip(first, without_key, strict=True) if not odd] == [
        one.id for one, odd in zip(again, without_key, strict=True) if not odd
    ]
    assert len({one.id for one in first}) == len(first) == 18
    copied = [one for one in first if one.event.row and getattr(one.event.row, "id", 0) in (6, 7, 8)]
    assert len({one.event.position for one in copied}) == 1  # which is why the key is in the id


def test_what_stands_between_changes_is_no_event() -> None:
    topics = {
        record.topic
        for record, found in zip(recorded("postgresql"), decoded("postgresql", _SHOP, **_TABLE), strict=True)
        if found is None
    }
    assert {"shop.transaction", "__debezium-heartbeat.shop", "shop.message", "shop.public.orders"} <= topics
    assert not [found for found in decoded("postgresql", _SHOP, **_TABLE) if isinstance(found, RunFailure)]


def test_a_deleted_row_of_which_only_the_key_is_told_is_not_filled_up() -> None:
    orders = [(key, item.event) for key, item in events("postgresql", _SHOP | {"public.orders": Brief}, **_TABLE)]
    deleted = [change for _, change in orders if change.operation == "delete" and change.table == "public.orders"]
    assert [change.before for change in deleted] == [Brief(id=4), Brief(id=3)]
    keyed = decoded("postgresql", {"public.orders": Order}, key="id")
    assert [found[0] for found in keyed if isinstance(found, tuple) and found[1].event.operation == "delete"] == [
        "4",
        "3",
    ]
    found = decoded("postgresql", {"public.orders": Order}, key="customer")
    told = [item.message for item in found if isinstance(item, RunFailure)]
    assert len([message for message in told if "REPLICA IDENTITY FULL" in message]) == 2
    (account,) = [change for change in of_table("accounts") if change.operation == "delete"]
    assert account.before == Account(owner="anna", number=2, balance=Decimal("21.00"), note=None)


def test_a_long_value_that_was_not_sent_again() -> None:
    class Noted(BaseModel):
        id: int
        note: str | None = None

    found = decoded("postgresql", {"public.orders": Noted})
    (failure,) = [item for item in found if isinstance(item, RunFailure) and "note" in item.message]
    assert "ALTER TABLE public.orders REPLICA IDENTITY FULL" in failure.message
    updates = [change for change in of_table("accounts") if change.operation == "update"]
    assert [len(change.after.note or "") for change in updates] == [5000, 0]


def test_postgresql_without_schemas() -> None:
    assert of_table("accounts", "postgresql_plain", as_is=True) == [
        change.model_copy(
            update={"position": other.position, "transaction": other.transaction, "committed": other.committed}
        )
        for change, other in zip(
            of_table("accounts"), of_table("accounts", "postgresql_plain", as_is=True), strict=True
        )
    ]
    assert "base64" in decoded("postgresql_plain", {"public.orders": Order})[0].message


def test_flattened_rows_are_told() -> None:
    failures = [found for found in decoded("postgresql_flat", Brief) if found]
    assert failures
    assert all("ExtractNewRecordState" in failure.message for failure in failures)


# ---- MySQL ----


def test_mysql_columns_are_read_by_their_schemas() -> None:
    key, identified = events("mysql", MySqlOrder)[1]
    assert key == "1004"
    change = identified.event
    assert change.before.amount == Decimal("12.34")
    assert change.after == MySqlOrder.model_construct(
        id=1004,
        customer="anne",
        amount=Decimal("6.05"),
        packed=_AT,
        sent=_AT.replace(microsecond=123_456),
        seen=datetime(2024, 2, 29, 21, 59, 59, tzinfo=UTC),
        ordered=date(2024, 2, 29),
        lasted=-timedelta(hours=1, milliseconds=500),
        made=2024,
        size="m",
        extras=frozenset({"gift", "sign"}),
        bits=0b1000_0000_0101,
        detail={"lines": [1, 2]},
        photo=b"\xff\x00\xfe",
        paid=True,
    )
    assert (change.position, change.transaction) == (
        "mysql-bin.000003:484:0",
        "24bc7850-2c16-11e6-a073-0242ac110002:7",
    )
    assert change.committed == datetime(2024, 3, 1, tzinfo=UTC)


def test_mysql_changes_have_their_place_in_the_log_for_an_id_and_notices_are_none() -> None:
    found = decoded("mysql", MySqlOrder)
    assert [item[1].event.operation for item in found[:5]] == ["snapshot", "update", "insert", "insert", "delete"]
    assert found[5:] == [None] * 4  # a tombstone, a change of the schema, the end of a transaction, a heartbeat
    ids = [item[1].id for item in found[:5]]
    assert ids[0] == "shop.shop.orders-0-0"
    assert [id.rpartition("-")[0] for id in ids[1:]] == [
        f"shop.orders-mysql-bin.000003:{place}" for place in ("484:0", "805:0", "805:1", "1203:0")
    ]


# ---- MongoDB ----


def test_mongodb_documents_are_read_from_extended_json() -> None:
    key, identified = events("mongodb", Document)[2]
    change = identified.event
    assert key == change.row.id == "596e275826f08b2730779e1f"
    assert (change.before.customer, change.after.customer) == ("anne", "anne marie")
    seen = datetime(2024, 2, 29, 23, 59, 59, 123_000, tzinfo=UTC)
    assert (change.row.seen, change.row.sent, change.row.packed) == (seen, seen, seen.replace(microsecond=0))
    assert (change.row.count, change.row.units, change.row.weight) == (3, 4, 0.5)
    assert (change.row.amount, change.row.ref, change.row.photo) == (Decimal("12.50"), _REF, b"\xff\x00\xfe")
    assert change.row.lines == [Line(sku="x", count=2)]
    assert (change.table, change.position) == ("shop.orders", "1709251200:3")


def test_mongodb_updates_without_the_document_are_told_and_deletes_have_their_key() -> None:
    found = decoded("mongodb", Document, key="id")
    assert "capture.mode=change_streams_update_full" in found[4].message
    assert [key for key, _ in (found[6], found[8], found[9])] == ["596e275826f08b2730779e1f", "1004", "anne"]
    assert (found[6][1].event.operation, found[6][1].event.row) == ("delete", None)
    assert found[5][1].event.before.customer == "anne marie"
    assert found[7] is None


def test_mongodb_changes_in_a_transaction_have_their_coordinates_for_an_id() -> None:
    (_, snapshot), (_, insert), _, (_, within) = events("mongodb", Document)[:4]
    assert (snapshot.id, within.id) == ("shop.shop.orders-0-0", "shop.shop.orders-0-3")
    assert insert.id.startswith("shop.orders-1709251200:2-")
    assert within.event.transaction == '{"id": 1}:1'


# ---- forms ----


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("io.debezium.time.Date", 19782, "2024-02-29"),
        ("io.debezium.time.Date", -1, "1969-12-31"),
        ("io.debezium.time.Time", 47_655_123, "13:14:15.123000"),
        ("io.debezium.time.NanoTime", 47_655_123_456_789, "13:14:15.123456"),
        ("io.debezium.time.MicroTime", 86_400_000_000, "PT86400.000000S"),
        ("io.debezium.time.NanoTimestamp", 1_709_251_199_123_456_789, "2024-02-29T23:59:59.123456"),
        ("org.apache.kafka.connect.data.Timestamp", -1, "1969-12-31T23:59:59.999000"),
        ("io.debezium.time.IsoDate", "2024-02-29Z", "2024-02-29"),
        ("io.debezium.time.IsoTime", "13:14:15Z", "13:14:15"),
        ("io.debezium.time.IsoTimestamp", "2024-02-29T23:59:59Z", "2024-02-29T23:59:59"),
        ("io.debezium.time.ZonedTimestamp", "2024-02-29T21:59:59Z", "2024-02-29T21:59:59Z"),
        ("io.debezium.time.MicroDuration", -1_500_000, "-PT1.500000S"),
        ("io.debezium.data.VariableScaleDecimal", {"scale": 3, "value": "/w=="}, "-0.001"),
        ("io.debezium.data.VariableScaleDecimal", {"scale": -2, "value": "BQ=="}, "500"),
        ("io.debezium.data.EnumSet", "", []),
        ("io.debezium.data.Uuid", str(_REF), str(_REF)),
    ],
)
def test_values_follow_the_names_of_their_schemas(name: str, value: Any, expected: Any) -> None:
    assert plain({"type": "?", "name": name}, value) == expected


def test_values_within_values_are_read_too() -> None:
    day = {"type": "int32", "name": "io.debezium.time.Date", "field": "day"}
    schema = {"type": "struct", "fields": [{"type": "array", "items": day, "field": "days"}, day]}
    assert plain(schema, {"days": [0, None], "day": 1}) == {"days": ["1970-01-01", None], "day": "1970-01-02"}
    assert plain({"type": "map", "keys": {"type": "string"}, "values": day}, {"a": 2}) == {"a": "1970-01-03"}


def test_json_and_sets_stay_texts_for_fields_that_want_texts() -> None:
    class Texts(BaseModel):
        detail: str
        extras: str | None

    row = events("mysql", Texts)[0][1].event.row
    assert (row.detail, row.extras) == ('{"lines": [1, 2]}', "gift,sign")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"id": 1, "customer": "anna", "__deleted": "false"}, "ExtractNewRecordState"),
        (5, "ExtractNewRecordState"),
        (envelope("x"), "no op 'x'"),
        (envelope(source=None), "no op 'c' with a 'source'"),
        (envelope(source={"connector": "postgresql"}), "names no table"),
        (envelope(after=[1]), "'after' is no row but [1]"),
        (envelope(after=None), "the insert has no 'after'"),
        (envelope(after={"id": "x"}), "after.id is the text 'x'"),
        (envelope(after={}), "after: id: Field required"),
        (KafkaRecord(topic="t", partition=0, offset=0, timestamp=_AT, value=b"\0\0\0\0\1x"), "JsonConverter"),
        (KafkaRecord(topic="t", partition=0, offset=0, timestamp=_AT, value=b"Struct{}"), "its value is no JSON"),
    ],
)
def test_what_is_no_change_event_is_told(value: Any, told: str) -> None:
    message = refused(value)
    assert message.startswith("record t-0-0: ")
    assert told in message
    assert "Error" not in message


def test_without_schemas_what_may_be_read_wrongly_is_refused() -> None:
    class Row(BaseModel):
        id: int
        amount: Decimal
        ordered: date | None = None

    assert "decimal.handling.mode=string" in refused(envelope(after={"id": 1, "amount": "1234"}), Row)
    assert "days or microseconds" in refused(envelope(after={"id": 1, "amount": 1.5, "ordered": 0}), Row)
    found = Decoder(Debezium(Row, as_is=True), "id", None)(record(envelope(after={"id": 1, "amount": "1234"})))
    assert isinstance(found, tuple)
    assert found[1].event.row == Row(id=1, amount=Decimal(1234))


@dataclass
class Bill:
    id: int
    amount: Decimal


class Invoice(TypedDict):
    id: int
    amount: NotRequired[Decimal]


class Basket(BaseModel):
    id: int
    amount: list[Decimal]


@pytest.mark.parametrize(("row", "amount"), [(Bill, "1234"), (Invoice, "1234"), (Basket, ["1234"])])
def test_without_schemas_rows_of_other_kinds_are_refused_too(row: Any, amount: Any) -> None:
    assert "decimal.handling.mode=string" in refused(envelope(after={"id": 1, "amount": amount}), row)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_value_that_was_not_sent_again_comes_from_the_row_as_it_was(as_list: bool) -> None:
    class Row(BaseModel):
        id: int
        note: Any

    gap: Any = "__debezium_unavailable_value"
    gap = [gap] if as_list else gap
    update = envelope("u", before={"id": 1, "note": "long"}, after={"id": 1, "note": gap})
    found = Decoder(Debezium(Row), "id", None)(record(update))
    assert isinstance(found, tuple)
    assert found[1].event.after == Row(id=1, note="long")
    assert "REPLICA IDENTITY FULL" in refused(update | {"before": None}, Row)
    found = Decoder(Debezium(Brief), "id", None)(record(update | {"before": None}))
    assert isinstance(found, tuple)
    assert found[1].event.row == Brief(id=1)


def test_the_placeholders_of_bytes_and_whole_numbers_are_known() -> None:
    class Row(BaseModel):
        note: Any

    for gap in (base64.b64encode(b"gone").decode(), list(b"gone")):
        assert "after.note was not changed" in refused(envelope("u", after={"note": gap}), Row, unavailable="gone")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ({"id": 1}, "1"),
        (
            {"schema": {"fields": [{"field": "day", "name": "io.debezium.time.Date"}]}, "payload": {"day": 0}},
            "1970-01-01",
        ),
        ({"number": 2, "owner": "anna"}, '{"number":2,"owner":"anna"}'),
        ({"paid": True}, '{"paid":true}'),
        ("plain", '"plain"'),
    ],
)
def test_the_key_is_that_of_the_row(key: Any, text: str) -> None:
    found = Decoder(Debezium(Brief), None, None)(record(envelope(), key))
    assert isinstance(found, tuple)
    assert found[0] == text


def test_the_id_is_the_coordinates_where_the_log_does_not_tell_rows_apart() -> None:
    decode = Decoder(Debezium(Brief), lambda change: change.table, None)

    def id_of(value: Any, key: Any = None) -> str:
        found = decode(record(value, key))
        assert isinstance(found, tuple)
        return found[1].id

    assert id_of(envelope()) == id_of(envelope("r"), {"id": 1}) == "t-0-0"
    assert id_of(envelope(source=envelope()["source"] | {"connector": "oracle"}), {"id": 1}) == "t-0-0"
    ids = {
        id_of(envelope(), {"id": 1}),
        id_of(envelope(), {"id": 2}),
        id_of(envelope(after={"id": 1, "customer": "b"}), {"id": 1}),
        id_of(envelope("u"), {"id": 1}),
        id_of(envelope(source=envelope()["source"] | {"txId": 8}), {"id": 1}),
    }
    assert len(ids) == 5
    assert all(id.startswith("public.orders-0/5-") for id in ids)


def test_each_table_may_have_its_own_rows() -> None:
    form = Debezium({"public.orders": Brief, "public.accounts": Account})
    other = envelope(source=envelope()["source"] | {"table": "logs"})
    assert "no type was given for rows of 'public.logs', only for public.orders" in refused(
        other, {"public.orders": Brief, "public.accounts": Account}
    )
    decode = pickle.loads(pickle.dumps(Decoder(form, None, None)))
    coder = PydanticCoder(Identified[decode.element])
    found = decode(record(envelope(), {"id": 1}))
    again = coder.decode(coder.encode(found[1]))
    assert again == found[1]
    assert type(again.event) is Change[Brief]


@pytest.mark.parametrize(
    ("row", "key", "told"),
    [
        (Brief, "owner", "Brief has no such field, it has: id, customer"),
        ({"a.b": Brief, "a.c": Account}, "id", "Account has no such field"),
        ({}, None, "at least one table"),
        (object(), None, "pydantic cannot read rows"),
    ],
)
def test_arguments_that_cannot_work_are_refused(row: Any, key: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ReadKafka(Kafka("localhost:9092"), "orders", value=Debezium(row), key=key)


# ---- through Kafka ----


def test_changes_come_through_kafka_as_events(kafka: KafkaServer) -> None:
    topic = make_topic(kafka.servers)
    sent = [{"key": record.key, "value": record.value} for record in recorded("mysql")]
    produce(kafka.servers, topic, [*sent, {"key": b"k", "value": b"{}"}])
    with beam.Pipeline("FnApiRunner") as pipeline:
        events, bad = pipeline | ReadKafka(Kafka(kafka.servers), topic, value=Debezium(MySqlOrder), key="id")
        found = events | beam.Map(lambda pair: (pair[0], pair[1].event.operation, pair[1].event.row.amount))
        expected = [("1004", "snapshot", "12.34"), ("1004", "update", "6.05"), ("1005", "insert", "12.34")]
        expected += [("1006", "insert", "12.34"), ("1005", "delete", "12.34")]
        assert_that(found, equal_to([(key, what, Decimal(of)) for key, what, of in expected]), label="events")
        assert_that(bad | beam.Map(lambda pair: pair[1].raw), equal_to(["{}"]), label="bad")
