"""Runs on an SQLite file that is full, that may not be written, or that is locked for long."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from agents_under_test import Event, Gates
from troubled_runs import LARGE, Attempts, start, until

from beam_agents import FailureReason
from beam_agents.engine.worker import Worker
from beam_agents.errors import LedgerError
from beam_agents.ledger import SqliteLedger
from beam_agents.ledger.commands import Answer, Command

FULL = ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000")
FORBIDDEN = ("PRAGMA query_only = ON", "PRAGMA query_only = OFF")
"""What brings a trouble about, and what ends it."""


class Troubled(SqliteLedger):
    """Has its connection spoilt by a statement before the next group."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.attempts = Attempts()
        self.next: list[str] = []

    def apply(self, commands: Sequence[Command]) -> list[Answer]:
        self.attempts.count += 1
        assert self._connection is not None
        while self.next:
            self._connection.execute(self.next.pop(0))
        return super().apply(commands)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Troubled:
    return Troubled(tmp_path / "ledger.db")


@pytest.mark.parametrize("trouble", [FULL, FORBIDDEN], ids=["full", "forbidden"])
def test_nothing_is_called_whose_intent_cannot_be_written(
    worker: Worker, ledger: Troubled, trouble: tuple[str, str]
) -> None:
    gates = Gates()
    hosted, handle = start(worker, gates, ledger)
    ledger.attempts.begin()
    ledger.next.append(trouble[0])
    gates.open("plan")
    until(lambda: hosted.host.ledger.down_since is not None and ledger.attempts.count >= 4)
    assert (gates.calls["hold"], handle.done.done()) == (0, False)
    ledger.attempts.check()
    ledger.next.append(trouble[1])
    assert handle.done.result(30).end.output == len(LARGE)
    assert gates.calls == {"plan": 1, "hold": 1}
    assert hosted.host.ledger.down_since is None


@pytest.mark.parametrize("trouble", [FULL, FORBIDDEN], ids=["full", "forbidden"])
def test_an_outcome_that_cannot_be_written_is_kept_until_it_can(
    worker: Worker, ledger: Troubled, trouble: tuple[str, str]
) -> None:
    gates = Gates()
    gates.shut("hold")
    hosted, handle = start(worker, gates, ledger)
    gates.open("plan")
    gates.wait_for("hold")
    ledger.attempts.begin()
    ledger.next.append(trouble[0])
    gates.open("hold")
    until(lambda: hosted.host.ledger.down_since is not None and ledger.attempts.count >= 4)
    assert not handle.done.done()
    ledger.attempts.check()
    ledger.next.append(trouble[1])
    assert handle.done.result(30).end.output == len(LARGE)
    assert gates.calls == {"plan": 1, "hold": 1}


def test_a_run_whose_time_is_over_while_the_disk_is_full_ends_when_there_is_room(
    worker: Worker, ledger: Troubled
) -> None:
    gates = Gates()
    _, handle = start(worker, gates, ledger, wall_clock=1)
    over = time.monotonic() + 1.2
    ledger.next.append(FULL[0])
    gates.open("plan")
    until(lambda: time.monotonic() > over)
    assert not handle.done.done()
    ledger.attempts.check()
    ledger.next.append(FULL[1])
    ended = handle.done.result(30)
    assert ended.end.reason is FailureReason.DEADLINE
    assert gates.calls["hold"] == 0


def test_a_file_that_nobody_lets_us_write_ends_the_run_typed(
    worker: Worker, ledger: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    hosted, handle = start(worker, gates, ledger)
    ledger.attempts.begin()
    ledger.next.append(FORBIDDEN[0])
    monkeypatch.setattr(os, "access", lambda *_: False)
    gates.open("plan")
    error = handle.done.exception(30)
    monkeypatch.undo()
    assert isinstance(error, LedgerError)
    assert "no permission to read and write" in str(error)
    assert gates.calls["hold"] == 0
    ledger.attempts.check()
    ledger.next.append(FORBIDDEN[1])
    hosted.host.forget(handle.run)
    assert hosted.run(Event(id="1")).end.output == len(LARGE)
    assert gates.calls["hold"] == 1


def test_a_file_that_is_locked_for_long_is_waited_for(worker: Worker, ledger: Troubled) -> None:
    gates = Gates()
    hosted, handle = start(worker, gates, ledger)
    ledger.attempts.begin()
    ledger.next.append("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(ledger.url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        gates.open("plan")
        until(lambda: hosted.host.ledger.down_since is not None and ledger.attempts.count >= 4)
        assert (gates.calls["hold"], handle.done.done()) == (0, False)
        ledger.attempts.check()
        other.execute("COMMIT")
    assert handle.done.result(30).end.output == len(LARGE)
    assert gates.calls == {"plan": 1, "hold": 1}


LIMITED = """
import resource, sys
from beam_agents.ledger import LedgerUnavailable, SqliteLedger
from beam_agents.ledger.commands import Intend, Load
from beam_agents.testing.ledger_store import attempt, opening, run_key
ledger = SqliteLedger(sys.argv[1])
ledger.open()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))
ledger.apply([opening(run_key())])
written = 0
try:
    while True:
        ledger.apply([Intend(run_key(), 1, attempt(f"{written}" + "x" * 50_000))])
        written += 1
except LedgerUnavailable as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
(loaded,) = ledger.apply([Load(run_key())])
print(len(loaded.effects) - written)
ledger.apply([Intend(run_key(), 1, attempt(f"{written}" + "x" * 50_000))])
ledger.close()
"""


def test_a_file_system_that_takes_no_more_is_unavailable_until_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["LedgerUnavailable", "0"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
