import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from postgres_server import Place, connection_of, running_server

from beam_agents import Agent
from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger import Ledger, LedgerUnavailable, ledger_from
from beam_agents.ledger.commands import (
    Close,
    Closed,
    Done,
    FindClosed,
    FindOrphans,
    HeadIs,
    Intend,
    Load,
    Loaded,
    Open,
    Opened,
    ReadHead,
    Record,
    Recorded,
    Release,
    Renew,
)
from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.ledger.postgres_message import Message
from beam_agents.ledger.postgres_transaction import PostgresTransaction
from beam_agents.testing.ledger_conformance import LedgerConformance
from beam_agents.testing.ledger_race import race
from beam_agents.testing.ledger_store import Store, attempt, opening, run_key
from beam_agents.testing.wire import Wire
from beam_agents.transforms.run_agent import RunAgent
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


class TestPostgresLedger(LedgerConformance):
    @pytest.fixture
    def make_ledger(self, place: Place) -> Callable[..., Ledger]:
        return lambda clock=None: PostgresLedger(place.url, clock=clock)


# ---- URLs ----


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("postgresql://u:secret@db.example:5433/main", "postgresql://u@db.example:5433/main?schema=beam_agents"),
        ("postgres://u@db.example/main?sslmode=require", "postgresql://u@db.example/main?schema=beam_agents"),
        ("postgresql:///main?schema=fraud_2", "postgresql:///main?schema=fraud_2"),
        ("postgresql:///main?user=u&password=secret", "postgresql://u@/main?schema=beam_agents"),
        ("postgresql://a:1,b:2/x?target_session_attrs=read-write", "postgresql://a:1,b:2/x?schema=beam_agents"),
        ("postgresql://u%40x:s%40cret@[::1]:5/d%2Fb", "postgresql://u%40x@[::1]:5/d%2Fb?schema=beam_agents"),
        ("postgresql:///main?host=/run/pg&port=7", "postgresql:///main?host=/run/pg&port=7&schema=beam_agents"),
    ],
)
def test_a_url_names_the_store_without_its_password(url: str, public: str) -> None:
    ledger = ledger_from(url)
    assert type(ledger) is PostgresLedger
    assert ledger.url == public
    assert ledger_from(public).url == public
    assert repr(ledger) == f"PostgresLedger({public!r})"
    assert pickle.loads(pickle.dumps(ledger))._parameters == ledger._parameters


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:secret@host", "names no database"),
        ("postgresql://u:secret@host/", "names no database"),
        ("postgresql://u:secret@host/db?schema=", "schema='' is no name"),
        ("postgresql://u:secret@host/db?schema=Fraud", "schema='Fraud' is no name"),
        ("postgresql://u:secret@host/db?schema=pg_fraud", "'pg_fraud' is no name"),
        ('postgresql://u:secret@host/db?schema=a"b', "is no name"),
        ("postgresql://u:secret@host/db?sslmod=require", 'cannot be read: invalid URI query parameter: "sslmod"'),
        ("postgresql://u:sec/secret@host/db", "cannot be read; its form is"),
        ("postgresql://u:secret%@host/db", "cannot be read; its form is"),
        ("postgresql://u:sec@secret@host/db", "cannot be read; its form is"),
        ("postgresql://u:secret@host:many/db", "its port is no number"),
        ("postgresql+psycopg://u:secret@host/db", "is not known"),
        ("postgresql:/u:secret//u:secret@host/db", "is not known"),
    ],
)
def test_urls_that_name_no_ledger_are_refused_without_telling_their_password(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        ledger_from(url)
    assert reason in str(refused.value)
    assert "secret@" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "beam_agents.ledger.postgres")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'beam-agents\[postgres\]'"):
        ledger_from("postgresql://host/db")


def test_the_password_is_not_displayed_with_the_pipeline(place: Place) -> None:
    agent = Agent("fraud", model="openai:none", event_type=dict, output_type=str)
    transform = RunAgent(agent, ledger=place.url, scope="scope", event_id="id")
    assert place.server.password not in str(transform.display_data())
    assert str(transform.display_data()["ledger"]) == PostgresLedger(place.url).url


def test_a_password_of_the_environment_is_used(place: Place, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = place.url.replace(f":{place.server.password}@", "@")
    with pytest.raises(LedgerError, match="no password supplied"):
        PostgresLedger(bare).open()
    monkeypatch.setenv("PGPASSWORD", place.server.password)
    ledger = PostgresLedger(bare)
    ledger.open()
    assert ledger.identity == store.ledger.identity
    ledger.close()


# ---- the schema ----


def test_eight_processes_make_the_schema_at_once(place: Place) -> None:
    answers = race(PostgresLedger(place.url), [[[Renew(f"worker-{racer}")]] for racer in range(8)])
    assert len(answers[0]) == 8
    assert place.sql("SELECT count(*) FROM {s}.meta") == [(2,)]
    assert place.sql("SELECT count(*) FROM {s}.leases") == [(8,)]


def test_threads_that_make_the_schema_at_once_need_no_second_try(server: PostgresServer) -> None:
    barrier = threading.Barrier(8)

    def make(url: str) -> str:
        ledger = PostgresLedger(url)
        barrier.wait(30)
        ledger.open()
        ledger.close()
        return ledger.identity

    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            assert len(set(threads.map(make, [Place(server).url] * 8))) == 1


def test_two_schemas_are_two_ledgers(server: PostgresServer, store: Store) -> None:
    with Place(server).store() as other:
        assert other.ledger.identity != store.ledger.identity
        store.complete(run_key())
        assert other.expect(Loaded, Load(run_key())).run is None
        other.expect(Opened, opening(run_key()))


def test_another_schema_version_is_refused(place: Place, store: Store) -> None:
    place.sql("UPDATE {s}.meta SET value = '99' WHERE name = 'schema_version'")
    with pytest.raises(LedgerError, match=r"schema version 99.*use the release that wrote it"):
        PostgresLedger(place.url).open()


@pytest.mark.parametrize("table", ["customers (name text)", "meta (name text, value text)", "meta (id int)"])
def test_the_schema_of_another_program_is_left_alone(place: Place, table: str) -> None:
    place.sql("CREATE SCHEMA {s}")
    place.sql(f"CREATE TABLE {{s}}.{table}")
    with pytest.raises(LedgerError, match="tables of another program"):
        PostgresLedger(place.url).open()
    assert place.sql("SELECT count(*) FROM pg_class WHERE relnamespace = '{s}'::regnamespace AND relkind = 'r'") == [
        (1,)
    ]


def test_an_empty_schema_is_filled(place: Place) -> None:
    place.sql("CREATE SCHEMA {s}")
    with place.store() as store:
        store.complete(run_key())


def test_a_schema_that_is_dropped_in_use_is_noticed(place: Place, store: Store) -> None:
    store.complete(run_key())
    place.sql("DROP SCHEMA {s} CASCADE")
    with pytest.raises(LedgerError, match="dropped or renamed while it was in use"):
        store.do(opening(run_key("b")))


def test_a_store_in_the_place_of_another_is_noticed(place: Place, store: Store) -> None:
    store.complete(run_key())
    place.sql("ALTER SCHEMA {s} RENAME TO {s}_old")
    with place.store() as other:
        with pytest.raises(LedgerError, match="another store was put in the place"):
            store.do(opening(run_key("b")))
        assert place.sql("SELECT count(*) FROM {s}.runs") == [(0,)]
        connection_of(store).close()
        with pytest.raises(LedgerUnavailable):
            store.do(opening(run_key("b")))
        with pytest.raises(LedgerError, match="another store was put in the place"):
            store.do(opening(run_key("b")))
        other.expect(Opened, opening(run_key()))


def test_an_opened_ledger_is_needed(place: Place) -> None:
    ledger = PostgresLedger(place.url)
    with pytest.raises(RuntimeError, match="before open"):
        _ = ledger.identity
    with pytest.raises(RuntimeError, match="call open"):
        ledger.apply([])


# ---- contents ----


def test_all_workers_go_by_the_clock_of_the_server(place: Place) -> None:
    ledger = PostgresLedger(place.url)
    ledger.open()
    before, done, after = (
        place.sql("SELECT extract(epoch FROM clock_timestamp())"),
        ledger.apply([Renew("worker-1")])[0],
        place.sql("SELECT extract(epoch FROM clock_timestamp())"),
    )
    assert isinstance(done, Done)
    assert float(before[0][0]) <= done.at <= float(after[0][0])
    ledger.close()


def test_commits_are_durable_though_the_database_is_set_otherwise(place: Place) -> None:
    place.sql("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        with place.store() as store:
            assert connection_of(store).execute("SHOW synchronous_commit").fetchone() == ("on",)
    finally:
        place.sql("ALTER ROLE postgres RESET synchronous_commit")


def test_old_leases_are_deleted_with_each_connection(place: Place, store: Store) -> None:
    store.complete(run_key("ended"))
    store.do(opening(run_key("open"), "busy"))
    store.do(Renew("worker-2"))
    store.clock.now += 100_000
    store.do(Renew("worker-3"))
    store.ledger.close()
    store.ledger.open()
    assert place.sql("SELECT owner FROM {s}.leases ORDER BY owner") == [("busy",), ("worker-3",)]


def test_text_that_the_database_cannot_keep_is_an_error_and_no_outage(store: Store) -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(LedgerError):
            store.do(Open(run_key(text, '"k"'), "{}", "digest", "worker"))
        store.do(opening(run_key()))
    assert store.expect(Loaded, Load(run_key())).run is not None


def test_long_texts_that_do_not_compress_are_kept(store: Store) -> None:
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=50_000))
    run = run_key(text, f'"{text}"', scope=text)
    store.expect(Opened, opening(run))
    store.do(Intend(run, 1, attempt()._replace(name=text, arguments=text)))
    store.do(Record(run, "0", 1, "ok", text))
    assert store.expect(Closed, Close(run, 1, text, text)).session == text
    assert store.expect(Opened, opening(run_key("b", f'"{text}"', scope=text))).session == text


def test_what_was_not_read_ahead_is_read_when_it_is_needed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = PostgresTransaction.begin
    monkeypatch.setattr(PostgresTransaction, "begin", lambda self, _: begin(self, []))
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


# ---- what it costs ----


def test_a_group_costs_two_round_trips(server: PostgresServer, place: Place) -> None:
    runs = [run_key(key=f'"k{number}"') for number in range(300)]
    with Wire("127.0.0.1", server.port) as wire, place.store(place.through(wire.port)) as store:

        def count(group: Sequence[Open | Intend | Record | Close | Release | Renew | Load | ReadHead]) -> int:
            before = wire.round_trips
            store.ledger.apply(group)
            return wire.round_trips - before

        assert count([opening(run) for run in runs]) == 2
        assert count([Intend(run, 1, attempt()) for run in runs]) == 2
        assert count([Record(run, "0", 1, "ok", "1") for run in runs]) == 2
        assert count([c for run in runs for c in (Intend(run, 1, attempt("1")), Record(run, "1", 1, "ok", "1"))]) == 2
        assert count([opening(run, "worker-2") for run in runs]) == 2
        assert count([Close(run, 1, "end", "session") for run in runs]) == 2
        assert count([Renew("worker-1"), ReadHead(runs[0].head), Load(runs[1]), Release(runs[2], 1)]) == 2


def test_an_effect_costs_the_same_whatever_came_before(server: PostgresServer, place: Place) -> None:
    run = run_key()
    with Wire("127.0.0.1", server.port) as wire, place.store(place.through(wire.port)) as store:
        store.complete(run_key("before"), "session" * 20_000)
        store.do(opening(run))

        def bytes_of(path: int) -> int:
            before = wire.bytes
            store.do(Intend(run, 1, attempt(str(path))))
            store.do(Record(run, str(path), 1, "ok", "1"))
            return wire.bytes - before

        for path in range(1_000, 1_010):
            bytes_of(path)
        early = bytes_of(2_000)
        for path in range(3_000, 3_300):
            bytes_of(path)
        assert abs(bytes_of(4_000) - early) <= 32
        assert early < 10_000


def test_no_statement_reads_a_whole_table(place: Place, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []
    add = Message.add

    def explain(self: Message, statement: str, **parameters: object) -> int:
        if parameters:
            with place.store() as other:
                explained = psycopg.ClientCursor(connection_of(other)).execute(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(line for (line,) in explained.fetchall()))
        return add(self, statement, **parameters)

    store.complete(run_key("a"))
    store.do(opening(run_key("b")))
    monkeypatch.setattr(Message, "add", explain)
    run = run_key("b")
    store.ledger.apply([opening(run), Intend(run, 2, attempt()), FindOrphans("scope", "fraud")])
    store.ledger.apply([Record(run, "0", 1, "ok", "1"), FindClosed("scope", "fraud", 10)])
    store.ledger.apply([Close(run, 2, "end", None)])
    assert len(plans) > 15
    for plan in plans:
        assert "Seq Scan" not in plan, plan
    assert any("open_runs" in plan for plan in plans)
    assert any("closed_runs" in plan for plan in plans)


# ---- many at once ----


def test_groups_with_the_same_keys_in_another_order_never_wait_for_each_other(place: Place) -> None:
    """No deadlock, no lost update: each key's version is the number of its runs, whoever opened and closed them."""
    keys = [f'"k{number}"' for number in range(12)]
    ended: list[list[str]] = []

    def work(number: int) -> None:
        dice, mine = random.Random(number), []
        ledger = PostgresLedger(place.url)
        ledger.open()
        for turn in range(25):
            runs = [run_key(f"{number}-{turn}", key) for key in dice.sample(keys, 8)]
            opened = [answer.run for answer in ledger.apply([opening(run, f"w{number}") for run in runs])
                      if isinstance(answer, Opened)]  # fmt: skip
            dice.shuffle(opened)
            ledger.apply([Intend(run.key, run.epoch, attempt()) for run in opened])
            recorded = ledger.apply([Record(run.key, "0", 1, "ok", "1") for run in opened])
            assert all(isinstance(answer, Recorded) and answer.new for answer in recorded)
            for answer in ledger.apply([Close(run.key, run.epoch, "end", run.key.run_id) for run in opened]):
                assert isinstance(answer, Closed)
                mine.append(answer.run.key.key)
        ledger.close()
        ended.append(mine)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    with place.store() as store:
        for key in keys:
            head = store.expect(HeadIs, ReadHead(run_key(key=key).head)).head
            assert head is not None
            assert (head.session_version, head.open_run) == (sum(mine.count(key) for mine in ended), None)
