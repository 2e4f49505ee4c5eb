"""`sql_tool` against a SQLite file and a PostgreSQL server."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from toolkit_kit import call, failure

from beam_agents import ConfigurationError
from beam_agents.secrets import EnvSecret, FileSecret, Secret
from beam_agents.toolkit import Reconcile, sql_tool
from runners.postgres import PostgresServer, PostgresUnavailable

SLOW = {
    "sqlite": "with recursive n(i) as (select 1 union all select i + 1 from n where i < :high) select count(*) from n",
    "postgresql": "select pg_sleep(:high / 1e9)::text",
}


class Person(BaseModel):
    id: int
    name: str
    born: date | None = None


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    try:
        running = PostgresServer(fsync="off")
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    try:
        running.start()
        yield running
    finally:
        running.remove()


@dataclass
class Place:
    """A database.

    Attributes:
        url: With its password.
        given: What a tool is given.
    """

    url: str
    given: str | Secret

    @property
    def kind(self) -> str:
        return self.url.partition(":")[0]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A database with people in it."""
    made = "create table people (id integer primary key, name text not null, born date, balance numeric)"
    rows = "insert into people values (1, 'Ann', '1990-01-02', 1.5), (2, 'Bob''s :x', null, 2), (3, 'Cy', null, 3)"
    if request.param == "sqlite":
        with closing(sqlite3.connect(tmp_path / "a %20db#.sqlite")) as connection:
            connection.execute(made)
            connection.execute(rows)
            connection.commit()
        url = f"sqlite:///{tmp_path}/a %20db#.sqlite"
        return Place(url, url)
    running: PostgresServer = request.getfixturevalue("server")
    name = f"db_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    url = running.url().rpartition("/")[0] + f"/{name}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(made)
        connection.execute(rows)
    monkeypatch.setenv("PEOPLE_URL", url)
    return Place(url, EnvSecret("PEOPLE_URL"))


def look(database: Place, statement: str) -> list[tuple[Any, ...]]:
    if database.kind == "sqlite":
        with closing(sqlite3.connect(database.url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(statement).fetchall()
    with psycopg.connect(database.url) as connection:
        return connection.execute(statement).fetchall()


def person(database: Place, **more: Any) -> Any:
    @sql_tool(database.given, "select id, name, born from people where id = :id", effect="pure", **more)
    def person(id: int) -> Person | None:
        """The person with a number."""

    return person


def people(database: Place, statement: str = "select id, name from people order by id", **more: Any) -> Any:
    @sql_tool(database.given, statement, effect="pure", **more)
    def people() -> list[Person]: ...

    return people


def test_one_row_is_a_model_or_nothing(database: Place) -> None:
    tool = person(database)

    assert tool.description == "The person with a number."
    assert call(tool, id=1) == {"id": 1, "name": "Ann", "born": "1990-01-02"}
    assert call(tool, id=9) is None


def test_values_are_bound_and_never_text(database: Place) -> None:
    @sql_tool(database.given, "select id from people where name = :name", effect="pure")
    def find(name: str) -> list[int]: ...

    assert call(find, name="Bob's :x") == [2]
    assert call(find, name="x' or '1'='1") == []
    assert call(find, name="'; drop table people; --%s") == []


def test_many_rows_and_scalars(database: Place) -> None:
    @sql_tool(database.given, "select balance from people where id = :id", effect="pure")
    def balance(id: int) -> Decimal | None: ...

    @sql_tool(database.given, "select count(*) from people where name like '%n%' and born is not null", effect="pure")
    def known() -> int: ...

    assert [found["name"] for found in call(people(database))] == ["Ann", "Bob's :x", "Cy"]
    assert call(balance, id=1) == "1.5"
    assert call(balance, id=9) is None
    assert call(known) == 1


def test_too_many_rows_are_an_error_that_the_model_is_told(database: Place) -> None:
    assert len(call(people(database, rows=3))) == 3
    assert call(people(database, rows=2)) == "ToolFailed: there are more than 2 rows; ask for less"


def test_a_slow_statement_is_stopped(database: Place) -> None:
    @sql_tool(database.given, SLOW[database.kind], effect="pure", timeout=timedelta(milliseconds=200))
    def slow(high: int) -> Any: ...

    assert "took longer than 0.2 s" in call(slow, high=10**12)
    call(slow, high=10)


def test_a_pure_statement_cannot_write(database: Place) -> None:
    with pytest.raises(ConfigurationError, match="does not only read"):
        people(database, "delete from people returning id, name")


def test_a_pure_statement_that_hides_its_writing_is_stopped_by_postgresql(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create table if not exists noted (x int)")
        connection.execute(
            "create or replace function note() returns int language sql as 'insert into noted values (1) returning x'"
        )
    monkeypatch.setenv("NOTED_URL", server.url())

    @sql_tool(EnvSecret("NOTED_URL"), "select note()", effect="pure")
    def note() -> int: ...

    assert "read-only transaction" in failure(note).message


@pytest.mark.parametrize("effect", ["idempotent", "once"])
def test_a_writing_statement_uses_the_calls_key(database: Place, effect: Any) -> None:
    @sql_tool(
        database.given,
        "insert into people (id, name) values (:id, :idempotency_key) on conflict (id) do nothing returning id, name",
        effect=effect,
    )
    def add(id: int) -> Person | None: ...

    @sql_tool(database.given, "update people set name = :name where id >= :id", effect=effect)
    def rename(id: int, name: str) -> int: ...

    added = call(add, id=7)
    assert look(database, "select name from people where id = 7") == [(added["name"],)]
    assert len(added["name"]) == 32
    assert call(add, id=7) is None
    assert call(rename, id=2, name="new") == 3
    assert len(look(database, "select 1 from people where name = 'new'")) == 3


def test_a_constraint_is_told_to_the_model_and_leaves_no_doubt(database: Place) -> None:
    @sql_tool(database.given, "insert into people (id, name) values (:id, 'x')", effect="once")
    def add(id: int) -> None: ...

    assert call(add, id=1).startswith("ToolFailed: the database does not allow it")
    assert call(add, id=8) is None


def test_too_many_changed_rows_are_rolled_back(database: Place) -> None:
    @sql_tool(database.given, "update people set name = 'new' where id > :id returning id, name", effect="once", rows=1)
    def rename(id: int) -> list[Person]: ...

    assert "more than 1 rows" in call(rename, id=0)
    assert look(database, "select 1 from people where name = 'new'") == []


def test_a_wrong_statement_ends_the_run_without_doubt(database: Place) -> None:
    @sql_tool(database.given, "update nothing set x = 1", effect="once")
    def broken() -> None: ...

    ended = failure(broken)
    assert ended.reason == "tool_error"
    assert "nothing" in ended.message


@pytest.mark.parametrize(
    ("returns", "says"),
    [(Person, "value: 3 rows"), (str, "columns id, name"), (list[date], "columns id, name")],
)
def test_rows_that_do_not_fit_are_an_error(database: Place, returns: Any, says: str) -> None:
    def several() -> Any: ...

    several.__annotations__["return"] = returns
    ended = failure(sql_tool(database.given, "select id, name from people", effect="pure")(several))
    assert ended.reason == "tool_error"
    assert says.removeprefix("value: ") in ended.message


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_dead_connection_is_replaced(server: PostgresServer, database: Place) -> None:
    tool = person(database)
    call(tool, id=1)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()",
            [database.url.rpartition("/")[2]],
        )

    assert call(tool, id=1)["name"] == "Ann"


def test_a_secret_url_is_found_in_the_worker_and_never_shown(server: PostgresServer, tmp_path: Path) -> None:
    held = tmp_path / "url"
    held.write_text(server.url() + "\n", encoding="utf-8")

    @sql_tool(FileSecret(str(held)), "select 1", effect="pure")
    def one() -> int: ...

    assert call(one) == 1

    @sql_tool(FileSecret(str(held)), "select 1", effect="pure")
    def other() -> int: ...

    held.write_text("postgresql://u:pa55word@127.0.0.1:1/x?connect_timeout=1", encoding="utf-8")
    ended = failure(other)
    assert "cannot be reached" in ended.message
    assert "pa55word" not in ended.model_dump_json()


def test_a_secret_url_that_cannot_be_read_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql://app:S3cr%et99@host/db")

    @sql_tool(EnvSecret("DB_URL"), "select 1", effect="pure")
    def one() -> int: ...

    ended = failure(one)
    assert "S3cr" not in ended.message
    assert "cannot be read" in ended.message


def test_a_number_that_no_column_holds_is_told_to_the_model(database: Place) -> None:
    @sql_tool(database.given, "insert into people (id, name) values (:id, 'x')", effect="once")
    def add(id: int) -> None: ...

    assert call(add, id=2**80).startswith("ModelRetry: an argument does not fit")


def test_a_missing_secret_url_is_named() -> None:
    @sql_tool(EnvSecret("NO_URL"), "select 1", effect="pure")
    def one() -> int: ...

    assert "environment variable 'NO_URL'" in failure(one).message


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/none.db"
    ended = failure(person(Place(url, url)), id=1)

    assert "none.db" in ended.message
    assert not (tmp_path / "none.db").exists()


def failing_commit(monkeypatch: pytest.MonkeyPatch, after: Callable[[], None]) -> None:
    """Has the connection break after SQLite has committed, as a server's may."""
    from beam_agents.toolkit import sql_database

    run = sql_database.Sqlite.run

    def broken(self: Any, query: Any) -> Any:
        found = run(self, query)
        if query.writes:
            after()
            raise sql_database.SqlError("the commit failed: it broke")
        return found

    monkeypatch.setattr(sql_database.Sqlite, "run", broken)


@pytest.mark.parametrize(
    ("there", "absent", "outcome"),
    [(True, "unknown", "done"), (False, "unknown", "in_doubt"), (False, "cannot_happen", "tool_error")],
)
def test_reconcile_looks_for_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, absent: Any, outcome: str
) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("create table made (key text primary key, what text)")
    if there:
        failing_commit(monkeypatch, lambda: None)
    else:
        failing_commit(monkeypatch, lambda: wipe(tmp_path / "a.db"))

    @sql_tool(
        url,
        "insert into made values (:idempotency_key, :what) returning what",
        effect="once",
        reconcile=Reconcile("select what from made where key = :idempotency_key", absent=absent),
    )
    def make(what: str) -> str: ...

    if outcome == "done":
        assert call(make, what="x") == "x"
    else:
        assert failure(make, what="x").reason == outcome


def wipe(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("delete from made")
        connection.commit()


def one(a: int) -> int: ...


def none() -> int: ...


@pytest.mark.parametrize(
    ("database", "statement", "function", "more", "says"),
    [
        ("mysql://x/y", "select 1", none, {}, "no database"),
        ("sqlite:///x.db", "select :b", one, {}, "'b' in the statement is no parameter"),
        ("sqlite:///x.db", "select 1", one, {}, "does not use :a"),
        ("sqlite:///x.db", "select 1; select 2", none, {}, "one statement"),
        ("sqlite:///x.db", "drop table x", none, {"effect": "once"}, "one of insert"),
        ("sqlite:///x.db", "select 1", none, {"rows": 0}, "rows=0"),
        ("sqlite:///x.db", "select 1", none, {"reconcile": "select 1"}, "'once' calls only"),
        (
            "sqlite:///x.db",
            "insert into x values (1)",
            none,
            {"effect": "once", "reconcile": "delete from x"},
            "only read",
        ),
        ("postgresql://u:pw@h/d", "select 1", none, {}, "holds a password"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    database: str, statement: str, function: Any, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        sql_tool(database, statement, **{"effect": "pure", **more})(function)
    assert "pw" not in str(caught.value).replace("password", "")
