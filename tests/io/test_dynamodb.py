"""`DynamoDbStream`: what it makes of the records of DynamoDB Streams."""

from __future__ import annotations

import base64
import json
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from beam_agents import RunFailure
from beam_agents.errors import ConfigurationError
from beam_agents.io import Identified
from beam_agents.io.changes import Change
from beam_agents.io.dynamodb import DynamoDbStream
from beam_agents.io.kafka_record import Decoder
from beam_agents.transforms.coders import PydanticCoder
from tests.cdc_kit import record, recorded


class Part(BaseModel):
    Sku: str
    Count: int


class Order(BaseModel):
    model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")

    id: str = Field(alias="Id")
    line: int = Field(alias="Line")
    amount: Decimal = Field(alias="Amount")
    paid: bool = Field(alias="Paid")
    note: str | None = Field(alias="Note")
    tags: frozenset[str] = Field(alias="Tags")
    levels: list[float] = Field(alias="Levels")
    photo: bytes = Field(alias="Photo")
    parts: list[Part] = Field(alias="Parts")


def events(**arguments: Any) -> list[Any]:
    decode = Decoder(
        DynamoDbStream(Order, **arguments.pop("form", {})), arguments.get("key"), arguments.get("event_id")
    )
    return [decode(record) for record in recorded("dynamodb")]


def edited(**more: Any) -> dict[str, Any]:
    told = json.loads(recorded("dynamodb")[0].value or b"")
    return {key: value for key, value in (told | more).items() if value is not ...}


def test_an_item_is_read_by_the_types_of_its_attributes() -> None:
    key, identified = events()[1]
    assert key == '{"Id":"o1","Line":7}'
    assert identified.id == "c4ca4238a0b923820dcc509a6f758492"
    change = identified.event
    assert (change.operation, change.table, change.position) == ("update", "Orders", "442158450000000001750656982")
    assert change.committed == datetime(2024, 3, 1, tzinfo=UTC)
    assert change.before.amount == Decimal("12.50")
    assert change.after == Order(
        Id="o1",
        Line=7,
        Amount=Decimal("13.25"),
        Paid=True,
        Note=None,
        Tags=frozenset({"a", "b"}),
        Levels=[1, -2.5],
        Photo=b"\xff\x00\xfe",
        Parts=[Part(Sku="x", Count=2)],
    )


def test_insert_and_remove_have_one_image() -> None:
    (_, inserted), _, (_, removed) = events()[:3]
    assert (inserted.event.operation, inserted.event.before, inserted.event.row.id) == ("insert", None, "o1")
    assert (removed.event.operation, removed.event.after, removed.event.row.amount) == (
        "delete",
        None,
        Decimal("13.25"),
    )


@pytest.mark.parametrize(("offset", "micros"), [(3, 123_000), (4, 123_456)])
def test_records_of_kinesis_have_no_sequence_and_finer_times(offset: int, micros: int) -> None:
    _, identified = events()[offset]
    assert identified.id.startswith("86f1f2f0-5d39-4d36-9ff4-2ed1a9fd6a2")
    assert (identified.event.table, identified.event.position) == ("Orders", None)
    assert identified.event.committed == datetime(2024, 3, 1, 0, 0, 0, micros, tzinfo=UTC)


def test_items_that_expired_are_deletes_unless_they_are_not_wanted() -> None:
    assert events()[5][1].event.operation == "delete"
    assert events(form={"expired": False})[5] is None
    assert events(form={"expired": False})[2][1].event.operation == "delete"


def test_a_stream_of_keys_gives_deletes_and_says_what_to_set_for_the_rest() -> None:
    key, deleted = events(key="line")[6]
    assert key == "7"
    assert (deleted.event.before, deleted.event.after) == (None, None)
    failure = events()[7]
    assert isinstance(failure, RunFailure)
    assert "KEYS_ONLY, set StreamViewType=NEW_AND_OLD_IMAGES" in failure.message
    failure = events(key="amount")[6]
    assert failure.reason == "missing_key"
    assert "name an attribute of the item's key" in failure.message


def test_a_tombstone_is_no_event() -> None:
    assert events()[8] is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1], "no record of DynamoDB Streams"),
        ({"Records": []}, "written by itself"),
        (edited(eventName="TRUNCATE"), "eventName is 'TRUNCATE'"),
        (edited(eventSourceARN=...), "table='...'"),
        (edited(dynamodb={"NewImage": {"Id": "o1"}}), "attribute 'Id' is 'o1'"),
        (edited(dynamodb={"NewImage": {"Id": {"X": "o1"}}}), "unknown type 'X'"),
        (edited(dynamodb={"NewImage": {"Id": {"S": "o1"}}}), "after: Line: Field required"),
    ],
)
def test_what_is_no_record_of_a_stream_is_told(value: Any, told: str) -> None:
    failure = Decoder(DynamoDbStream(Order), None, None)(record(value))
    assert isinstance(failure, RunFailure)
    assert failure.reason == "invalid_event"
    assert failure.message.startswith("record t-0-0: ")
    assert told in failure.message


def test_the_table_may_be_said() -> None:
    decode = Decoder(DynamoDbStream({"Old": Order}, table="Old"), "id", None)
    found = decode(record(edited(eventSourceARN=...)))
    assert isinstance(found, tuple)
    assert (found[0], found[1].event.table) == ("o1", "Old")


def test_a_change_keeps_its_form_in_the_pipeline_and_the_decoder_is_pickled() -> None:
    decode = pickle.loads(pickle.dumps(Decoder(DynamoDbStream(Order), "id", None)))
    coder = PydanticCoder(Identified[decode.element])
    for _, identified in map(decode, recorded("dynamodb")[:5]):
        assert coder.decode(coder.encode(identified)) == identified
    assert decode.element == Change[Order]


def test_arguments_that_cannot_work_are_refused() -> None:
    class Photo(BaseModel):
        photo: bytes

    with pytest.raises(ConfigurationError, match="val_json_bytes='base64'"):
        DynamoDbStream(Photo)
    with pytest.raises(ConfigurationError, match="at least one table"):
        DynamoDbStream({})
    with pytest.raises(ConfigurationError, match="Order has no such field, it has: id, line"):
        Decoder(DynamoDbStream(Order), "card", None)


def test_a_number_that_json_does_not_hold_is_told() -> None:
    photo = {"B": base64.b64encode(b"x").decode()}
    image = edited()["dynamodb"]["NewImage"] | {"Levels": {"NS": ["1e999"]}, "Photo": photo}
    failure = Decoder(DynamoDbStream(Order), None, None)(record(edited(dynamodb={"NewImage": image})))
    assert isinstance(failure, RunFailure)
    assert "cannot be held by JSON" in failure.message
