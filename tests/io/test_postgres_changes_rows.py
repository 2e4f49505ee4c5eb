"""`ReadPostgresChanges`: what becomes of a row's values, what is refused, and what the engines without streams read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import apache_beam as beam
import pytest
from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, Json, JsonValue
from typing_extensions import TypedDict

from beam_agents import Agent, RunAgent
from beam_agents.errors import ConfigurationError
from beam_agents.events import Identified, RunFailure
from beam_agents.io.changes import Change
from beam_agents.io.postgres.pgoutput import MessageDecoder, Relation
from beam_agents.io.postgres.read import ReadPostgresChanges
from beam_agents.io.postgres.rows import RowDecoder
from beam_agents.io.postgres.transactions import TableChange
from beam_agents.models import FunctionModel, say
from beam_agents.secrets import EnvSecret
from runners.postgres import PostgresServer
from runners.prism import prism_options, prism_path
from tests.changes_kit import Database, Reading, replicating_server
from tests.streaming_job import Sink, running

TABLE = "public.readings"
needs_prism = pytest.mark.skipif(prism_path() is None, reason="Prism is not built: run 'python -m runners.prism'")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with replicating_server() as started:
        yield started


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    made = Database(server)
    yield made
    made.drop_slot()


class Narrow(BaseModel):
    id: int
    at: datetime
    number: int


class Strict(BaseModel):
    id: int
    device: str


class Wide(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    id: int
    yes: bool
    small: int
    ratio: float
    price: Decimal
    name: str
    raw: bytes
    data: dict[str, JsonValue]
    plain: JsonValue
    at: datetime
    local: datetime
    day: date
    hour: clock
    zoned: clock
    lasts: timedelta
    code: UUID
    numbers: list[int]
    names: list[str | None]
    grid: list[list[Decimal]]
    flags: list[bool]
    times: list[datetime]
    objects: list[dict[str, int]]
    mood: str
    nothing: str | None


WIDE = """
CREATE TABLE wide (id int PRIMARY KEY, yes bool, small int2, ratio float8, price numeric, name varchar, raw bytea,
    data jsonb,
    plain json, at timestamptz, local timestamp, day date, hour time, zoned timetz, lasts interval, code uuid,
    numbers int8[], names text[], grid numeric[], flags bool[], times timestamptz[], objects jsonb[], mood mood,
    nothing text, twice int GENERATED ALWAYS AS (id * 2) STORED)
"""
ROW = r"""
INSERT INTO wide VALUES (1, true, -3, 0.1, 12345678901234567890.123, 'größe "x"', '\x00ff', '{"a": [1, null]}',
    '"text"',
    '2024-03-01 12:00:00.25+02', '2024-03-01 12:00:00', '2024-03-01', '12:30:00', '12:30:00+05:30', '1 day 02:00:03',
    '00000000-0000-0000-0000-000000000001', '{1,2}', ARRAY['a,b', NULL, 'NULL', '{"}'], '{{1.5,2},{3,4}}', '{t,f}',
    '{2024-03-01 12:00:00+00}', ARRAY['{"a": 1}'::jsonb], 'glad', NULL)
"""
VALUES = Wide(
    id=1,
    yes=True,
    small=-3,
    ratio=0.1,
    price=Decimal("12345678901234567890.123"),
    name='größe "x"',
    raw=b"\x00\xff",
    data={"a": [1, None]},
    plain="text",
    at=datetime(2024, 3, 1, 10, 0, 0, 250_000, tzinfo=UTC),
    local=datetime(2024, 3, 1, 12),  # noqa: DTZ001
    day=date(2024, 3, 1),
    hour=clock(12, 30),
    zoned=clock(12, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    lasts=timedelta(days=1, hours=2, seconds=3),
    code=UUID(int=1),
    numbers=[1, 2],
    names=["a,b", None, "NULL", '{"}'],
    grid=[[Decimal("1.5"), Decimal(2)], [Decimal(3), Decimal(4)]],
    flags=[True, False],
    times=[datetime(2024, 3, 1, 12, tzinfo=UTC)],
    objects=[{"a": 1}],
    mood="glad",
    nothing=None,
)


def read_now(database: Database, tables: dict[str, Any], **more: Any) -> tuple[list[Any], list[Any]]:
    """What an engine without streams reads: events and bad rows."""
    given = {"slot": database.slot, "key": lambda change: change.table} | more
    events, bad = Sink(), Sink()
    with beam.Pipeline("FnApiRunner") as pipeline:
        read = pipeline | ReadPostgresChanges(database.url, tables, **given)
        _ = read.events | "Events" >> events
        _ = read.bad | "Bad" >> bad
    return [event for _, event in events.values()], [failure for _, failure in bad.values()]


# ---- values ----


def test_values_are_read_alike_from_rows_and_from_changes(database: Database) -> None:
    database.sql("CREATE TYPE mood AS ENUM ('glad', 'sad')", WIDE)
    database.make_slot("wide")
    database.sql("SET timezone = 'Asia/Tokyo'", ROW)
    ((row,), bad) = read_now(database, {"public.wide": Wide})
    assert bad == []
    assert row.event.after == VALUES
    ((change,), bad) = read_now(database, {"public.wide": Wide}, snapshot=False)
    assert bad == []
    assert change.event.after == VALUES


def test_rows_may_be_dicts_of_texts(database: Database) -> None:
    database.insert(1)
    ((row,), _) = read_now(database, {TABLE: dict[str, Any]}, key="device")
    assert row.event.after == {"id": "1", "device": "pump", "value": "1.5"}


def test_what_json_cannot_hold_is_told_and_does_not_stop_the_job(database: Database) -> None:
    database.insert_into("readings", "(1, 'pump', 'NaN'), (2, 'pump', 1)")
    (event,), (failure,) = read_now(database, {TABLE: Reading})
    assert event.event.row.id == 2
    assert "JSON" in failure.message


def test_what_python_or_the_model_does_not_have_is_told_with_its_row(database: Database) -> None:
    database.sql("CREATE TABLE odd (id int PRIMARY KEY, at timestamptz, number numeric)")
    database.sql("INSERT INTO odd VALUES (1, '20000-01-01', 1), (2, '2024-01-01', 1.5), (3, NULL, 1), (4, now(), 1)")
    (event,), bad = read_now(database, {"public.odd": Narrow})
    assert event.event.row.id == 4
    ((xid,),) = database.sql("SELECT DISTINCT xmin::text FROM odd")
    assert [failure.message.partition(": ")[0] for failure in bad] == [
        f"snapshot public.odd-{n}-{xid} of public.odd" for n in (1, 2, 3)
    ]
    assert "column 'at'" in bad[0].message
    assert "number" in bad[1].message
    assert json.loads(bad[2].raw) == {"id": "3", "at": None, "number": "1"}


# ---- what the server tells of rows ----


def test_with_a_full_replica_identity_rows_are_told_before_and_after(database: Database) -> None:
    database.make_slot()
    database.sql("ALTER TABLE readings REPLICA IDENTITY FULL")
    database.insert(1)
    database.sql("UPDATE readings SET value = NULL")
    database.sql("DELETE FROM readings")
    events, bad = read_now(database, {TABLE: Reading}, snapshot=False, key="device")
    assert bad == []
    one, two = Reading(id=1, device="pump", value=1.5), Reading(id=1, device="pump", value=None)
    changes = [event.event for event in events]
    assert [(change.operation, change.before, change.after) for change in changes] == [
        ("insert", None, one),
        ("update", one, two),
        ("delete", two, None),
    ]


def test_of_a_deleted_row_there_is_only_the_key_otherwise(database: Database) -> None:
    database.make_slot()
    database.insert(1, 2)
    database.sql("DELETE FROM readings WHERE id = 1", "UPDATE readings SET id = 3 WHERE id = 2")
    events, bad = read_now(database, {TABLE: Strict}, snapshot=False)
    assert [(event.event.operation, event.event.before) for event in events] == [("insert", None)] * 2 + [
        ("update", None)
    ]
    (failure,) = bad
    assert "ALTER TABLE public.readings REPLICA IDENTITY FULL" in failure.message
    assert json.loads(failure.raw) == {"id": "1"}
    events, bad = read_now(database, {TABLE: Reading}, snapshot=False)
    assert bad == []
    assert [event.event.before and event.event.before.id for event in events] == [None, None, 1, 2]


class Note(BaseModel):
    id: int
    body: str = ""
    n: int


@pytest.mark.parametrize("full", [True, False])
def test_a_long_value_that_was_not_changed_is_found_in_the_row_before_or_missed(database: Database, full: bool) -> None:
    database.sql("CREATE TABLE notes (id int PRIMARY KEY, body text STORAGE EXTERNAL, n int)")
    database.sql("ALTER TABLE notes REPLICA IDENTITY FULL") if full else None
    database.sql("INSERT INTO notes VALUES (1, repeat('x', 5000), 0)")
    database.make_slot("notes")
    database.sql("UPDATE notes SET n = 1")
    events, bad = read_now(database, {"public.notes": Note}, snapshot=False)
    if full:
        assert [event.event.after for event in events] == [Note(id=1, body="x" * 5000, n=1)]
        return
    (failure,) = bad
    assert "column 'body' was not changed" in failure.message
    events, bad = read_now(database, {"public.notes": dict[str, Any]}, snapshot=False)
    assert bad == []
    assert events[0].event.after == {"id": "1", "n": "1"}


def test_a_truncated_table_has_no_row(database: Database) -> None:
    database.make_slot()
    database.sql("TRUNCATE readings")
    (event,), _ = read_now(database, {TABLE: Reading}, snapshot=False)
    assert (event.event.operation, event.event.row) == ("truncate", None)
    events, (failure,) = read_now(database, {TABLE: Reading}, snapshot=False, key="device")
    assert events == []
    assert "give a function of the Change" in failure.message


def test_what_was_undone_and_what_is_of_other_tables_is_not_told(database: Database) -> None:
    database.sql("CREATE TABLE other (id int PRIMARY KEY)")
    database.make_slot("readings", "other")
    database.sql("SAVEPOINT a", "INSERT INTO readings VALUES (1)", "ROLLBACK TO a", "INSERT INTO other VALUES (1)")
    database.sql("INSERT INTO other VALUES (2)", "INSERT INTO readings VALUES (2, 'pump')")
    (event,), bad = read_now(database, {TABLE: Reading}, snapshot=False)
    assert bad == []
    assert event.event.row.id == 2
    assert event.id == f"{event.event.position}-1", "also changes that are not read are counted"


@pytest.mark.parametrize("data", [b"Z", b"B\0", b"X\0\0"])
def test_what_pgoutput_never_sends_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="pgoutput sent a message"):
        MessageDecoder()(data)


# ---- what cannot work ----


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"url": "mysql://localhost/db"}, "postgresql://user@host/database"),
        ({"url": "postgresql://user:geheim@host/db"}, "has a password, which would be in the pickled pipeline"),
        ({"url": "postgresql://host/db?password=geheim"}, "has a password"),
        ({"password": "geheim"}, "takes a Secret"),
        ({"tables": {}}, "must name tables with their schemas"),
        ({"tables": {"readings": Reading}}, "must name tables with their schemas"),
        ({"tables": ["public.readings"]}, "takes {'public.readings': Reading}"),
        ({"tables": {TABLE: object()}}, "pydantic cannot read such rows"),
        ({"slot": "Sensors"}, "a-z, 0-9 and _"),
        ({"publication": "x" * 64}, "1 to 63 characters"),
        ({"key": "devise"}, "Reading, the row of public.readings, has no such field, it has: id, device, value"),
        ({"key": None}, "must be a field of the row or a function of the Change"),
        ({"max_records": 0}, "max_records=0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], told: str) -> None:
    given = {"url": "postgresql://host/db", "tables": {TABLE: Reading}, "slot": "sensors", "key": "device"} | arguments
    with pytest.raises(ConfigurationError, match=told) as caught:
        ReadPostgresChanges(given.pop("url"), given.pop("tables"), **given)
    assert "geheim" not in str(caught.value)


def test_the_password_is_in_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "geheim")
    read = ReadPostgresChanges(
        "postgresql://host/db", {TABLE: Reading}, slot="s", key="device", password=EnvSecret("DB_PASSWORD")
    )
    assert b"geheim" not in pickler.dumps(read, enable_trace=False, use_zlib=False)


# ---- pipelines ----


def test_a_direct_runner_reads_the_rows_and_makes_nothing(database: Database) -> None:
    database.insert(1, 2)
    with beam.Pipeline("FnApiRunner") as pipeline:
        events, bad = pipeline | ReadPostgresChanges(database.url, {TABLE: Reading}, slot=database.slot, key="device")
        told = events | beam.Map(lambda pair: (pair[0], pair[1].event.row.id))
        assert_that(told, equal_to([("pump", 1), ("pump", 2)]), label="events")
        assert_that(bad, equal_to([]), label="bad")
    assert database.sql("SELECT 1 FROM pg_publication UNION SELECT 1 FROM pg_replication_slots") == []


def test_a_direct_runner_reads_what_the_slot_has_kept_and_leaves_it_there(database: Database) -> None:
    database.make_slot()
    database.insert(1)
    database.sql("DELETE FROM readings")
    before = database.confirmed()
    found = [read_now(database, {TABLE: Reading}, snapshot=False) for _ in range(2)]
    assert found[0] == found[1]
    assert [event.event.operation for event in found[0][0]] == ["insert", "delete"]
    assert database.confirmed() == before


def test_what_cannot_be_read_is_told_by_a_direct_runner(database: Database) -> None:
    with pytest.raises(Exception, match="this runner reads only what is kept already"):
        read_now(database, {TABLE: Reading}, snapshot=False)
    database.server.port, port = 1, database.server.port
    try:
        with pytest.raises(Exception, match=r"ReadPostgresChanges at 127\.0\.0\.1:1/"):
            read_now(database, {TABLE: Reading})
    finally:
        database.server.port = port


class Device(BaseModel):
    id: int
    device: str = ""


def test_events_of_several_tables_are_coded_without_pickle_and_told_apart() -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    tables = {TABLE: Reading, "public.devices": Device}
    events, _ = pipeline | ReadPostgresChanges("postgresql://host/db", tables, slot="s", key="device")
    coder = coders.registry.get_coder(events.element_type)
    coder = pickler.loads(pickler.dumps(coder))
    for table, row in ((TABLE, Reading(id=1)), ("public.devices", Device(id=1))):
        change = Change[type(row)](operation="insert", table=table, after=row)  # type: ignore[misc]
        event = ("pump", Identified(id="0/1-0", event=change))
        assert type(coder.decode(coder.encode(event))[1].event.after) is type(row)
        assert b"insert" in coder.encode(event)


def test_an_event_of_a_change_decodes_as_it_was() -> None:
    relation = Relation(TABLE, ("id", "device", "value"), (23, 25, 701), ("id",))
    told = TableChange("0/1-0", "insert", relation, after={"id": "1", "device": "", "value": None})
    failure = RowDecoder({TABLE: Reading}, "device")(told)
    assert isinstance(failure, RunFailure)
    assert failure.reason == "missing_key"
    assert RowDecoder({"public.other": Reading}, "device")(told) is None


class Aliased(BaseModel):
    id: int
    text: str = Field(default="", alias="long_text")


class Chosen(BaseModel):
    id: int
    text: str = Field(default="", validation_alias=AliasChoices("text", "long_text"))


class Optional(TypedDict, total=False):
    id: int
    long_text: str


@pytest.mark.parametrize("row", [Aliased, Chosen, Optional])
def test_a_long_value_that_was_not_sent_is_missed_under_its_columns_name(row: Any) -> None:
    relation = Relation(TABLE, ("id", "long_text"), (23, 25), ("id",))
    failure = RowDecoder({TABLE: row}, lambda change: "x")(TableChange("0/1-0", "update", relation, after={"id": "1"}))
    assert isinstance(failure, RunFailure)
    assert "column 'long_text' was not changed" in failure.message


class Nested(TypedDict):
    id: int
    data: Json[dict[str, int]]


def test_a_row_of_which_no_change_can_be_made_is_told() -> None:
    relation = Relation(TABLE, ("id", "data"), (23, 25), ("id",))
    told = TableChange("0/1-0", "insert", relation, after={"id": "1", "data": '{"a":1}'})
    failure = RowDecoder({TABLE: Nested}, lambda change: "x")(told)
    assert isinstance(failure, RunFailure)
    assert failure.reason == "invalid_event"


@needs_prism
def test_prism_reads_rows_and_then_changes_and_an_agent_decides_each_once(database: Database, tmp_path: Path) -> None:
    database.insert(1, 2)
    model = FunctionModel(lambda request: say("fine"))
    agent: Agent[Change[Reading], str, Any, Any] = Agent(
        "watcher", model=model, event_type=Change[Reading], output_type=str
    )
    pipeline = beam.Pipeline(options=PipelineOptions(prism_options()))
    events, bad = pipeline | ReadPostgresChanges(database.url, {TABLE: Reading}, slot=database.slot, key="device")
    outputs = events | RunAgent(agent, ledger=f"sqlite:///{tmp_path}/runs.db")
    sink, rest = Sink(), Sink()
    _ = outputs.results | "Results" >> sink
    _ = (outputs.failures, bad) | beam.Flatten() | "Rest" >> rest
    with running(pipeline) as job:
        first = sink.take(2, job)
        database.insert(3)
        database.sql("DELETE FROM readings WHERE id = 3")
        (inserted,) = sink.take(1, job)
        (deleted,) = rest.take(1, job)
    assert sorted(seen.value[1].event.row.id for seen in first) == [1, 2]
    assert inserted.value[1].event.operation == "insert"
    assert inserted.value[1].run_id == f"{inserted.value[1].event.position}-0"
    assert "delete" in deleted.value[1].message
