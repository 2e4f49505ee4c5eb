"""A file of the release before is brought up to date when it is opened."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from beam_agents.errors import LedgerError
from beam_agents.ledger import SqliteLedger, sqlite_schema
from beam_agents.ledger.commands import (
    Close,
    Closed,
    FindClosed,
    FindRuns,
    FoundClosed,
    FoundRuns,
    HorizonIs,
    Load,
    Loaded,
    Open,
    Opened,
    Prune,
    Pruned,
    PruneDone,
    ReadHorizon,
    Renew,
    Summarize,
    Summary,
    TooOld,
)
from beam_agents.ledger.records import RunKey, UseSummary
from beam_agents.testing.ledger_race import race
from beam_agents.testing.ledger_store import FakeClock, Store

OLD = Path(__file__).parent.parent / "corpus" / "form_1"
DECIDED = RunKey("cards", "watch", 1, '"card-1"', "p-1")
OPEN = DECIDED._replace(run_id="p-2")
LATER = 2_000_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(OLD / "ledger.sqlite", tmp_path / "ledger.db"))


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    clock = FakeClock(LATER)
    ledger = SqliteLedger(path, clock=clock)
    ledger.open()
    yield Store(ledger, clock)
    ledger.close()


def bare(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, isolation_level=None))


def layout(path: Path) -> tuple[dict[str, set[tuple[object, ...]]], set[tuple[str, str]]]:
    """The columns of each table, wherever they stand, and the indexes."""
    with bare(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {name: {row[1:] for row in connection.execute(f"PRAGMA table_info({name})")} for name in names}
        indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        return columns, set(indexes.fetchall())


def test_an_old_file_becomes_like_a_new_one(store: Store, path: Path, tmp_path: Path) -> None:
    fresh = SqliteLedger(tmp_path / "fresh.db")
    fresh.open()
    fresh.close()
    assert layout(path) == layout(tmp_path / "fresh.db")
    with bare(path) as connection:
        assert connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchall() == [("2",)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert store.ledger.identity == "007cf7a8392a4cbb91f89156914bf462"


def test_runs_of_an_old_file_are_there_and_can_be_pruned(store: Store) -> None:
    decided, is_open = store.expect(Loaded, Load(DECIDED)), store.expect(Loaded, Load(OPEN))
    assert decided.run is not None
    assert is_open.run is not None
    assert (decided.run.reason, decided.run.doubtful, decided.run.resolution) == (None, False, None)
    assert [effect.status for effect in decided.effects] == ["ok", "ok"]
    assert store.do(FindRuns()) == FoundRuns((is_open.run, decided.run))
    assert store.do(FindClosed("cards", "watch", within=1e9)) == FoundClosed((DECIDED,))
    assert store.do(Prune("cards", "watch", 60, 60)) == PruneDone(1, 0)
    assert store.do(ReadHorizon("cards", "watch")) == HorizonIs(decided.run.closed_at)
    assert store.do(Summarize()) == Summary((UseSummary("cards", "watch", 1, 0, 0, 1, decided.run.closed_at),))
    again = Open(DECIDED, decided.run.event, decided.run.digest, "worker", session_version=1)
    assert store.expect(Pruned, again).run == replace(decided.run, event="", end="")
    assert store.do(Prune("cards", "watch", 60, 60)) == PruneDone(0, 1)
    assert store.expect(TooOld, replace(again, event_time=decided.run.event_time)).forgotten_to == 1_700_000_000_000_000
    opened = store.expect(Opened, Open(OPEN, is_open.run.event, is_open.run.digest, "worker", session_version=1))
    assert [effect.status for effect in opened.effects] == ["ok", None]
    assert store.expect(Closed, Close(OPEN, opened.run.epoch, "end", None)).session_version == 2


def test_runs_that_ended_in_doubt_before_are_doubtful(path: Path) -> None:
    in_doubt = (OLD / "end_failure.bytes").read_text()
    late = in_doubt.replace('"in_doubt"', '"deadline"')
    ends = {"doubt": in_doubt, "late": late, "text": "no JSON {", "quoted": '{"output":"reason: \\"in_doubt\\""}'}
    with bare(path) as connection:
        for number, (name, end) in enumerate(ends.items(), start=10):
            connection.execute(
                "INSERT INTO runs SELECT ?, scope, agent, revision, key, ?, event, digest, opened_at + ?, event_time, "
                "epoch, owner, epoch_at, held, stalls, ?, closed_at, nonce FROM runs WHERE run_id = 'p-1'",
                (number, name, number, end),
            )
    ledger = SqliteLedger(path, clock=FakeClock(LATER))
    ledger.open()
    doubtful, failed, pruned = ledger.apply(
        [FindRuns(which="doubtful"), FindRuns(which="failed"), Prune("cards", "watch", 60, 1e9)]
    )
    assert isinstance(doubtful, FoundRuns)
    assert isinstance(failed, FoundRuns)
    assert [(run.key.run_id, run.reason, run.end) for run in doubtful.runs] == [("doubt", "in_doubt", in_doubt)]
    assert {(run.key.run_id, run.reason) for run in failed.runs} == {("doubt", "in_doubt"), ("late", "deadline")}
    assert pruned == PruneDone(4, 0)
    ledger.close()


def test_eight_processes_bring_the_file_up_to_date_at_once(path: Path, tmp_path: Path) -> None:
    answers = race(SqliteLedger(path), [[[Renew(f"worker-{racer}"), Load(DECIDED)]] for racer in range(8)])
    assert len({str(loaded) for _, loaded in answers[0]}) == 1
    columns, indexes = layout(path)
    assert ("tombstones" in {name for name, _ in indexes}, "horizons" in columns) == (True, True)


def test_a_file_is_brought_up_to_date_wholly_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout(path)
    monkeypatch.setattr(sqlite_schema, "_FROM_1", (*sqlite_schema._FROM_1, "INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(LedgerError, match="nowhere"):
        SqliteLedger(path).open()
    assert layout(path) == before
    monkeypatch.undo()
    ledger = SqliteLedger(path)
    ledger.open()
    assert isinstance(ledger.apply([Load(DECIDED)])[0], Loaded)
    ledger.close()
