"""Runs on a PostgreSQL server that is full, that forbids writing, or that loses connections."""

from collections.abc import Iterator, Sequence

import pytest
from agents_under_test import Event, Gates
from postgres_server import Place, running_server
from troubled_runs import LARGE, Attempts, start, until

from beam_agents.engine.worker import Worker
from beam_agents.errors import LedgerError
from beam_agents.ledger import postgres_connection
from beam_agents.ledger.commands import Answer, Command
from beam_agents.ledger.postgres import PostgresLedger
from beam_agents.testing.wire import Wire
from runners.postgres import PostgresServer


class Counted(PostgresLedger):
    """Counts the groups that it is given."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.attempts = Attempts()

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        self.attempts.count += 1
        return super().apply(commands)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as made:
        yield made


@pytest.fixture
def place(server: PostgresServer) -> Place:
    return Place(server)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def refuse(place: Place, event: str, code: str) -> None:
    """Has the server refuse to write effects."""
    place.sql(
        "CREATE FUNCTION {s}.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"
    )
    place.sql(f"CREATE TRIGGER refused BEFORE {event} ON {{s}}.effects FOR EACH ROW EXECUTE FUNCTION {{s}}.refuse()")


@pytest.mark.parametrize("code", ["53100", "25006"], ids=["full", "read-only"])
def test_nothing_is_called_whose_intent_cannot_be_written(worker: Worker, place: Place, code: str) -> None:
    gates, ledger = Gates(), Counted(place.url)
    hosted, handle = start(worker, gates, ledger)
    refuse(place, "INSERT", code)
    ledger.attempts.begin()
    gates.open("plan")
    until(lambda: hosted.host.ledger.down_since is not None and ledger.attempts.count >= 4)
    assert (gates.calls["hold"], handle.done.done()) == (0, False)
    ledger.attempts.check()
    place.sql("DROP TRIGGER refused ON {s}.effects")
    assert handle.done.result(30).end.output == len(LARGE)
    assert gates.calls == {"plan": 1, "hold": 1}


def test_an_outcome_that_cannot_be_written_is_kept_until_it_can(worker: Worker, place: Place) -> None:
    gates, ledger = Gates(), Counted(place.url)
    gates.shut("hold")
    hosted, handle = start(worker, gates, ledger)
    gates.open("plan")
    gates.wait_for("hold")
    refuse(place, "UPDATE", "53100")
    ledger.attempts.begin()
    gates.open("hold")
    until(lambda: hosted.host.ledger.down_since is not None and ledger.attempts.count >= 4)
    assert not handle.done.done()
    ledger.attempts.check()
    place.sql("DROP TRIGGER refused ON {s}.effects")
    assert handle.done.result(30).end.output == len(LARGE)
    assert gates.calls == {"plan": 1, "hold": 1}


def test_rights_that_were_taken_away_end_the_run_typed(worker: Worker, place: Place) -> None:
    gates, ledger = Gates(), Counted(place.url)
    hosted, handle = start(worker, gates, ledger)
    refuse(place, "INSERT", "42501")
    ledger.attempts.begin()
    gates.open("plan")
    error = handle.done.exception(30)
    assert isinstance(error, LedgerError)
    assert "42501" in str(error)
    assert gates.calls["hold"] == 0
    ledger.attempts.check()
    place.sql("DROP TRIGGER refused ON {s}.effects")
    hosted.host.forget(handle.run)
    assert hosted.run(Event(id="1")).end.output == len(LARGE)
    assert gates.calls["hold"] == 1


def test_a_server_that_says_nothing_and_loses_an_answer_is_waited_for(
    worker: Worker, place: Place, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    with Wire("127.0.0.1", server.port) as wire:
        ledger = Counted(place.through(wire.port))
        hosted, handle = start(worker, gates, ledger)
        ledger.attempts.begin()
        monkeypatch.setattr(postgres_connection, "ANSWER_SECONDS", 0.2)
        wire.freeze()
        gates.open("plan")
        until(lambda: hosted.host.ledger.down_since is not None)
        assert (gates.calls["hold"], handle.done.done()) == (0, False)
        ledger.attempts.check()
        monkeypatch.undo()
        wire.lose_answer(b"COMMIT\0")
        wire.thaw()
        assert handle.done.result(60).end.output == len(LARGE)
        assert gates.calls == {"plan": 1, "hold": 1}
        worker.close()
