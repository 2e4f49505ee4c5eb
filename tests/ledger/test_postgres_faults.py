import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import psycopg
import pytest
from postgres_server import Place, connection_of, running_server

from beam_agents.errors import LedgerError
from beam_agents.ledger import LedgerUnavailable, postgres_connection
from beam_agents.ledger import postgres as postgres_module
from beam_agents.ledger.commands import (
    Close,
    Closed,
    Command,
    Done,
    Intend,
    Load,
    Loaded,
    Open,
    Opened,
    Record,
    Recorded,
)
from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.ledger.postgres_transaction import PostgresTransaction
from beam_agents.ledger.writer import LedgerWriter
from beam_agents.testing.ledger_store import Store, attempt, opening, run_key
from beam_agents.testing.wire import Wire
from runners.postgres import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as made:
        yield made


@pytest.fixture
def place(server: PostgresServer) -> Place:
    return Place(server)


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.store() as made:
        yield made


@pytest.fixture
def wire(server: PostgresServer) -> Iterator[Wire]:
    with Wire("127.0.0.1", server.port) as made:
        yield made


@pytest.fixture
def wired(place: Place, wire: Wire) -> Iterator[Store]:
    with place.store(place.through(wire.port)) as made:
        yield made


COMMIT = b"COMMIT\0"
FIRST = replace(opening(run_key()), nonce="first")


# ---- lost connections ----


def test_a_connection_lost_before_the_commit(wired: Store, wire: Wire, store: Store) -> None:
    wire.lose_request(COMMIT)
    with pytest.raises(LedgerUnavailable):
        wired.do(FIRST)
    assert store.expect(Loaded, Load(run_key())).run is None
    assert wired.expect(Opened, FIRST).run.epoch == 1


def test_a_connection_lost_after_the_commit(wired: Store, wire: Wire, store: Store) -> None:
    wire.lose_answer(COMMIT)
    with pytest.raises(LedgerUnavailable):
        wired.do(FIRST)
    assert store.load(run_key()).nonce == "first"
    again = wired.expect(Opened, FIRST).run
    assert (again.epoch, again.stalls) == (1, 0)
    wire.lose_answer(COMMIT)
    with pytest.raises(LedgerUnavailable):
        wired.do(Intend(run_key(), 1, attempt()))
    assert isinstance(wired.do(Intend(run_key(), 1, attempt())), Done)
    assert len(store.expect(Loaded, Load(run_key())).effects) == 1


def test_a_connection_lost_while_reading(wired: Store, wire: Wire) -> None:
    wire.lose_answer(b"BEGIN")
    with pytest.raises(LedgerUnavailable):
        wired.do(FIRST)
    assert wired.expect(Opened, FIRST).run.epoch == 1


def test_a_connection_that_the_server_ends(place: Place, store: Store) -> None:
    store.do(FIRST)
    place.sql("SELECT pg_terminate_backend(%s)", connection_of(store).info.backend_pid)
    with pytest.raises(LedgerUnavailable):
        store.do(Intend(run_key(), 1, attempt()))
    store.expect(Done, Intend(run_key(), 1, attempt()))


def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    wired: Store, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "ANSWER_SECONDS", 0.2)
    wire.freeze()
    with pytest.raises(LedgerUnavailable, match="did not answer"):
        wired.do(FIRST)
    wire.thaw()
    monkeypatch.undo()
    assert wired.expect(Opened, FIRST).run.epoch == 1


def test_a_server_that_is_not_there(place: Place, wire: Wire) -> None:
    ledger = PostgresLedger(place.url.replace(f":{place.server.port}/", ":1/"))
    with pytest.raises(LedgerUnavailable, match=r"127\.0\.0\.1"):
        ledger.open()


@pytest.mark.parametrize("crash", [False, True])
def test_the_writer_waits_for_a_server_that_restarts(place: Place, server: PostgresServer, crash: bool) -> None:
    writer = LedgerWriter(PostgresLedger(place.url))
    runs = [run_key(f"r{number}", f'"k{number}"') for number in range(200)]
    away, errors, closed = threading.Event(), [], []

    def work() -> None:
        try:
            for number, run in enumerate(runs):
                opened = writer.ask_blocking(replace(opening(run), nonce="n"), 60)
                assert isinstance(opened, Opened)
                assert opened.run.epoch == 1
                assert isinstance(writer.ask_blocking(Intend(run, 1, attempt()), 60), Done)
                assert isinstance(writer.ask_blocking(Record(run, "0", 1, "ok", str(number)), 60), Recorded)
                closed.append(writer.ask_blocking(Close(run, 1, "end", None), 60))
                if number == 20:
                    away.set()
        except BaseException as error:
            errors.append(error)
            away.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert away.wait(60)
    (server.kill if crash else server.stop)()
    server.start()
    thread.join(120)
    assert (errors, len(closed), writer.down_since) == ([], 200, None)
    writer.close()
    with place.store() as store:
        for number, run in enumerate(runs):
            loaded = store.expect(Loaded, Load(run))
            assert [effect.value for effect in loaded.effects] == [str(number)]
            assert isinstance(closed[number], Closed)
            assert closed[number].run == loaded.run


# ---- other workers ----


def test_a_lock_that_another_holds_is_waited_for(place: Place, store: Store) -> None:
    store.do(FIRST)
    done = threading.Event()

    def intend() -> None:
        store.expect(Done, Intend(run_key(), 1, attempt()))
        done.set()

    worker = threading.Thread(target=intend)
    with psycopg.connect(place.server.url()) as other:
        other.execute(f"SELECT FROM {place.schema}.heads FOR UPDATE")
        worker.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        pid = connection_of(store).info.backend_pid
        while place.sql(waits, pid) != [(1,)]:
            assert not done.is_set()
    worker.join(30)
    assert done.is_set()


def test_a_lock_that_is_not_given_back_is_unavailable(place: Place, store: Store) -> None:
    store.do(FIRST)
    connection_of(store).execute("SET lock_timeout = '50ms'")
    with psycopg.connect(place.server.url()) as other:
        other.execute(f"SELECT FROM {place.schema}.heads FOR UPDATE")
        with pytest.raises(LedgerUnavailable, match="55P03"):
            store.do(Intend(run_key(), 1, attempt()))
    store.expect(Done, Intend(run_key(), 1, attempt()))


def test_a_frozen_worker_loses_its_locks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "_IDLE_SECONDS", 0.1)
    frozen = PostgresLedger(place.url)
    frozen.open()
    assert frozen._connection is not None
    transaction = PostgresTransaction(frozen._connection, frozen._statements, frozen.identity, None)
    transaction.begin([FIRST])
    monkeypatch.undo()
    patient = LedgerWriter(PostgresLedger(place.url))
    opened = patient.ask_blocking(replace(FIRST, owner="worker-2"), 60)
    assert isinstance(opened, Opened)
    transaction.put_run(replace(opened.run, owner="worker-1"))
    with pytest.raises(psycopg.Error):
        transaction.commit()
    loaded = patient.ask_blocking(Load(run_key()), 60)
    assert isinstance(loaded, Loaded)
    assert loaded.run == opened.run
    patient.close()
    with pytest.raises(LedgerUnavailable):
        frozen.apply([Load(run_key())])
    assert frozen.apply([Load(run_key())]) == [loaded]
    frozen.close()


def test_a_group_that_takes_this_process_too_long_gets_more_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "_IDLE_SECONDS", 0.05)
    begin = PostgresTransaction.begin

    def begin_slowly(self: PostgresTransaction, commands: Sequence[Command]) -> None:
        begin(self, commands)
        threading.Event().wait(0.3)

    monkeypatch.setattr(PostgresTransaction, "begin", begin_slowly)
    writer = LedgerWriter(PostgresLedger(place.url))
    assert isinstance(writer.ask_blocking(FIRST, 60), Opened)
    writer.close()


def test_a_statement_that_takes_too_long_is_unavailable(place: Place, store: Store) -> None:
    _break(place, "PERFORM pg_sleep(20)")
    store.do(FIRST)
    connection_of(store).execute("SET statement_timeout = '50ms'")
    with pytest.raises(LedgerUnavailable, match="57014"):
        store.do(Intend(run_key(), 1, attempt()))


# ---- what the server refuses ----


def _break(place: Place, statement: str) -> None:
    """Has each intent run into something."""
    place.sql(
        "CREATE OR REPLACE FUNCTION {s}.break() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {statement}; RETURN NEW; END $$"
    )
    place.sql("CREATE OR REPLACE TRIGGER broken BEFORE INSERT ON {s}.effects FOR EACH ROW EXECUTE FUNCTION {s}.break()")


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("53100", LedgerUnavailable),  # disk full
        ("53200", LedgerUnavailable),  # out of memory
        ("58030", LedgerUnavailable),  # I/O error
        ("40001", LedgerUnavailable),  # serialization failure
        ("40P01", LedgerUnavailable),  # deadlock
        ("25006", LedgerUnavailable),  # read-only
        ("XX001", LedgerError),  # corrupted
    ],
)
def test_a_group_that_the_server_refuses_leaves_nothing(
    place: Place, store: Store, code: str, raised: type[Exception]
) -> None:
    store.do(FIRST)
    _break(place, f"RAISE EXCEPTION 'no' USING ERRCODE = '{code}'")
    with pytest.raises(raised, match=rf"SQLSTATE {code}"):
        store.ledger.apply(
            [Close(run_key(), 1, "end", None), opening(run_key("b")), Intend(run_key("b"), 1, attempt())]
        )
    assert store.load(run_key()).end is None
    assert store.expect(Loaded, Load(run_key("b"))).run is None
    place.sql("DROP TRIGGER broken ON {s}.effects")
    store.expect(Done, Intend(run_key(), 1, attempt()))


def test_a_group_that_breaks_keeps_the_connection(store: Store) -> None:
    store.do(FIRST)
    pid = connection_of(store).info.backend_pid
    with pytest.raises(LookupError):
        store.do(Record(run_key(), "0", 1, "ok", "1"))
    store.expect(Done, Intend(run_key(), 1, attempt()))
    assert connection_of(store).info.backend_pid == pid


@pytest.fixture
def guest(place: Place) -> Iterator[str]:
    """A user without any right."""
    name = f"guest_{place.schema}"
    place.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden-word'")
    yield name
    place.sql("DROP SCHEMA IF EXISTS {s} CASCADE")
    place.sql(f"DROP ROLE {name}")


def _guest_url(place: Place, guest: str, password: str = "hidden-word", database: str = "postgres") -> str:
    return f"{place.server.url(database, guest, password)}?schema={place.schema}"


def test_a_user_who_may_not_make_the_schema(place: Place, guest: str) -> None:
    with pytest.raises(LedgerError, match=rf"42501.*CREATE SCHEMA {place.schema} AUTHORIZATION {guest}"):
        PostgresLedger(_guest_url(place, guest)).open()
    place.sql(f"CREATE SCHEMA {{s}} AUTHORIZATION {guest}")
    with place.store(_guest_url(place, guest)) as store:
        store.complete(run_key())


def test_a_user_who_may_not_write(place: Place, store: Store, guest: str) -> None:
    with pytest.raises(LedgerError, match="42501"):
        PostgresLedger(_guest_url(place, guest)).open()
    place.sql(f"GRANT USAGE ON SCHEMA {{s}} TO {guest}")
    place.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {{s}} TO {guest}")
    with pytest.raises(LedgerError, match="may not read and write effects, heads, horizons, leases, runs; GRANT"):
        PostgresLedger(_guest_url(place, guest)).open()
    place.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {{s}} TO {guest}")
    with place.store(_guest_url(place, guest)) as other:
        other.complete(run_key())
        place.sql(f"REVOKE INSERT ON {{s}}.effects FROM {guest}")
        other.do(opening(run_key("b")))
        with pytest.raises(LedgerError, match="42501"):
            other.do(Intend(run_key("b"), 1, attempt()))


def test_who_is_not_let_in(place: Place, guest: str) -> None:
    for url, reason in (
        (_guest_url(place, guest, "other-word"), "password authentication failed"),
        (_guest_url(place, guest, database="nowhere"), 'database "nowhere" does not exist'),
    ):
        with pytest.raises(LedgerError, match=reason) as refused:
            PostgresLedger(url).open()
        assert "-word" not in str(refused.value)
    place.sql(f"ALTER ROLE {guest} CONNECTION LIMIT 0")
    with pytest.raises(LedgerUnavailable, match="too many connections"):
        PostgresLedger(_guest_url(place, guest)).open()


def test_a_database_that_takes_no_writes_is_waited_for(place: Place, guest: str) -> None:
    place.sql(f"CREATE SCHEMA {{s}} AUTHORIZATION {guest}")
    place.sql(f"ALTER ROLE {guest} SET default_transaction_read_only = on")
    ledger = PostgresLedger(_guest_url(place, guest))
    with pytest.raises(LedgerUnavailable, match="takes no writes"):
        ledger.open()
    place.sql(f"ALTER ROLE {guest} RESET default_transaction_read_only")
    ledger.open()
    assert isinstance(ledger.apply([Open(run_key(), "{}", "digest", "worker")])[0], Opened)
    ledger.close()


def test_a_killed_backend_process_is_an_outage(place: Place, store: Store, server: PostgresServer) -> None:
    store.do(FIRST)
    writer = LedgerWriter(store.ledger)
    os.kill(connection_of(store).info.backend_pid, signal.SIGKILL)  # the server restarts all of its processes
    assert isinstance(writer.ask_blocking(Intend(run_key(), 1, attempt()), 60), Done)
    writer.close()
    assert "terminated by signal 9" in server.log.read_text()
