"""A schema of the release before is brought up to date when it is opened."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgres_server import Place, running_server

from beam_agents.errors import LedgerError
from beam_agents.ledger import postgres_schema
from beam_agents.ledger.commands import (
    Close,
    Closed,
    FindRuns,
    FoundRuns,
    Intend,
    Load,
    Opened,
    Prune,
    PruneDone,
    ReadHead,
    Record,
    Renew,
    Resolve,
    Resolved,
    TooOld,
)
from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.ledger.records import Resolution
from beam_agents.testing.ledger_race import race
from beam_agents.testing.ledger_store import NOW, attempt, opening, run_key
from runners.postgres import PostgresServer

END = (Path(__file__).parent.parent / "corpus" / "form_1" / "end_failure.bytes").read_text()

# As the release made them whose stores had version 1.
TABLES = """
CREATE TABLE {s}.meta (name text COLLATE "C" PRIMARY KEY, value text NOT NULL);

CREATE TABLE {s}.heads (
  id uuid PRIMARY KEY, scope text NOT NULL, agent text NOT NULL, revision bigint NOT NULL, key text NOT NULL,
  session_version bigint, session text, open_run text, open_id uuid
) WITH (fillfactor = 80);

CREATE TABLE {s}.runs (
  id uuid PRIMARY KEY, used_by uuid NOT NULL, scope text NOT NULL, agent text NOT NULL, revision bigint NOT NULL,
  key text NOT NULL, run_id text NOT NULL, event text NOT NULL, digest text NOT NULL, opened_at bigint NOT NULL,
  event_time bigint, epoch bigint NOT NULL, owner text COLLATE "C" NOT NULL, epoch_at bigint NOT NULL,
  held bigint NOT NULL, stalls bigint NOT NULL, ending text, closed_at bigint, nonce text NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX open_runs ON {s}.runs (used_by, opened_at, id) WHERE ending IS NULL;
CREATE INDEX owned_runs ON {s}.runs (owner) WHERE ending IS NULL;
CREATE INDEX closed_runs ON {s}.runs (used_by, closed_at) WHERE closed_at IS NOT NULL;

CREATE TABLE {s}.effects (
  run uuid NOT NULL, path text COLLATE "C" NOT NULL, attempt bigint NOT NULL,
  number bigint NOT NULL GENERATED ALWAYS AS IDENTITY, kind text NOT NULL, name text NOT NULL, digest text NOT NULL,
  effect text NOT NULL, arguments text, intent_at bigint NOT NULL, delivered text, due bigint,
  status text, value text, outcome_at bigint, PRIMARY KEY (run, path, attempt)
) WITH (fillfactor = 80);

CREATE TABLE {s}.leases (
  owner text COLLATE "C" PRIMARY KEY, renewed_at bigint NOT NULL, until bigint NOT NULL
) WITH (fillfactor = 50);
"""

RUNS = [run_key("answered"), run_key("late", '"b"'), run_key("doubtful", '"c"'), run_key("odd", '"d"'), run_key("open")]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as made:
        yield made


@pytest.fixture
def new(server: PostgresServer) -> Place:
    """A store of this release, with runs."""
    place = Place(server)
    with place.store() as store:
        ends = ["end", END.replace("in_doubt", "deadline"), END, '{"reason":"in_doubt"}']
        for number, (run, end) in enumerate(zip(RUNS, ends, strict=False)):
            store.do(replace(opening(run), event_time=number))
            store.do(Intend(run, 1, attempt()._replace(effect="once")))
            if number != 2:
                store.do(Record(run, "0", 1, "ok", "1"))
            store.do(Close(run, 1, end, "session", {1: "deadline", 2: "in_doubt"}.get(number)))
            store.clock.now += 1
        store.do(opening(RUNS[-1]))
    return place


@pytest.fixture
def old(new: Place) -> Place:
    """A store of the release before, with the same runs."""
    place = Place(new.server)
    place.sql("CREATE SCHEMA {s}")
    place.sql(TABLES)
    place.sql("INSERT INTO {s}.meta VALUES ('identity', 'old'), ('schema_version', '1')")
    listed = "SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
    for table in ("heads", "runs", "effects", "leases"):
        ((columns,),) = place.sql(listed, f"{place.schema}.{table}")
        columns = columns.replace("number, ", "")
        place.sql(f"INSERT INTO {{s}}.{table} ({columns}) SELECT {columns} FROM {new.schema}.{table}")
    return place


def layout(place: Place) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """Columns, wherever they stand, and indexes."""
    columns = place.sql(
        "SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name "
        "FROM information_schema.columns WHERE table_schema = '{s}'"
    )
    indexes = place.sql("SELECT replace(indexdef, '{s}', 's') FROM pg_indexes WHERE schemaname = '{s}'")
    return set(columns), set(indexes)


def test_an_old_schema_becomes_like_a_new_one(old: Place, new: Place) -> None:
    assert layout(old) != layout(new)
    with old.store() as store:
        assert store.ledger.identity == "old"
    assert layout(old) == layout(new)
    assert old.sql("SELECT value FROM {s}.meta WHERE name = 'schema_version'") == [("2",)]


def test_runs_of_an_old_schema_are_what_they_were(old: Place, new: Place) -> None:
    reading = [
        *map(Load, RUNS),
        ReadHead(RUNS[0].head),
        FindRuns(),
        FindRuns(which="doubtful"),
        FindRuns(which="failed"),
    ]
    with old.store() as store, new.store() as other:
        answers = store.ledger.apply(reading)
        assert answers == other.ledger.apply(reading)
    doubtful = answers[-2]
    assert isinstance(doubtful, FoundRuns)
    assert [(run.key, run.reason) for run in doubtful.runs] == [(RUNS[2], "in_doubt")]


def test_runs_of_an_old_schema_can_be_resolved_pruned_and_gone_on_with(old: Place) -> None:
    with old.store() as store:
        store.clock.now += 1_000
        prune = Prune("scope", "fraud", 10, 10)
        assert store.do(prune) == PruneDone(3, 0)
        store.expect(Resolved, Resolve(RUNS[2], Resolution("0", 1, "ok", "1", "operator")))
        assert [store.do(prune) for _ in range(2)] == [PruneDone(1, 3), PruneDone(0, 1)]
        assert store.do(opening(RUNS[0])) == TooOld(0)
        opened = store.expect(Opened, opening(RUNS[-1], "worker-2"))
        assert (opened.run.opened_at, opened.session) == (NOW + 4, "session")
        assert store.expect(Closed, Close(RUNS[-1], opened.run.epoch, "end", None)).session_version == 2


def test_eight_processes_bring_the_schema_up_to_date_at_once(old: Place, new: Place) -> None:
    answers = race(PostgresLedger(old.url), [[[Renew(f"worker-{racer}"), Load(RUNS[0])]] for racer in range(8)])
    assert len({str(loaded) for _, loaded in answers[0]}) == 1
    assert layout(old) == layout(new)


def test_a_schema_is_brought_up_to_date_wholly_or_not_at_all(old: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout(old)
    monkeypatch.setattr(postgres_schema, "_HORIZONS", "SELECT 1 / 0")
    with pytest.raises(LedgerError, match="division by zero"):
        PostgresLedger(old.url).open()
    assert layout(old) == before
    monkeypatch.undo()
    with old.store() as store:
        store.complete(run_key("new", '"new"'))


def test_who_may_not_change_the_tables_is_told_who_may(old: Place) -> None:
    guest = f"guest_{uuid.uuid4().hex}"
    old.sql(f"CREATE ROLE {guest} LOGIN PASSWORD 'hidden-word'")
    old.sql(f"GRANT USAGE ON SCHEMA {{s}} TO {guest}")
    grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {{s}} TO {guest}"
    old.sql(grant)
    ledger = PostgresLedger(f"{old.server.url('postgres', guest, 'hidden-word')}?schema={old.schema}")
    try:
        with pytest.raises(LedgerError, match=r"version 1, and this user may not .* owner of its tables, then GRANT"):
            ledger.open()
        with old.store():
            pass
        with pytest.raises(LedgerError, match="may not read and write horizons; GRANT"):
            ledger.open()
        old.sql(grant)
        ledger.open()
        ledger.close()
    finally:
        old.sql(f"DROP OWNED BY {guest}")
        old.sql(f"DROP ROLE {guest}")
