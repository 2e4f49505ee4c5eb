import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_file import bare, connection_of, sqlite_store

from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger import LedgerUnavailable, SqliteLedger
from beam_agents.ledger.commands import (
    Close,
    Closed,
    FindClosed,
    FindOrphans,
    FoundClosed,
    Intend,
    Load,
    Loaded,
    Open,
    Opened,
    Orphans,
    Record,
    Recorded,
    Renew,
)
from beam_agents.ledger.sqlite_transaction import SqliteTransaction
from beam_agents.testing.ledger_race import race
from beam_agents.testing.ledger_store import Store, attempt, opening, run_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with sqlite_store(path) as made:
        yield made


# ---- the file ----


def test_eight_processes_make_the_file_at_once(path: Path) -> None:
    answers = race(SqliteLedger(path), [[[Renew(f"worker-{racer}")]] for racer in range(8)])
    assert len(answers[0]) == 8
    with bare(path) as connection:
        assert connection.execute("SELECT count(*) FROM meta").fetchall() == [(2,)]
        assert connection.execute("SELECT count(*) FROM leases").fetchall() == [(8,)]


def test_threads_that_make_the_file_at_once_need_no_second_try(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def make(path: Path) -> str:
        ledger = SqliteLedger(path)
        barrier.wait(30)
        ledger.open()
        ledger.close()
        return ledger.identity

    with ThreadPoolExecutor(8) as threads:
        for number in range(10):
            assert len(set(threads.map(make, [tmp_path / f"{number}.db"] * 8))) == 1


def test_commits_are_durable(store: Store) -> None:
    connection = connection_of(store)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_path_is_absolute_and_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = SqliteLedger("here.db")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy.url == ledger.url == f"sqlite:///{tmp_path}/here.db"
    with pytest.raises(RuntimeError, match="before open"):
        _ = copy.identity
    with pytest.raises(RuntimeError, match="call open"):
        copy.apply([])


@pytest.mark.parametrize("name", ["", ":memory:"])
def test_a_path_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=repr(name)):
        SqliteLedger(name)


def test_another_schema_version_is_refused(store: Store, path: Path) -> None:
    with bare(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    with pytest.raises(LedgerError, match=r"schema version 99.*use the release that wrote it"):
        SqliteLedger(path).open()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("notes, and more notes " * 100)
    with pytest.raises(LedgerError, match="not an SQLite database"):
        SqliteLedger(path).open()
    assert path.read_text().startswith("notes")


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    with bare(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program"):
        SqliteLedger(path).open()
    assert path.read_bytes() == before


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"folder .*nowhere' is not there; make it first"):
        SqliteLedger(tmp_path / "nowhere" / "ledger.db").open()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="this is a folder"):
        SqliteLedger(tmp_path).open()


def test_a_file_without_permission_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    ledger = SqliteLedger(path)
    denied = sqlite3.OperationalError("attempt to write a readonly database")
    denied.sqlite_errorcode, denied.sqlite_errorname = sqlite3.SQLITE_READONLY, "SQLITE_READONLY"

    def refuse(*_: object, **__: object) -> None:
        raise denied

    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(LedgerUnavailable):
        ledger.open()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LedgerError, match="no permission to read and write"):
        ledger.open()


def test_a_file_that_is_replaced_in_use_is_noticed(store: Store, path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(LedgerError, match="moved, deleted or replaced"):
        store.do(opening(run_key()))
    path.touch()
    with pytest.raises(LedgerError, match="moved, deleted or replaced"):
        store.do(opening(run_key()))
    path.with_suffix(".moved").rename(path)
    store.expect(Opened, opening(run_key()))


# ---- trouble that passes ----


def test_a_locked_database_is_waited_for(store: Store, path: Path) -> None:
    locked, answers = threading.Event(), []

    def hold() -> None:
        with bare(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            locked.set()
            wait.wait(0.2)
            answers.append("released")
            connection.execute("COMMIT")

    wait = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    store.expect(Opened, opening(run_key()))
    assert answers == ["released"]
    holder.join()


def test_a_database_that_stays_locked_is_unavailable(store: Store, path: Path) -> None:
    connection_of(store).execute("PRAGMA busy_timeout = 10")
    with bare(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="SQLITE_BUSY"):
            store.do(opening(run_key()))
        connection.execute("COMMIT")
    store.expect(Opened, opening(run_key()))


def test_a_full_disk_is_unavailable_until_there_is_room(store: Store) -> None:
    connection = connection_of(store)
    store.do(opening(run_key()))
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    group = [Intend(run_key(), 1, attempt("0")), Intend(run_key(), 1, attempt("1")._replace(arguments="x" * 100_000))]
    with pytest.raises(LedgerUnavailable, match="SQLITE_FULL"):
        store.ledger.apply(group)
    assert store.expect(Loaded, Load(run_key())).effects == ()
    connection.execute("PRAGMA max_page_count = 1000000")
    store.ledger.apply(group)
    assert len(store.expect(Loaded, Load(run_key())).effects) == 2


WRITER = """
import sys
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.commands import Close, Intend, Record
from beam_agents.testing.ledger_store import attempt, opening, run_key
ledger = SqliteLedger(sys.argv[1])
ledger.open()
for number in range(1_000_000):
    runs = [run_key(f"run-{number}", f'"k{key}"') for key in range(10)]
    ledger.apply([opening(run) for run in runs])
    ledger.apply([command for run in runs for command in (Intend(run, 1, attempt()), Record(run, "0", 1, "ok", "1"))])
    ledger.apply([Close(run, 1, "end", str(number)) for run in runs])
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_a_consistent_store(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 20:
            break
    process.send_signal(signal.SIGKILL)
    acknowledged = max(int(number) for number in [line, *process.stdout])
    process.stdout.close()
    process.wait()
    with bare(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger = SqliteLedger(path)
    ledger.open()
    for number in range(acknowledged + 1):
        for answer in ledger.apply([opening(run_key(f"run-{number}", f'"k{key}"')) for key in range(10)]):
            assert isinstance(answer, Closed)
            assert [effect.value for effect in answer.effects] == ["1"]
            assert answer.session_version in (acknowledged + 1, acknowledged + 2)
    broken_off = ledger.apply([Load(run_key(f"run-{acknowledged + 1}", f'"k{key}"')) for key in range(10)])
    states = {
        (answer.run is None, answer.run is not None and answer.run.end is None, len(answer.effects))
        for answer in broken_off
        if isinstance(answer, Loaded)
    }
    assert len(states) == 1
    ledger.close()


# ---- contents ----


def test_bytes_per_effect_do_not_grow_with_the_journal(store: Store) -> None:
    run = run_key(key='"' + "k" * 1_000 + '"')
    store.do(opening(run))

    def pages_of(first: int) -> int:
        before = connection_of(store).execute("PRAGMA page_count").fetchone()[0]
        for path in map(str, range(first, first + 500)):
            store.ledger.apply([Intend(run, 1, attempt(path)), Record(run, path, 1, "ok", "1")])
        return int(connection_of(store).execute("PRAGMA page_count").fetchone()[0]) - before

    pages_of(10_000)
    early, late = pages_of(11_000), pages_of(12_000)
    assert abs(early - late) <= 3


def test_orphans_are_found_by_one_statement_in_the_order_of_an_index(store: Store) -> None:
    store.do(opening(run_key()))
    store.clock.now += 100
    statements: list[str] = []
    connection_of(store).set_trace_callback(statements.append)
    store.expect(Orphans, FindOrphans("scope", "fraud"))
    connection_of(store).set_trace_callback(None)
    assert len(statements) == 3, statements
    plan = [row[3] for row in connection_of(store).execute(f"EXPLAIN QUERY PLAN {statements[1]}")]
    assert any("INDEX open_runs" in step for step in plan)
    assert not any("TEMP B-TREE" in step or "SCAN runs" in step for step in plan)


def test_runs_closed_lately_are_found_in_the_order_of_an_index(store: Store) -> None:
    store.complete(run_key())
    statements: list[str] = []
    connection_of(store).set_trace_callback(statements.append)
    store.expect(FoundClosed, FindClosed("scope", "fraud", within=10))
    connection_of(store).set_trace_callback(None)
    plan = [row[3] for row in connection_of(store).execute(f"EXPLAIN QUERY PLAN {statements[1]}")]
    assert any("INDEX closed_runs" in step for step in plan)
    assert not any("TEMP B-TREE" in step or "SCAN runs" in step for step in plan)


def test_old_leases_are_deleted(store: Store) -> None:
    store.complete(run_key("ended"))
    store.do(opening(run_key("open"), "busy"))
    store.do(Renew("worker-2"))
    store.clock.now += 100_000
    store.do(Renew("worker-3"))
    owners = connection_of(store).execute("SELECT owner FROM leases ORDER BY owner").fetchall()
    assert owners == [("busy",), ("worker-3",)]


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb 日本", "a\0b", "a\0c", "\0"])
def test_text_that_is_not_utf8_stays_itself(store: Store, text: str) -> None:
    run = run_key(text, f'"{text}"')
    store.expect(Opened, Open(run, text, text, "worker-1"))
    store.expect(Opened, opening(run_key("a", '"a"')))
    store.do(Intend(run, 1, attempt(text)._replace(arguments=text)))
    store.do(Record(run, text, 1, "ok", text))
    closed = store.expect(Closed, Close(run, 1, text, text))
    assert (closed.run.key, closed.run.event, closed.run.end, closed.session) == (run, text, text, text)
    loaded = store.expect(Loaded, Load(run))
    assert loaded == Loaded(closed.run, closed.effects)
    assert (loaded.effects[0].path, loaded.effects[0].value) == (text, text)
    assert store.expect(Closed, opening(run, digest=text)) == closed


def test_a_group_costs_few_statements(store: Store) -> None:
    runs = [run_key(key=f'"k{number}"') for number in range(100)]
    store.ledger.apply([opening(run) for run in runs])
    statements: list[str] = []
    connection_of(store).set_trace_callback(statements.append)
    answers = store.ledger.apply(
        [command for run in runs for command in (Intend(run, 1, attempt()), Record(run, "0", 1, "ok", "1"))]
    )
    connection_of(store).set_trace_callback(None)
    assert all(isinstance(answer, Recorded) for answer in answers[1::2])
    assert len(statements) == 4, [statement[:60] for statement in statements]


def test_what_was_not_read_ahead_is_read_when_it_is_needed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqliteTransaction, "read_ahead", lambda *_: None)
    store.do(opening(run_key()))
    store.do(Intend(run_key(), 1, attempt("0")))
    answers = store.ledger.apply(
        [
            Record(run_key(), "0", 1, "ok", "1"),
            Intend(run_key(), 1, attempt("1")),
            Load(run_key()),
            Record(run_key(), "1", 1, "ok", "2"),
            Close(run_key(), 1, "end", "session"),
        ]
    )
    loaded, closed = answers[2], answers[4]
    assert isinstance(loaded, Loaded)
    assert [effect.value for effect in loaded.effects] == ["1", None]
    assert isinstance(closed, Closed)
    assert [effect.value for effect in closed.effects] == ["1", "2"]
    assert store.expect(Closed, opening(run_key())) == closed
