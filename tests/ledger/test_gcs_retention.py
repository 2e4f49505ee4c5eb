import time
from contextlib import closing
from dataclasses import replace

import pytest

pytest.importorskip("google.auth")

import gcs_kit
import gcs_prune_kit
from gcs_kit import folder_of, names_in, needs_server, opened
from gcs_proxy import Proxy
from gcs_prune_kit import DAY, HOUR, PRUNE, SWEEP, kinds_in, work

from beam_agents.ledger.base import LEASE_SECONDS
from beam_agents.ledger.commands import (
    Close,
    Command,
    Fenced,
    HeadIs,
    Intend,
    Load,
    Loaded,
    Opened,
    Pruned,
    PruneDone,
    ReadHead,
    Record,
    Renew,
    TooOld,
)
from beam_agents.ledger.gcs import GcsLedger
from beam_agents.testing.ledger_store import Store, attempt, opening, run_key
from runners.fake_gcs import FakeGcs

server, proxy, url, store = gcs_kit.server, gcs_kit.proxy, gcs_kit.url, gcs_kit.store
swept_at_once = gcs_prune_kit.swept_at_once
pytestmark = [needs_server, pytest.mark.timeout(600)]  # some tests make thousands of requests

FORGET = replace(PRUNE, tombstones_for=DAY)


# ---- what is freed ----


def test_pruning_frees_logs_and_journals_and_forgetting_the_rest(
    server: FakeGcs, store: Store, url: str, swept_at_once: None
) -> None:
    folder = folder_of(server, url)
    runs = [run_key(f"r{number}", f'"k{number % 2}"') for number in range(6)]
    for run in runs:
        work(store.ledger, run)
    with closing(opened(url, server.address, store.clock)) as other:  # so that everything is tidied
        store.ledger.close()
        before = kinds_in(folder)
        assert (before["log"], before["runs"], before["closed"]) == (6 * 8, 6, 6)
        size = sum(path.stat().st_size for path in (folder / "runs").rglob("*") if path.is_file())
        store.clock.now += 2 * DAY
        assert other.apply([PRUNE]) == [PruneDone(6, 0)]
        always = {"heads": 2, "horizons": 1, "leases": 1, "ledger.json": 1}
        assert kinds_in(folder) == {**always, "runs": 6, "tombstones": 6}
        assert sum(path.stat().st_size for path in (folder / "runs").rglob("*") if path.is_file()) < size / 3
        assert other.apply([FORGET]) == [PruneDone(0, 6)]
        assert other.apply([PRUNE]) == [PruneDone(0, 0)]
        assert kinds_in(folder) == always
        assert [type(answer) for answer in other.apply([opening(run) for run in runs])] == [TooOld] * 6


def test_reading_a_key_costs_the_same_however_much_was_pruned(
    server: FakeGcs, store: Store, url: str, swept_at_once: None
) -> None:
    requests = []
    for round_number in range(3):
        for number in range(10):
            work(store.ledger, run_key(f"{round_number}-{number}"), calls=1, event_time=round_number)
        store.clock.now += 2 * DAY
        assert store.do(FORGET) == PruneDone(10, 10 if round_number else 0)
        with closing(opened(url, server.address, store.clock)) as reader:
            before = reader.requests
            (head,) = reader.apply([ReadHead(run_key().head)])
            assert isinstance(head, HeadIs)
            assert head.head is not None
            assert head.head.session_version == 10 * (round_number + 1)
            requests.append(reader.requests - before)
    assert requests == [4, 4, 4]


def test_the_log_of_a_key_with_an_open_run_goes_up_to_that_run(
    server: FakeGcs, store: Store, url: str, swept_at_once: None
) -> None:
    work(store.ledger, run_key("a"))
    store.do(opening(run_key("b")))
    store.do(Intend(run_key("b"), 1, attempt()))
    store.clock.now += 2 * DAY
    assert store.do(PRUNE) == PruneDone(1, 0)
    assert len(names_in(folder_of(server, url) / "log")) == 2
    with closing(opened(url, server.address, store.clock)) as reader:
        (loaded,) = reader.apply([Load(run_key("b"))])
        assert isinstance(loaded, Loaded)
        assert loaded.run == store.load(run_key("b"))
        assert [effect.path for effect in loaded.effects] == ["0"]
    store.do(Close(run_key("b"), 1, "end", "newer"))
    assert store.expect(HeadIs, ReadHead(run_key().head)).head is not None
    assert store.do(opening(run_key("a"))) == Pruned(store.load(run_key("a")))


def test_entries_stay_until_no_worker_can_be_fooled(
    server: FakeGcs, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(server, url)
    work(store.ledger, run_key())
    store.clock.now += 2 * DAY
    assert store.do(PRUNE) == PruneDone(1, 0)
    assert (kinds_in(folder)["log"], kinds_in(folder)["sweeps"]) == (8, 1)
    assert store.do(PRUNE) == PruneDone(0, 0)
    assert kinds_in(folder)["log"] == 8
    monkeypatch.setattr(SWEEP, -10.0)
    assert store.do(PRUNE) == PruneDone(0, 0)
    assert not {"log", "sweeps"} & set(kinds_in(folder))


def test_what_a_run_and_its_pruning_cost(server: FakeGcs, store: Store, url: str, swept_at_once: None) -> None:
    def cost(*commands: Command) -> tuple[int, int, int, int]:
        ledger = store.ledger
        assert isinstance(ledger, GcsLedger)
        assert ledger._heads is not None
        before, ledger._identity_seen = replace(ledger.traffic), time.monotonic()
        ledger.apply(commands)
        ledger._heads.settle()
        after = ledger.traffic
        reads, writes = after.reads - before.reads, after.writes - before.writes
        return reads, writes, after.lists - before.lists, after.deletes - before.deletes

    run = run_key()
    # Marker, lease, entry; entry; entry; marker, entry, the run's object, checkpoint and the open run's marker.
    assert cost(opening(run)) == (2, 3, 0, 0)
    assert cost(Intend(run, 1, attempt())) == (0, 1, 0, 0)
    assert cost(Record(run, "0", 1, "ok", "1")) == (0, 1, 0, 0)
    assert cost(Close(run, 1, "end", "session")) == (0, 4, 0, 1)
    store.clock.now += 2 * DAY
    assert cost(opening(run_key("next"))) == (1, 3, 0, 0)
    assert cost(Close(run_key("next"), 1, "end", None)) in ((0, 4, 0, 1), (0, 3, 0, 1))
    reads, writes, lists, deletes = cost(PRUNE)
    assert reads + writes + lists < 20
    assert deletes == 6 + 1  # the log of both runs, and a marker


# ---- sleepers ----


@pytest.fixture
def sleeper(server: FakeGcs, proxy: Proxy, store: Store, url: str, swept_at_once: None) -> Store:
    """A worker that has a run, which another one took over, ended and pruned while this one slept."""
    run = run_key()
    ledger = opened(url, proxy.address, store.clock)
    ledger.apply([opening(run, "sleeper"), Intend(run, 1, attempt("0"))])
    store.clock.now += LEASE_SECONDS + 1
    store.expect(Opened, opening(run, "worker-2"))
    store.do(Record(run, "0", 1, "ok", "1"))
    store.do(Close(run, 2, "end", "session"))
    work(store.ledger, run_key("next"), session="newest")
    store.clock.now += 2 * DAY
    assert store.do(PRUNE) == PruneDone(2, 0)
    assert names_in(folder_of(server, url) / "log") == []
    return Store(ledger, store.clock)


def wake_up_at(proxy: Proxy, method: str) -> None:
    """Two hours go by between the sleeper's decision to ask and its request to the log."""

    def fault(number: int, asked: str, path: str) -> None:
        if asked == method and "%2Flog%2F" in path:
            proxy.seconds_ahead = 2 * HOUR

    proxy.fault = fault


@pytest.mark.parametrize("awake", ["before", "in the middle"])
@pytest.mark.parametrize(
    "command",
    [
        Intend(run_key(), 1, attempt("1")),
        Close(run_key(), 1, "another end", "another session"),
        Intend(run_key(), 1, attempt("0")),
    ],
    ids=["intent", "close", "again"],
)
def test_a_worker_that_slept_through_a_prune_is_fenced(
    server: FakeGcs,
    proxy: Proxy,
    store: Store,
    sleeper: Store,
    url: str,
    command: Command,
    awake: str,
) -> None:
    if awake == "before":
        proxy.seconds_ahead = 2 * HOUR
        sleeper.do(Renew("sleeper"))
    else:
        # The intent that is there already writes nothing: only a look at the log tells.
        wake_up_at(proxy, "GET" if command == Intend(run_key(), 1, attempt("0")) else "POST")
    tombstone = store.load(run_key())
    assert sleeper.do(command) == Fenced(tombstone)
    proxy.fault = lambda *_: None
    with closing(opened(url, server.address, store.clock)) as reader:
        assert reader.apply([Load(run_key()), Load(run_key("next"))]) == [
            Loaded(tombstone),
            Loaded(store.load(run_key("next"))),
        ]
    assert store.expect(HeadIs, ReadHead(run_key().head)) == sleeper.expect(HeadIs, ReadHead(run_key().head))
    # What the sleeper left in the log goes with the next prune.
    work(store.ledger, run_key("later"))
    sleeper.ledger.close()
    store.clock.now += 2 * DAY
    assert store.do(PRUNE) == PruneDone(1, 0)
    assert names_in(folder_of(server, url) / "log") == []


def test_a_worker_that_slept_through_a_prune_opens_no_run_again(
    proxy: Proxy, store: Store, sleeper: Store, url: str
) -> None:
    store.clock.now += DAY
    assert store.do(FORGET) == PruneDone(0, 2)
    wake_up_at(proxy, "GET")
    answers = sleeper.ledger.apply([opening(run_key("next"), "sleeper")])
    assert [type(answer) for answer in answers] == [TooOld]
    assert store.expect(Loaded, Load(run_key("next"))) == Loaded(None)
