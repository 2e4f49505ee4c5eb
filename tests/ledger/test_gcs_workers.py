import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

pytest.importorskip("google.auth")

import gcs_kit
from gcs_kit import needs_server, opened

from beam_agents.ledger.base import LEASE_SECONDS, Ledger
from beam_agents.ledger.commands import (
    Answer,
    Busy,
    Close,
    Closed,
    Command,
    Fenced,
    FindClosed,
    FindOrphans,
    FindRuns,
    HeadIs,
    Intend,
    Load,
    Open,
    Opened,
    OtherOpen,
    Prune,
    ReadHead,
    ReadHorizon,
    Record,
    Recorded,
    Release,
    Renew,
    Resolve,
    Summarize,
)
from beam_agents.ledger.gcs import GcsLedger
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.ledger.records import Head, Resolution, RunKey
from beam_agents.testing.ledger_store import FakeClock, Store, attempt, opening, run_key
from runners.fake_gcs import FakeGcs

server, url, store = gcs_kit.server, gcs_kit.url, gcs_kit.store
pytestmark = pytest.mark.timeout(600)  # some tests make thousands of requests


# ---- several workers ----


@needs_server
def test_reporters_that_race_agree_on_late_outcomes(server: FakeGcs, store: Store, url: str) -> None:
    runs = [run_key("a", f'"k{number}"') for number in range(3)]
    for run in runs:
        store.do(opening(run))
        store.do(Intend(run, 1, attempt("0")))
        store.do(Close(run, 1, "end", None))
    store.do(opening(runs[1]._replace(run_id="b")))
    store.complete(runs[2]._replace(run_id="b"))
    store.do(opening(runs[2]._replace(run_id="c")))
    barrier = threading.Barrier(6)

    def report(number: int) -> list[Answer]:
        with closing(opened(url, server.address, store.clock)) as ledger:
            barrier.wait(30)
            return ledger.apply([Record(run, "0", 1, "ok", str(number)) for run in runs])

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(report, range(6)))
    for run, recorded in zip(runs, zip(*answers, strict=True), strict=True):
        assert sum(isinstance(answer, Recorded) and answer.new for answer in recorded) == 1
        assert len({answer.effect.value for answer in recorded if isinstance(answer, Recorded)}) == 1
        closed = store.expect(Closed, opening(run, "worker-9"))
        assert [effect.value for effect in closed.effects] == [recorded[0].effect.value]


@needs_server
def test_a_worker_that_remembers_too_little_is_told_the_truth(server: FakeGcs, store: Store, url: str) -> None:
    run = run_key()
    with closing(opened(url, server.address, store.clock)) as other:
        ledger = Store(other, store.clock)
        ledger.expect(Opened, opening(run, "worker-2"))
        ledger.do(Intend(run, 1, attempt("0")))
        store.clock.now += LEASE_SECONDS + 1
        taken = store.expect(Opened, opening(run, "worker-1"))
        store.do(Record(run, "0", 1, "ok", "1"))
        assert ledger.expect(Fenced, Intend(run, 1, attempt("0"))).run == replace(taken.run, stalls=0)
        store.do(Close(run, 2, "end", "session"))
        store.complete(run_key("b"), "next")
        assert ledger.expect(Recorded, Record(run, "0", 1, "failed", "2")).effect.value == "1"
        closed = ledger.expect(Closed, opening(run, "worker-2"))
        assert (closed.run.end, closed.session_version, closed.session) == ("end", 2, "next")
        with pytest.raises(LookupError):
            ledger.do(Record(run, "7", 1, "ok", "1"))
        assert ledger.expect(HeadIs, ReadHead(run.head)).head == store.head(run.head)


@needs_server
def test_a_long_run_is_taken_over_whole(server: FakeGcs, store: Store, url: str) -> None:
    store.do(opening(run_key()))
    for number in range(40):
        store.do(Intend(run_key(), 1, attempt(str(number))))
        store.do(Record(run_key(), str(number), 1, "ok", str(number)))
    with closing(opened(url, server.address, store.clock)) as other:
        assert isinstance(other.apply([opening(run_key(), "worker-2")])[0], Busy)
        store.clock.now += LEASE_SECONDS + 1
        (taken,) = other.apply([opening(run_key(), "worker-2")])
        assert isinstance(taken, Opened)
        assert [effect.value for effect in taken.effects] == [str(number) for number in range(40)]


@needs_server
def test_states_that_were_forgotten_are_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_agents.ledger.gcs_states._REMEMBERED_HEADS", 2)
    runs = [run_key("run", f'"k{number}"') for number in range(5)]
    for run in runs:
        store.do(opening(run))
    for number, run in enumerate(runs):
        store.do(Intend(run, 1, attempt(str(number))))
    for number, run in enumerate(runs):
        closed = store.expect(Closed, Close(run, 1, "end", None))
        assert [effect.path for effect in closed.effects] == [str(number)]


# ---- against the ledger in memory ----


def random_command(choice: random.Random, runs: Sequence[RunKey], scope_wide: bool) -> Command:
    run, owner, epoch, path = choice.choice(runs), choice.choice("vwx"), choice.randint(1, 3), choice.choice("012")
    commands: list[Command] = [
        Open(run, "event", choice.choice(["digest"] * 9 + ["other"]), owner, nonce=choice.choice(["", "n"])),
        Open(run, "event", "digest", owner, session_version=choice.randint(0, 3), session=choice.choice([None, "s"])),
        Open(run, "event", "digest", owner, event_time=choice.randint(1, 9)),
        Intend(run, epoch, attempt(path)),
        Intend(run, 1, attempt(path)),
        Record(run, path, 1, "ok", str(choice.random())),
        Close(run, epoch, f"end {choice.random()}", f"session {choice.random()}"),
        Close(run, 1, "failure", None, choice.choice(["deadline", "in_doubt"])) if scope_wide else Load(run),
        Release(run, epoch),
        Renew(owner),
        Load(run),
        ReadHead(run.head),
    ]
    if scope_wide:
        commands += [FindOrphans("scope", "fraud", 3), FindClosed("scope", "fraud", 9.0)]
        commands += [Prune("scope", "fraud", choice.choice([5.0, 20.0]), choice.choice([10.0, 60.0]), limit=3)] * 2
        commands += [FindRuns(which=choice.choice(["all", "open", "doubtful", "failed"])), Summarize()]
        commands += [ReadHorizon("scope", "fraud"), Resolve(run, Resolution(path, 1, "ok", "1", "operator"))]
    return choice.choice(commands)


def answers_of(ledger: Ledger, commands: Sequence[Command]) -> list[Answer] | str:
    try:
        answers = ledger.apply(commands)
    except LookupError:
        return "no intent"
    # A worker whose first try came too late has renewed its lease by it, though it opens nothing.
    return [replace(answer, until=0.0) if isinstance(answer, OtherOpen) else answer for answer in answers]


def let_time_go_by(worker: GcsLedger) -> None:
    """So much that everything is tidied, and that nothing of what it remembers is fresh."""
    assert worker._heads is not None
    worker._heads.settle()
    for state in worker._heads._states._remembered.values():
        state.fresh_at = float("-inf")


@needs_server
@pytest.mark.parametrize("seed", range(12))
def test_workers_that_take_turns_answer_like_the_ledger_in_memory(
    server: FakeGcs, url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_agents.ledger.gcs_sweep.KEPT_SECONDS", -10.0)
    choice, clock = random.Random(seed), FakeClock()
    model = MemoryLedger(clock=clock)
    runs = [run_key(run_id, key) for key in ('"k"', '"l"') for run_id in "abc"]
    with closing(opened(url, server.address, clock)) as one, closing(opened(url, server.address, clock)) as two:
        for turn in range(100):
            of_key = choice.choice([runs[:3], runs[3:]])
            commands = [random_command(choice, of_key, scope_wide=True)]
            if choice.random() < 0.4:
                clock.now += LEASE_SECONDS + 1
            else:
                clock.now += 1.5
                renewals = [Renew(owner) for owner in "vwx"]
                assert one.apply(renewals) == model.apply(renewals)
                # No outcomes, which may fail: memory takes nothing back.
                more = (random_command(choice, of_key, scope_wide=False) for _ in range(choice.choice([0, 0, 1, 4])))
                commands += [command for command in more if not isinstance(command, Record)]
            for worker in (one, two):
                let_time_go_by(worker)
            ledger = choice.choice([one, two])
            assert answers_of(ledger, commands) == answers_of(model, commands), (turn, commands)


@needs_server
def test_no_session_of_workers_that_race_for_a_key_is_lost(server: FakeGcs, url: str) -> None:
    def work(worker: int) -> int:
        conflicts = 0
        with closing(opened(url, server.address)) as ledger:
            for number in range(5):
                run = run_key(f"{worker}-{number}")
                deadline = time.monotonic() + 120
                while not isinstance(answer := ledger.apply([opening(run, f"worker-{worker}")])[0], Opened):
                    assert isinstance(answer, OtherOpen)
                    assert time.monotonic() < deadline
                    conflicts += 1
                ledger.apply([Close(run, 1, "end", str(int(answer.session or 0) + 1))])
        return conflicts

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(work, range(4))) > 0
    with closing(opened(url, server.address)) as ledger:
        (head,) = ledger.apply([ReadHead(run_key().head)])
        assert isinstance(head, HeadIs)
        assert head.head == Head(run_key().head, 20, "20", None)
