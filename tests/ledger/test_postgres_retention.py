import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from postgres_server import Place, connection_of, running_server

from beam_agents.ledger.commands import (
    Close,
    Done,
    Fenced,
    FindRuns,
    Intend,
    Load,
    Loaded,
    Prune,
    PruneDone,
    Record,
    Renew,
    Summarize,
    Summary,
)
from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.ledger.postgres_message import Message
from beam_agents.ledger.postgres_rows import head_id
from beam_agents.testing.ledger_store import Store, attempt, opening, run_key
from runners.postgres import PostgresServer

PRUNE = Prune("scope", "fraud", closed_for=10, tombstones_for=1e9)
FORGET = Prune("scope", "fraud", closed_for=10, tombstones_for=10)


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


def test_runs_of_keys_that_are_busy_are_left_for_the_next_time(place: Place, store: Store) -> None:
    runs = [run_key("run", f'"k{number}"') for number in range(4)]
    for run in runs:
        store.complete(run)
    store.clock.now += 100
    for prune, first, second in ((PRUNE, PruneDone(3, 0), PruneDone(1, 0)), (FORGET, PruneDone(0, 3), PruneDone(0, 1))):
        with psycopg.connect(place.server.url()) as other:
            other.execute(f"SELECT FROM {place.schema}.heads WHERE id = %s FOR UPDATE", (head_id(runs[1].head),))
            assert store.do(prune) == first
        assert store.do(prune) == second
    assert store.do(Summarize()) == Summary(())


def test_an_outcome_that_comes_while_its_run_is_pruned_leaves_no_trace(place: Place, store: Store) -> None:
    """The late outcome waits for the key, and finds that there is nothing left to record it in."""
    store.do(opening(run_key()))
    store.do(Intend(run_key(), 1, attempt()))
    store.do(Close(run_key(), 1, "end", None))
    store.clock.now += 100
    with place.store() as late, ThreadPoolExecutor(1) as thread:
        with psycopg.connect(place.server.url()) as other:
            other.execute(f"SELECT FROM {place.schema}.heads FOR UPDATE")
            outcome = thread.submit(late.do, Record(run_key(), "0", 1, "ok", "1"))
            waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            while place.sql(waits, connection_of(late).info.backend_pid) != [(1,)]:
                assert not outcome.done()
            other.execute(f"UPDATE {place.schema}.runs SET event = '', ending = ''")
            other.execute(f"DELETE FROM {place.schema}.effects")
        assert isinstance(outcome.result(30), Fenced)
    loaded = store.expect(Loaded, Load(run_key()))
    assert loaded.run is not None
    assert (loaded.run.tombstone, loaded.effects) == (True, ())


def test_many_that_prune_at_once_count_each_run_once(place: Place) -> None:
    runs = [run_key(f"r{number}", f'"k{number % 20}"') for number in range(300)]
    with place.store() as store:
        for batch in range(0, 300, 20):
            store.ledger.apply([opening(run) for run in runs[batch : batch + 20]])
            store.ledger.apply([Intend(run, 1, attempt()) for run in runs[batch : batch + 20]])
            store.ledger.apply([Close(run, 1, "end", None) for run in runs[batch : batch + 20]])
        barrier = threading.Barrier(4)

        def work(number: int) -> tuple[int, int]:
            pruned = forgotten = 0
            ledger = PostgresLedger(place.url)
            ledger.open()
            barrier.wait(60)
            for _ in range(20):
                done, renewed = ledger.apply([Prune("scope", "fraud", 0, 0, limit=30), Renew(f"worker-{number}")])
                assert isinstance(done, PruneDone)
                assert isinstance(renewed, Done)
                pruned, forgotten = pruned + done.runs, forgotten + done.tombstones
            ledger.close()
            return pruned, forgotten

        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(work, range(4)))
        left = store.do(Summarize())
        assert isinstance(left, Summary)
        ended, tombstones = (left.uses[0].ended, left.uses[0].tombstones) if left.uses else (0, 0)
        assert sum(pruned for pruned, _ in done) == 300 - ended
        assert sum(forgotten for _, forgotten in done) == 300 - ended - tombstones
        assert place.sql("SELECT count(*) FROM {s}.effects") == [(ended,)]


def test_what_operators_and_retention_look_for_has_an_index(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[str] = []
    add = Message.add

    def explain(self: Message, statement: str, **parameters: object) -> int:
        if parameters:
            with place.store() as other:
                explained = psycopg.ClientCursor(connection_of(other)).execute(f"EXPLAIN {statement}", parameters)
                plans.append("\n".join(line for (line,) in explained.fetchall()))
        return add(self, statement, **parameters)

    store.complete(run_key())
    store.clock.now += 100
    monkeypatch.setattr(Message, "add", explain)
    for command, index in (
        (PRUNE, "closed_runs"),
        (FORGET, "tombstones"),
        (FindRuns("scope", "fraud", which="open"), "open_runs"),
        (FindRuns("scope", "fraud", which="doubtful"), "doubtful_runs"),
        (FindRuns("scope", "fraud", which="failed"), "failed_runs"),
    ):
        plans.clear()
        store.do(command)
        assert any(index in plan for plan in plans), plans
        for plan in plans:
            assert "Seq Scan" not in plan, plan
