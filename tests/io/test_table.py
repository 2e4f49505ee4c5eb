"""`WriteTable`: rows by upsert, in SQLite and PostgreSQL, and what becomes of rows that a database refuses."""

from __future__ import annotations

import sqlite3
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import apache_beam as beam
import psycopg
import pytest
from apache_beam.testing.util import assert_that, equal_to
from pydantic import AwareDatetime, BaseModel

from beam_agents import RunFailure, RunResult
from beam_agents.errors import ConfigurationError
from beam_agents.events import Duplicate, FailureReason
from beam_agents.io import WriteTable
from beam_agents.io.sinks import table as table_module
from beam_agents.io.sinks.table import TableError
from beam_agents.secrets import EnvSecret
from runners.postgres import PostgresServer
from tests.ledger.postgres_server import running_server


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Verdict(BaseModel):
    ok: bool
    level: Level
    score: float | None
    amount: Decimal
    at: AwareDatetime
    count: int
    why: list[str]


class Note(BaseModel):
    text: str


class Count(BaseModel):
    n: int


class Dead(BaseModel):
    reason: str
    message: str


def verdict(count: int = 1, **changes: Any) -> Verdict:
    values = {
        "ok": True,
        "level": Level.HIGH,
        "score": None,
        "amount": Decimal("12.30"),
        "at": datetime(2026, 5, 1, 12, tzinfo=UTC),
        "count": count,
        "why": ["a", "ä"],
    }
    return Verdict(**(values | changes))


def result(run_id: str, output: Any) -> RunResult[Any, Any]:
    return RunResult(run_id=run_id, event={"n": 1}, output=output)


def write(elements: list[Any], transform: WriteTable, undelivered: list[Any] | None = None) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        left = pipeline | beam.Create(elements) | transform
        seen = left | beam.Map(lambda pair: (pair[0], pair[1].id is not None, pair[1].message.split(":")[0]))
        assert_that(seen, equal_to(undelivered or []))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


def test_a_result_that_comes_again_stands_in_the_table_once(tmp_path: Path):
    path = tmp_path / "out.db"
    first = [(f"key{n}", result(f"run{n}", verdict(n))) for n in range(1_200)]
    write(first, WriteTable(f"sqlite:///{path}", "verdicts", Verdict))
    write([*first[:3], ("key0", result("run0", verdict(7)))], WriteTable(f"sqlite:///{path}", "verdicts", Verdict))

    with sqlite3.connect(path) as database:
        rows = database.execute('select * from verdicts order by "count"').fetchall()
    database.close()
    assert len(rows) == 1_200
    by_id = {row[1]: row for row in rows}
    assert by_id["run1"] == ("key1", "run1", 1, "high", None, "12.30", "2026-05-01T12:00:00+00:00", 1, '["a","ä"]')
    assert by_id["run0"][7] in (0, 7)  # both came in one bundle, in any order


def test_the_same_in_postgresql(server: PostgresServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TABLE_URL", server.url())
    transform = WriteTable(EnvSecret("TABLE_URL"), "public.verdicts", Verdict, key_column="card", id_column="run")
    elements = [(("card", n), result(f"run{n}", verdict(n))) for n in range(20)]
    write(elements, transform)
    too_large = verdict(2**70)
    no_text = verdict(why=["\0"])
    write(
        [*elements, ("big", result("big", too_large)), ("nul", result("nul", no_text))],
        transform,
        [("big", True, "NumericValueOutOfRange"), ("nul", True, "UntranslatableCharacter")],
    )

    with psycopg.connect(server.url()) as database:
        assert database.execute("select count(*), count(distinct run) from verdicts").fetchone() == (20, 20)
        row = database.execute("select * from verdicts where run = 'run3'").fetchone()
    stored = ('["card",3]', "run3", True, "high", None, Decimal("12.30"), datetime(2026, 5, 1, 12, tzinfo=UTC), 3)
    assert row == (*stored, ["a", "ä"])


def test_a_row_that_a_late_constraint_or_an_index_refuses_does_not_stop_the_job(server: PostgresServer):
    with psycopg.connect(server.url(), autocommit=True) as database:
        database.execute("create table parents (n integer primary key)")
        database.execute("insert into parents values (0), (1)")
        database.execute(
            "create table children (key text, id text, n integer references parents deferrable initially deferred, "
            "primary key (key, id))"
        )
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 5_000)))
    elements: list[Any] = [("k", {"id": n, "n": n}) for n in range(3)] + [(long, {"id": 3, "n": 0})]
    transform = WriteTable(server.url(), "children", Count, id="id", create=False)
    write(elements, transform, [("k", True, "ForeignKeyViolation"), (long, True, "ProgramLimitExceeded")])
    with psycopg.connect(server.url()) as database:
        assert database.execute("select n from children order by n").fetchall() == [(0,), (1,)]


def test_a_text_that_no_database_holds_does_not_stop_the_job(tmp_path: Path, server: PostgresServer):
    for url in (f"sqlite:///{tmp_path}/out.db", server.url()):
        elements = [("k", {"id": "a", "code": 97}), ("k", {"id": "b", "code": 0xD800})]
        transform = WriteTable(url, "notes", Note, id="id", row=lambda value: {"text": chr(value["code"])})
        write(elements, transform, [("k", True, "UnicodeEncodeError")])


@pytest.mark.parametrize("url", ["postgresql://app:S3cr%et99@host/db", "host=db user=app password=S3cret99"])
def test_a_secret_url_that_cannot_be_read_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("TABLE_URL", url)
    transform = WriteTable(EnvSecret("TABLE_URL"), "counts", Count, id="id")
    with pytest.raises(Exception, match="WriteTable") as caught:
        write([("k", {"id": 1, "n": 1})], transform)
    shown = "".join(traceback.format_exception(caught.value))
    assert "S3cr" not in shown


def test_a_row_that_is_refused_does_not_take_the_others_along(tmp_path: Path):
    path = tmp_path / "out.db"
    with sqlite3.connect(path) as database:
        database.execute("create table counts (key text, id text, n integer check (n < 5), primary key (key, id))")
    database.close()

    elements = [("k", {"id": n, "n": n}) for n in range(8)]
    transform = WriteTable(f"sqlite:///{path}", "counts", Count, id="id", create=False)
    no_row = [("k", {"id": 9, "n": "nine"}), ("k", {"n": 1})]
    write(
        elements + no_row,
        transform,
        [("k", True, "IntegrityError")] * 3 + [("k", False, "ValidationError"), ("k", False, "KeyError")],
    )

    with sqlite3.connect(path) as database:
        assert database.execute("select n from counts order by n").fetchall() == [(n,) for n in range(5)]
    database.close()


def test_failures_and_rows_of_the_users_own_form(tmp_path: Path):
    path = tmp_path / "out.db"
    failures = [
        ("k", RunFailure(reason=FailureReason.DEADLINE, message="late", run_id="r1")),
        ("k", RunFailure(reason=FailureReason.ID_CONFLICT, message="other", run_id="r1", event={"n": 2})),
        ("k", RunFailure(reason=FailureReason.ID_CONFLICT, message="other", run_id="r1", event={"n": 3})),
        (None, RunFailure(reason=FailureReason.INVALID_EVENT, message="no event", raw="x")),
    ]
    write(failures + failures, WriteTable(f"sqlite:///{path}", "dead", Dead))
    by_id = WriteTable(
        f"sqlite:///{path}", "own", Dead, id=lambda value: value["n"], row=lambda v: {"reason": "r", "message": v["n"]}
    )
    write([("k", {"n": "1"}), ("k", {"n": "2"}), ("k", {"n": "1"})], by_id)

    with sqlite3.connect(path) as database:
        reasons = database.execute("select reason from dead order by reason").fetchall()
        assert [reason for (reason,) in reasons] == ["deadline", "id_conflict", "id_conflict", "invalid_event"]
        assert database.execute("select id, message from own order by id").fetchall() == [("1", "1"), ("2", "2")]
    database.close()


def test_a_database_that_is_locked_is_waited_for(tmp_path: Path):
    path = tmp_path / "out.db"
    write([("k", result("r0", verdict()))], WriteTable(f"sqlite:///{path}", "verdicts", Verdict))
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("begin immediate")
    release = threading.Timer(0.5, blocker.rollback)
    release.start()
    write([("k", result("r1", verdict()))], WriteTable(f"sqlite:///{path}", "verdicts", Verdict))
    release.join()
    assert blocker.execute("select count(*) from verdicts").fetchone() == (2,)
    blocker.close()


def test_a_table_that_does_not_fit_is_named(tmp_path: Path, server: PostgresServer):
    for url in (f"sqlite:///{tmp_path}/out.db", server.url()):
        transform = WriteTable(url, "missing", Verdict, create=False)
        database = transform._held.enter()
        with pytest.raises(ConfigurationError, match=r"(?s)table 'missing' is not there .* make it with: CREATE TABLE"):
            database.write([("k", "id")])
        transform._held.leave()
        database.close()


def test_a_database_that_is_away_ends_the_bundle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_module, "_PATIENCE_SECONDS", 0.0)
    transform = WriteTable("postgresql://postgres:secret@127.0.0.1:1/nowhere", "verdicts", Verdict)
    database = transform._held.enter()
    with pytest.raises(TableError, match="WriteTable: PostgreSQL: ") as raised:
        database.write([("k", "id")])
    assert "secret" not in str(raised.value)
    transform._held.leave()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "mysql://me:secret@host/db"}, r"url='mysql://\*\*\*@host/db'\) must be 'sqlite:///file.db'"),
        ({"table": "a b"}, "table='a b'"),
        ({"row_type": dict}, "must be a pydantic model"),
        ({"key_column": "ok"}, "key_column='ok'.* no field of Verdict"),
        ({"key_column": "id"}, "must not be the id_column"),
        ({"id": ""}, "id=''"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError, match=message):
        WriteTable(**({"url": "sqlite:///x.db", "table": "t", "row_type": Verdict} | arguments))


def test_values_without_an_id_are_refused_at_construction(tmp_path: Path):
    transform = WriteTable(f"sqlite:///{tmp_path}/x.db", "t", Verdict)
    pipeline = beam.Pipeline("FnApiRunner")
    for type_, message in ((Duplicate, "a Duplicate has no id"), (Verdict, "Verdict is no output of RunAgent")):
        elements = pipeline | type_.__name__ >> beam.Create([]).with_output_types(tuple[str, type_])  # type: ignore[valid-type]
        with pytest.raises(ConfigurationError, match=message):
            elements | f"Write {type_.__name__}" >> transform
