from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_file import bare, connection_of, sqlite_store

from beam_agents.ledger import LedgerUnavailable
from beam_agents.ledger.base import BEGINNING
from beam_agents.ledger.commands import (
    Command,
    FindRuns,
    FoundRuns,
    HorizonIs,
    Prune,
    PruneDone,
    ReadHorizon,
    Summarize,
    Summary,
)
from beam_agents.testing.ledger_store import Store, run_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with sqlite_store(path) as made:
        yield made


@pytest.mark.parametrize(
    ("command", "number", "index"),
    [
        (Prune("scope", "fraud", 1, 1e9), 2, "INDEX tombstones"),
        (Prune("scope", "fraud", 1, 1e9), 3, "INDEX closed_runs"),
        (FindRuns(which="open"), 1, "INDEX open_runs"),
        (FindRuns(which="doubtful"), 1, "INDEX doubtful_runs"),
        (FindRuns(which="failed"), 1, "INDEX failed_runs"),
        (FindRuns("scope", "fraud", which="failed"), 1, "INDEX failed_runs (scope=? AND agent=?)"),
        (FindRuns("scope", "fraud", '"k"'), 1, "INDEX sqlite_autoindex_runs_1 (scope=? AND agent=?)"),
    ],
    ids=str,
)
def test_what_operators_and_retention_look_for_has_an_index(
    store: Store, command: Command, number: int, index: str
) -> None:
    store.complete(run_key())
    statements: list[str] = []
    connection_of(store).set_trace_callback(statements.append)
    store.do(command)
    connection_of(store).set_trace_callback(None)
    plan = [row[3] for row in connection_of(store).execute(f"EXPLAIN QUERY PLAN {statements[number]}")]
    assert any(index in step for step in plan), plan
    assert "SCAN runs" not in plan


def test_the_newest_of_many_runs_are_found_without_sorting_them(store: Store) -> None:
    store.complete(run_key())
    statements: list[str] = []
    connection_of(store).set_trace_callback(statements.append)
    store.do(FindRuns("scope", "fraud"))
    connection_of(store).set_trace_callback(None)
    plan = [row[3] for row in connection_of(store).execute(f"EXPLAIN QUERY PLAN {statements[1]}")]
    assert not any("TEMP B-TREE" in step for step in plan), plan


def test_who_looks_does_not_wait_for_writers_nor_they_for_him(store: Store, path: Path) -> None:
    store.complete(run_key())
    connection_of(store).execute("PRAGMA busy_timeout = 0")
    with bare(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert len(store.expect(FoundRuns, FindRuns()).runs) == 1
        assert len(store.expect(Summary, Summarize()).uses) == 1
        with pytest.raises(LedgerUnavailable):
            store.do(Prune("scope", "fraud", 1, 1))
        connection.execute("COMMIT")


def test_text_that_is_not_utf8_is_found_and_pruned(store: Store) -> None:
    run = run_key("\ud800", '"\udfff"', scope="\ud801")
    store.complete(run, "\ud800")
    store.clock.now += 10
    query = FindRuns("\ud801", "fraud", '"\udfff"', "\ud800")
    assert [found.key for found in store.expect(FoundRuns, query).runs] == [run]
    prune = Prune("\ud801", "fraud", 1, 1)
    assert [store.do(prune) for _ in range(3)] == [PruneDone(1, 0), PruneDone(0, 1), PruneDone(0, 0)]
    assert store.do(ReadHorizon("\ud801", "fraud")) == HorizonIs(store.clock.now - 10)
    head = store.head(run.head)
    assert head is not None
    assert (head.session, head.forgotten_to) == ("\ud800", BEGINNING)
